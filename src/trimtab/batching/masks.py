"""Who may see whom in a packed row: masks by layer type, the window counted in positions."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from trimtab.batching import blocks
from trimtab.batching.batches import Batch
from trimtab.models import text_config


def packed_mask(
    segments: Int[Tensor, "B T"],
    positions: Int[Tensor, "B T"],
    window: int | None = None,
    prefix: int = 0,
    members: Int[Tensor, "B T"] | None = None,
) -> Bool[Tensor, "B 1 T S+T"]:
    """True where a query (row) may see a key (column). The first `prefix` keys (S) stand before
    every row; `members` says which of several rows in a line a position belongs to.

    Causal, the prompt or the query's own answer, and within `window` *positions*: an index counts
    the answers in between, which the query does not see. Padding sees itself, so that no row is
    empty (an all-masked row is NaN in eager attention).
    """
    T = segments.shape[1]
    query, key = segments[:, :, None], segments[:, None, :]
    seen = torch.ones(T, T, dtype=torch.bool, device=segments.device).tril()
    seen = seen & ((key == 0) | (key == query)) & (query >= 0) & (key >= 0)
    if members is not None:
        seen = seen & (members[:, :, None] == members[:, None, :])
    if window is not None:
        seen = seen & (positions[:, :, None] - positions[:, None, :] < window)
    seen = seen | torch.eye(T, dtype=torch.bool, device=segments.device)
    if prefix:
        before = (query >= 0).expand(-1, -1, prefix)
        if window is not None:
            start = torch.arange(prefix, device=segments.device)
            before = before & (positions[:, :, None] - start < window)
        seen = torch.cat([before, seen], -1)
    return seen[:, None]


def tree_mask(
    ends: Int[Tensor, "B T"], positions: Int[Tensor, "B T"], window: int | None = None
) -> Bool[Tensor, "B 1 T T"]:
    """True where a query (row) may see a key (column) of a token tree laid out depth first: itself
    and its ancestors, within `window` positions. `ends` is one past a token's last descendant."""
    T = ends.shape[1]
    index = torch.arange(T, device=ends.device)
    seen = (index[:, None] >= index) & (index[None, :, None] < ends[:, None, :])
    if window is not None:
        seen = seen & (positions[:, :, None] - positions[:, None, :] < window)
    seen = seen | torch.eye(T, dtype=torch.bool, device=ends.device)  # padding sees itself
    return seen[:, None]


def attention_mask(batch: Batch, model: nn.Module) -> Any:
    """What to pass as `attention_mask` for a batch: a 2-D padding mask for padded rows, else a 4-D
    mask, or a dict of them by layer type where layers differ."""
    if batch.layout == "padded":
        return (batch.segments >= 0).long()
    prefix = 0 if batch.prefix is None else len(batch.prefix)
    return build_masks(
        batch.segments,
        batch.positions,
        model,
        prefix=prefix,
        members=batch.members,
        ends=batch.ends,
    )


def build_masks(
    segments: Tensor,
    positions: Tensor,
    model: nn.Module,
    *,
    windowed: bool = True,
    prefix: int = 0,
    members: Tensor | None = None,
    ends: Tensor | None = None,
) -> Any:
    """A mask, or a dict of them by layer type, in the form that the model's attention takes; of a
    token tree where its `ends` are given.
    Without `windowed` the sliding window is left out, wrongly: what the proof must notice."""
    config = text_config(model)
    window = sliding_window(config) if windowed else None

    def make(within: int | None) -> Any:
        if blocks.hold(model):
            rule = (
                blocks.packed_rule(segments, positions, within, prefix, members)
                if ends is None
                else blocks.tree_rule(ends, positions, within)
            )
            return blocks.block_mask(rule, segments.shape, prefix, segments.device)
        if ends is not None:
            return tree_mask(ends, positions, within)
        return packed_mask(segments, positions, within, prefix, members)

    full = make(None)
    slid = make(window) if window else full
    if adds_masks(config):
        full, slid = (additive(m, model) for m in (full, slid))
    kinds = set(getattr(config, "layer_types", None) or ())
    if "sliding_attention" in kinds and "full_attention" in kinds:
        return {"full_attention": full, "sliding_attention": slid}
    return slid if sliding_window(config) else full


def sliding_window(config: Any) -> int | None:
    """The window of sliding layers, in positions; None where no layer slides."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    slides = "sliding_attention" in kinds if kinds else getattr(config, "use_sliding_window", True)
    return window if window and slides else None


def adds_masks(config: Any) -> bool:
    """Whether attention adds its mask to the scores: eager does, and would add a boolean one as 0
    and 1, silently."""
    return getattr(config, "_attn_implementation", "eager") == "eager"


def additive(mask: Tensor, model: nn.Module) -> Tensor:
    """0 where a boolean mask is True, the least number of the model's dtype elsewhere."""
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(
        ~mask, torch.finfo(dtype).min
    )
