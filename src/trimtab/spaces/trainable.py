"""Spaces with parameters of their own, learned along with the dial: one a site."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from trimtab.spaces.space import Space


class Orthogonal(Space):
    """The Cayley map Q = (I - S)^-1 (I + S) of a skew-symmetric S, at first the identity."""

    isometric: ClassVar[bool] = True

    def __init__(self, width: int, generator: torch.Generator | None = None):
        super().__init__()
        self.free = nn.Parameter(torch.zeros(width, width))

    def forward(self, h: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """h Q."""
        upper = self.free.triu(1)
        skew = upper - upper.T
        eye = torch.eye(len(skew), dtype=skew.dtype, device=skew.device)
        return h @ torch.linalg.solve(eye - skew, eye + skew).to(h)


class Householder(Space):
    """A chain of `rank` reflections I - 2 u u^T, equal in pairs at first: the identity (HRA, Yuan et
    al. 2024, section 3, without its Gram-Schmidt, which is undefined on equal pairs)."""

    isometric: ClassVar[bool] = True

    def __init__(self, width: int, generator: torch.Generator | None = None, rank: int = 38):
        super().__init__()
        if rank % 2 or rank < 2:
            raise ValueError(f"rank is {rank}; expected an even number, for pairs that cancel")
        half = torch.randn(rank // 2, width, generator=generator)
        self.vectors = nn.Parameter(half.repeat_interleave(2, 0))  # rank d

    def forward(self, h: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """The reflections, one after the other."""
        for u in F.normalize(self.vectors, dim=-1).to(h):
            h = h - 2 * (h @ u)[..., None] * u
        return h


class _Blocks(Space):
    """Rank-one changes within `blocks` equal blocks of hidden units."""

    def __init__(self, width: int, generator: torch.Generator | None = None, blocks: int = 2):
        super().__init__()
        if width % blocks:
            raise ValueError(f"{width} hidden units cannot be cut into {blocks} equal blocks")
        self.u = nn.Parameter(torch.randn(blocks, width // blocks, generator=generator))

    def inside(self, h: Tensor, vectors: Tensor) -> Tensor:
        """h's part along each block's unit vector, `[..., d]`."""
        split = h.unflatten(-1, vectors.shape)  # ... blocks d/blocks
        unit = F.normalize(vectors, dim=-1).to(h)
        return ((split * unit).sum(-1, keepdim=True) * unit).flatten(-2)


class Ether(_Blocks):
    """I - 2 u u^T in each block, a reflection (ETHER, Bini et al. 2024, section 3.2)."""

    isometric: ClassVar[bool] = True

    def forward(self, h: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """The reflected states."""
        return h - 2 * self.inside(h, self.u)


class EtherPlus(_Blocks):
    """I - u u^T + v v^T in each block, v = u at first: the identity (ETHER+, Bini et al. 2024,
    section 3.3). Lengths change."""

    def __init__(self, width: int, generator: torch.Generator | None = None, blocks: int = 2):
        super().__init__(width, generator, blocks)
        self.v = nn.Parameter(self.u.detach().clone())

    def forward(self, h: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """The mapped states."""
        return h - self.inside(h, self.u) + self.inside(h, self.v)

    def stretch(self) -> Tensor:
        """In the plane of u and v the eigenvalues are 1 +- sqrt(1 - <u, v>^2)."""
        cosine = F.cosine_similarity(self.u, self.v, dim=-1)  # blocks
        return 2 * (1 - cosine.square()).sum()
