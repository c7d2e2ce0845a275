"""Training a preference head: a reward read off the frozen model's hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trimtab import models
from trimtab.batching import Encoded, Schedule, Spans, Where, answer_spans, layout_for
from trimtab.dials import RewardDial
from trimtab.errors import ConfigError, DataError
from trimtab.objectives.heads import DPH
from trimtab.pairs import PairSet
from trimtab.readings import Features
from trimtab.readout import Needs
from trimtab.states import Readings, pair_up
from trimtab.training.head import HeadBatch, HeadModule, HeadTrainer, stored
from trimtab.training.new_dials import new_lora
from trimtab.training.plan import Made, Run
from trimtab.training.probe import check_gradients
from trimtab.training.reference import read_reference
from trimtab.training.settings import RewardSettings
from trimtab.training.trainer import train_run

ENOUGH_ROWS = 64
"""Rows over which states are standardised where they are not all read beforehand."""


def fit_reward_head(run: Run) -> Made:
    """Train a preference head.

    Raises:
        CacheError: the feature store is damaged, or the disk has no room for it.
        DataError: several named heads, and a pair whose concept names none.
    """
    recipe, model, encoded = run.recipe, run.model, run.encoded
    settings: RewardSettings = recipe.dial
    args, live = run.arguments(), settings.features == "live"
    where: Where = "all" if settings.over == "all" else "answer"
    layout = run.layout(layout_for(model, where, encoded))
    schedule = run.schedule(layout, args)
    dial = _reward_dial(settings, model, torch.Generator().manual_seed(run.seed))
    live = live or dial.adapter is not None
    assert run.data is not None
    module = DPHModule(model, dial, recipe.objective, encoded, _heads(settings.heads, run.data))
    few = replace(encoded, rows=encoded.rows[:ENOUGH_ROWS]) if live else encoded
    states = stored(run, args, module, few)
    dial.standardise(*moments(states, answer_spans(few, dial.over)))
    if not live and not dial.learns_to_aggregate:
        module.vectors = aggregate_all(dial, states, module.spans).to(args.device)
    elif not live:
        module.stored = states
    dial.to(args.device)
    if recipe.objective.logps:
        needs = Needs(logps=True, reference_logps=recipe.objective.weight_dpo != 0)
        found = read_reference(model, encoded, needs, run.store, run.progress)
        module.reference = found.readings
    if not live and args.world_size == 1:
        schedule = whole_steps(schedule)
        args.gradient_accumulation_steps = 1
    history, extra = train_run(
        run, module, schedule, args, layout, said=module.reads, through=live, kind=HeadTrainer
    )
    if tied_at_the_end(history):
        run.progress.say(
            f"{run.named.name}: the head gives both answers of most pairs the same reward: there is "
            "nothing to learn in these states, or its pooling has saturated (then a "
            f"--train.learning-rate below {recipe.train.learning_rate:g} helps)"
        )
    return dial, extra


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


def tied_at_the_end(history: Sequence[dict[str, Any]]) -> bool:
    """Whether the rewards of most pairs were alike over the last tenth of at least ten steps."""
    last = [record["tied"] for record in history[-(len(history) // 10) :]]
    return len(history) >= 10 and sum(last) > len(last) / 2


def _reward_dial(s: RewardSettings, model: nn.Module, generator: torch.Generator) -> RewardDial:
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


def _heads(names: tuple[str, ...], data: PairSet) -> Tensor:
    """The head that each pair trains."""
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
