"""How values follow the dial."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from trimtab.statistics.intervals import BOOTSTRAP_SEED, Interval, mean_interval


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
        monotone = float(np.corrcoef(ranks(x), ranks(curve))[0, 1])
    change = y[..., x.argmax()] - y[..., x.argmin()]
    rising = float(((np.sign(change) + 1) / 2).mean())
    return DoseResponse(mean_interval(slopes, n=n, seed=seed), r2, monotone, rising)


def ranks(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Ranks from 1, ties at their mean: scipy's `rankdata`, whose import takes two seconds."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[place]
