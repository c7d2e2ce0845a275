"""The last linear layer of a block, whose bias adds to the residual stream alone."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor, nn

from trimtab import models
from trimtab.dials.linear import linear_shape
from trimtab.errors import DialError
from trimtab.models.places import seeing


@torch.no_grad()
def residual_writer(model: nn.Module, block: int) -> str:
    """Path of the linear layer of which a bias is a vector added after the block.

    Found by trying: a random vector is added to a layer's output, and the block's output must move
    by that vector at every token. It does not where a norm follows the layer (Gemma), or where only
    some tokens pass it (experts).

    Raises:
        DialError: the block has no such layer.
    """
    layer, prefix = models.layers(model)[block], models.layer_paths(model)[block]
    width = models.text_config(model).hidden_size
    named = [(n, m) for n, m in layer.named_modules() if (linear_shape(m) or (0, 0))[1] == width]
    generator = torch.Generator().manual_seed(block)
    ids = torch.randint(0, models.text_config(model).vocab_size, (2, 5), generator=generator)
    ids = ids.to(next(model.parameters()).device)
    bare = _after(model, block, ids, None, None)
    step = torch.randn(width, generator=generator).to(bare) * bare.std()
    tolerance = 1e-4 if bare.dtype == torch.float32 else 0.05
    for name, module in reversed(named):
        moved = _after(model, block, ids, module, step) - bare
        if (moved - step).abs().max() <= tolerance * bare.abs().max():
            return f"{prefix}.{name}"
    raise DialError(
        f"after block {block} no layer's bias is a vector added to the residual stream: a norm "
        "follows the feed-forward layer, or experts share the work"
    )


def _after(
    model: nn.Module, block: int, ids: Tensor, moved: nn.Module | None, step: Tensor | None
) -> Tensor:
    """The output of a decoder layer, with a step added to one module's output."""
    seen: list[Tensor] = []
    with ExitStack() as stack:
        if moved is not None:
            handle = moved.register_forward_hook(lambda _, __, y: y + step)  # type: ignore[operator]
            stack.callback(handle.remove)
        stack.enter_context(seeing(model, block, seen.append))
        stack.enter_context(models.reading(model))
        model(input_ids=ids, use_cache=False)
    return seen[0]
