"""The colour autoencoder, many seeds side by side: every parameter has a leading seed dimension."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.bounds import Bounded, Count, Whole
from trimtab.errors import ConfigError

Edit = Callable[[Tensor], Tensor]
"""States in, states out."""


@dataclass(frozen=True)
class Shape(Bounded):
    """Width and depth: RGB - hidden layers - bottleneck - hidden layers - RGB."""

    bottleneck: Count = 4
    hidden: Count = 16
    layers: Whole = 1
    """Hidden layers on either side."""
    activation: str = "gelu"
    norm: bool = True
    """Bottleneck states divided by their length."""
    sigmoid: bool = False
    """Outputs squashed to 0..1."""


class Stacked(nn.Module):
    """A linear layer a seed: weight `[seed, out, in]`, bias `[seed, out]`, started as nn.Linear."""

    def __init__(self, n_in: int, n_out: int, generators: Sequence[torch.Generator]):
        super().__init__()
        bound = n_in**-0.5

        def draw(*shape: int) -> nn.Parameter:
            drawn = [(torch.rand(*shape, generator=g) * 2 - 1) * bound for g in generators]
            return nn.Parameter(torch.stack(drawn))

        self.weight = draw(n_out, n_in)
        self.bias = draw(n_out)

    def forward(self, x: Float[Tensor, "seed sample in"]) -> Float[Tensor, "seed sample out"]:
        """x W^T + b for each seed."""
        return torch.baddbmm(self.bias.unsqueeze(1), x, self.weight.mT)


class Autoencoder(nn.Module):
    """As many independent autoencoders as there are seeds."""

    def __init__(self, shape: Shape, seeds: Sequence[int]):
        super().__init__()
        if not seeds:
            raise ConfigError("an autoencoder needs at least one seed")
        self.shape = shape
        generators = [torch.Generator().manual_seed(1_000_003 * s + 1) for s in seeds]
        inner = [shape.hidden] * shape.layers
        encoder, decoder = [3, *inner, shape.bottleneck], [shape.bottleneck, *inner, 3]
        self.encoder, self.decoder = (
            nn.ModuleList(Stacked(a, b, generators) for a, b in pairwise(w))
            for w in (encoder, decoder)
        )
        self._act = {"gelu": F.gelu, "relu": F.relu}[shape.activation]

    @property
    def seeds(self) -> int:
        """How many models there are."""
        return self.producer.weight.shape[0]

    @property
    def producer(self) -> Stacked:
        """The layer that writes the bottleneck."""
        return self.encoder[-1]  # type: ignore[return-value]

    @property
    def consumer(self) -> Stacked:
        """The layer that reads it."""
        return self.decoder[0]  # type: ignore[return-value]

    def forward(
        self, x: Float[Tensor, "seed sample 3"], edit: Edit | None = None
    ) -> tuple[Float[Tensor, "seed sample 3"], dict[str, Tensor]]:
        """Outputs, and the states at `encoder` (before the norm) and `bottleneck` (after it).

        Args:
            x: colours, `[sample, 3]` for all seeds alike or `[seed, sample, 3]`.
            edit: an intervention on the states at the bottleneck.
        """
        before = self.encode(x)
        z = F.normalize(before, dim=-1) if self.shape.norm else before
        if edit is not None:
            z = edit(z)
        return self.decode(z), {"encoder": before, "bottleneck": z}

    def encode(self, x: Float[Tensor, "... sample 3"]) -> Float[Tensor, "seed sample d"]:
        """States before the norm."""
        h = x if x.ndim == 3 else x.expand(self.seeds, -1, -1)
        for layer in self.encoder[:-1]:
            h = self._act(layer(h))
        return self.producer(h)

    def decode(self, z: Float[Tensor, "seed sample d"]) -> Float[Tensor, "seed sample 3"]:
        """Colours from states at the bottleneck; unclipped where there is no sigmoid."""
        h = z
        for layer in self.decoder[:-1]:
            h = self._act(layer(h))
        out = self.decoder[-1](h)
        return out.sigmoid() if self.shape.sigmoid else out

    def opposite(self) -> Float[Tensor, "seed 1 3"]:
        """Colours of the direction opposite to dimension 0."""
        away = torch.zeros(self.seeds, 1, self.shape.bottleneck)
        away[..., 0] = -1
        return self.decode(away)
