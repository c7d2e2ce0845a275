"""Directions from gradients of a loss with respect to hidden states.

Every pair gives two gradients, at the state of its chosen and of its rejected pole. What a pair
asks for is its *pull*: the step that the loss wants. A loss that separates the two states wants
them moved apart, so that the pull is half of g_rejected - g_chosen; a loss on log-probs wants both
moved downhill, so that it is half of -(g_rejected + g_chosen).
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.directions.difference import FLOOR, principal_direction, signed, typical, unit

Fisher = Literal["covariance", "empirical", "scaled"]
"""The Fisher matrix of m gradients: their covariance, their second moment, or the second moment of
gradients divided by their length at the loss's own layer."""

Poles = Literal["both", "dual", "positive", "negative", "difference"]
"""Both poles' gradients in one solve; or one solve for each pole, of which the mean, the first, the
second, or their difference is taken."""


def pulls(
    chosen: Float[Tensor, "pair d"], rejected: Float[Tensor, "pair d"], *, separating: bool
) -> Float[Tensor, "pair d"]:
    """What each pair asks for, from its two gradients (see this module's text)."""
    return ((rejected - chosen) if separating else -(rejected + chosen)) / 2


def gradient_mean(
    chosen: Float[Tensor, "pair d"], rejected: Float[Tensor, "pair d"], *, separating: bool = True
) -> Float[Tensor, "d"]:
    """The unit vector along the mean pull. Raises ValueError where it is zero within rounding."""
    pull = pulls(chosen.double(), rejected.double(), separating=separating).mean(0)
    return unit(pull, "the mean pull", FLOOR * _size(chosen, rejected)).to(chosen.dtype)


def _size(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Typical length of the gradients of a pair."""
    return torch.maximum(typical(chosen), typical(rejected))


def gradient_svd(
    chosen: Float[Tensor, "pair d"],
    rejected: Float[Tensor, "pair d"],
    *,
    separating: bool = True,
    published: bool = False,
) -> Float[Tensor, "d"]:
    """The first right singular vector of the pulls, signed by their majority.

    `published` takes that of all gradients after their mean is removed, as wassname/repeng does: the
    mean, which holds what all pairs agree in, no longer counts.

    Raises:
        ValueError: all pulls (deviations) are zero.
    """
    pull = pulls(chosen.double(), rejected.double(), separating=separating)
    if not typical(pull) > FLOOR * _size(chosen, rejected):
        raise ValueError("the pulls are all zero within rounding: there is no direction")
    if published:
        v = principal_direction(torch.cat([chosen, rejected]).double(), centred=True)
        return signed(v, pull).to(chosen.dtype)
    return principal_direction(pull).to(chosen.dtype)


def fisher_direction(
    chosen: Float[Tensor, "pair d"],
    rejected: Float[Tensor, "pair d"],
    *,
    separating: bool = True,
    fisher: Fisher = "covariance",
    damping: float | None = 0.1,
    relative: bool = True,
    poles: Poles = "both",
    lengths: Float[Tensor, "two pair"] | None = None,
    published: bool = False,
) -> Float[Tensor, "d"]:
    """The natural gradient: the unit vector along (F + lambda I)^-1 applied to the mean pull.

    Args:
        fisher: which matrix F (see `Fisher`); `scaled` needs `lengths`.
        damping: lambda, or None for the published default of separate poles,
            max(1e-6, 0.01 tr F / d).
        relative: lambda is `damping` times tr F / d, the mean eigenvalue. Absolute, it changes its
            meaning with the scale of the loss: at the published 0.1 it may outweigh F a thousandfold,
            and the direction is the mean gradient.
        poles: see `Poles`. A pole's own pull is its gradient, downhill (rejected: uphill where the
            loss separates).
        lengths: L2 norm of each gradient at the loss's own layer, chosen and rejected.
        published: the target is the mean of all 2n gradients, signed so that the mean of
            g_rejected - g_chosen projects positively (wassname/repeng); and with fewer than d / 10
            gradients lambda is at least 1e-4 tr F / d.

    Raises:
        ValueError: the mean gradient is zero within rounding, or `scaled` lacks `lengths`.
    """
    c, r = chosen.double(), rejected.double()
    weights: Tensor | None = None
    if fisher == "scaled":
        if lengths is None:
            raise ValueError("the scaled Fisher matrix needs the gradients' lengths at the loss")
        rates = (lengths.double().square() + 1e-6).rsqrt().reshape(2, -1, 1)
        weights = rates.expand(2, len(c), 1)

    def solve(gradients: Tensor, side: slice, target: Tensor) -> Tensor:
        X, m = gradients, len(gradients)
        if weights is not None:
            X = X * weights[side].reshape(-1, 1)
        if fisher == "covariance":
            X, m = X - X.mean(0), max(m - 1, 1)
        mean_eigenvalue = X.square().sum().item() / m / X.shape[1]
        if damping is None:
            level = max(1e-6, 0.01 * mean_eigenvalue)
        else:
            level = damping * (mean_eigenvalue if relative else 1.0)
        if published and 10 * len(gradients) < X.shape[1]:
            level = max(level, 1e-4 * mean_eigenvalue)
        if not target.norm() > FLOOR * _size(c, r):
            raise ValueError("the mean gradient is zero within rounding: there is no direction")
        return damped_solve(X, target, m * level) * m

    if poles == "both":
        every = torch.cat([c, r])
        target = every.mean(0) if published else pulls(c, r, separating=separating).mean(0)
        v = solve(every, slice(2), target)
    else:
        sign = 1.0 if separating and not published else -1.0
        up = solve(c, slice(1), (1.0 if published else -1.0) * c.mean(0))
        down = solve(r, slice(1, 2), (1.0 if published else sign) * r.mean(0))
        v = {
            "positive": up,
            "negative": down,
            "difference": up - down,
            "dual": (up + down) / 2,
        }[poles]
    if published and (r - c).mean(0) @ v < 0:
        v = -v
    return unit(v).to(chosen.dtype)


def damped_solve(
    X: Float[Tensor, "m d"], target: Float[Tensor, "d"], damping: float
) -> Float[Tensor, "d"]:
    """(X^T X + damping I)^-1 target, by the smaller side (Woodbury); at 0 the pseudo-inverse.

    With fewer rows than columns: (target - X^T (damping I + X X^T)^-1 X target) / damping.
    """
    m, d = X.shape
    if damping > 0:
        side = X if m < d else X.T
        b = X @ target if m < d else target
        y = _refined(side, b, damping)
        if y is None:
            factor = torch.linalg.cholesky(_gram(side) + damping * torch.eye(len(side)).to(X))
            y = torch.cholesky_solve(b[:, None], factor)[:, 0]
        return (target - X.T @ y) / damping if m < d else y
    gram = X @ X.T if m < d else X.T @ X
    values, vectors = torch.linalg.eigh(gram)
    kept = values > values[-1] * max(m, d) * torch.finfo(X.dtype).eps
    values, vectors = values[kept], vectors[:, kept]
    if m < d:  # right singular vectors, from the left ones
        vectors = X.T @ vectors / values.sqrt()
    return vectors @ ((vectors.T @ target) / values)


ROUNDS, EXACT = 8, 1e-14
"""Rounds of refinement, and the relative residual that ends them."""


def _refined(
    X: Float[Tensor, "m d"], b: Float[Tensor, "m"], damping: float
) -> Float[Tensor, "m"] | None:
    """(X X^T + damping I)^-1 b in X's precision, from a factor in single precision and refinement; None where
    that does not converge, as for matrices near singular."""
    single = X.float()
    factor, failed = torch.linalg.cholesky_ex(
        _gram(single) + damping * torch.eye(len(X)).to(single)
    )
    if failed:
        return None
    y, left = torch.zeros_like(b), b
    for _ in range(ROUNDS):
        y = y + torch.cholesky_solve(left.float()[:, None], factor)[:, 0]
        left, before = b - X @ (X.T @ y) - damping * y, left
        if left.norm() <= EXACT * b.norm():
            return y
        if not left.norm() < before.norm() / 4:
            return None
    return None


BLOCKS = 4


def _gram(X: Float[Tensor, "m d"]) -> Float[Tensor, "m m"]:
    """X X^T, of whose blocks only those at and below the diagonal are multiplied."""
    gram, size = X.new_empty(len(X), len(X)), -(-len(X) // BLOCKS)
    for start in range(0, len(X), size):
        rows, end = X[start : start + size], start + size
        gram[start:end, :end] = rows @ X[:end].T
        gram[:start, start:end] = gram[start:end, :start].T
    return gram
