"""The direction along which a classifier of chosen against rejected is surest."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from trimtab.directions.difference import unit

ROUNDING = 1e-9
"""Weights below this, on rows of length 1, are rounding."""


def logistic_direction(
    differences: Float[Tensor, "pair d"],
    *,
    penalty: float = 1.0,
    scaled: bool = True,
    steps: int = 100,
) -> Float[Tensor, "d"]:
    """The unit weight vector of a logistic regression that tells the poles of a pair apart.

    Poles are centred by pair, so that they are +-difference/2 and there is no intercept
    (steering-vectors' logistic aggregator): w minimises |w|^2 penalty / 2 + 2 sum softplus(-<w, x>).
    Solved to rounding by damped Newton steps in float64, in the span of the differences.

    Args:
        penalty: L2 penalty, scikit-learn's 1 / C.
        scaled: divide the rows by their root mean square length first, so that the penalty means
            the same at every layer. Without it the direction is that of the published package.
        steps: upper limit of Newton steps.

    Raises:
        ValueError: the differences are all zero.
    """
    X = differences.double() / 2
    length = X.square().sum(1).mean().sqrt()
    if not length > 0:
        raise ValueError("the differences are all zero: there is no direction")
    if scaled:
        X = X / length
    n, d = X.shape
    basis = torch.linalg.qr(X.T)[0] if n < d else None  # d n
    Z = X if basis is None else X @ basis

    def loss(w: Tensor) -> Tensor:
        return penalty * w.square().sum() / 2 + 2 * F.softplus(-(Z @ w)).sum()

    eye = torch.eye(Z.shape[1], dtype=Z.dtype, device=Z.device)
    w = Z.new_zeros(Z.shape[1])
    now = loss(w)
    for _ in range(steps):
        p = torch.sigmoid(-(Z @ w))
        gradient = penalty * w - 2 * Z.T @ p
        hessian = penalty * eye + 2 * (Z.T * (p * (1 - p))) @ Z
        step = torch.cholesky_solve(gradient[:, None], torch.linalg.cholesky(hessian))[:, 0]
        size = 1.0
        while size > 1e-10 and not (new := loss(w - size * step)) < now:
            size /= 2
        if size <= 1e-10:
            break
        w, now = w - size * step, new
        if (gradient @ step) < 1e-24 * (1 + now):
            break
    v = w if basis is None else basis @ w
    # Pairs that say the opposite of each other leave weights of rounding.
    return unit(v, "the classifier's weight", ROUNDING * (1 if scaled else length)).to(
        differences.dtype
    )
