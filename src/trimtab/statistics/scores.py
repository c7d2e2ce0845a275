"""Score intervals and tests: what values between two known ends say of their mean."""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from jaxtyping import Float

QUANTILES = (0.025, 0.975)
"""Ends of a percentile interval."""

Z = NormalDist().inv_cdf(QUANTILES[1])

Range = tuple[float, float]
SHARE: Range = (0.0, 1.0)
"""What a share, such as an item's accuracy, lies between."""
POSITIVE: Range = (0.0, np.inf)
"""What a divergence lies between, but for rounding."""
UNBOUNDED: Range = (-np.inf, np.inf)


class Score:
    """What a sample of values with known ends says of their mean: score intervals and tests.

    A mean m is tenable where (mean - m)² <= z² V(m)/n, and V(m) is the variance of the likeliest
    distribution of mean m on the values seen and the two ends (Owen 2001, *Empirical Likelihood*,
    section 2.3, for the likelihood). For values 0 and 1 this is Wilson's interval (1927, *JASA* 22,
    209-212), for differences -1, 0 and 1 Tango's (1998, *Statistics in Medicine* 17, 891-908), whose
    test is McNemar's. An item with several pairs is one value between the ends, so that pairs which go
    together count no more than they should. n equal values allow a mean z²/(n + z²) of the way to an
    end: all of 12 right is 76 to 100 %, and no difference on any of 60 items at most 6 points.

    Written in gaps g to an end, the likeliest weights are proportional to 1/(1 - t + t g) with t from 0
    (as seen) to 1; beyond, the end itself gains weight, and V = m' (g' - m') for mean gaps g' seen and m'
    assumed.
    """

    def __init__(
        self,
        values: Float[np.ndarray, " items"],
        within: Range,
        share: Float[np.ndarray, " items"] | None = None,
    ):
        share = np.full(len(values), 1 / len(values)) if share is None else share
        self.within = within
        self.items = 1 / float(share @ share)
        self.values, place = np.unique(values, return_inverse=True)
        self.share = np.bincount(place, share)

    def end(self, end: float) -> float:
        """The farthest tenable mean (95 %) on the way to one of the ends."""
        span = self.within[1] - self.within[0]
        gaps = np.abs(end - self.values) / span
        mean, q = float(self.share @ gaps), Z**2 / self.items
        if mean < 1e-15:
            return end
        gap = mean / (1 + q)
        if gap > _harmonic(gaps, self.share):
            gap, _ = _tilted(
                gaps, self.share, lambda gap, variance: (mean - gap) ** 2 <= q * variance
            )
        return end - gap * span if end == self.within[1] else end + gap * span

    def p_value(self, at: float) -> float:
        """Two-sided p of the mean's being `at`, a value between the ends."""
        mean = float(self.share @ self.values)
        end = self.within[0] if at < mean else self.within[1]
        gaps, aim = np.abs(end - self.values), abs(end - at)
        seen = float(self.share @ gaps)
        if seen - aim <= 1e-12 * (self.within[1] - self.within[0]):
            return 1.0
        variance = aim * (seen - aim)
        if aim > _harmonic(gaps, self.share):
            _, variance = _tilted(gaps, self.share, lambda gap, _: gap > aim)
        if variance <= 0:
            return 0.0
        return 2 * NormalDist().cdf(-(seen - aim) / float(np.sqrt(variance / self.items)))


def _harmonic(gaps: Float[np.ndarray, " k"], share: Float[np.ndarray, " k"]) -> float:
    """The mean gap that the values seen can have before their end gains weight."""
    return 0.0 if gaps.min() <= 0 else float(1 / (share / gaps).sum())


def _tilted(
    gaps: Float[np.ndarray, " k"],
    share: Float[np.ndarray, " k"],
    goes_on: Callable[[float, float], bool],
) -> tuple[float, float]:
    """Mean and variance of the gaps at the largest tilt at which `goes_on(mean, variance)`."""
    low, high = 0.0, 1.0
    mean = variance = 0.0
    for _ in range(50):
        tilt = (low + high) / 2
        weights = share / (1 - tilt + tilt * gaps)
        weights /= weights.sum()
        mean = float(weights @ gaps)
        variance = float(weights @ (gaps - mean) ** 2)
        low, high = (tilt, high) if goes_on(mean, variance) else (low, tilt)
    return mean, variance
