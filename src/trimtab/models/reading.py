"""Reading a model without noise, and without what only a gradient needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def reading(model: nn.Module) -> Iterator[None]:
    """Within it no dropout: every module is in eval mode, and afterwards in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def inferring(model: nn.Module) -> Iterator[None]:
    """`torch.inference_mode`, after which a model can be trained: what its modules have kept meanwhile
    (frequencies that a long text has changed) are tensors that gradients may meet."""
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in model.modules():
            for kept in (module._buffers, vars(module)):
                for name, value in kept.items():
                    if isinstance(value, Tensor) and value.is_inference():
                        kept[name] = value.clone()
