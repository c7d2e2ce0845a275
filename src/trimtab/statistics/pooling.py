"""Differences on several suites as one: random effects over suites. And margins in points of accuracy."""

from __future__ import annotations

from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from trimtab.statistics.scores import Z


class Pooled(NamedTuple):
    """The mean of what suites have, of which these are a sample.

    `low`, `high`: 95 % interval. `p`: two-sided. `mde`: the smallest mean that is found with 80 % power.
    `between`: standard deviation of what suites have, sampling aside. All of the shape of what was given,
    less its last axis.
    """

    value: Float[np.ndarray, "..."]
    low: Float[np.ndarray, "..."]
    high: Float[np.ndarray, "..."]
    p: Float[np.ndarray, "..."]
    mde: Float[np.ndarray, "..."]
    between: Float[np.ndarray, "..."]


def pooled(values: ArrayLike, se: ArrayLike) -> Pooled:
    """Random effects over at least two suites: weights 1/(se² + t²), with t² between suites by Paule and
    Mandel (1982, *J. Res. Natl. Bur. Stand.* 87, 377-385); the variance of Hartung and Knapp (2001,
    *Statistics in Medicine* 20, 3875-3889), never below that of the weights (Röver, Knapp and Friede 2015,
    *BMC Medical Research Methodology* 15:99), and a t with one degree of freedom less than suites. How often
    that covers the truth with 2 to 5 suites: docs/comparing.md.

    Args:
        values: `[..., suites]`, a difference each.
        se: `[..., suites]`, their standard errors, above 0.

    Raises:
        ValueError: fewer than two suites, or a value or standard error that is none.
    """
    from scipy.special import stdtr, stdtrit  # scipy.stats takes two seconds to import

    y, v = np.broadcast_arrays(np.asarray(values, float), np.asarray(se, float) ** 2)
    k = y.shape[-1]
    if k < 2 or not np.isfinite(y).all() or not (np.isfinite(v) & (v > 0)).all():
        raise ValueError("pooled: expected at least two finite differences with standard errors")
    t2 = _between(y, v)
    w = 1 / (v + t2[..., None])  # [..., suites]
    mean = (w * y).sum(-1) / w.sum(-1)
    spread = (w * (y - mean[..., None]) ** 2).sum(-1) / (k - 1)
    error = np.sqrt(np.maximum(spread, 1) / w.sum(-1))
    ends, power = stdtrit(k - 1, 0.975), stdtrit(k - 1, 0.8)
    p = 2 * stdtr(k - 1, -np.abs(mean) / error)
    half = ends * error
    return Pooled(mean, mean - half, mean + half, p, (ends + power) * error, np.sqrt(t2))


def _between(y: Float[np.ndarray, "... k"], v: Float[np.ndarray, "... k"]) -> np.ndarray:
    """The variance between suites at which the weighted squares are what they should be, k - 1."""

    def squares(t2: np.ndarray) -> np.ndarray:
        w = 1 / (v + t2[..., None])
        mean = (w * y).sum(-1, keepdims=True) / w.sum(-1, keepdims=True)
        return (w * (y - mean) ** 2).sum(-1)

    low = np.zeros(y.shape[:-1])
    high = np.full(y.shape[:-1], 1e-300) + np.ptp(y, axis=-1) ** 2 * y.shape[-1]
    none = squares(low) <= y.shape[-1] - 1
    for _ in range(60):
        middle = (low + high) / 2
        above = squares(middle) > y.shape[-1] - 1
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.where(none, 0.0, (low + high) / 2)


def standard_error(low: float, high: float) -> float:
    """Of a difference, from its 95 % interval. That of few seeds is wide, and this with it."""
    return (high - low) / (2 * Z)


def share_a_nat(accuracy: float, spread: float) -> float:
    """How much accuracy changes, as a share, where the margin of every item is shifted by one nat a token:
    the density at 0 of margins that are normal, of this spread, and above 0 as often as the accuracy says. It
    is the slope there; a shift that is large beside the spread changes less.

    Args:
        accuracy: strictly between 0 and 1.
        spread: standard deviation of items' margins, in nats a token.
    """
    normal = NormalDist()
    return normal.pdf(normal.inv_cdf(accuracy)) / spread
