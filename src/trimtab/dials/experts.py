"""Stacked expert parameters: where a mixture keeps them, and low-rank changes of them while it runs."""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trimtab import models
from trimtab.dials.contexts import hooked
from trimtab.dials.trial import Axes, tensor_of, trying
from trimtab.errors import DialError

Shape = tuple[int, int, int]
"""Experts, and the features that A takes in and B gives out, as PEFT has them."""


@dataclass(frozen=True)
class Swap:
    """A change of parameters that a module multiplies by itself, while it runs.

    Attributes:
        path: the module.
        deltas: the change at alpha = 1 of each parameter, by its name.
    """

    path: str
    deltas: dict[str, Callable[[], Tensor]]


# ---- finding them -------------------------------------------------------------------------------


def stacked(model: nn.Module, blocks: range | None = None) -> dict[str, Shape]:
    """The experts' parameters in decoder layers, by path: three axes, and read by a module that is
    run as one, found by trying.

    Raises:
        DialError: the model has none.
    """
    found: dict[str, Shape] = {}
    owners: dict[nn.Module, list[str]] = {}
    for k, (prefix, layer) in enumerate(
        zip(models.layer_paths(model), models.layers(model), strict=True)
    ):
        for path, owner, name in _candidates(prefix, layer):
            if blocks is None or k in blocks:
                found[f"{path}.{name}"] = shape_of(owner, name)
                owners.setdefault(owner, []).append(name)
    acting = _acting(model, owners) if owners else set()
    modules = {
        f"{p}.{n}": m for p, m in models.unwrapped(model).named_modules() for n in owners.get(m, ())
    }
    found = {
        path: s for path, s in found.items() if (modules[path], path.rpartition(".")[2]) in acting
    }
    if not found:
        raise DialError(
            "targets experts: the model has no stacked expert parameters that an adapter can act on; "
            "expected all-linear, or a regular expression searched in the paths of linear layers"
        )
    return found


def _candidates(prefix: str, layer: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Parameters of three axes that no convolution has."""
    for name, module in layer.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            continue
        for leaf, p in module.named_parameters(recurse=False):
            if p.ndim == 3 and min(p.shape) > 1 and p.is_floating_point() and p.dtype.itemsize > 1:
                yield f"{prefix}.{name}", module, leaf


def _acting(model: nn.Module, owners: dict[nn.Module, list[str]]) -> set[tuple[nn.Module, str]]:
    """The parameters that change their module's output when they are changed."""
    acting: set[tuple[nn.Module, str]] = set()

    def look(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        y = tensor_of(output)
        for name in owners[module]:
            changed = {name: 1.5 * module.get_parameter(name)}
            new = tensor_of(twin(module, changed).forward(*args, **kwargs))
            if y is not None and new is not None and not torch.equal(y, new):
                acting.add((module, name))

    handles = [m.register_forward_hook(look, with_kwargs=True) for m in owners]
    try:
        with trying(model) as run:
            run((2, 5))
    except Exception as error:  # of any kind: the model cannot be tried
        raise DialError(f"targets experts: the model cannot be tried ({error})") from error
    finally:
        for handle in handles:
            handle.remove()
    return acting


def shape_of(owner: nn.Module, name: str) -> Shape:
    """Experts, inputs and outputs of a parameter: `[E, out, in]`, or `[E, in, out]` where the module
    says that it is transposed (PEFT's rule). One of two axes is one matrix, `[out, in]`."""
    p = owner.get_parameter(name)
    if p.ndim == 2:
        return 1, p.shape[1], p.shape[0]
    experts, first, second = p.shape
    flipped = bool(getattr(owner, "is_transposed", False))
    return (experts, first, second) if flipped else (experts, second, first)


def delta(
    owner: nn.Module, name: str, A: Float[Tensor, "rE in"], B: Float[Tensor, "out rE"], scale: float
) -> Tensor:
    """The change of a parameter, in its own shape: scale B_e A_e of each expert e. A's rows are those
    of one expert after the other, B's columns the ranks, an expert each (PEFT's order)."""
    experts, n_in, n_out = shape_of(owner, name)
    left = A.reshape(experts, -1, n_in)  # E r in
    right = B.reshape(n_out, -1, experts).permute(2, 0, 1)  # E out r
    like = owner.get_parameter(name)
    change = (scale * (right.to(like) @ left.to(like))).to(like.dtype)  # E out in
    if like.ndim == 2:
        return change[0]
    return change.mT if getattr(owner, "is_transposed", False) else change


def twin(module: nn.Module, parameters: dict[str, Tensor]) -> nn.Module:
    """The module with other tensors in its parameters' place; the module itself stays as it is, so
    that whoever runs it meanwhile sees nothing. Call its `forward`."""
    other = copy.copy(module)
    other._parameters = {**module._parameters, **parameters}  # type: ignore[assignment]
    return other


# ---- while the model runs -----------------------------------------------------------------------


@dataclass(eq=False)
class _Active:
    deltas: dict[str, Callable[[], Tensor]]
    weight: float
    alpha: float | Tensor
    axes: Axes | None


_lock = threading.Lock()
_active: weakref.WeakKeyDictionary[nn.Module, list[_Active]] = weakref.WeakKeyDictionary()
"""The changes that are on, of each module: one run of it has them all."""


@contextmanager
def swapped(
    module: nn.Module, swap: Swap, weight: float, alpha: float | Tensor, axes: Axes | None
) -> Iterator[None]:
    """Run a module with changed parameters, until the context is left. Rows of one alpha are run
    together, rows at 0 keep the output of the parameters as they are, to the bit.

    Args:
        axes: of the module's output, where alpha is a tensor.
    """
    mine = _Active(swap.deltas, weight, alpha, axes)
    with _lock:
        before = _active.get(module, [])
        _active[module] = [*before, mine]

    def run(args: Any, kwargs: Any, output: Any) -> Any:
        active = _active.get(module, [])
        if not active or active[-1] is not mine:
            return None  # whoever came last runs it for all
        several = isinstance(output, tuple | list)
        y = _changed(module, active, args, kwargs, output[0] if several else output)
        return y if not several else type(output)((y, *output[1:]))

    try:
        # Before all other edits of the output, which then have the changed one.
        with hooked(module, run, prepend=True):
            yield
    finally:
        with _lock:
            _active[module] = [a for a in _active[module] if a is not mine]


def _changed(
    module: nn.Module, active: Sequence[_Active], args: Any, kwargs: Any, y: Tensor
) -> Tensor:
    """The output with all that is on: run once for each combination of strengths among the rows."""
    fixed = [isinstance(a.alpha, float) for a in active]
    if all(fixed):
        return _run(module, active, [a.weight * a.alpha for a in active], args, kwargs)  # type: ignore[operator]
    rows = [
        torch.full((1,) * y.ndim, a.alpha, device=y.device)
        if isinstance(a.alpha, float)
        else a.axes.spread(a.alpha, y, "alpha")  # type: ignore[union-attr]
        for a in active
    ]
    rows = torch.stack(torch.broadcast_tensors(*rows))  # change … (1 where alpha is the same)
    new = y
    for strengths in rows.flatten(1).T.unique(dim=0):
        if not strengths.any():
            continue
        here = (rows == strengths.view(-1, *[1] * y.ndim)).all(0)
        at = [a.weight * s for a, s in zip(active, strengths.tolist(), strict=True)]
        new = torch.where(here, _run(module, active, at, args, kwargs), new)
    return new


def _run(
    module: nn.Module, active: Sequence[_Active], strengths: list[float], args: Any, kwargs: Any
) -> Tensor:
    parameters: dict[str, Tensor] = {}
    for change, strength in zip(active, strengths, strict=True):
        for name, make in change.deltas.items() if strength else ():
            old = parameters.get(name, module.get_parameter(name))
            parameters[name] = old + strength * make()
    out = tensor_of(twin(module, parameters).forward(*args, **kwargs))
    assert out is not None
    return out
