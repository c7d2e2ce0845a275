"""Reading a model without noise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


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
