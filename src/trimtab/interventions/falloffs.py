"""How strongly an intervention acts on a state, by how well the state is aligned with a concept.

`Falloff` is a strength g(a) for suppression; `Linear` and `Bezier` are mappers m(a), the alignment
that repulsion leaves behind. The alignment a is a cosine clamped to 0..1. Source: Sparse Concept
Anchoring (arXiv 2512.12469), section on interventions, and its code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.bounds import Bounded, NonNegative, Strength, Within
from trimtab.errors import ConfigError

Cosine = Annotated[float, Within(0, 1, "[)", "a cosine")]


@dataclass(frozen=True)
class Falloff(Bounded, group="falloff"):
    """g(a) = top ((a - start) / (1 - start))^power above `start`, 0 below.

    Power 0 is a hard gate, 1 is linear, 2 has a soft rim and a sharp hub.

    Raises:
        ConfigError: `start` outside 0..1 (1 left out), or a negative power.
    """

    start: Cosine = 0.0
    """Cosine below which nothing happens: cos of the largest angle that is touched."""
    top: Strength = 1.0
    """Strength at full alignment."""
    power: NonNegative = 2.0
    """Shape between the two."""

    def __call__(self, alignment: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Strength, 0..top."""
        above = ((alignment - self.start) / (1 - self.start)).clamp(0, 1)
        return torch.where(alignment > self.start, self.top * above**self.power, 0.0)


@dataclass(frozen=True)
class Linear(Bounded, group="falloff"):
    """m(a) = start + (end - start)(a - start) / (1 - start) above `start`, a itself below.

    With `end` below or near `start`, an aligned state is turned to the rim of the cone.
    """

    start: Cosine = 0.0
    """Cosine of the largest angle that is touched."""
    end: float = 0.0
    """Alignment left at full alignment."""

    def __call__(self, alignment: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Alignment afterwards."""
        share = (alignment - self.start) / (1 - self.start)
        mapped = self.start + (self.end - self.start) * share
        return torch.where(alignment > self.start, mapped, alignment)


@dataclass(frozen=True)
class Bezier(Bounded, group="falloff"):
    """A smooth mapper: a cubic Bezier curve from (start, start) to (1, end).

    It leaves the identity with slope `slope_start` and ends with `slope_end`; the inner control
    points lie a share `reach` of the way to where the end tangents meet.

    Raises:
        ConfigError: parallel tangents, which meet nowhere.
    """

    start: Cosine = 0.0
    """Cosine of the largest angle that is touched."""
    end: float = 0.5
    """Alignment left at full alignment."""
    slope_start: float = 1.0
    """Slope where the curve leaves the identity."""
    slope_end: float = 0.0
    """Slope at full alignment."""
    reach: float = 1 / math.sqrt(2)
    """How far the control points lie towards the meeting point of the tangents."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.slope_start == self.slope_end:
            raise ConfigError(f"Bezier mapper: both slopes are {self.slope_start}")

    def control_points(self) -> tuple[tuple[float, float], ...]:
        """P0 to P3, each (alignment before, alignment after)."""
        a, b, s0, s1 = self.start, self.end, self.slope_start, self.slope_end
        meet_x = (a * (s0 - 1) + b - s1) / (s0 - s1)
        meet_y = s0 * (meet_x - a) + a
        first = (a + self.reach * (meet_x - a), a + self.reach * (meet_y - a))
        second = (1 + self.reach * (meet_x - 1), b + self.reach * (meet_y - b))
        return (a, a), first, second, (1.0, b)

    def __call__(self, alignment: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Alignment afterwards, from a table of 1,001 points."""
        xs, ys = (t.to(alignment) for t in _table(self))
        at = torch.searchsorted(xs, alignment.clamp(self.start, 1).contiguous())
        at = at.clamp(1, len(xs) - 1)
        x0, x1, y0, y1 = xs[at - 1], xs[at], ys[at - 1], ys[at]
        mapped = y0 + (y1 - y0) * (alignment - x0) / (x1 - x0).clamp(min=1e-12)
        return torch.where(alignment > self.start, mapped, alignment)


@cache
def _table(curve: Bezier) -> tuple[Tensor, Tensor]:
    """The curve at evenly spaced x, in float64. B_x rises, so bisection finds t."""
    points = torch.tensor(curve.control_points(), dtype=torch.float64)
    xs = torch.linspace(curve.start, 1, 1001, dtype=torch.float64)
    low, high = torch.zeros_like(xs), torch.ones_like(xs)
    for _ in range(60):
        middle = (low + high) / 2
        below = bernstein(middle) @ points[:, 0] < xs
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return xs, bernstein((low + high) / 2) @ points[:, 1]


def bernstein(t: Float[Tensor, "n"]) -> Float[Tensor, "n 4"]:
    """Weights of the four control points of a cubic Bezier curve at t in 0..1."""
    u = 1 - t
    return torch.stack([u**3, 3 * u**2 * t, 3 * u * t**2, t**3], -1)


Mapper = Linear | Bezier
