"""What paired differences let one say: adjusted for their number, then in a word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from trimtab.statistics.intervals import Difference

SIGNIFICANCE = 0.05
"""Level of a verdict; every interval covers the rest, 95 %."""

SEEDS_FOR_A_CLAIM = 5
"""With fewer seeds, "better" and "worse" hold for this run only."""

UNDERPOWERED_ABOVE = 0.05
"""A comparison that could not have seen a difference this large (5 points) is underpowered."""


def holm(p_values: ArrayLike) -> Float[np.ndarray, " tests"]:
    """p-values adjusted for their number by Holm's step-down method, in the order given.

    Controls the chance of any false rejection whatever the dependence between the tests (Holm
    1979, *Scandinavian Journal of Statistics* 6(2), 65-70): the k-th smallest of m is multiplied
    by m - k + 1, and no adjusted value is below an earlier one.

    Raises:
        ValueError: a value outside 0 to 1, or not a number.
    """
    p = np.asarray(p_values, dtype=np.float64).reshape(-1)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("p-values must lie between 0 and 1")
    order = np.argsort(p, kind="stable")
    scaled = p[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted


class Verdict(NamedTuple):
    """What a paired difference lets one say, as fields of a result line.

    Attributes:
        p_holm: its p-value, adjusted over every row of the printed table.
        verdict: "better" or "worse" where the adjusted p is below 0.05, else "cannot tell".
        in_this_run: fewer than 5 seeds, so that "better" and "worse" say nothing about other seeds.
        underpowered: a difference of 5 points could not have been seen with 80 % power, or it is unknown
            whether it could.
    """

    p_holm: float
    verdict: str
    in_this_run: bool
    underpowered: bool


def judged(table: Sequence[tuple[Difference, int]]) -> list[Verdict]:
    """The verdicts of one printed table: its differences (method minus baseline, accuracies as shares
    of 1) and the number of seeds behind each."""
    adjusted = holm([difference.p for difference, _ in table])
    return [
        verdict(difference, float(p), seeds)
        for (difference, seeds), p in zip(table, adjusted, strict=True)
    ]


def verdict(difference: Difference, p_holm: float, n_seeds: int) -> Verdict:
    """The verdict on one difference, its p-value being adjusted already."""
    word = "cannot tell"
    if p_holm < SIGNIFICANCE and difference.value != 0:
        word = "better" if difference.value > 0 else "worse"
    weak = not difference.mde <= UNDERPOWERED_ABOVE
    return Verdict(p_holm, word, n_seeds < SEEDS_FOR_A_CLAIM, weak)
