"""Which token positions of a batch's answers are read, one by one or averaged, and in which layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor, nn

from trimtab.batching.batches import Batch
from trimtab.batching.contrast import Contrast
from trimtab.batching.layouts import Layout, unshared
from trimtab.batching.proof import layout_of
from trimtab.batching.tokens import Encoded
from trimtab.errors import DataError
from trimtab.readout import Pool, last_tokens

Where = Literal["predicting", "answer", "all"]
"""Which token positions of an answer: those that predict its scored tokens; its own tokens, EOS
included; the prompt's and its own."""


@dataclass(frozen=True)
class Positions:
    """T positions of a batch, each belonging to an answer; those of `token_positions` are grouped by
    it."""

    row: Int[Tensor, "T"]
    at: Int[Tensor, "T"]
    answer: Int[Tensor, "T"]
    count: Int[Tensor, "answer"]


def token_positions(batch: Batch, where: Where) -> Positions:
    """Where the tokens that `where` names stand in a batch, grouped by answer."""
    keep = batch.token_scored if where == "predicting" else torch.ones_like(batch.token_scored)
    row, answer = batch.token_row[keep], batch.token_answer[keep]
    at = (batch.token_from if where == "predicting" else batch.token_at)[keep]
    if where == "all":
        if batch.layout == "shared":
            raise ValueError("the states of all prompts' beginning are computed once and not kept")
        first = torch.cat([answer.new_ones(1).bool(), answer[1:] != answer[:-1]])
        lines = row[first]  # of each answer
        prompt = (batch.segments == 0).sum(1)[lines]
        before = torch.arange(batch.n_answers, device=row.device).repeat_interleave(prompt)
        start = (prompt.cumsum(0) - prompt).repeat_interleave(prompt)
        place = torch.arange(len(before), device=row.device) - start
        order = torch.cat([before, answer]).argsort(stable=True)
        row = torch.cat([lines.repeat_interleave(prompt), row])[order]
        at, answer = torch.cat([place, at])[order], torch.cat([before, answer])[order]
    return Positions(row, at, answer, torch.bincount(answer, minlength=batch.n_answers))


def pooled_tokens(batch: Batch, pool: Pool) -> Positions:
    """The positions that `pool` averages. Raises DataError where an answer has none."""
    keep = batch.token_marker if pool == "marker" else batch.token_body
    at = batch.token_at
    if pool == "predicting":
        keep, at = keep & batch.token_scored, batch.token_from
    elif k := last_tokens(pool):
        after = torch.zeros_like(keep)  # the k-th kept token from here belongs to the same answer
        kept = keep.nonzero()[:, 0]
        after[kept[:-k]] = batch.token_answer[kept[:-k]] == batch.token_answer[kept[k:]]
        keep = keep & ~after
    answer = batch.token_answer[keep]
    count = torch.bincount(answer, minlength=batch.n_answers)
    if (count == 0).any():
        bare = batch.items[int((count == 0).nonzero()[0, 0])]
        raise DataError(f"item {bare}: an answer has no token to pool at {pool!r} positions")
    return Positions(batch.token_row[keep], at[keep], answer, count)


def layout_for(model: nn.Module, where: Where, rows: Encoded | Contrast | None = None) -> Layout:
    """The model's layout for rows, but one that keeps whole prompts where their states are read."""
    layout = layout_of(model, rows)
    return unshared(layout) if where == "all" else layout
