"""Stacked expert parameters: where a mixture keeps them, and low-rank changes of them while it runs."""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trimtab import models
from trimtab.dials.contexts import hooked
from trimtab.dials.trial import Axes, once, tensor_of, trying
from trimtab.errors import DialError

WRAPPED = ".base_layer"
"""What PEFT puts into the name of a parameter for each wrapper that is around its own."""

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


def stacked(model: nn.Module, blocks: Collection[int] | None = None) -> dict[str, Shape]:
    """The experts' parameters in decoder layers, by path: three axes, and read by a module that is
    run as one, found by trying. Empty where the model has none.

    Raises:
        DialError: the model cannot be tried.
    """
    acting = _tried(model)
    found = {}
    for k, prefix in enumerate(models.layer_paths(model)):
        for path, owner, name in _candidates(prefix, models.layers(model)[k]):
            if f"{path}.{name}" in acting and (blocks is None or k in blocks):
                found[f"{path}.{name}"] = shape_of(owner, name)
    return found


def nested(paths: Iterable[str]) -> list[str]:
    """PEFT's names for parameters, in the model's order: it wraps a module once a parameter, so that
    the last one is `MODULE`, the one before `MODULE.base_layer`, …"""
    by_owner: dict[str, int] = {}
    for path in paths:
        by_owner[path.rpartition(".")[0]] = by_owner.get(path.rpartition(".")[0], 0) + 1
    return [
        owner + WRAPPED * depth for owner, n in by_owner.items() for depth in reversed(range(n))
    ]


@dataclass(frozen=True)
class Stack:
    """A parameter that an adapter changes: its module, name, and number of experts."""

    path: str
    module: nn.Module
    name: str
    experts: int


def stack_at(model: nn.Module, nest: str, targets: Collection[str], A: Tensor, B: Tensor) -> Stack:
    """The parameter that PEFT means.

    Args:
        nest: PEFT's name (`nested`).
        targets: its `target_parameters`, full paths or their ends.
        A, B: the factors, `[r experts, in]` and `[out, r experts]`.

    Raises:
        DialError: the model has none, of another shape, or one that an adapter cannot act on.
    """
    owner, depth = nest.removesuffix(WRAPPED * nest.count(WRAPPED)), nest.count(WRAPPED)
    try:
        module = model.get_submodule(owner)
    except AttributeError:
        raise DialError(f"the adapter's module {owner!r} is not in the model") from None
    names = [
        n
        for n, _ in module.named_parameters(recurse=False)
        if any(f".{owner}.{n}".endswith(f".{t}") for t in targets)
    ]
    if depth >= len(names):
        raise DialError(
            f"{owner}: the adapter is for more parameters than the module has ({names})"
        )
    name = names[-1 - depth]
    path, parameter = f"{owner}.{name}", module.get_parameter(name)
    experts, n_in, n_out = shape_of(module, name) if parameter.ndim in (2, 3) else (0, 0, 0)
    if (n_in, n_out) != (A.shape[1], B.shape[0]) or len(A) % experts or len(A) != B.shape[1]:
        raise DialError(
            f"{path}: the adapter's factors are {tuple(A.shape)} and {tuple(B.shape)}, the model's "
            f"parameter {tuple(parameter.shape)}"
        )
    if parameter.ndim == 3 and path not in _tried(model):
        raise DialError(f"{path}: no adapter can act there, its module does not compute with it")
    return Stack(path, module, name, experts)


def _candidates(prefix: str, layer: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Parameters of three axes that no convolution has."""
    for name, module in layer.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            continue
        for leaf, p in module.named_parameters(recurse=False):
            if p.ndim == 3 and min(p.shape) > 1 and p.is_floating_point() and p.dtype.itemsize > 1:
                yield f"{prefix}.{name}", module, leaf


def _tried(model: nn.Module) -> set[str]:
    """Paths of the stacked parameters that change their module's output when they are changed."""
    return once(model, "stacks", lambda: _acting(model))


def _acting(model: nn.Module) -> set[str]:
    owners: dict[nn.Module, list[tuple[str, str]]] = {}
    for prefix, layer in zip(models.layer_paths(model), models.layers(model), strict=True):
        for path, owner, name in _candidates(prefix, layer):
            owners.setdefault(owner, []).append((name, f"{path}.{name}"))
    acting: set[str] = set()

    def look(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        y = tensor_of(output)
        for name, path in owners[module]:
            changed = {name: 1.5 * module.get_parameter(name)}
            new = tensor_of(twin(module, changed).forward(*args, **kwargs))
            if y is not None and new is not None and not torch.equal(y, new):
                acting.add(path)

    handles = [m.register_forward_hook(look, with_kwargs=True) for m in owners]
    try:
        if owners:
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
    stack: Stack, A: Float[Tensor, "rE in"], B: Float[Tensor, "out rE"], scale: float
) -> Tensor:
    """The change of a parameter, in its own shape: scale B_e A_e of each expert e. A's rows are those
    of one expert after the other, B's columns the ranks, an expert each (PEFT's order)."""
    like = stack.module.get_parameter(stack.name)
    left = A.reshape(stack.experts, -1, A.shape[1])  # E r in
    right = B.reshape(len(B), -1, stack.experts).permute(2, 0, 1)  # E out r
    change = scale * (right.to(like) @ left.to(like))  # E out in
    if like.ndim == 2:
        return change[0]
    return change.mT if getattr(stack.module, "is_transposed", False) else change


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
    module: nn.Module,
    swap: Swap,
    weight: float,
    alpha: float | Tensor,
    axes: Axes | None,
    watch: Callable[[Tensor], Tensor] | None,
) -> Iterator[None]:
    """Run a module with changed parameters, until the context is left. Rows of one alpha are run
    together, rows at 0 keep the output of the parameters as they are, to the bit.

    Args:
        axes: of the module's output, where alpha is a tensor.
        watch: sees the new output.
    """
    mine = _Active(swap.deltas, weight, alpha, axes)

    def run(args: Any, kwargs: Any, output: Any) -> Any:
        active = _active.get(module, [])
        if not active or active[-1] is not mine:
            return None  # whoever came last runs it for all
        return _changed(module, active, args, kwargs, output, watch)

    with _lock:
        _active[module] = [*_active.get(module, []), mine]
    try:
        with hooked(module, run, first=True):  # edits of the output come after
            yield
    finally:
        with _lock:
            _active[module] = [a for a in _active[module] if a is not mine]


def _changed(
    module: nn.Module,
    active: Sequence[_Active],
    args: Any,
    kwargs: Any,
    output: Any,
    watch: Callable[[Tensor], Tensor] | None,
) -> Any:
    """The output with all that is on: run once for each combination of strengths among the rows."""

    def run(strengths: Sequence[float]) -> Any:
        parameters: dict[str, Tensor] = {}
        for change, strength in zip(active, strengths, strict=True):
            for name, make in change.deltas.items() if strength else ():
                old = parameters.get(name, module.get_parameter(name))
                parameters[name] = old + (change.weight * strength * make()).to(old.dtype)
        return twin(module, parameters).forward(*args, **kwargs)

    alphas = [a.alpha for a in active]
    if all(isinstance(alpha, float) for alpha in alphas):
        new = run(alphas)  # type: ignore[arg-type]
    else:
        y = tensor_of(output)
        assert y is not None
        rows = torch.stack(
            torch.broadcast_tensors(
                *(
                    torch.full((1,) * y.ndim, a.alpha, device=y.device)
                    if isinstance(a.alpha, float)
                    else a.axes.spread(a.alpha, y, "alpha")  # type: ignore[union-attr]
                    for a in active
                )
            )
        )
        new = output
        for strengths in rows.flatten(1).T.unique(dim=0):
            if strengths.any():
                here = (rows == strengths.view(-1, *[1] * y.ndim)).all(0)
                new = _where(here, run(strengths.tolist()), new)
    if watch is None:
        return new
    return (watch(new[0]), *new[1:]) if isinstance(new, tuple) else watch(new)


def _where(here: Tensor, new: Any, old: Any) -> Any:
    """New rows among the old ones; of several outputs, of each."""
    if isinstance(old, tuple | list):
        return tuple(_where(here, n, o) for n, o in zip(new, old, strict=True))
    return torch.where(here, new, old)
