"""A model run from the states after one of its decoder layers: those up to it compute nothing.

The pass is the model's own, embedding, masks and rotations included; layers that are not computed give
back what they would have given. Whether that is all that the layers above read is found by trying.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from trimtab.models.parts import layers


@contextmanager
def from_block(
    model: nn.Module, block: int, states: Float[Tensor, "B T d"], forms: list[int]
) -> Iterator[None]:
    """Within it the layers up to `block` give `states`, whatever they are called with.

    Args:
        forms: in what each of them gives its states, see `watching_forms`.
    """
    below = zip(layers(model)[: block + 1], forms, strict=True)
    with running((layer, partial(_give, states, form)) for layer, form in below):
        yield


def _give(states: Tensor, form: int, *_: Any, **__: Any) -> Any:
    if not form:
        return states
    whole = (states, *[None] * (abs(form) - 1))
    return whole if form > 0 else list(whole)


@contextmanager
def watching_forms(model: nn.Module, block: int) -> Iterator[list[int]]:
    """Within it the model is run; then the list says what each layer up to `block` gives: 0 its states
    alone, n a tuple of n that begins with them, -n a list."""
    found = [0] * (block + 1)

    def look(k: int, _: nn.Module, __: Any, out: Any) -> None:
        if not isinstance(out, Tensor):
            found[k] = len(out) * (-1 if isinstance(out, list) else 1)

    handles = [
        layer.register_forward_hook(partial(look, k))
        for k, layer in enumerate(layers(model)[: block + 1])
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def running(forwards: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Until the context is left, modules run another function in the place of their `forward`."""
    before = []
    try:
        for module, forward in forwards:
            before.append((module, vars(module).get("forward")))
            module.forward = forward
        yield
    finally:
        for module, own in before:
            if own is None:
                del module.forward
            else:
                module.forward = own
