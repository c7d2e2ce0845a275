"""Error rates of the verdicts on simulated scores (`simulated_scores.py`): nulls called "better" or
"worse", and planted differences that are found."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import betaincinv
from simulated_scores import SEEDS, scores

from trimtab.statistics import SHARE, paired_difference, verdict

FEW, NULLS = 1000, 2000
"""Enough for the bounds here; the slow tests take more."""


def false_verdicts(nulls: int, seeds: int, items: int, spreads: tuple[float, ...]) -> int:
    """How many of so many nulls, in equal parts at each spread between runs, get a verdict."""
    found = 0
    for i in range(nulls):
        spread = spreads[i % len(spreads)]
        rng = np.random.default_rng([seeds, items, int(1000 * spread), i])
        difference = paired_difference(*scores(rng, (0.7, 0.7), seeds, items, spread), SHARE)
        found += verdict(difference, difference.p, seeds).verdict != "cannot tell"
    return found


def upper(found: int, n: int) -> float:
    """Upper end of the 95 % interval of a rate (Clopper and Pearson 1934)."""
    return float(betaincinv(found + 1, n - found, 0.975))


def power(n: int, seeds: int, items: int, spread: float) -> float:
    """Share of planted differences of 5 points (75 against 70 %) that come out "better"."""
    found = 0
    for i in range(n):
        rng = np.random.default_rng([7, seeds, items, int(1000 * spread), i])
        difference = paired_difference(*scores(rng, (0.75, 0.7), seeds, items, spread), SHARE)
        found += verdict(difference, difference.p, seeds).verdict == "better"
    return found / n


def test_few_nulls_get_a_verdict():
    """1,000 nulls at 5 seeds, a quarter each at 0, 1.4, 2.8 and 5.6 points between runs."""
    found = false_verdicts(FEW, seeds=5, items=250, spreads=SEEDS)
    assert upper(found, FEW) <= 0.07, found / FEW
    assert found / FEW > 0.02, "so careful that nothing would ever be found"


def test_few_nulls_get_a_verdict_in_one_run():
    """1,000 nulls of one run on 60 items that differ in items alone: McNemar's level."""
    found = false_verdicts(FEW, seeds=1, items=60, spreads=(0.0,))
    assert upper(found, FEW) <= 0.07, found / FEW
    assert found / FEW > 0.02


def test_a_difference_of_five_points_is_found():
    """750 items, 5 seeds, 1.4 points between runs; about 0.82."""
    assert power(400, seeds=5, items=750, spread=0.05) >= 0.8


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5, 8])
@pytest.mark.parametrize("items", [100, 250])
def test_few_nulls_get_a_verdict_wherever_the_spread_lies(seeds, items):
    """2,000 nulls at each spread between runs."""
    rates = {s: false_verdicts(NULLS, seeds, items, (s,)) / NULLS for s in SEEDS}
    whole = round(sum(rates.values()) * NULLS)
    assert upper(whole, len(SEEDS) * NULLS) <= 0.06, rates
    most = 0.07 if seeds >= 3 else 0.08
    assert all(upper(round(r * NULLS), NULLS) <= most for r in rates.values()), rates


@pytest.mark.slow
@pytest.mark.parametrize(
    ("items", "spread", "least"), [(500, 0.0, 0.85), (750, 0.0, 0.95), (750, 0.05, 0.8)]
)
def test_what_is_found_at_five_seeds(items, spread, least):
    assert power(2000, 5, items, spread) >= least
