"""Every microbatch of a training run, decided before it starts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.batching.batches import (
    Layout,
    batch_positions,
    fill,
    row_cost,
    row_length,
    trimmed,
)
from trimtab.batching.tokens import Encoded, Row
from trimtab.errors import DataError

PADDING = 1.2
"""Microbatches are made smaller where more than this many positions a token are computed, if
they keep `LEAST` positions on average all the same: small ones compute less efficiently."""
LEAST = 200


@dataclass(frozen=True)
class Schedule:
    """Every microbatch of a training run, decided before it starts.

    Attributes:
        microbatches: row indices; `per_step` consecutive ones make an optimizer step.
        per_step: microbatches in each step, the same for all.
        pairs_per_step: what the summed loss of a step is divided by.
    """

    microbatches: tuple[tuple[int, ...], ...]
    per_step: int
    pairs_per_step: int

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return len(self.microbatches) // self.per_step

    def rows_of(self, step: int) -> list[int]:
        """The rows of an optimizer step."""
        parts = self.microbatches[step * self.per_step : (step + 1) * self.per_step]
        return [row for part in parts for row in part]


def plan_training(
    encoded: Encoded,
    *,
    pairs_per_step: int,
    epochs: float,
    seed: int,
    budget: int = 2048,
    layout: Layout = "packed",
    multiple_of: int = 1,
    max_steps: int | None = None,
) -> Schedule:
    """Shuffle rows anew each epoch and cut them into steps and microbatches.

    A step takes rows until the next would exceed `pairs_per_step` pairs; the stream runs on over
    the end of an epoch, so that the last step is as full as the others. Within a step rows are
    sorted by length and cut into microbatches, equally many in every step (a multiple of
    `multiple_of`, the number of processes), none empty. They stay within `budget` padded positions
    unless a single row is longer, or the step with the fewest rows has fewer than another needs
    microbatches; where padding would exceed `PADDING`, there are more of them. Since the loss is a
    sum over pairs divided by `pairs_per_step`, microbatching never changes the gradient.

    Raises:
        DataError: a row has more pairs than a step, or there are fewer rows in a step than
            processes.
    """
    widest = max(len(row.pairs) for row in encoded.rows)
    pairs_per_step = min(pairs_per_step, encoded.n_pairs)
    if widest > pairs_per_step:
        raise DataError(
            f"{encoded.name}: an item has {widest} pairs, more than "
            f"pairs_per_step={pairs_per_step}; raise it"
        )
    rows = trimmed(encoded, layout)
    rng = random.Random(seed)
    target = max(1, round(epochs * encoded.n_pairs / pairs_per_step))
    if max_steps is not None:
        target = min(target, max_steps)
    steps: list[list[int]] = [[]]
    pairs_in = 0
    while True:
        order = list(range(len(encoded.rows)))
        rng.shuffle(order)
        for index in order:
            n = len(encoded.rows[index].pairs)
            if pairs_in + n > pairs_per_step:
                if len(steps) == target:
                    break
                steps.append([])
                pairs_in = 0
            steps[-1].append(index)
            pairs_in += n
        else:
            continue
        break
    for step in steps:
        step.sort(key=lambda i: (-row_length(rows[i], layout), i))
    k = max(len(fill(s, [rows[i] for i in s], budget, layout)) for s in steps)
    k = -(-k // multiple_of) * multiple_of
    most = min(map(len, steps)) // multiple_of * multiple_of
    if most == 0:
        raise DataError(
            f"{encoded.name}: a step has fewer items than there are processes ({multiple_of})"
        )
    k = min(k, most)
    tokens = sum(_tokens(rows[i], layout) for step in steps for i in step)
    while True:
        microbatches = [run for step in steps for run in _cut(step, rows, k, layout)]
        padded = sum(batch_positions([rows[i] for i in run], layout) for run in microbatches)
        more = k + multiple_of
        if more > most or padded <= PADDING * tokens or padded < LEAST * more * len(steps):
            return Schedule(tuple(microbatches), k, pairs_per_step)
        k = more


def _tokens(row: Row, layout: Layout) -> int:
    """Positions of a row that are no padding."""
    shared = len(row.answers) if layout == "padded" else 1
    return len(row.prompt) * shared + sum(map(len, row.answers))


def _cut(step: list[int], rows: Sequence[Row], k: int, layout: Layout) -> list[tuple[int, ...]]:
    """Cut a length-sorted step into exactly k non-empty runs whose largest padded size is least."""
    mine = [rows[i] for i in step]
    cost = [row_cost(row, layout) for row in mine]
    low, high = (
        max(cost),
        cost[0] * len(step) * (max(len(r.answers) for r in rows) if layout == "padded" else 1),
    )
    while low < high:  # the least budget that needs at most k runs
        middle = (low + high) // 2
        if len(fill(step, mine, middle, layout)) <= k:
            high = middle
        else:
            low = middle + 1
    runs = fill(step, mine, high, layout)
    while len(runs) < k:  # split the longest runs until there are k
        widest = max(range(len(runs)), key=lambda i: (len(runs[i]), -i))
        run = runs[widest]
        runs[widest : widest + 1] = [run[: len(run) // 2], run[len(run) // 2 :]]
    return [tuple(run) for run in runs]
