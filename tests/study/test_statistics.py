"""Hand-computed values, invariances and error rates of the statistics behind a verdict."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from simulated_coverage import ITEMS, KINDS, rows

from trimtab.statistics import (
    POSITIVE,
    SHARE,
    Difference,
    dose_response,
    holm,
    mean_interval,
    paired_difference,
    spread,
    verdict,
)


def test_interval_of_a_mean_matches_theory():
    values = np.random.default_rng(1).normal(2.0, 3.0, size=400)
    value, low, high = mean_interval(values)
    half = 1.96 * values.std() / math.sqrt(400)
    assert value == pytest.approx(values.mean(), abs=1e-12)
    assert low == pytest.approx(value - half, abs=0.05)
    assert high == pytest.approx(value + half, abs=0.05)


def test_two_items_have_three_resampled_means():
    # Means 0, 1/2, 1 with chances 1/4, 1/2, 1/4: the 2.5 % and 97.5 % points are the extremes.
    assert mean_interval([0.0, 1.0]) == (0.5, 0.0, 1.0)


Z2 = 1.959964**2


def wilson(right: int, n: int) -> tuple[float, float]:
    """Wilson's interval (1927) as it stands in textbooks."""
    p = right / n
    middle = (p + Z2 / (2 * n)) / (1 + Z2 / n)
    half = math.sqrt(Z2) / (1 + Z2 / n) * math.sqrt(p * (1 - p) / n + Z2 / (4 * n * n))
    return middle - half, middle + half


@pytest.mark.parametrize(
    ("right", "n"), [(12, 12), (0, 12), (11, 12), (1, 60), (54, 60), (200, 200), (2, 2), (1, 2)]
)
def test_shares_of_right_items_have_wilsons_interval(right, n):
    values = np.repeat([1.0, 0.0], [right, n - right])
    assert mean_interval(values, SHARE) == pytest.approx((right / n, *wilson(right, n)), abs=1e-6)


def test_items_that_all_score_alike_have_the_interval_that_their_number_allows():
    """Half of every item's pairs right, 12 times: an unseen item may be all right or all wrong."""
    low, high = wilson(0, 12)
    assert mean_interval([0.5] * 12, SHARE) == pytest.approx(
        (0.5, 0.5 - high / 2, 0.5 + high / 2), abs=1e-6
    )
    assert mean_interval(np.ones((3, 12)), SHARE) == pytest.approx((1, *wilson(12, 12)), abs=1e-6)
    assert low == 0


def test_pairs_that_go_together_count_once():
    """Three copies of each item's outcome are no more than one."""
    right = np.repeat([1.0, 0.0], [50, 10])
    pairs = np.stack([right] * 3).mean(0)
    assert mean_interval(pairs, SHARE) == pytest.approx(mean_interval(right, SHARE))
    apart = mean_interval(np.repeat([1.0, 2 / 3, 1 / 3], [40, 10, 10]), SHARE)
    assert apart.high - apart.low < np.diff(wilson(50, 60))[0]


def test_weighted_items():
    """Two tasks of four and two items that count alike: the mean of the tasks' means, and as many
    items as Kish has, 1/(4/64 + 2/16) = 5.33."""
    values, weights = [1.0] * 4 + [0.0] * 2, [0.75] * 4 + [1.5] * 2
    found = mean_interval(values, SHARE, weights)
    assert found == pytest.approx((0.5, *wilson_of(0.5, 16 / 3)), abs=1e-6)
    assert mean_interval(values, SHARE, [2.0] * 6) == pytest.approx(mean_interval(values, SHARE))
    assert mean_interval([1.0] * 6, SHARE, weights).high == 1
    d = paired_difference([1.0] * 6, [1.0] * 6, SHARE, weights)
    assert d.high == pytest.approx(Z2 / (16 / 3 + Z2))


def wilson_of(p: float, n: float) -> tuple[float, float]:
    middle, half = (p + Z2 / (2 * n)) / (1 + Z2 / n), math.sqrt(p * (1 - p) / n + Z2 / (4 * n * n))
    half *= math.sqrt(Z2) / (1 + Z2 / n)
    return middle - half, middle + half


def test_no_item_differs():
    """Tango's interval (1998) without a discordant pair is ± z²/(n + z²)."""
    for n in (12, 60, 200):
        d = paired_difference(np.full(n, 0.3), np.full(n, 0.3), SHARE)
        assert (d.low, d.high) == pytest.approx((-Z2 / (n + Z2), Z2 / (n + Z2)), abs=1e-6)
        assert d.p == 1


def tango(up: int, down: int, n: int, delta: float) -> float:
    """Tango's score |z| of a difference (1998, equations 8 to 10), for its own sake."""
    a, c = 2 * n, -down * delta * (1 - delta)
    b = -up - down + (2 * n - up + down) * delta
    q = (math.sqrt(b * b - 4 * a * c) - b) / (2 * a)  # share of "down"
    return abs(up - down - n * delta) / math.sqrt(n * (2 * q + delta * (1 - delta)))


@pytest.mark.parametrize(("up", "down"), [(1, 0), (1, 4), (9, 2), (30, 0), (3, 3)])
def test_differences_of_right_items_are_tested_by_mcnemar(up, down):
    """z = (b - c)/sqrt(b + c); Tango's score at either end of the interval is 1.96."""
    n = 60
    a, b = np.zeros(n), np.zeros(n)
    a[:up], b[up : up + down] = 1, 1
    d = paired_difference(a, b, SHARE)
    z = abs(up - down) / math.sqrt(up + down)
    assert d.p == pytest.approx(math.erfc(z / math.sqrt(2)), abs=1e-9)
    for end in (d.low, d.high):
        assert tango(up, down, n, end) == pytest.approx(1.959964, abs=1e-5)
    assert -1 <= d.low <= d.value <= d.high <= 1
    assert (d.low > 0 or d.high < 0) == (d.p < 0.05)


def test_few_seeds_stay_within_what_is_possible():
    """Two seeds at 90 and 50 %: a t with one degree of freedom reaches from -181 to 321 %."""
    table = np.repeat([[0.9], [0.5]], 40, axis=1)
    assert mean_interval(table, SHARE) == pytest.approx((0.7, 0, 1))
    assert mean_interval(table).high > 3
    d = paired_difference(table, np.zeros((1, 40)), SHARE)
    assert (d.low, d.high) == (-1, 1)
    assert d.mde <= 1
    kl = mean_interval(np.repeat([[0.3], [0.1]], 12, axis=1), POSITIVE)
    assert kl.low == 0 < kl.high


def test_few_seeds_know_no_more_than_their_items_allow():
    """Three seeds, one item of one of them wrong: the seeds agree, twelve items say little."""
    table = np.ones((3, 12))
    table[0, 0] = 0
    found = mean_interval(table, SHARE)
    assert found.low < wilson(12, 12)[0]
    assert found.high > 0.99


def test_values_without_ends_that_do_not_vary_have_no_interval():
    for values in (np.full(12, 0.3), np.full((2, 12), 0.3)):
        assert np.isnan(mean_interval(values)[1:]).all()
    flat = dose_response([0, 1], [[0.1, 0.1], [0.3, 0.3]]).slope
    assert flat.value == 0
    assert math.isnan(flat.low)


def test_shares_outside_0_to_1_are_named():
    with pytest.raises(ValueError, match=r"values holds 1\.5 at row 0, item 1: expected 0 to 1"):
        mean_interval([1.0, 1.5], SHARE)
    with pytest.raises(ValueError, match=r"b holds -0\.2 at row 0, item 0"):
        paired_difference([0.0, 1.0], [-0.2, 1.0], SHARE)


@pytest.mark.parametrize(
    ("items", "kinds"),
    [
        (ITEMS, list(KINDS)[:1]),  # counted exactly
        (ITEMS[:1], list(KINDS)[1:]),
        pytest.param(ITEMS[1:], list(KINDS)[1:], marks=pytest.mark.slow),
    ],
)
def test_the_documented_coverage_is_what_is_simulated(items, kinds):
    """docs/comparing.md has the table that `simulated_coverage.py` prints, within the bounds asked for:
    93 % everywhere, at most 97 at 60 items and more where some are right and some wrong."""
    text = (Path(__file__).parents[2] / "docs" / "comparing.md").read_text(encoding="utf-8")
    for row in rows(items, kinds):
        number, _, *shares = row
        assert all(float(x) >= 93 for x in shares)
        assert int(number) < 60 or all(float(x) <= 97 for x in shares[:2])
        assert f"| {' | '.join(row)} |" in text


def test_every_row_of_the_documented_coverage_keeps_to_its_bounds():
    """Those that take long to simulate again, too."""
    text = (Path(__file__).parents[2] / "docs" / "comparing.md").read_text(encoding="utf-8")
    for n in ITEMS:
        for kind in KINDS:
            [row] = [line for line in text.splitlines() if line.startswith(f"| {n} | {kind} |")]
            shares = [float(x) for x in row.strip("| ").split(" | ")[2:]]
            assert len(shares) == 3
            assert min(shares) >= 93
            assert n < 60 or max(shares[:2]) <= 97


def test_one_item_has_no_interval():
    value, low, high = mean_interval([0.25])
    assert value == 0.25
    assert math.isnan(low)
    assert math.isnan(high)


def test_the_same_scores_give_the_same_interval():
    values = np.random.default_rng(3).random((3, 50))
    assert mean_interval(values) == mean_interval(values.copy())
    assert paired_difference(values, values[:1]) == paired_difference(values, values[:1])
    assert mean_interval(values[0], seed=1) != mean_interval(values[0], seed=2)


def test_chunks_do_not_lose_resamples(monkeypatch):
    values = np.random.default_rng(3).random(50)
    whole = mean_interval(values)
    monkeypatch.setattr("trimtab.statistics.intervals.CHUNK", 1000)
    assert mean_interval(values) == whole


def test_seeds_that_disagree_widen_the_interval():
    rng = np.random.default_rng(5)
    items = rng.random(200)
    agreeing = np.stack([items] * 5)
    differing = agreeing + rng.normal(0, 0.2, size=(5, 1))
    narrow, wide = mean_interval(agreeing), mean_interval(differing)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)
    one = mean_interval(items)
    assert narrow.high - narrow.low == pytest.approx(one.high - one.low, rel=0.1)


def test_hierarchical_spread_is_the_two_variances_added():
    # Additive effects: no residual, so the parts are var(seed)/S and var(item)/I.
    rng = np.random.default_rng(6)
    seed_effect, item_effect = rng.normal(size=(8, 1)), rng.normal(size=(1, 100))
    difference = paired_difference(seed_effect + item_effect, np.zeros((1, 100)))
    parts = seed_effect.var(ddof=1) / 8, item_effect.var(ddof=1) / 100
    assert difference.se == pytest.approx(math.sqrt(sum(parts)))
    found = spread(seed_effect + item_effect)
    assert (found.of_seeds, found.of_items) == pytest.approx(parts)


def test_a_crossed_table_by_hand():
    # Means of seeds 1 and 3, of items 1, 2, 3; residuals of one row 0, 1, -1 and of the other the
    # negative; mean squares: items 2 * 1 = 2, residual 4 / (1 * 2) = 2, so nothing is the items'.
    table = np.array([[0.0, 2.0, 1.0], [2.0, 2.0, 5.0]])
    found = spread(table)
    assert (found.of_seeds, found.of_items) == pytest.approx((1.0, 0.0))
    value, low, high = mean_interval(table)
    t = 12.7062  # of one degree of freedom
    assert (value, low, high) == pytest.approx((2.0, 2 - t, 2 + t), rel=1e-4)
    d = paired_difference(table, np.zeros(3))
    assert d.p == pytest.approx(1 - 2 * math.atan(2.0) / math.pi)  # a t of 2, Cauchy
    assert d.mde == pytest.approx(t + 1.37638, rel=1e-4)


def test_seeds_that_agree_leave_the_items_interval():
    rng = np.random.default_rng(12)
    values = rng.normal(0.1, 1, size=200)
    one, five = (
        paired_difference(values, np.zeros(200)),
        paired_difference([values] * 5, np.zeros(200)),
    )
    assert five.se == pytest.approx(values.std(ddof=1) / math.sqrt(200))
    assert five.low == pytest.approx(one.low, abs=0.02)
    assert five.p == pytest.approx(one.p, abs=0.02)


def test_the_p_value_belongs_to_the_interval():
    rng = np.random.default_rng(13)
    table = rng.normal(0, 1, size=(3, 60)) + rng.normal(0, 0.2, size=(3, 1))
    found = spread(table)
    for level in (0.2, 0.05, 0.01):
        edge = found.factor(1 - level / 2) * found.se
        assert found.p_value(edge) == pytest.approx(level, rel=1e-6)
        assert found.p_value(-edge) == pytest.approx(level, rel=1e-6)


def test_swapping_sides_negates_the_difference():
    rng = np.random.default_rng(7)
    a, b = rng.random((3, 40)), rng.random((3, 40))
    forth, back = paired_difference(a, b), paired_difference(b, a)
    assert back.value == pytest.approx(-forth.value)
    assert (back.low, back.high) == pytest.approx((-forth.high, -forth.low))
    assert (back.p, back.se, back.mde) == pytest.approx((forth.p, forth.se, forth.mde))


def test_what_both_sides_share_cancels():
    rng = np.random.default_rng(8)
    a, b, shared = rng.random(60), rng.random(60), 10 * rng.random(60)
    assert paired_difference(a + shared, b + shared) == pytest.approx(paired_difference(a, b))


def test_one_row_is_set_against_every_seed():
    rng = np.random.default_rng(9)
    a, b = rng.random((3, 30)), rng.random(30)
    assert paired_difference(a, b) == paired_difference(a, np.stack([b] * 3))
    assert paired_difference(b, a).value == pytest.approx(b.mean() - a.mean())


def test_a_clear_difference_by_hand():
    # 30 of 60 items gained 1: mean 0.5, standard error sqrt(0.25/60), far from 0.
    d = paired_difference(np.repeat([1.0, 0.0], 30), np.zeros(60))
    assert d.value == 0.5
    assert d.se == pytest.approx(math.sqrt(0.25 / 60), rel=0.02)
    assert d.mde == pytest.approx(2.8016 * d.se, rel=1e-4)
    assert d.p == pytest.approx(2 / 10_001)
    assert d.low == pytest.approx(0.5 - 1.96 * d.se, abs=0.02)


def test_all_ties_give_p_one_and_no_detectable_size():
    d = paired_difference(np.ones((2, 40)), np.ones((1, 40)), SHARE)
    edge = Z2 / (40 + Z2)
    assert (d.value, d.low, d.high, d.p, d.se) == pytest.approx((0, -edge, edge, 1, 0))
    assert math.isnan(d.mde)
    assert verdict(d, 1.0, 2) == (1.0, "cannot tell", True, True)


def test_one_item_decides_nothing():
    d = paired_difference([1.0], [0.0])
    assert (d.value, d.p) == (1.0, 1.0)
    assert math.isnan(d.se)
    assert verdict(d, d.p, 9).verdict == "cannot tell"


def test_values_that_are_not_finite_are_named():
    with pytest.raises(ValueError, match="a holds nan at row 1, item 2"):
        paired_difference([[0, 0, 0], [0, 0, math.nan]], np.zeros((2, 3)))
    with pytest.raises(ValueError, match="values holds inf"):
        mean_interval([0.0, math.inf])
    with pytest.raises(ValueError, match="shape"):
        mean_interval([])


def test_items_and_seeds_must_fit():
    with pytest.raises(ValueError, match="same items"):
        paired_difference(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match="seeds"):
        paired_difference(np.zeros((2, 4)), np.zeros((3, 4)))


def test_false_positives_stay_near_five_percent():
    # Two methods of equal accuracy on 60 items: half of the items right, some flipped both ways.
    rng = np.random.default_rng(10)
    found = 0
    for _ in range(600):
        a, b = (rng.random((2, 60)) < 0.6).astype(float)
        found += paired_difference(a, b, n=800).p < 0.05
    assert found / 600 < 0.075


def test_the_detectable_difference_is_found_four_times_in_five():
    rng = np.random.default_rng(11)
    found = 0
    mde = 2.8016 / math.sqrt(100)
    for _ in range(400):
        found += paired_difference(rng.normal(mde, 1, size=100), np.zeros(100), n=800).p < 0.05
    assert 0.74 < found / 400 < 0.87


def test_holm_by_hand():
    # Sorted 0.01 0.02 0.03 0.04 times 4 3 2 1 = 0.04 0.06 0.06 0.04, then made monotone.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.2]) == pytest.approx([0.2])
    assert len(holm([])) == 0


@pytest.mark.parametrize("p", [[-0.1], [1.1], [0.5, math.nan]])
def test_holm_refuses_what_is_no_p_value(p):
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm(p)


def test_verdicts():
    up = Difference(0.04, 0.01, 0.07, 0.004, 0.015, 0.042)
    assert verdict(up, 0.01, 5) == (0.01, "better", False, False)
    down = up._replace(value=-0.04, mde=0.09)
    assert verdict(down, 0.01, 4) == (0.01, "worse", True, True)
    assert verdict(up, 0.05, 5).verdict == "cannot tell"


def test_straight_dose_response():
    alphas = [1.0, -1.0, 0.0, 2.0]
    values = np.outer([1.0, 3.0], alphas) + np.array([[5.0], [-5.0]])
    slope, r2, monotone, rising = dose_response(alphas, values)
    assert slope == pytest.approx((2.0, 1.0, 3.0))
    assert (r2, monotone, rising) == pytest.approx((1.0, 1.0, 1.0))


def test_bent_and_falling_dose_response():
    # The mean curve 0, 1, 4 at 0, 1, 2: slope 2, residuals 1/3, -2/3, 1/3; r2 = 1 - (2/3)/(26/3).
    bent = dose_response([0, 1, 2], [[0, 1, 4], [0, 1, 4]])
    assert bent.slope.value == pytest.approx(2.0)
    assert bent.r2 == pytest.approx(1 - (2 / 3) / (26 / 3))
    assert bent.monotone == pytest.approx(1.0)
    falling = dose_response([0, 1, 2], [[3, 2, 1], [2, 3, 2], [1, 0, 0]])
    assert falling.monotone == pytest.approx(-1.0)
    assert falling.rising == pytest.approx(0.5 / 3)


def test_flat_dose_response():
    flat = dose_response([0, 1], [[0.1, 0.1], [0.3, 0.3]])
    assert flat.slope.value == 0
    assert math.isnan(flat.r2)
    assert math.isnan(flat.monotone)
    assert flat.rising == 0.5


def test_dose_response_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="2 columns for 3 alphas"):
        dose_response([0, 1, 2], [[0, 1]])
    with pytest.raises(ValueError, match="different"):
        dose_response([1, 1], [[0, 1]])
