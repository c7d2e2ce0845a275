"""The LM head as a matrix, plain or quantised."""

from __future__ import annotations

import weakref
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from trimtab.errors import ModelError
from trimtab.models.parts import head
from trimtab.models.quantised import dense_weight, is_plain

_dense: weakref.WeakKeyDictionary[nn.Module, tuple[Any, Tensor]] = weakref.WeakKeyDictionary()


def head_weight(model: nn.Module) -> Float[Tensor, "vocab d"]:
    """The weight of the LM head: the very parameter where it is plain, of a quantised head what it
    multiplies by, in float32.

    Raises:
        ModelError: the head is no linear layer, or its weights cannot be read.
    """
    module: Any = head(model)
    weight: Any = getattr(module, "weight", None)
    if is_plain(weight):
        if weight.ndim != 2:
            raise ModelError(f"{type(model).__name__}: its LM head is no plain linear layer")
        return weight
    if not hasattr(module, "in_features"):
        raise ModelError(f"{type(model).__name__}: its LM head is no linear layer")
    mark = (id(weight), getattr(weight, "_version", 0))
    if module not in _dense or _dense[module][0] != mark:
        _dense[module] = (mark, dense_weight(module))
    return _dense[module][1]


def head_shape(model: nn.Module) -> tuple[int, int]:
    """(vocabulary, width) of the LM head. Raises ModelError where it is no linear layer."""
    module: Any = head(model)
    if not is_plain(getattr(module, "weight", None)) and hasattr(module, "in_features"):
        return int(module.out_features), int(module.in_features)
    return tuple(head_weight(model).shape)  # type: ignore[return-value]


def head_logits(model: nn.Module, h: Float[Tensor, "M d"]) -> Float[Tensor, "M vocab"]:
    """What the LM head makes of its input, in its own dtype; nothing after it."""
    module: Any = head(model)
    if is_plain(getattr(module, "weight", None)):
        return F.linear(h.to(module.weight.dtype), module.weight, getattr(module, "bias", None))
    return module(h)
