"""What every space is."""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn


class Space(nn.Module):
    """A linear map of hidden states `[..., d]`."""

    isometric: ClassVar[bool] = False
    """Whether lengths and angles are kept, whatever the parameters."""

    def forward(self, h: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """The states in this space."""
        raise NotImplementedError

    def stretch(self) -> Tensor | None:
        """How far a trainable map is from an isometry: the sum of (singular value - 1)^2. None where
        training cannot change any length."""
        return None
