"""Running a model on a batch, with the mask and positions of its layout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trimtab import models
from trimtab.batching.batches import Batch
from trimtab.batching.masks import attention_mask, build_masks
from trimtab.batching.spans import prompts
from trimtab.batching.trunk import Trunk, prefix_places

if TYPE_CHECKING:
    from transformers import DynamicCache


def forward(
    model: nn.Module,
    batch: Batch,
    past: DynamicCache | None = None,
    mask: Any = None,
    trunk: Trunk | None = None,
) -> Any:
    """The model's own output for a batch. In layout `alone` the batch is one line (`Batch.line`), and
    the pass is the plain one of a single sequence: no mask, no positions.

    Args:
        past: what `run_prefix` made of the batch's shared prefix.
        mask: another than the batch's own: what a proof must notice.
        trunk: states that its upper layers start from; those below compute nothing.
    """
    forget_lengths(model)
    if trunk is not None:
        assert batch.places is not None
        with trunk.below(model, batch.places):
            return forward(model, batch, past, mask)
    extra: dict[str, Any] = {"use_cache": False}
    if batch.layout == "alone":
        with prompts(batch.segments == 0):
            return model(input_ids=batch.input_ids, **extra)
    if batch.prefix is not None:
        assert past is not None, "a batch with a prefix needs its keys and values"
        extra = {"past_key_values": past, "use_cache": True}
    if batch.layout != "padded":
        extra["position_ids"] = batch.positions
    with models.reading(model), prompts(batch.segments == 0):
        mask = attention_mask(batch, model) if mask is None else mask
        return model(input_ids=batch.input_ids, attention_mask=mask, **extra)


def run_prefix(model: nn.Module, batch: Batch, past: DynamicCache) -> None:
    """Fill `past` with the keys and values of the batch's shared prefix. Gradients flow through
    them. Before the rows can use it, `past.batch_repeat_interleave(B)` serves it to all."""
    assert batch.prefix is not None
    forget_lengths(model)
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


def prefix_of(
    model: nn.Module, batch: Batch, block: int, trunk: Trunk | None = None
) -> DynamicCache | None:
    """Keys and values of a batch's shared prefix for its rows, as deep as they are needed."""
    if batch.prefix is None:
        return None
    from transformers import DynamicCache

    past = DynamicCache()
    below = nullcontext() if trunk is None else trunk.below(model, prefix_places(batch))
    with below, stop_after(model, block), suppress(Stop):
        run_prefix(model, batch, past)
    if trunk is not None:  # the first layer's say how long the past is
        none = torch.zeros(1, 1, len(batch.prefix), 1, device=batch.input_ids.device)
        for k in range(trunk.block + 1):
            past.update(none, none, k)
    past.batch_repeat_interleave(len(batch.input_ids))
    return past


class Stop(Exception):
    """Ends a forward pass once everything asked for has been read."""


@contextmanager
def stop_after(model: nn.Module, block: int) -> Iterator[None]:
    """Within it a pass ends after a block: raises `Stop` there, or before the first, or at the head."""

    def stop(*_: Any) -> None:
        raise Stop

    stack = models.layers(model)
    before = not 0 <= block < len(stack)  # the first block, or the head
    module = models.head(model) if block >= len(stack) else stack[max(block, 0)]
    handle = (module.register_forward_pre_hook if before else module.register_forward_hook)(stop)
    try:
        yield
    finally:
        handle.remove()


def forget_lengths(model: nn.Module) -> None:
    """Undo what earlier passes have left in the model. With dynamic NTK scaling, transformers keeps
    the frequencies of the longest sequence that has passed until one under the original length comes:
    a row's log-probs would depend on what was read before it."""
    for module in model.modules():
        own = vars(module)
        if "original_max_seq_len" not in own:
            continue
        for name in [n for n in own if n.endswith("max_seq_len_cached")]:
            if own[name] > own["original_max_seq_len"]:
                kind = name.removesuffix("max_seq_len_cached")  # of layer, with an underscore
                first = getattr(module, f"{kind}original_inv_freq")
                like = getattr(module, f"{kind}inv_freq")
                module.register_buffer(f"{kind}inv_freq", first.to(like.device), persistent=False)
                setattr(module, name, own["original_max_seq_len"])
