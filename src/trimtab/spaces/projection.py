"""Fixed spaces: the projection on a subspace, or on all but it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from trimtab.spaces.space import Space


class Projector(Space):
    """h Q Q^T for an orthonormal basis Q `[d, r]`, or with `without` h - h Q Q^T."""

    basis: Tensor

    def __init__(self, basis: Float[Tensor, "d r"], *, without: bool = False):
        super().__init__()
        self.without = without
        self.register_buffer("basis", basis)

    def forward(self, h: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """The projected states, in the model's own basis."""
        basis = self.basis.to(h)
        inside = (h @ basis) @ basis.T
        return h - inside if self.without else inside


def leading_directions(
    matrices: Sequence[Float[Tensor, "v d"]], share: float = 0.5
) -> Float[Tensor, "d r"]:
    """The fewest leading right singular vectors of stacked matrices that hold `share` of their
    squared energy (for InnerPO's `svd`: of the embedding and the unembedding).

    Computed from the d x d Gram matrix, in float64.

    Raises:
        ValueError: the share is not between 0 and 1, or would leave nothing.
    """
    if not 0 < share < 1:
        raise ValueError(f"share is {share}; expected a number between 0 and 1")
    gram: Any = sum(_gram(m) for m in matrices)
    values, vectors = torch.linalg.eigh(gram)  # ascending
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    held = values.cumsum(0) / values.sum()
    r = int((held < share).sum()) + 1
    if r >= len(values):
        raise ValueError(f"a share of {share} takes all {len(values)} directions")
    return vectors[:, :r]


def _gram(matrix: Tensor, rows: int = 8192) -> Tensor:
    """M^T M in float64, a block of rows at a time."""
    d = matrix.shape[1]
    total = torch.zeros(d, d, dtype=torch.float64, device=matrix.device)
    for part in matrix.detach().split(rows):
        part = part.double()
        total += part.T @ part
    return total


def span_of(rows: Float[Tensor, "v d"], index: Int[Tensor, "r"]) -> Float[Tensor, "d r"]:
    """An orthonormal basis of the span of some rows, in float64.

    Raises:
        ValueError: fewer than one row.
    """
    if not len(index):
        raise ValueError("a span needs at least one row")
    chosen = rows.detach()[index].double()
    left, values, _ = torch.linalg.svd(chosen.T, full_matrices=False)
    return left[:, values > 1e-10 * values[0]]  # rows may repeat each other
