"""Simulated scores of two methods on the same items, for the calibration of verdicts.

A method answers an item right where a latent value is above zero: the item's ease (shared by both
methods), what this method makes of this item (whatever the seed), the luck of a training run, and
the luck of this run on this item, all normal. Accuracy in the population is therefore Phi(ease /
spread), exactly, and two methods with the same ease are a null: whatever difference a table shows
is that of its items and seeds.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

ITEM, METHOD_ITEM, RUN_ITEM = 1.0, 0.5, 0.4
"""Standard deviations of the latent value: between items; of a method on an item; of a run there."""

SEEDS = (0.0, 0.05, 0.1, 0.2)
"""Standard deviations between runs: 0, 1.4, 2.8 and 5.6 points of accuracy at 70 %."""


def scores(
    rng: np.random.Generator, accuracy: tuple[float, float], seeds: int, items: int, spread: float
) -> tuple[np.ndarray, np.ndarray]:
    """0/1 scores `[seeds, items]` of two methods of the given accuracies in the population."""
    total = np.sqrt(ITEM**2 + METHOD_ITEM**2 + RUN_ITEM**2 + spread**2)
    ease = rng.normal(0, ITEM, items)
    made = []
    for mean in accuracy:
        latent = NormalDist().inv_cdf(mean) * total + ease
        latent = latent + rng.normal(0, METHOD_ITEM, items)
        latent = (
            latent + rng.normal(0, spread, (seeds, 1)) + rng.normal(0, RUN_ITEM, (seeds, items))
        )
        made.append((latent > 0).astype(float))
    return made[0], made[1]
