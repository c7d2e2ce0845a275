"""How often the 95 % interval of a share covers the truth, for the table of docs/comparing.md.

    python tests/study/simulated_coverage.py

Items are right or wrong (counted exactly over all numbers of right ones), or hold three pairs of which
a share is right: pairs of one item go together (intraclass correlation 0.5, beta-binomial) or do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
from scipy.stats import binom

from trimtab.statistics import SHARE, mean_interval

ITEMS, SHARES, PAIRS, DRAWS = (12, 60, 200), (0.5, 0.9, 1.0), 3, 2000
KINDS = {"right or wrong": None, "three pairs, together": 0.5, "three pairs, apart": 0.0}
"""Intraclass correlation of an item's pairs, by kind of item."""


@cache
def interval(right: tuple[int, ...]) -> tuple[float, float]:
    """Of items that have so many of their pairs right, counted: none, one, …, all."""
    most = len(right) - 1
    values = np.repeat(np.arange(most + 1) / most, right)
    _, low, high = mean_interval(values, SHARE)
    return low, high


def coverage(kind: str, items: int, share: float, draws: int = DRAWS) -> float:
    """Share of samples whose interval holds the true share."""
    together = KINDS[kind]
    if together is None:
        ends = [interval((items - k, k)) for k in range(items + 1)]
        inside = np.array([low - 1e-9 <= share <= high + 1e-9 for low, high in ends])
        return float(binom.pmf(np.arange(items + 1), items, share) @ inside)
    rng = np.random.default_rng([items, int(1000 * share), int(100 * together)])
    found = 0
    for _ in range(draws):
        ease = np.full(items, share)
        if together > 0 and 0 < share < 1:
            size = 1 / together - 1
            ease = rng.beta(share * size, (1 - share) * size, items)
        counts = np.bincount(rng.binomial(PAIRS, ease), minlength=PAIRS + 1)
        low, high = interval(tuple(map(int, counts)))
        found += low - 1e-9 <= share <= high + 1e-9
    return found / draws


def rows(items: Sequence[int] = ITEMS, kinds: Iterable[str] = KINDS) -> list[list[str]]:
    """The table: a row a number of items and a kind, a column a share; percent."""
    return [
        [str(n), kind, *(f"{100 * coverage(kind, n, share):.1f}" for share in SHARES)]
        for n in items
        for kind in kinds
    ]


if __name__ == "__main__":
    for row in rows():
        print(f"| {' | '.join(row)} |")
