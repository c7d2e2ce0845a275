"""What numbers a dial may hold and be turned to, so that no product or norm of them overflows."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.errors import DialError

STRONGEST = 1e6
"""The largest |alpha|."""
LARGEST = 1e12
"""The largest entry of a weight and the largest scale of a direction: with `STRONGEST`, a length whose
square is within float32."""


def unit(v: Tensor, what: str) -> Float[Tensor, "d"]:
    """A direction at length 1, in float32.

    Raises:
        DialError: no vector, or one that is zero or not finite.
    """
    if v.ndim != 1 or not torch.isfinite(v).all() or not v.any():
        raise DialError(f"{what} is zero or not finite, or no vector {tuple(v.shape)}")
    small = v.float()
    norm = small.norm()
    # Squares of very large or small entries are beyond float32.
    return small / norm if 1e-15 < norm < 1e15 else (v.cpu().double() / length(v)).to(small)


def length(v: Tensor) -> float:
    """The norm of a vector, whatever the size of its entries."""
    return v.detach().cpu().double().norm().item()


def number(
    value: Any, what: str, low: float = -LARGEST, high: float = LARGEST, *, below: bool = False
) -> float:
    """A number between two others; with `below`, the upper one left out.

    Raises:
        DialError: it is none, not finite, or out of range.
    """
    known = isinstance(value, int | float) and not isinstance(value, bool)
    if known and abs(value) > 1e300:  # a whole number may be too long for a float, and to be shown
        value = math.copysign(math.inf, value > 0 or -1)
    if not known or not math.isfinite(value) or not low <= value <= high:
        raise DialError(f"{what} {value!r}: expected a finite number, {low:g} to {high:g}")
    if below and value == high:
        raise DialError(f"{what} {value!r}: expected a number below {high:g}")
    return float(value)


def whole(value: Any, what: str, low: int = 1, high: int = 1 << 20) -> int:
    """A whole number between two others. Raises DialError."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        said = repr(value) if not isinstance(value, int) or abs(value) < 1e300 else "too large"
        raise DialError(f"{what} {said}: expected a whole number, {low} to {high}")
    return value
