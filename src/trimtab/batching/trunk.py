"""States after one decoder layer, of every token of an encoded set: what the layers above start from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from trimtab.batching.batches import Batch
from trimtab.models.above import from_block


@dataclass(frozen=True)
class Trunk:
    """A row's states are its own, whichever rows it shares a batch with, and whatever part of its
    prompt they have in common.

    Attributes:
        block: after which decoder layer.
        forms: in what each layer up to it gives its states (`models.above`).
        shards: the states, `[n, d]` each, in the model's own dtype.
        at: where each token (`Batch.places`) lies in the shards, one behind the other.
    """

    block: int
    forms: list[int]
    shards: Sequence[Float[Tensor, "n d"]]
    at: Int[Tensor, "token"]

    def take(self, places: Int[Tensor, "..."]) -> Float[Tensor, "... d"]:
        """States of tokens by their places; padding gets some token's."""
        at = self.at[places.cpu().clamp(min=0)]
        ends = torch.tensor([len(shard) for shard in self.shards]).cumsum(0)
        which = torch.bucketize(at, ends, right=True)
        shard = self.shards[int(which.reshape(-1)[0])]
        found = shard.new_empty(*at.shape, shard.shape[-1])
        for n in which.unique().tolist():
            mine = which == n
            found[mine] = self.shards[n][at[mine] - (ends[n] - len(self.shards[n]))]
        return found.to(places.device)

    @contextmanager
    def below(self, model: nn.Module, places: Int[Tensor, "B T"]) -> Iterator[None]:
        """Within it the model is run on these tokens, from its block on."""
        with from_block(model, self.block, self.take(places), self.forms):
            yield


def prefix_places(batch: Batch) -> Int[Tensor, "1 S"]:
    """The places of a batch's shared prefix, as the first of its rows has it."""
    assert batch.prefix is not None
    assert batch.places is not None
    length = torch.arange(len(batch.prefix), device=batch.places.device)
    return (batch.places[0, 0] - len(batch.prefix) + length)[None]
