"""Training heads on a frozen model: from stored hidden states, the backbone run once or never.

The trainer is the one of adapters, with its planned steps, atomic checkpoints and exact resumption;
what differs are its microbatches, which name answers whose states are looked up.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trimtab import models
from trimtab.batching import (
    Batch,
    Encoded,
    Layout,
    Schedule,
    Spans,
    Where,
    answer_spans,
    collate,
    layout_for,
    unshared,
)
from trimtab.cache import Features, Store, features
from trimtab.dials import Dial, LogitsDial, RewardDial
from trimtab.dials.attach import PRESETS
from trimtab.errors import ConfigError, DataError
from trimtab.objectives.heads import DPH, IAV, HeadReadout, head_readout
from trimtab.pairs import PairSet
from trimtab.progress import SILENT, Progress
from trimtab.readout import Needs
from trimtab.sites import Site
from trimtab.states import Readings, head_site, pair_up, read_tokens
from trimtab.training.adapters import HISTORY, arguments, new_lora, planned
from trimtab.training.probe import check_gradients
from trimtab.training.recipes import Method, Recipe
from trimtab.training.reference import read_reference
from trimtab.training.settings import LogitsSettings, RewardSettings
from trimtab.training.trainer import DialTrainer, recomputing, train

CHUNK = 6 << 20
"""Logits computed at once, in entries: as float32 below the 32 MiB that `keep_freed_pages` covers."""
KEPT = 1 << 26
"""Logits kept for the backward pass; more are computed again there."""
ENOUGH_ROWS = 64
"""Rows over which states are standardised where they are not all read beforehand."""
MEASURED_ANSWERS = 32
"""Answers on which the KL of a new alignment head is measured."""


@dataclass(frozen=True)
class HeadBatch:
    """Rows of an encoded set by what heads need of them: C answers, P pairs."""

    answer_ids: Tensor  # C, over the whole set
    pair_chosen: Tensor  # P, 0..C-1
    pair_rejected: Tensor
    pair_ids: Tensor
    items: tuple[str, ...]  # of each answer, for error messages
    live: Batch | None  # where the backbone runs

    def to(self, device: torch.device | str) -> HeadBatch:
        """The same on another device."""
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor | Batch)}
        return replace(self, **moved)


def head_batch(encoded: Encoded, rows: Sequence[int], layout: Layout, live: bool) -> HeadBatch:
    """Rows of an encoded set by index. `live` also lays out their tokens, and has answers and pairs
    in the order of that layout."""
    if live:
        batch = collate(encoded, rows, layout)
        return HeadBatch(
            batch.answer_ids,
            batch.pair_chosen,
            batch.pair_rejected,
            batch.pair_ids,
            batch.items,
            batch,
        )
    answers: list[int] = []
    chosen: list[int] = []
    rejected: list[int] = []
    items: list[str] = []
    for index in rows:
        row, first = encoded.rows[index], len(answers)
        answers += range(encoded.answer_offsets[index], encoded.answer_offsets[index + 1])
        chosen += [first + c for c, _ in row.pairs]
        rejected += [first + r for _, r in row.pairs]
        items += [row.item] * len(row.answers)
    return HeadBatch(
        torch.tensor(answers),
        torch.tensor(chosen),
        torch.tensor(rejected),
        torch.tensor([i for index in rows for i in encoded.rows[index].pair_ids]),
        tuple(items),
        None,
    )


class HeadTrainer(DialTrainer):
    """The trainer of dials, on batches of heads."""

    def batch(self, indices: list[int]) -> dict[str, Any]:
        """The planned microbatch of an index."""
        (index,) = indices
        rows = self.schedule.microbatches[index]
        live: bool = self.model.live  # type: ignore[union-attr,assignment]
        batch = head_batch(self.encoded, rows, self.layout, live)
        return {"batch": batch, "step": index // self.schedule.per_step}


class HeadModule(nn.Module):
    """The frozen model, a head that is trained, the objective between them: batch in, loss out."""

    alpha = 1.0
    """At which the dial is trained."""
    spaces = None
    """Heads are trained in none."""

    def __init__(self, model: nn.Module, dial: Dial, where: Where, sites: Sequence[Site]):
        super().__init__()
        self.model, self.dial = model, dial
        self.where: Where = where
        self.sites = tuple(sites)
        self.stored: Features | None = None
        model.requires_grad_(False)

    @property
    def live(self) -> bool:
        """Whether the backbone runs."""
        return self.stored is None

    def train(self, mode: bool = True) -> HeadModule:
        """Train mode for the dial alone."""
        self.training = mode
        self.dial.train(mode)
        self.model.eval()
        return self

    def states(self, batch: HeadBatch, *, logps: bool = False) -> tuple[Tensor, Tensor, Readings]:
        """States of the batch's answers' tokens, the tokens of each, and log-probs if asked for."""
        if self.stored is not None:
            device = batch.answer_ids.device
            states, counts = self.stored.take(batch.answer_ids.cpu())
            return states.to(device), counts.to(device), Readings()
        assert batch.live is not None
        frozen = getattr(self.dial, "adapter", None) is None
        with torch.no_grad() if frozen else nullcontext():
            return read_tokens(self.model, batch.live, self.sites, self.where, logps=logps)


# ---- the alignment head -------------------------------------------------------------------------


class IAVModule(HeadModule):
    """A logits dial and its loss."""

    dial: LogitsDial

    def __init__(self, model: nn.Module, dial: LogitsDial, objective: IAV, encoded: Encoded):
        super().__init__(model, dial, "predicting", (head_site(model), *dial.sites))
        self.objective = objective
        self.after = after_head(model)
        keep_freed_pages()
        flat = [a[0 if row.prompt else 1 :] for row in encoded.rows for a in row.answers]
        self.ids = [torch.tensor(a) for a in flat]

    def forward(self, batch: HeadBatch, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each pair of a batch, and metrics."""
        readout = self.readout(batch)
        return self.objective(readout[batch.pair_chosen], readout[batch.pair_rejected])

    def readout(self, batch: HeadBatch, alpha: float = 1.0) -> HeadReadout:
        """What the head says of a batch's answers."""
        states, counts, _ = self.states(batch)
        ids = torch.cat([self.ids[i] for i in batch.answer_ids.tolist()]).to(states.device)
        size = max(1, CHUNK // self.dial.vocabulary)
        again = len(ids) * self.dial.vocabulary > KEPT and torch.is_grad_enabled()
        parts = []
        for part in zip(states.split(size), ids.split(size), strict=True):
            parts.append(
                checkpoint(self._tokens, *part, alpha, use_reentrant=False)
                if again
                else self._tokens(*part, alpha)
            )
        of = torch.arange(len(counts), device=states.device).repeat_interleave(counts)
        tokens: dict[str, Tensor] = {k: torch.cat([p[k] for p in parts]) for k in parts[0]}
        sums = {k: v.new_zeros(len(counts)).index_add(0, of, v) for k, v in tokens.items()}
        return HeadReadout(tokens=counts, **sums)

    def _tokens(self, states: Tensor, ids: Tensor, alpha: float) -> dict[str, Tensor]:
        with torch.no_grad():
            z = models.head_logits(self.model, states[:, 0])
            z = z if z.dtype == torch.float64 else z.float()
        h = self.dial.hidden(states)
        a = self.dial.vector(h, models.head_weight(self.model))
        moved = self.dial.moved(h)
        shift = a if alpha == 1 else alpha * a
        return head_readout(
            z,
            shift if moved is None else shift + moved,
            a,
            ids,
            after=self.after,
            arm=self.objective.preference == "arm",
            norm=self.objective.variant == "published",
        )

    @torch.no_grad()
    def kl(self, encoded: Encoded, layout: Layout) -> dict[str, float]:
        """KL to the bare model at the named strengths, in nats a token of the training answers."""
        rows: list[int] = []
        while rows != list(range(len(encoded.rows))) and (
            sum(len(encoded.rows[i].answers) for i in rows) < MEASURED_ANSWERS
        ):
            rows.append(len(rows))
        found = {}
        for alpha in PRESETS.values():
            total, tokens = 0.0, 0
            for row in rows if alpha else ():
                batch = head_batch(encoded, [row], layout, self.live)
                readout = self.readout(batch.to(next(self.dial.parameters()).device), alpha)
                total, tokens = total + float(readout.kl.sum()), tokens + int(readout.tokens.sum())
            found[f"{alpha:g}"] = round(total / max(tokens, 1), 6)
        return found


def keep_freed_pages() -> None:
    """Have glibc keep what this process frees (up to 1 GiB, blocks below 32 MiB) instead of giving it
    back: logits of a few tokens are fresh pages each time otherwise, and a pass over them takes
    many times as long. Does nothing on other systems."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, at its largest
        mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


def after_head(model: Any) -> Callable[[Tensor], Tensor] | None:
    """What a model does to its head's output (scaling, soft-capping), as a function of `[M, V]`; None
    where that is nothing. It is the model's own code, run with its decoder and its head replaced."""
    vocabulary, _ = models.head_shape(model)
    generator = torch.Generator().manual_seed(0)
    probe = 20 * torch.randn(3, vocabulary, generator=generator)
    probe = probe.to(next(model.parameters()))
    with torch.no_grad():
        if torch.equal(_through(model, probe), probe):
            return None
    return lambda z: _through(model, z)


def _through(model: Any, z: Float[Tensor, "token vocab"]) -> Float[Tensor, "token vocab"]:
    with (
        _standing_in(model, models.head(model), z[None]),
        _standing_in(model, model.get_decoder(), _Output(z[None, :, :1])),
    ):
        return model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=z.device)).logits[0]


@contextmanager
def _standing_in(model: nn.Module, module: nn.Module, output: Any) -> Iterator[None]:
    """Another module in a module's place, which returns `output`."""

    class StandIn(nn.Module):
        def forward(self, *_: Any, **__: Any) -> Any:
            return output

    path = next(name for name, m in model.named_modules() if m is module)
    parent, _, name = path.rpartition(".")
    within = model.get_submodule(parent)._modules
    within[name] = StandIn()
    try:
        yield
    finally:
        within[name] = module


class _Output:
    """A decoder's output with nothing in it but the last hidden state."""

    def __init__(self, h: Tensor):
        self.last_hidden_state = h

    def __getattr__(self, _: str) -> None:
        return None

    def __getitem__(self, index: Any) -> Any:
        return self.last_hidden_state if index == 0 else ()


# ---- the preference head ------------------------------------------------------------------------


class DPHModule(HeadModule):
    """A reward dial and its loss."""

    dial: RewardDial

    def __init__(
        self, model: nn.Module, dial: RewardDial, objective: DPH, encoded: Encoded, heads: Tensor
    ):
        super().__init__(model, dial, dial.where, dial.sites)
        self.objective, self.spans, self.heads = objective, answer_spans(encoded, dial.over), heads
        self.reference = Readings()
        self.vectors: Tensor | None = None
        # What is trained starts the same when a run is resumed, so that this need not be saved.
        self.prior = (
            [p.detach().clone() for p in dial.parameters()] if objective.weight_prior else []
        )

    @property
    def live(self) -> bool:
        """Whether the backbone runs."""
        return self.stored is None and self.vectors is None

    def forward(self, batch: HeadBatch, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each pair of a batch, and metrics."""
        c, r = batch.pair_chosen, batch.pair_rejected
        found = Readings()
        if self.vectors is not None:
            h = self.vectors[batch.answer_ids.to(self.vectors.device)]
        else:
            states, counts, found = self.states(batch, logps=self.objective.logps)
            h = self.dial.from_tokens(states, counts, self.spans, batch.answer_ids)
        rewards = self.dial.rewards(h)
        head = self.heads.to(c.device)[batch.pair_ids]
        policy = before = None
        if self.objective.logps:
            assert batch.live is not None
            policy = pair_up(found, batch.live)
            if self.reference.logps is not None:
                at = batch.answer_ids.cpu()
                before = pair_up(Readings(self.reference.logps[at].to(c.device)), batch.live)
        # Pairs of one chosen answer and head are one list.
        group = c * len(self.dial.heads) + head
        loss, metrics = self.objective(rewards[c, head], rewards[r, head], group, policy, before)
        if self.prior:
            now = self.dial.parameters()
            away = sum(
                (p - q.to(p.device)).square().sum() for p, q in zip(now, self.prior, strict=True)
            )
            loss = loss + self.objective.weight_prior * away
        return loss, metrics


def aggregate_all(dial: RewardDial, stored: Features, where: Spans) -> Float[Tensor, "answer d"]:
    """The aggregated states of all answers, where nothing before the pooling is trained."""
    with torch.no_grad():
        return torch.cat(
            [
                dial.from_tokens(*stored.take(ids), where, ids)
                for ids in torch.arange(len(stored.counts)).split(256)
            ]
        )


def moments(stored: Features, where: Spans) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every entry of the states that count."""
    total = square = torch.zeros(())
    n = 0
    for ids in torch.arange(len(stored.counts)).split(256):
        states, counts = stored.take(ids)
        place = torch.arange(len(states)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        start, end = (t[ids].repeat_interleave(counts) for t in (where.start, where.end))
        states = states[(place >= start) & (place < end)].double()
        total, square, n = total + states.sum(0), square + states.square().sum(0), n + len(states)
    mean = total / n
    return mean, (square / n - mean.square()).clamp(min=0).sqrt()


# ---- fit ----------------------------------------------------------------------------------------


def fit_head(
    data: PairSet,
    named: Method,
    model: nn.Module,
    encoded: Encoded,
    seed: int,
    work: Path,
    out: Path | None,
    store: Store | None = None,
    progress: Progress = SILENT,
) -> tuple[Dial, dict[str, str | bytes]]:
    """Train an alignment or a preference head; the dial, and the files that are saved beside it.

    Raises:
        CacheError: the feature store is damaged, or the disk has no room for it.
        DataError: several named heads, and a pair whose concept names none.
    """
    recipe: Any = named.recipe
    settings = recipe.train
    args = arguments(settings, model, seed, work, out.name if out else named.name)
    device = args.device
    generator = torch.Generator().manual_seed(seed)
    live = recipe.dial.features == "live"
    where: Where = "predicting"
    if isinstance(recipe.dial, RewardSettings):
        where = "all" if recipe.dial.over == "all" else "answer"
    layout = layout_for(model, where, encoded)
    if settings.activation_checkpointing:
        layout = unshared(layout)  # layers that run again would add to the prefix's keys again
    schedule = planned(settings, encoded, seed, layout, args)

    def stored(module: HeadModule, part: Encoded = encoded) -> Features:
        with (
            args.main_process_first(local=False, desc="storing hidden states"),
            progress.bar("storing hidden states", part.n_answers, "answers") as update,
        ):
            return features(
                model,
                part,
                module.sites,
                module.where,
                store=store,
                command=cache_command(model, data.name, module.sites, module.where),
                progress=update,
                say=progress.say,
            )

    module: HeadModule
    if isinstance(recipe.dial, LogitsSettings):
        options = {k: getattr(recipe.dial, k) for k in ("shape", "rank", "sites", "base_head")}
        dial: Any = LogitsDial.for_model(model, generator=generator, **options).to(device)
        module = IAVModule(model, dial, recipe.objective, encoded)
        module.stored = None if live else stored(module)
    else:
        dial = _reward_dial(recipe, model, generator)
        live = live or dial.adapter is not None
        module = DPHModule(model, dial, recipe.objective, encoded, _heads(recipe, data))
        few = replace(encoded, rows=encoded.rows[:ENOUGH_ROWS]) if live else encoded
        states = stored(module, few)
        dial.standardise(*moments(states, answer_spans(few, dial.over)))
        if not live and not dial.learns_to_aggregate:
            module.vectors = aggregate_all(dial, states, module.spans).to(device)
        elif not live:
            module.stored = states
        dial.to(device)
        if recipe.objective.logps:
            needs = Needs(logps=True, reference_logps=recipe.objective.weight_dpo != 0)
            module.reference = read_reference(model, encoded, needs, store, progress).readings
        if not live and args.world_size == 1:
            schedule = whole_steps(schedule)
            args.gradient_accumulation_steps = 1
    progress.say(
        f"{named.name}: {encoded.n_pairs} pairs of {encoded.n_items} items, {schedule.steps} steps "
        f"of {schedule.pairs_per_step} pairs, {sum(p.numel() for p in dial.parameters()):,} "
        f"parameters, {'the backbone in the loop' if live else 'from stored hidden states'}"
    )
    with recomputing(model) if settings.activation_checkpointing and live else nullcontext():
        history = train(
            module,  # type: ignore[arg-type]
            encoded,
            schedule,
            args,
            layout=layout,
            checkpoint_seconds=settings.checkpoint_seconds,
            progress=progress,
            label=f"training {named.name}",
            board=out.parent / "tensorboard" / out.name if out else None,
            kind=HeadTrainer,
        )
    if isinstance(module, DPHModule) and tied_at_the_end(history):
        progress.say(
            f"{named.name}: the head gives both answers of most pairs the same reward: there is "
            "nothing to learn in these states, or its pooling has saturated (then a "
            f"--train.learning-rate below {settings.learning_rate:g} helps)"
        )
    if isinstance(module, IAVModule):
        dial.eval()
        strengths = list(PRESETS.values())
        dial.info.measured = {
            "alpha": [min(strengths), max(strengths)],
            "kl on training answers, nats a token, by alpha": module.kl(encoded, layout),
        }
    return dial, {HISTORY: "".join(json.dumps(record) + "\n" for record in history)}


def tied_at_the_end(history: Sequence[dict[str, Any]]) -> bool:
    """Whether the rewards of most pairs were alike over the last tenth of at least ten steps."""
    last = [record["tied"] for record in history[-(len(history) // 10) :]]
    return len(history) >= 10 and sum(last) > len(last) / 2


def cache_command(model: nn.Module, spec: str, sites: Sequence[Site], where: Where) -> str:
    """The command that stores hidden states."""
    named = ",".join(map(str, sites))
    return (
        f"trimtab cache --model {models.source_of(model).name} --pairs {spec} "
        f"--sites {named} --where {where}"
    )


def _reward_dial(
    recipe: Recipe[DPH, RewardSettings], model: nn.Module, generator: torch.Generator
) -> RewardDial:
    s = recipe.dial
    names = ("sites", "mix", "aggregate", "over", "pooling", "norm", "inner", "attention_heads")
    options = {k: getattr(s, k) for k in (*names, "dropout", "heads")}
    adapter = None
    if s.adapter == "lora":
        check_gradients(model)
        if reason := models.rows_depend(model):
            raise ConfigError(f"dial.adapter=lora: not on this base: {reason}")
        if s.lora.tuner != "lora":
            raise ConfigError(f"dial.lora.tuner={s.lora.tuner}: a reward dial brings a LoRA alone")
        adapter = new_lora(s.lora, model, None, generator)
    return RewardDial.for_model(model, generator=generator, adapter=adapter, **options)


def _heads(recipe: Recipe[DPH, RewardSettings], data: PairSet) -> Tensor:
    """The head that each pair trains."""
    names = recipe.dial.heads
    if len(names) == 1:
        return torch.zeros(len(data), dtype=torch.long)
    for pair in data:
        if pair.concept not in names:
            raise DataError(
                f"{pair.source or data.name}: its concept is {pair.concept!r}; with several heads, "
                f"expected one of {', '.join(names)}"
            )
    return torch.tensor([names.index(pair.concept or "") for pair in data])


def whole_steps(schedule: Schedule) -> Schedule:
    """A microbatch a step: vectors take no memory, and fewer microbatches less time."""
    k = schedule.per_step
    steps = [schedule.microbatches[i : i + k] for i in range(0, len(schedule.microbatches), k)]
    return replace(
        schedule, microbatches=tuple(tuple(r for m in s for r in m) for s in steps), per_step=1
    )
