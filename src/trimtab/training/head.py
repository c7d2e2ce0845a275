"""What training alignment and preference heads shares: from stored hidden states, the backbone run once
or never.

The trainer is the one of adapters, with its planned steps, atomic checkpoints and exact resumption;
what differs are its microbatches, which name answers whose states are looked up.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trimtab import models
from trimtab.batching import Batch, Encoded, Layout, Where, collate
from trimtab.dials import Dial
from trimtab.readings import Features, features
from trimtab.sites import Site
from trimtab.states import Readings, read_tokens
from trimtab.training.plan import Run
from trimtab.training.trainer import DialTrainer

if TYPE_CHECKING:
    from transformers import TrainingArguments


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
        own = {f.name: getattr(batch, f.name) for f in fields(HeadBatch) if f.name != "live"}
        return HeadBatch(**own, live=batch)
    answers: list[int] = []
    pairs: list[tuple[int, int, int]] = []
    items: list[str] = []
    for index in rows:
        row, first = encoded.rows[index], len(answers)
        answers += range(encoded.answer_offsets[index], encoded.answer_offsets[index + 1])
        both = zip(row.pairs, row.pair_ids, strict=True)
        pairs += [(first + c, first + r, pair) for (c, r), pair in both]
        items += [row.item] * len(row.answers)
    chosen, rejected, ids = torch.tensor(pairs).T
    return HeadBatch(torch.tensor(answers), chosen, rejected, ids, tuple(items), None)


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

    @property
    def reads(self) -> str:
        """Where its states come from, in words."""
        return "the backbone in the loop" if self.live else "from stored hidden states"

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


def stored(
    run: Run, args: TrainingArguments, module: HeadModule, part: Encoded | None = None
) -> Features:
    """The states that a module reads, of a part of the run's pairs or of all, through the store.

    Raises:
        CacheError: the feature store is damaged, or the disk has no room for it.
    """
    part = part or run.encoded
    with (
        args.main_process_first(local=False, desc="storing hidden states"),
        run.progress.bar("storing hidden states", part.n_answers, "answers") as update,
    ):
        return features(
            run.model,
            part,
            module.sites,
            module.where,
            store=run.store,
            command=cache_command(run.model, part.name, module.sites, module.where),
            progress=update,
            say=run.progress.say,
        )


def cache_command(model: nn.Module, spec: str, sites: Sequence[Site], where: Where) -> str:
    """The command that stores hidden states."""
    named = ",".join(map(str, sites))
    return (
        f"trimtab cache --model {models.source_of(model).name} --pairs {spec} "
        f"--sites {named} --where {where}"
    )
