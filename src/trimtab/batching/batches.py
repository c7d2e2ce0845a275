"""Rows as tensors, packed or padded, and the cutting of a data set into batches of like length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from trimtab.batching.tokens import Encoded, Row

Layout = Literal["packed", "padded"]


@dataclass(frozen=True)
class Batch:
    """Rows as tensors. B rows of T positions, C answers, M scored tokens, P pairs.

    A *scored* token is an answer token with a predecessor in its row. The flat `token_*` tensors
    name each: where it stands, who predicts it, which answer it belongs to.
    """

    layout: Layout
    input_ids: Int[Tensor, "B T"]
    positions: Int[Tensor, "B T"]
    segments: Int[Tensor, "B T"]  # -1 padding, 0 prompt, 1.. answers
    token_row: Int[Tensor, "M"]
    token_at: Int[Tensor, "M"]  # index of the token in its row
    token_from: Int[Tensor, "M"]  # index of the token that predicts it; itself where none does
    token_id: Int[Tensor, "M"]
    token_answer: Int[Tensor, "M"]  # 0..C-1
    token_scored: Bool[Tensor, "M"]
    token_body: Bool[Tensor, "M"]  # before the EOS that ends the answer
    token_marker: Bool[Tensor, "M"]  # that EOS
    answer_ids: Int[Tensor, "C"]  # index over the whole encoded set, for cached values
    pair_chosen: Int[Tensor, "P"]  # 0..C-1
    pair_rejected: Int[Tensor, "P"]
    pair_ids: Int[Tensor, "P"]  # index in the pair set
    items: tuple[str, ...]  # of each row, for error messages

    @property
    def n_answers(self) -> int:
        """C."""
        return len(self.answer_ids)

    def to(self, device: torch.device | str, **_: Any) -> Batch:
        """The same batch on another device."""
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


def collate(encoded: Encoded, rows: Sequence[int], layout: Layout = "packed") -> Batch:
    """Rows of an encoded set, by index, as one batch. Padding is on the right and costs nothing
    but its positions; ids at padding are 0."""
    lines: list[list[tuple[int, int, int]]] = []  # (id, position, segment) of each batch line
    token: dict[str, list[Any]] = {
        k: [] for k in ("row", "at", "from", "id", "answer", "scored", "body", "marker")
    }
    answer_ids, chosen, rejected, pair_ids, items = [], [], [], [], []
    for index in rows:
        row = encoded.rows[index]
        first = len(answer_ids)
        n_prompt = len(row.prompt)
        prompt = [(t, p, 0) for p, t in enumerate(row.prompt)]
        line = list(prompt)
        for number, answer in enumerate(row.answers):
            if layout == "padded" and number:
                lines.append(line)
                items.append(row.item)
                line = list(prompt)
            end = answer_end(answer, encoded.eos)
            segment = number + 1 if layout == "packed" else 1
            for offset, t in enumerate(answer):
                at = len(line)
                previous = at - 1 if offset else n_prompt - 1
                token["row"].append(len(lines))
                token["at"].append(at)
                token["from"].append(previous if previous >= 0 else at)
                token["id"].append(t)
                token["answer"].append(first + number)
                token["scored"].append(previous >= 0)
                token["body"].append(offset < end)
                token["marker"].append(offset == end)
                line.append((t, n_prompt + offset, segment))
        lines.append(line)
        items.append(row.item)
        answer_ids += range(
            encoded.answer_offsets[index], encoded.answer_offsets[index] + len(row.answers)
        )
        chosen += [first + c for c, _ in row.pairs]
        rejected += [first + r for _, r in row.pairs]
        pair_ids += row.pair_ids
    width = max(map(len, lines))
    grid = torch.tensor([line + [(0, 0, -1)] * (width - len(line)) for line in lines])  # B T 3
    ints = {
        k: torch.tensor(v, dtype=torch.long)
        for k, v in token.items()
        if k not in ("scored", "body", "marker")
    }
    return Batch(
        layout=layout,
        input_ids=grid[..., 0].contiguous(),
        positions=grid[..., 1].contiguous(),
        segments=grid[..., 2].contiguous(),
        **{f"token_{k}": v for k, v in ints.items()},
        token_scored=torch.tensor(token["scored"], dtype=torch.bool),
        token_body=torch.tensor(token["body"], dtype=torch.bool),
        token_marker=torch.tensor(token["marker"], dtype=torch.bool),
        answer_ids=torch.tensor(answer_ids),
        pair_chosen=torch.tensor(chosen),
        pair_rejected=torch.tensor(rejected),
        pair_ids=torch.tensor(pair_ids),
        items=tuple(items),
    )


def answer_end(answer: Sequence[int], eos: int | None) -> int:
    """Where the last EOS stands (a chat template may put a newline behind it), else the length."""
    return max((n for n, t in enumerate(answer) if t == eos), default=len(answer))


Over = Literal["answer", "last_turn", "all"]
"""Tokens that a reward reads: the answer's, those of its last turn, or the prompt's too."""


@dataclass(frozen=True)
class Spans:
    """Which of an answer's tokens are read, as places in the answer (`all`: in prompt and answer).
    What a chat template puts behind the EOS belongs to none."""

    start: Int[Tensor, "answer"]
    end: Int[Tensor, "answer"]
    """Past the last, the EOS included."""
    marker: Int[Tensor, "answer"]
    """The EOS; `end` where there is none."""


def spans(encoded: Encoded, over: Over = "answer") -> Spans:
    """Spans of all answers of an encoded set. A last turn begins after the EOS of the one before."""
    found: list[tuple[int, int, int]] = []
    for row in encoded.rows:
        for answer in row.answers:
            before = len(row.prompt) if over == "all" else 0
            marker = answer_end(answer, encoded.eos)
            turn = [n + 1 for n in range(marker) if answer[n] == encoded.eos]
            start = max(turn, default=0) if over == "last_turn" else 0
            end = min(marker + 1, len(answer))
            found.append((start, before + end, before + marker))
    return Spans(*torch.tensor(found).T)


def row_length(row: Row, layout: Layout) -> int:
    """Positions that a row takes in a batch line, for planning."""
    return row.packed_length if layout == "packed" else row.longest


def row_cost(row: Row, layout: Layout) -> int:
    """Positions that a row takes altogether."""
    return row.packed_length if layout == "packed" else row.longest * len(row.answers)


def plan_batches(
    encoded: Encoded, budget: int = 2048, layout: Layout = "packed"
) -> list[list[int]]:
    """Row indices in batches of at most `budget` padded positions, longest first.

    Rows of like length share a batch, so that little is padding. A row above the budget makes a
    batch of its own. Longest first: if memory does not suffice, that shows at once.
    """
    order = sorted(range(len(encoded.rows)), key=lambda i: -row_length(encoded.rows[i], layout))
    return fill(order, [encoded.rows[i] for i in order], budget, layout)


def fill(order: list[int], rows: list[Row], budget: int, layout: Layout) -> list[list[int]]:
    """Cut rows, in order, into runs of at most `budget` padded positions (or of a single row)."""
    batches: list[list[int]] = []
    width = lines = 0
    for index, row in zip(order, rows, strict=True):
        more = 1 if layout == "packed" else len(row.answers)
        if batches and max(width, row_length(row, layout)) * (lines + more) <= budget:
            batches[-1].append(index)
            lines += more
        else:
            batches.append([index])
            lines = more
            width = 0
        width = max(width, row_length(row, layout))
    return batches
