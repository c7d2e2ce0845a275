"""The LM head as a matrix, plain or quantised; where it stands, and what comes after it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from trimtab.errors import ModelError
from trimtab.models.compiled import unwrapped
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


def head_site(model: nn.Module) -> str:
    """The input of the LM head, as a site."""
    named = unwrapped(model).named_modules()
    return next(name for name, module in named if module is head(model)) + ":in"


# ---- what comes after it ---------------------------------------------------------------------------


def after_head(model: Any) -> Callable[[Tensor], Tensor] | None:
    """What a model does to its head's output (scaling, soft-capping), as a function of `[M, V]`; None
    where that is nothing. It is the model's own code, run with its decoder and its head replaced."""
    vocabulary, _ = head_shape(model)
    generator = torch.Generator().manual_seed(0)
    probe = 20 * torch.randn(3, vocabulary, generator=generator)
    probe = probe.to(next(model.parameters()))
    with torch.no_grad():
        if torch.equal(_through(model, probe), probe):
            return None
    return lambda z: _through(model, z)


def _through(model: Any, z: Float[Tensor, "token vocab"]) -> Float[Tensor, "token vocab"]:
    with (
        _standing_in(model, head(model), z[None]),
        _standing_in(model, model.get_decoder(), _Output(z[None, :, :1])),
    ):
        return model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=z.device)).logits[0]


@contextmanager
def _standing_in(model: nn.Module, module: nn.Module, output: Any) -> Iterator[None]:
    """Another module in a module's place, which returns `output`."""

    class StandIn(nn.Module):
        def forward(self, *_: Any, **__: Any) -> Any:
            return output

    path = next(name for name, m in model.named_modules() if m is module)
    parent, _, name = path.rpartition(".")
    within = model.get_submodule(parent)._modules
    within[name] = StandIn()
    try:
        yield
    finally:
        within[name] = module


class _Output:
    """A decoder's output with nothing in it but the last hidden state."""

    def __init__(self, h: Tensor):
        self.last_hidden_state = h

    def __getattr__(self, _: str) -> None:
        return None

    def __getitem__(self, index: Any) -> Any:
        return self.last_hidden_state if index == 0 else ()
