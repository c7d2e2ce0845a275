"""What differences of states say of a direction before one is fitted, an item each: whether they agree, and
whether their mean direction tells the poles of other items apart."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from trimtab.directions.difference import unit

DRAWS = 1000
"""Resamples of the items, and draws of random signs."""
CHANCE = 0.975
"""The quantile of agreements under random signs that is called chance."""


class Found(NamedTuple):
    """A figure, its 95 % interval by bootstrap over items, and what chance reaches (NaN where that is 0)."""

    value: float
    low: float
    high: float
    chance: float = float("nan")


def agreement(differences: Float[Tensor, "item d"], seed: int = 0) -> Found:
    """Mean cosine of two different items' differences, 1 where all point one way.

    c = (|sum of w u|² - sum of w²) / ((sum of w)² - sum of w²), u the unit differences and w how often an
    item was drawn: an item never meets itself, so that of random directions c is 0 whatever the resample.
    `chance` is the 97.5 % point of c with the sign of each difference drawn at random (A/A).

    Raises:
        ValueError: fewer than two items, or a difference of length 0.
    """
    n = len(differences)
    if n < 2 or not (differences.norm(dim=1) > 0).all():
        raise ValueError(f"{n} differences, or one of length 0: expected two or more that are not")
    u = F.normalize(differences.double(), dim=1)
    draw = torch.Generator().manual_seed(seed)
    signs = 2.0 * torch.randint(0, 2, (DRAWS, n), generator=draw, dtype=torch.float64) - 1
    ones = torch.ones(1, n, dtype=torch.float64)
    by_chance = _cosine(ones.expand(DRAWS, n), signs @ u.cpu()).quantile(CHANCE)
    weights = _resampled(n, draw)
    low, high = _ends(_cosine(weights, weights @ u.cpu()))
    return Found(float(_cosine(ones, ones @ u.cpu())), low, high, float(by_chance))


def _cosine(weights: Float[Tensor, "draw item"], sums: Float[Tensor, "draw d"]) -> Tensor:
    own = weights.square().sum(1)
    return (sums.square().sum(1) - own) / (weights.sum(1).square() - own)


def separation(differences: Float[Tensor, "item d"], seed: int = 0) -> Found:
    """d' of held-out items: mean over standard deviation of their parts along the mean direction of the
    other half, each half once.

    Raises:
        ValueError: fewer than four items, or a half whose mean difference is 0.
    """
    n = len(differences)
    if n < 4:
        raise ValueError(f"{n} items: expected four or more, to hold out a half")
    draw = torch.Generator().manual_seed(seed)
    half = torch.zeros(n, dtype=torch.bool)
    half[torch.randperm(n, generator=draw)[: n // 2]] = True
    d = differences.double().cpu()
    along = torch.empty(n, dtype=torch.float64)
    for held in (half, ~half):
        along[held] = d[held] @ unit(d[~held].mean(0))
    weights = _resampled(n, draw) / n
    mean, square = weights @ along, weights @ along.square()
    spread = (square - mean.square()).clamp(min=1e-24).sqrt()
    value = along.mean() / along.std(correction=0).clamp(min=1e-12)
    return Found(float(value), *_ends(mean / spread))


def _resampled(n: int, draw: torch.Generator) -> Float[Tensor, "draw item"]:
    """How often each item is drawn, of n with replacement."""
    at = torch.randint(0, n, (DRAWS, n), generator=draw)
    ones = torch.ones(DRAWS, n, dtype=torch.float64)
    return torch.zeros_like(ones).scatter_add_(1, at, ones)


def _ends(draws: Float[Tensor, "draw"]) -> tuple[float, float]:
    low, high = torch.quantile(draws, torch.tensor([0.025, 0.975], dtype=draws.dtype)).tolist()
    return low, high
