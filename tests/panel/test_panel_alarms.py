"""False alarms and power of a panel, from per-item scores of a real model and its dials.

`scores.json` holds what `trimtab evaluate --panel` read by item on smollm2-135m, bare and with dials. A dial
that does nothing is simulated by drawing items anew and, item by item, exchanging the bare figure with the
dialled one: then nothing is to be found, and metrics of one item move together as they really do.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import stdtr

from trimtab.panel import Values, changes
from trimtab.panel.run import Measured
from trimtab.panel.values import values_of
from trimtab.statistics import SHARE, paired_difference
from trimtab.statistics.intervals import BOOTSTRAP_SEED, _counts, _sizes
from trimtab.statistics.scores import Score

DIALS = 2000
SIZES = {"knowledge": 300, "truthfulness": 300, "bias": 67, "refusal": 48, "texts": 48}
"""Items, or clusters of them, that the built-in panel has of each property."""
RESAMPLES = 10_000


@pytest.fixture(scope="module")
def arms() -> list[tuple[Measured, Measured]]:
    """The bare model beside each dial."""
    bare, *dialled = json.loads(Path(__file__).with_name("scores.json").read_text())

    def read(arm) -> Measured:
        return {name: [values_of(v) for v in of] for name, of in arm["found"].items()}

    return [(read(bare), read(arm)) for arm in dialled]


def drawn(rng: np.random.Generator, bare: Measured, dialled: Measured) -> tuple[Measured, Measured]:
    """A dial that does nothing: items drawn anew, each with its two figures in one order or the other."""
    sides: tuple[Measured, Measured] = ({}, {})
    for name in bare:
        known: dict[tuple[str, ...], tuple[np.ndarray, np.ndarray]] = {}
        for one, other in zip(bare[name], dialled[name], strict=True):
            n = SIZES.get(name, len(one.items))
            if one.items not in known:
                known[one.items] = rng.integers(0, len(one.items), n), rng.random(n) < 0.5
            index, swapped = known[one.items]
            a, b = one.values[index], other.values[index]
            weights = None if one.weights is None else one.weights[index]
            names = tuple(map(str, range(n)))
            rest = (weights, one.within, one.better, one.unit)
            for side, x, y in ((sides[0], a, b), (sides[1], b, a)):
                values = np.where(swapped, y, x)
                side.setdefault(name, []).append(Values(one.metric, names, values, *rest))
    return sides


def quick_p(bare: Values, dialled: Values, resamples: dict[int, np.ndarray]) -> float:
    """The p-value of a difference as `paired_difference` has it, and 1 where a plain z is below 2."""
    n = len(bare.items)
    share = np.full(n, 1 / n) if bare.weights is None else bare.weights / bare.weights.sum()
    d = dialled.values - bare.values
    whole = d * share * n
    se = whole.std(ddof=1) / np.sqrt(n)
    if se == 0 or abs(whole.mean()) < 2 * se:
        return 1.0
    if bare.within == SHARE:
        return Score(d, (-1.0, 1.0), share).p_value(0.0)
    if n not in resamples:
        rng = np.random.default_rng(BOOTSTRAP_SEED)
        resamples[n] = np.concatenate([_counts(rng, k, n) for k in _sizes(RESAMPLES, n)])
    means = resamples[n] @ whole / n
    beyond = min((means <= 0).sum(), (means >= 0).sum())
    t = 2 * stdtr(1 / (share @ share) - 1, -abs(whole.mean()) / means.std(ddof=1))
    return max(min(1.0, 2 * (int(beyond) + 1) / (RESAMPLES + 1)), float(t))


def test_false_alarms_of_2000_dials_that_do_nothing(arms):
    rng, resamples, alarms = np.random.default_rng(7), {}, 0
    for number in range(DIALS):
        bare, turned = drawn(rng, *arms[number % len(arms)])
        pairs = [
            (b, t)
            for name in bare
            for b, t in zip(bare[name], turned[name], strict=True)
            if b.better
        ]
        smallest = min(quick_p(b, t, resamples) for b, t in pairs)
        alarm = smallest * len(pairs) < 0.05  # Holm's first step
        alarms += alarm
        if number % 200 == 0 or (alarm and alarms < 4):  # the quick way is the panel's own
            own = [c.verdict for c in changes(bare, turned) if c.verdict]
            assert alarm == any(v.verdict != "cannot tell" for v in own)
            if smallest < 0.04:
                assert min(v.p_holm for v in own) == pytest.approx(
                    min(1, smallest * len(pairs)), rel=1e-6
                )
    assert 0.02 < alarms / DIALS <= 0.06


@pytest.mark.parametrize(("times", "adjusted"), [(1.0, False), (1.4, True)])
def test_a_planted_loss_of_knowledge_is_found_at_the_stated_power(arms, times, adjusted):
    """A loss as large as what the panel then says that it could see is found in 80 % of panels by its own
    p-value; after Holm over the whole panel it takes 1.4 times that."""
    rng, found, stated, runs = np.random.default_rng(3), 0, [], 400
    for number in range(runs):
        bare, turned = drawn(rng, *arms[number % len(arms)])
        b, t = bare["knowledge"][0], turned["knowledge"][0]
        n, other = len(b.items), float(((t.values - b.values) ** 2).mean())
        # The loss is spread itself: s = 2.80 sqrt((what moves anyhow + s) / n).
        size = (2.8**2 / n + np.sqrt(2.8**4 / n**2 + 4 * 2.8**2 * other / n)) / 2
        right = np.flatnonzero(t.values == 1)
        lost = rng.binomial(len(right), times * size * n / len(right))
        t.values[rng.permutation(right)[:lost]] = 0.0
        stated.append(paired_difference(t.values, b.values, SHARE).mde / size)
        count = sum(v.better != 0 for of in bare.values() for v in of)
        found += quick_p(b, t, {}) * (count if adjusted else 1) < 0.05 and t.mean < b.mean
    if not adjusted:
        assert np.mean(stated) == pytest.approx(1, abs=0.06)
        assert 0.74 < found / runs < 0.86
    assert found / runs > 0.74
