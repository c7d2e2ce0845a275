"""A small transformer on the hypersphere, after nGPT (Loshchilov et al. 2024, arXiv 2410.01131).

Every hidden state has length 1: h <- norm(h + a (norm(sub(h)) - h)), a = 1 / layers. Matrices are
put back on unit rows (those that read the stream) or unit columns (those that write it) after every
step, so there are no norm layers, no biases and no weight decay.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.anchoring.surgery import ablate_stream

Edit = Callable[[Tensor, int], Tensor]
"""States `[row, position, d]` at a point of the stream, and the point's number, to states."""


@dataclass(frozen=True)
class Size:
    """Width and depth."""

    tokens: int
    width: int = 64
    layers: int = 2
    heads: int = 4


class Block(nn.Module):
    """Attention and a GELU layer; queries and keys have length 1 a head."""

    def __init__(self, size: Size, generator: torch.Generator):
        super().__init__()
        d, self.heads = size.width, size.heads

        def matrix(n_out: int, n_in: int) -> nn.Linear:
            layer = nn.Linear(n_in, n_out, bias=False)
            layer.weight.data = torch.randn(n_out, n_in, generator=generator)
            return layer

        self.qkv, self.out = matrix(3 * d, d), matrix(d, d)
        self.up, self.down = matrix(4 * d, d), matrix(d, 4 * d)
        self.sharpness = nn.Parameter(torch.full((size.heads, 1, 1), math.sqrt(d / size.heads)))

    def attention(self, h: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        """Causal attention, before the norm."""
        b, t, d = h.shape
        q, k, v = self.qkv(h).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = _rotate(F.normalize(q, dim=-1), turn), _rotate(F.normalize(k, dim=-1), turn)
        mixed = F.scaled_dot_product_attention(q * self.sharpness, k, v, is_causal=True, scale=1.0)
        return self.out(mixed.transpose(1, 2).reshape(b, t, d))

    def mlp(self, h: Tensor) -> Tensor:
        """The GELU layer, its input scaled by the root of the width, before the norm."""
        return self.down(F.gelu(self.up(h) * math.sqrt(h.shape[-1])))


class NGPT(nn.Module):
    """Tokens in, logits out, with the states on the way."""

    def __init__(self, size: Size, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(1_000_003 * seed + 4)
        self.size = size
        self.embedding = nn.Embedding(size.tokens, size.width)
        self.embedding.weight.data = torch.randn(size.tokens, size.width, generator=generator)
        self.blocks = nn.ModuleList(Block(size, generator) for _ in range(size.layers))
        self.head = nn.Linear(size.width, size.tokens, bias=False)
        self.head.weight.data = torch.randn(size.tokens, size.width, generator=generator)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.project()

    @property
    def points(self) -> int:
        """Places in the stream: the embedding, and after every sub-layer."""
        return 1 + 2 * self.size.layers

    def forward(
        self,
        ids: Int[Tensor, "row position"],
        edit: Edit | None = None,
        *,
        everywhere: bool = False,
        last: bool = False,
    ) -> tuple[Float[Tensor, "row position token"], list[Float[Tensor, "row position d"]]]:
        """Logits, and the states at every point of the stream.

        Args:
            edit: an intervention on the states at every point.
            everywhere: edit what each sub-layer adds, too. A projection is then the same function as
                the dimension zeroed in all weights (each renormalises what is left).
            last: logits of the last position alone.
        """
        turn = _turns(ids.shape[1], self.size.width // self.size.heads)
        h = F.normalize(self.embedding(ids), dim=-1)
        h = h if edit is None else edit(h, 0)
        seen = [h]
        pull = 1 / self.size.layers
        for number, block in enumerate(self.blocks):
            for part in range(2):
                added = block.mlp(h) if part else block.attention(h, turn)  # type: ignore[operator]
                point = 1 + 2 * number + part
                if edit is not None and everywhere:
                    added = edit(added, point)
                h = F.normalize(h + pull * (F.normalize(added, dim=-1) - h), dim=-1)
                h = h if edit is None else edit(h, point)
                seen.append(h)
        return self.head(h[:, -1:] if last else h) * self.log_scale.exp(), seen

    @torch.no_grad()
    def project(self) -> None:
        """Put every matrix back on the sphere: readers by rows, writers by columns."""
        readers: list[Any] = [self.embedding, self.head]
        writers: list[Any] = []
        for block in self.blocks:
            readers += [block.qkv, block.up]
            writers += [block.out, block.down]
        for layer in readers:
            layer.weight.copy_(F.normalize(layer.weight, dim=-1))
        for layer in writers:
            layer.weight.copy_(F.normalize(layer.weight, dim=0))

    def ablate(self, axes: list[int]) -> None:
        """Zero dimensions of the stream in all weights. Raises ConfigError as `surgery` does."""
        blocks = list(self.blocks)
        ablate_stream(
            writers=[w for b in blocks for w in (b.out, b.down)],
            readers=[self.head, *(r for b in blocks for r in (b.qkv, b.up))],
            axes=axes,
            embeddings=[self.embedding],
        )


def _turns(length: int, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions, `[position, width]`."""
    rate = 10_000 ** (-torch.arange(0, width, 2) / width)
    angle = torch.arange(length)[:, None] * rate
    angle = torch.cat([angle, angle], -1)
    return angle.cos(), angle.sin()


def _rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    a, b = x.chunk(2, -1)
    return x * turn[0] + torch.cat([-b, a], -1) * turn[1]
