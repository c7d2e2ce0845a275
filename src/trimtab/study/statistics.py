"""Intervals, paired differences and verdicts from per-item scores: arrays in, numbers out.

The unit is always the *item*. Pairs cut from one item share its prompt and its right answer, so a
caller averages them first and what arrives here is one value an item. One row of items is
resampled: a cluster bootstrap (Efron and Tibshirani 1993, chapters 8 and 13). Several seeds make a
table `[seeds, items]` in which both are random and crossed; its mean has a t interval from the
table's mean squares (`Spread`).

Why not resample seeds, too: drawing S seeds and I items with replacement (the "pigeonhole"
bootstrap, Owen 2007, *Annals of Applied Statistics* 1(2), 386-411) makes the seeds' share of the
variance too small by (S - 1)/S, and takes for known what S values say little of. Where runs differ
by 5.6 points (standard deviation, 250 items), it calls 24 % of simulated nulls at 2 seeds, 14 % at
3 and 8 % at 5; the t interval 7, 5 and 4 % (`tests/simulated_scores.py`).

The bootstrap has its own fixed seed, which has nothing to do with the seed of a run: the same
scores always give the same interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

BOOTSTRAP_SEED = 20240229
"""Seed of every bootstrap, independent of `--seed`."""

SIGNIFICANCE = 0.05
"""Level of a verdict; every interval covers the rest, 95 %."""

QUANTILES = (0.025, 0.975)
"""Ends of a percentile interval."""

SEEDS_FOR_A_CLAIM = 5
"""With fewer seeds, "better" and "worse" hold for this run only."""

UNDERPOWERED_ABOVE = 0.05
"""A comparison that could not have seen a difference this large (5 points) is underpowered."""

CHUNK = 4_000_000
"""Most resampled indices held at once, which bounds memory to some 100 MB."""


class Interval(NamedTuple):
    """A mean and its 95 % interval, in the unit of the values; NaN bounds mean "not estimable"."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """A paired difference of means `a - b`, in the unit of the values.

    `low`, `high`: 95 % interval. `p`: two-sided. `se`: standard error. `mde`: the smallest true
    difference seen with 80 % power at two-sided 5 %, (t(97.5 %) + t(80 %)) se, of which the factor
    is 2.80 where the spread is well known; NaN where no two items differ, because then the spread
    could not be estimated.
    """

    value: float
    low: float
    high: float
    p: float
    se: float
    mde: float


class DoseResponse(NamedTuple):
    """How values follow the dial.

    `slope`: least-squares slope of the mean curve, in values per unit of alpha, with its interval
    over items. `r2`: share of the mean curve's variance that a straight line explains, 0 to 1 (NaN
    for a flat curve). `monotone`: Spearman's rank correlation of the mean curve with alpha, -1 to
    1, where 1 means that every step up raised the mean (NaN for a flat curve). `rising`: share of
    items with a higher value at the largest alpha than at the smallest, ties one half.
    """

    slope: Interval
    r2: float
    monotone: float
    rising: float


def mean_interval(values: ArrayLike, n: int = 2000, seed: int = BOOTSTRAP_SEED) -> Interval:
    """Mean over items, and over seeds where there are several, with its 95 % interval.

    One row (or a plain vector): a percentile bootstrap over items (Efron and Tibshirani 1993, ch.
    13), which says nothing of other seeds. Several rows: a t interval that speaks of other items
    *and* of other seeds (see `Spread`).

    An interval over items that all score the same has no width: no spread was seen, which does not
    mean that there is none.

    Args:
        values: `[items]` or `[seeds, items]`, one value an item (its mean over pairs), any unit.
        n: number of resamples (one row).
        seed: seed of the bootstrap.

    Returns:
        the mean and its 95 % interval; with a single item the bounds are NaN.

    Raises:
        ValueError: no item, or a value that is not finite.
    """
    table = _table(values, "values")
    value = float(table.mean())
    if table.shape[1] == 1:
        return Interval(value, np.nan, np.nan)
    if len(table) > 1:
        found = spread(table)
        half = found.factor(0.975) * found.se if found.se > 0 else 0.0
        return Interval(value, value - half, value + half)
    low, high = np.quantile(_resampled_means(table[0], n, seed), QUANTILES)
    return Interval(value, float(low), float(high))


class Spread(NamedTuple):
    """The variance of the mean of a crossed table, in two parts.

    Seeds and items are both random and crossed without replication: y_si = m + a_s + b_i + e_si
    (Searle, Casella and McCulloch 1992, *Variance Components*, section 4.3), and the mean's
    variance is var(a)/S + var(b)/I + var(e)/(SI). Its first and last term together are estimated by
    the variance of the seeds' means over S, with S - 1 degrees of freedom; the middle one by
    (MS_items - MS_residual)/(SI), at least 0, with I - 1. The factor of an interval is Cochran and
    Cox's (1957, *Experimental Designs*, section 4.14): the mean of the two parts' t quantiles,
    weighted by the parts. It errs to the safe side; Satterthwaite's degrees of freedom, the other
    usual way, call up to 13 % of nulls at 2 seeds, where the seeds' part is small by luck.

    So with two seeds that differ the interval is very wide, a t with one degree of freedom; with
    seeds that agree, the items' part rules.
    """

    of_seeds: float
    of_items: float
    seeds: int
    items: int

    @property
    def se(self) -> float:
        """Standard error of the mean."""
        return float(np.sqrt(self.of_seeds + self.of_items))

    def factor(self, p: float) -> float:
        """The quantile at `p`, in standard errors."""
        from scipy.special import stdtrit  # scipy.stats takes two seconds to import

        total = self.of_seeds + self.of_items
        by_seeds, by_items = stdtrit(self.seeds - 1, p), stdtrit(self.items - 1, p)
        return float((self.of_seeds * by_seeds + self.of_items * by_items) / total)

    def p_value(self, value: float) -> float:
        """Two-sided p of a mean, by bisection of `factor`."""
        t, low, high = abs(value) / self.se, 0.0, 0.5  # the tail beyond t
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if self.factor(1 - middle) < t else (middle, high)
        return low + high


def spread(table: Float[np.ndarray, "seeds items"]) -> Spread:
    """The variance of the mean of at least two seeds on at least two items."""
    seeds, items = table.shape
    by_seed, by_item = table.mean(axis=1), table.mean(axis=0)
    residual = table - by_seed[:, None] - by_item + table.mean()
    ms_item = seeds * by_item.var(ddof=1)
    ms_residual = (residual**2).sum() / ((seeds - 1) * (items - 1))
    of_items = max(0.0, ms_item - ms_residual) / table.size
    return Spread(float(by_seed.var(ddof=1) / seeds), float(of_items), seeds, items)


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    n: int = 10_000,
    seed: int = BOOTSTRAP_SEED,
) -> Difference:
    """Mean of `a - b` over the same items: what a verdict is made from.

    Seeds are paired by index; a side with one row (a method without randomness, or a bare model)
    is set against every row of the other.

    One row: a percentile bootstrap over items, whose p-value inverts the interval: twice the
    smaller share of resampled differences at or beyond zero, with one added to count and total so
    that it is never 0 (Davison and Hinkley 1997, section 4.2.3). The default `n` keeps the smallest
    possible p at 2e-4, which leaves Holm room for 250 comparisons. Several rows: the t interval and
    test of `Spread`. Differences that are zero at every item give p = 1.

    Args:
        a, b: `[seeds, items]` or `[items]`, one value an item, the items in the same order.
        n: number of resamples (one row).
        seed: seed of the bootstrap.

    Returns:
        the difference in the unit of the values. With a single item only `value` is known: the
        bounds, `se` and `mde` are NaN and p is 1.

    Raises:
        ValueError: values that are not finite, other items, or seeds that cannot be paired.
    """
    table_a, table_b = _table(a, "a"), _table(b, "b")
    if table_a.shape[1] != table_b.shape[1]:
        raise ValueError(
            f"a has {table_a.shape[1]} items and b {table_b.shape[1]}: a paired difference needs "
            "the same items on both sides"
        )
    if len(table_a) != len(table_b) and 1 not in (len(table_a), len(table_b)):
        raise ValueError(
            f"a has {len(table_a)} seeds and b {len(table_b)}: give the same seeds, or one row"
        )
    table = table_a - table_b  # [seeds, items]
    value = float(table.mean())
    if table.shape[1] == 1:
        return Difference(value, np.nan, np.nan, 1.0, np.nan, np.nan)
    # Sums of thirds and halves miss an exact zero by rounding; such ties belong to both sides.
    tie = 1e-12 * max(1.0, float(np.abs(table).max()))
    if len(table) == 1:
        means = _resampled_means(table[0], n, seed)
        beyond = min((means <= tie).sum(), (means >= -tie).sum())
        p = min(1.0, 2 * (int(beyond) + 1) / (n + 1))
        low, high = np.quantile(means, QUANTILES)
        se, factor = float(means.std(ddof=1)), NormalDist().inv_cdf
    else:
        found = spread(table)
        se, factor = found.se, found.factor
        half = factor(0.975) * se if se > tie else 0.0
        low, high = value - half, value + half
        p = found.p_value(value) if se > tie else 1.0 if abs(value) <= tie else 2 / (n + 1)
    # Nothing varies: the spread is unknown, not zero, and no detectable size follows from it.
    mde = (factor(0.975) + factor(0.8)) * se if se > tie else np.nan
    return Difference(value, float(low), float(high), float(p), se, float(mde))


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


def verdict(difference: Difference, p_holm: float, n_seeds: int) -> dict[str, str | bool]:
    """What a paired difference lets one say.

    Args:
        difference: method minus baseline, accuracies as shares between 0 and 1.
        p_holm: its p-value, adjusted over every row of the printed table.
        n_seeds: seeds behind the comparison.

    Returns:
        `verdict`: "better" or "worse" where the adjusted p is below 0.05, else "cannot tell";
        `in_this_run`: fewer than 5 seeds, so that "better" and "worse" say nothing about other
        seeds; `underpowered`: a difference of 5 points could not have been seen with 80 % power,
        or it is unknown whether it could.
    """
    word = "cannot tell"
    if p_holm < SIGNIFICANCE and difference.value != 0:
        word = "better" if difference.value > 0 else "worse"
    return {
        "verdict": word,
        "in_this_run": n_seeds < SEEDS_FOR_A_CLAIM,
        "underpowered": not difference.mde <= UNDERPOWERED_ABOVE,
    }


def dose_response(
    alphas: ArrayLike,
    values: ArrayLike,
    n: int = 2000,
    seed: int = BOOTSTRAP_SEED,
) -> DoseResponse:
    """How the mean over items follows alpha: slope, straightness, monotonicity.

    The slope of the mean curve is the mean of the items' slopes, so its interval is
    `mean_interval` of those.

    Args:
        alphas: `[alphas]`, in any order, at least two of them different.
        values: `[items, alphas]` or `[seeds, items, alphas]`, for example the margin in nats per
            token. With several seeds the curve is the mean over them, and the slope's interval
            speaks of other seeds too.
        n: number of resamples.
        seed: seed of the bootstrap.

    Raises:
        ValueError: shapes that do not fit, a value that is not finite, or a single alpha.
    """
    x = np.asarray(alphas, dtype=np.float64).reshape(-1)
    y = np.asarray(values, dtype=np.float64)
    if y.ndim == 2:
        y = y[None]  # [seeds, items, alphas]
    if y.ndim != 3 or y.shape[2] != len(x):
        raise ValueError(f"values have {np.shape(values)[-1]} columns for {len(x)} alphas")
    if not np.isfinite(y).all():
        raise ValueError("values must be finite")
    if not np.isfinite(x).all() or np.ptp(x) == 0:
        raise ValueError("alphas must be finite, and at least two of them different")
    centred = x - x.mean()
    slopes = y @ centred / (centred @ centred)  # [seeds, items]
    curve = y.mean(axis=(0, 1))  # [alphas]
    total = ((curve - curve.mean()) ** 2).sum()
    if np.ptp(curve) <= 1e-12 * max(1.0, float(np.abs(curve).max())):
        r2 = monotone = np.nan
    else:
        residual = curve - curve.mean() - slopes.mean() * centred
        r2 = float(1 - (residual**2).sum() / total)
        monotone = float(np.corrcoef(_ranks(x), _ranks(curve))[0, 1])
    change = y[..., x.argmax()] - y[..., x.argmin()]
    rising = float(((np.sign(change) + 1) / 2).mean())
    return DoseResponse(mean_interval(slopes, n=n, seed=seed), r2, monotone, rising)


def _ranks(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Ranks from 1, ties at their mean: scipy's `rankdata`, whose import takes two seconds."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[place]


def _table(values: ArrayLike, name: str) -> Float[np.ndarray, "rows items"]:
    """A finite, non-empty float64 table; a vector becomes its only row."""
    table = np.asarray(values, dtype=np.float64)
    if table.ndim == 1:
        table = table[None]
    if table.ndim != 2 or table.size == 0:
        raise ValueError(f"{name} has shape {table.shape}, expected one or two non-empty axes")
    if not np.isfinite(table).all():
        row, item = (int(i) for i in np.argwhere(~np.isfinite(table))[0])
        raise ValueError(
            f"{name} holds {table[row, item]} at row {row}, item {item}: score or drop that item "
            "on both sides first, a resampled mean cannot skip it"
        )
    return table


def _resampled_means(
    values: Float[np.ndarray, " items"], n: int, seed: int
) -> Float[np.ndarray, " n"]:
    """Means of `n` draws of the items with replacement.

    How often each item was drawn is all that a mean needs: no resampled row is built.
    """
    rng = np.random.default_rng(seed)
    items = len(values)
    parts = [_counts(rng, size, items) @ values / items for size in _sizes(n, items)]
    return np.concatenate(parts)


def _counts(rng: np.random.Generator, size: int, k: int) -> Int[np.ndarray, "size k"]:
    """How often each of `k` things occurs in each of `size` draws of `k` with replacement."""
    drawn = rng.integers(0, k, size=(size, k))
    flat = drawn + k * np.arange(size)[:, None]
    return np.bincount(flat.reshape(-1), minlength=size * k).reshape(size, k)


def _sizes(n: int, items: int) -> Iterator[int]:
    step = max(1, CHUNK // items)
    for start in range(0, n, step):
        yield min(step, n - start)


__all__: Sequence[str] = [
    "Difference",
    "DoseResponse",
    "Interval",
    "Spread",
    "dose_response",
    "holm",
    "mean_interval",
    "paired_difference",
    "spread",
    "verdict",
]
