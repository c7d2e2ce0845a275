"""Running a model on a batch, with the mask and positions of its layout."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from trimtab import models
from trimtab.batching.batches import Batch
from trimtab.batching.masks import attention_mask, build_masks
from trimtab.batching.spans import prompts


def forward(model: nn.Module, batch: Batch, past: DynamicCache | None = None) -> Any:
    """The model's own output for a batch.

    Args:
        past: what `run_prefix` made of the batch's shared prefix.
    """
    extra: dict[str, Any] = {"use_cache": False}
    if batch.prefix is not None:
        assert past is not None, "a batch with a prefix needs its keys and values"
        extra = {"past_key_values": past, "use_cache": True}
    if batch.layout != "padded":
        extra["position_ids"] = batch.positions
    with models.reading(model), prompts(batch.segments == 0):
        return model(
            input_ids=batch.input_ids, attention_mask=attention_mask(batch, model), **extra
        )


def run_prefix(model: nn.Module, batch: Batch, past: DynamicCache) -> None:
    """Fill `past` with the keys and values of the batch's shared prefix. Gradients flow through
    them. Before the rows can use it, `past.batch_repeat_interleave(B)` serves it to all."""
    assert batch.prefix is not None
    ids = batch.prefix[None].to(batch.input_ids)
    positions = torch.arange(ids.shape[1], device=ids.device)[None]
    with models.reading(model):
        model(
            input_ids=ids,
            attention_mask=build_masks(torch.zeros_like(ids), positions, model),
            position_ids=positions,
            past_key_values=past,
            use_cache=True,
        )
