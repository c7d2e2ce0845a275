"""Intervals, paired differences and verdicts from per-item scores: arrays in, numbers out.

The unit is always the *item*. Pairs cut from one item share its prompt and its right answer, so a
caller averages them first and what arrives here is one value an item. Shares have score intervals
and tests (`Score`); other values are resampled, a row of items at a time: a cluster bootstrap (Efron
and Tibshirani 1993, chapters 8 and 13). Several seeds make a table `[seeds, items]` in which both are
random and crossed; its mean has a t interval from the table's mean squares (`Spread`).

Resampling seeds, too (the "pigeonhole" bootstrap, Owen 2007, *Annals of Applied Statistics* 1(2),
386-411), calls up to 24 % of simulated nulls at 2 seeds, the t interval 5 % (docs/comparing.md).
The bootstrap has its own fixed seed: the same scores always give the same interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from trimtab.statistics.scores import QUANTILES, UNBOUNDED, Range, Score

BOOTSTRAP_SEED = 20240229
"""Seed of every bootstrap, independent of `--seed`."""

ROUNDING = 1e-6
"""How far beyond its range a value may lie by rounding."""

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


def mean_interval(
    values: ArrayLike,
    within: Range = UNBOUNDED,
    weights: ArrayLike | None = None,
    n: int = 2000,
    seed: int = BOOTSTRAP_SEED,
) -> Interval:
    """Mean over items, and over seeds where there are several, with its 95 % interval.

    What lies between two known ends (a share, 0 to 1) has a score interval over items (`Score`), which
    is right at the ends, too. Other values of one row have a percentile bootstrap over items (Efron and
    Tibshirani 1993, ch. 13). Neither says anything of other seeds. Several rows: a t interval that
    speaks of other items *and* of other seeds (see `Spread`), cut at the ends, and nowhere narrower
    than the score interval of the items' means.

    Args:
        values: `[items]` or `[seeds, items]`, one value an item (its mean over pairs), any unit.
        within: the least and the largest value that an item can have.
        weights: `[items]`, where items do not count alike; their score interval then takes Kish's
            number of items, (sum w)²/sum w² (1965, *Survey Sampling*, section 8.2).
        n: number of resamples of a bootstrap.
        seed: its seed.

    Returns:
        the mean and its 95 % interval. The bounds are NaN with a single item, and where no two values
        without known ends differ: then nothing is known of their spread.

    Raises:
        ValueError: no item, a value that is not finite, or one outside its range.
    """
    found = _estimate(_table(values, "values", within), within, weights, n, seed)
    return Interval(found.value, found.low, found.high)


class _Estimate(NamedTuple):
    """A mean; its interval and p-value against 0; its standard error, and the factor to multiply it by
    for a quantile."""

    value: float
    low: float
    high: float
    p: float
    se: float
    factor: Callable[[float], float]


def _estimate(
    table: Float[np.ndarray, "rows items"],
    within: Range,
    weights: ArrayLike | None,
    n: int,
    seed: int,
) -> _Estimate:
    """All that is said of a table's mean: the one mechanism behind intervals and verdicts."""
    rows, items = table.shape
    share = np.full(items, 1 / items) if weights is None else np.asarray(weights, np.float64)
    share = share / share.sum()
    value = float(table.mean() if weights is None else (table @ share).mean())
    # Sums of thirds and halves miss an exact zero by rounding; such ties belong to both sides.
    tie = 1e-12 * max(1.0, float(np.abs(table).max()))
    normal = NormalDist().inv_cdf
    if items == 1:
        return _Estimate(value, np.nan, np.nan, 1.0, np.nan, normal)
    whole = table * share * items  # whose plain mean is the weighted one
    bounded = bool(np.isfinite(within).all())
    score = Score(table.mean(axis=0), within, share) if bounded else None
    if rows > 1:
        found = spread(whole)
        se, factor = found.se, found.factor
        half = factor(QUANTILES[1]) * se if se > tie else np.nan
        low, high = max(value - half, min(within[0], value)), min(value + half, within[1])
        p = found.p_value(value) if se > tie else np.nan
    elif score:
        se, factor = float(np.std(whole[0], ddof=1) / np.sqrt(items)), normal
        low = high = p = np.nan
    else:
        means = _resampled_means(whole[0], n, seed)
        beyond = min((means <= tie).sum(), (means >= -tie).sum())
        p = min(1.0, 2 * (int(beyond) + 1) / (n + 1))
        low, high = map(float, np.quantile(means, QUANTILES))
        se, factor = float(means.std(ddof=1)), normal
        if se <= tie:
            low = high = np.nan
    if score:  # fmin and fmax pass over what is not known
        low, high = np.fmin(low, score.end(within[0])), np.fmax(high, score.end(within[1]))
        p = np.fmax(p, score.p_value(0.0)) if within[0] <= 0 <= within[1] else p
    elif se <= tie:  # nothing varies: the spread is unknown, not zero
        p = 1.0 if abs(value) <= tie else 2 / (n + 1)
    return _Estimate(value, float(low), float(high), float(p), se, factor)


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
    within: Range = UNBOUNDED,
    weights: ArrayLike | None = None,
    n: int = 10_000,
    seed: int = BOOTSTRAP_SEED,
) -> Difference:
    """Mean of `a - b` over the same items: what a verdict is made from.

    Seeds are paired by index; a side with one row (a method without randomness, or a bare model)
    is set against every row of the other.

    Shares (`within=SHARE`, their difference -1 to 1): a score interval and test (`Score`). Other values
    of one row: a percentile bootstrap over items, whose p-value inverts the interval: twice the smaller
    share of resampled differences at or beyond zero, with one added to count and total so that it is
    never 0 (Davison and Hinkley 1997, section 4.2.3). The default `n` keeps the smallest possible p at
    2e-4, which leaves Holm room for 250 comparisons. Several rows: the t interval and test of `Spread`,
    where shares are never told more surely than the items' means alone allow. Differences that are zero
    at every item give p = 1.

    Args:
        a, b: `[seeds, items]` or `[items]`, one value an item, the items in the same order.
        within: the least and the largest value that an item of either side can have.
        weights: `[items]`, where items do not count alike.
        n: number of resamples (one row of values without known ends).
        seed: seed of the bootstrap.

    Returns:
        the difference in the unit of the values. With a single item only `value` is known: the
        bounds, `se` and `mde` are NaN and p is 1.

    Raises:
        ValueError: values that are not finite or outside their range, other items, or seeds that cannot
            be paired.
    """
    table_a, table_b = _table(a, "a", within), _table(b, "b", within)
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
    span = within[1] - within[0]
    found = _estimate(table, (-span, span), weights, n, seed)
    # Nothing varies: the spread is unknown, not zero, and no detectable size follows from it.
    known = found.se > 1e-12 * max(1.0, float(np.abs(table).max()))
    mde = (found.factor(0.975) + found.factor(0.8)) * found.se if known else np.nan
    return Difference(*found[:5], float(min(mde, span) if known else np.nan))


def _table(
    values: ArrayLike, name: str, within: Range = UNBOUNDED
) -> Float[np.ndarray, "rows items"]:
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
    outside = (table < within[0] - ROUNDING) | (table > within[1] + ROUNDING)
    if np.isfinite(within).all() and outside.any():
        row, item = (int(i) for i in np.argwhere(outside)[0])
        raise ValueError(
            f"{name} holds {table[row, item]} at row {row}, item {item}: expected {within[0]:g} to "
            f"{within[1]:g}"
        )
    return np.clip(table, *within) if np.isfinite(within).all() else table


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
