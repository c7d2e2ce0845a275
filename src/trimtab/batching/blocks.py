"""Packed rows through FlexAttention: a mask as blocks and a rule, where a dense one keeps FlashAttention out.

On a GPU alone, for models on `sdpa`, and only once a proof has found that what comes out is what single rows
give, gradients included (`proof.py`); elsewhere, and where the kernel cannot be built, masks stay dense.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from trimtab import models

BLOCK = 128
"""Positions of a block; lines are padded to whole ones."""
Sees = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Line, head, query and key, as indices, to whether the query may see the key."""
_holds: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


def packed_rule(
    segments: Int[Tensor, "B T"],
    positions: Int[Tensor, "B T"],
    window: int | None = None,
    prefix: int = 0,
    members: Int[Tensor, "B T"] | None = None,
) -> Sees:
    """`masks.packed_mask` as a rule: keys are counted from the prefix's first."""

    def sees(line: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = key - prefix
        at = own.clamp(min=0)
        mine, theirs = segments[line, query], segments[line, at]
        answers = ((theirs == 0) | (theirs == mine)) & (theirs >= 0) & (own >= 0) & (own <= query)
        if members is not None:
            answers = answers & (members[line, query] == members[line, at])
        seen = (mine >= 0) & (answers | (own < 0))
        if window is not None:
            start = torch.where(own < 0, key, positions[line, at])
            seen = seen & (positions[line, query] - start < window)
        return seen | (own == query)

    return sees


def tree_rule(
    ends: Int[Tensor, "B T"], positions: Int[Tensor, "B T"], window: int | None = None
) -> Sees:
    """`masks.tree_mask` as a rule."""

    def sees(line: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = (query >= key) & (query < ends[line, key])
        if window is not None:
            seen = seen & (positions[line, query] - positions[line, key] < window)
        return seen | (query == key)

    return sees


def block_mask(sees: Sees, grid: Sequence[int], prefix: int, device: torch.device) -> Any:
    """A rule for a grid `B, T` as FlexAttention takes it, `[B, 1, T, S+T]`; a GPU makes no dense mask."""
    from torch.nn.attention.flex_attention import create_block_mask

    lines, width = grid
    shape: Any = {"B": lines, "H": None, "Q_LEN": width, "KV_LEN": prefix + width}
    made = create_block_mask if device.type == "cpu" else _compiled(create_block_mask)
    return made(sees, **shape, device=device, BLOCK_SIZE=BLOCK)


@cache
def _compiled(function: Any) -> Any:
    return torch.compile(function, dynamic=True)


# ---- which models -------------------------------------------------------------------------------


def able(model: nn.Module) -> bool:
    """Whether there is anything to prove: a model on a GPU whose attention is torch's."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    kernel = getattr(models.text_config(model), "_attn_implementation", "")
    return device.type == "cuda" and kernel == "sdpa"


def hold(model: nn.Module) -> bool:
    """Whether packed rows of a model go through block masks: a proof has found so."""
    return _holds.get(models.unwrapped(model), False)


def know(model: nn.Module, holds: bool) -> None:
    """Remember what a proof has found of a model."""
    _holds[models.unwrapped(model)] = holds
    if holds:
        _install()


def lines(model: nn.Module) -> dict[str, Any]:
    """How `collate` lays out microbatches for a model: where masks are blocks, all rows in one line of
    whole blocks, for what they do not see costs nothing; else lines that a dense mask can afford."""
    return {"one_line": True, "multiple": BLOCK} if hold(model) else {}


@contextmanager
def trying(model: nn.Module, on: bool) -> Iterator[None]:
    """Within it a model's masks are blocks, or dense ones, whatever is known of it."""
    before = hold(model)
    know(model, on)
    try:
        yield
    finally:
        know(model, before)


def _install() -> None:
    """Have `sdpa` take block masks, too. By what the mask is and not by a switch in the config: layers
    that run again in the backward pass (activation checkpointing) meet what they met before."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if (usual := ALL_ATTENTION_FUNCTIONS["sdpa"]) is not attention:
        _usual.append(usual)
        ALL_ATTENTION_FUNCTIONS["sdpa"] = attention


_usual: list[Any] = []
"""What `sdpa` was before; the last is called for masks that are tensors."""


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **how: Any
) -> tuple[Tensor, None]:
    """`sdpa`, and FlexAttention where the mask is of blocks. Heads `[B, H, T, d]`, out `[B, T, H, d]`."""
    if attention_mask is None or isinstance(attention_mask, Tensor):
        return _usual[-1](module, query, key, value, attention_mask, **how)
    from torch.nn.attention.flex_attention import flex_attention

    unknown = [k for k in ("softcap", "s_aux", "position_bias") if how.get(k) is not None]
    if unknown or how.get("dropout"):
        raise NotImplementedError(f"block masks with {', '.join(unknown) or 'dropout'}")
    groups = query.shape[1] // key.shape[1]
    if groups & (groups - 1):  # the kernel shares keys among 1, 2, 4, … heads
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    options: Any = {"scale": how.get("scaling"), "enable_gqa": key.shape[1] != query.shape[1]}
    out = _compiled(flex_attention)(query, key, value, block_mask=attention_mask, **options)
    return out.transpose(1, 2).contiguous(), None
