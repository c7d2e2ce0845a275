"""Directions from differences of states: their mean, and their first principal component."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

FLOOR = 1e-5
"""What is smaller than this, relative to what it was computed from, is rounding and no direction."""


def mean_difference(differences: Float[Tensor, "pair d"]) -> Float[Tensor, "d"]:
    """The unit vector along the mean of chosen - rejected (CAA, Rimsky et al. 2024, sec. 3).

    Raises:
        ValueError: the mean difference is zero within rounding, so that there is no direction.
    """
    return unit(differences.mean(0), "the mean difference", FLOOR * typical(differences))


def principal_direction(
    differences: Float[Tensor, "pair d"],
    *,
    centred: bool = False,
    steps: int = 200,
    tolerance: float = 1e-12,
) -> Float[Tensor, "d"]:
    """The unit vector v that maximises the sum of <difference, v>^2, signed by the pairs.

    Uncentred (the default) the mean difference counts, as it does for pairs taken in both orders
    (RepE's shuffled labels, steering-vectors' PCA). Centred, it is removed first, as repeng's
    `pca_diff` does: what is left is the variation *around* the preference, which may have nothing
    to do with it. The sign is the one that the majority of the pairs project to positively (the
    mean projection decides a tie).

    Found by power steps with Rayleigh-Ritz on a block of a few vectors, in float64.

    Args:
        steps: upper limit of block power steps.
        tolerance: relative change of the leading eigenvalue at which to stop.

    Raises:
        ValueError: all differences (centred: all deviations) are zero within rounding.
    """
    D = differences.double()
    X = D - D.mean(0) if centred else D
    value, v = _leading(X, steps, tolerance)
    # Deviations from a mean are seldom exactly 0: what equal differences leave is rounding.
    least = max(1e-12, 4 * torch.finfo(differences.dtype).eps)
    if not value > least**2 * D.square().sum():
        raise ValueError("the differences are all zero: there is no principal direction")
    return signed(unit(v), D).to(differences.dtype)


def signed(v: Float[Tensor, "d"], rows: Float[Tensor, "pair d"]) -> Float[Tensor, "d"]:
    """v or -v: the one that the majority of the rows project to positively; the mean projection
    decides a tie."""
    along = rows @ v
    votes = (along > 0).sum() - (along < 0).sum()
    sign = torch.sign(votes.to(v.dtype)) if votes != 0 else torch.sign(along.mean())
    return v * (sign if sign != 0 else 1.0)


def _leading(X: Tensor, steps: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """Leading eigenvalue and eigenvector of X^T X by block power steps, without forming it."""
    n, d = X.shape
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(d, min(8, n, d), generator=generator, dtype=X.dtype).to(X.device)
    onto = X @ block  # n block
    last = torch.zeros((), dtype=X.dtype, device=X.device)
    for _ in range(steps):
        block, _ = torch.linalg.qr(X.T @ onto)
        onto = X @ block
        values, small = torch.linalg.eigh(onto.T @ onto)
        block, onto = block @ small, onto @ small
        if abs(values[-1] - last) <= tolerance * values[-1]:
            break
        last = values[-1]
    return onto[:, -1].square().sum(), block[:, -1]


def unit(
    v: Float[Tensor, "d"], what: str = "the estimate", least: Tensor | float = 0.0
) -> Float[Tensor, "d"]:
    """v at length 1. Raises ValueError where it is no longer than `least` (or not a number), saying
    what it is."""
    length = v.norm()
    if not length > least:
        raise ValueError(
            f"{what} is zero{' within rounding' if length > 0 else ''}: there is no direction"
        )
    return v / length


def typical(rows: Float[Tensor, "pair d"]) -> Tensor:
    """Root mean square length of rows."""
    return rows.double().square().sum(-1).mean().sqrt()


def check_apart(
    a: Float[Tensor, "pair d"], b: Float[Tensor, "pair d"], what: str = "the differences"
) -> None:
    """Raise ValueError where a and b are the same within rounding."""
    if not typical(a - b) > FLOOR * torch.maximum(typical(a), typical(b)):
        raise ValueError(f"{what} are all zero within rounding: there is no direction")
