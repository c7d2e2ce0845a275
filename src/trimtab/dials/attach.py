"""The one place where hooks that edit a model are registered, ordered, scaled and undone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trimtab import models
from trimtab.batching.spans import edited_after, of_the_line, rows_apart
from trimtab.dials import contexts
from trimtab.dials.experts import Swap, swapped
from trimtab.dials.numbers import LARGEST, STRONGEST
from trimtab.dials.trial import UNRUN, Axes, axes_at
from trimtab.dials.where import (
    Condition,
    Positions,
    Tracker,
    heed_embeddings,
    needs_tracking,
    reach,
)
from trimtab.errors import ConfigError
from trimtab.models.places import before
from trimtab.sites import Site
from trimtab.states import input_of, module_at

Alpha = float | str | Tensor | Sequence[float]
"""A number or the name of one (`PRESETS`), `[B]` (a value a row) or `[B, T]` (a value a token)."""

PRESETS = {"none": 0.0, "light": 0.5, "standard": 1.0, "strong": 1.5, "maximum": 2.0}
"""Strengths by name."""

ADAPTER, VECTOR = 0, 10
"""Orders of edits at one site: adapters first, then vectors."""


@dataclass(frozen=True)
class Edit:
    """A change of one module's output.

    Attributes:
        site: where.
        order: edits at one site run from the lowest order up.
        fn: `(x, y, alpha) -> y'`: the module's input and output, and a strength that broadcasts
            against y: a float, or a tensor `[B, 1, 1]` or `[B, T, 1]`. It need not treat 0
            specially: rows at 0 keep y, to the bit.
        positions: at which tokens; elsewhere y stays, to the bit.
        condition: in which rows, or None for all.
        fused: `(alpha) -> (x, y) -> y'`, the same edit at one fixed number, with all that can be
            computed once; used where no gradient is wanted.
    """

    site: Site
    order: int
    fn: Callable[[Tensor, Tensor, float | Tensor], Tensor]
    positions: Positions = "all"
    condition: Condition | None = None
    fused: Callable[[float], Callable[[Tensor, Tensor], Tensor]] | None = None


@contextmanager
def attach(
    model: nn.Module,
    weighted: Sequence[tuple[Sequence[Edit | Swap], float | Tensor]],
    alpha: Alpha,
    *,
    training: bool = False,
) -> Iterator[None]:
    """Apply edits to a model, each at its weight times `alpha`, until the context is left. A weight
    may be a tensor `[B]`, one a row: so every row can have its own mixture of dials.

    A scalar 0 attaches nothing. In a batch whose rows differ, rows at 0 are selected, never
    multiplied by 0. Where a batch has k times as many rows as `alpha` (beams, several returned
    sequences), each value serves k rows in a row.

    Args:
        training: the context spans forward *and* backward. Without it, entering while activation
            checkpointing is on and gradients are enabled is refused: the recomputation in the
            backward pass would run without the dial and give wrong gradients in silence.

    Raises:
        ConfigError: alpha is not finite, or of another shape; checkpointing, as above, and in the
            backward pass where another dial, or the same one anew, has been entered or left since
            the forward pass.
    """
    strength = as_alpha(alpha)
    contexts.check_owner(model)
    given = [
        (edit, *_scaled(weight, strength))
        for group, weight in weighted
        if (weight.any() if isinstance(weight, Tensor) else weight != 0)
        for edit in group
    ]
    by_row = any(isinstance(strength, Tensor) for _, _, strength in given)
    if (isinstance(strength, float) and strength == 0) or not given:
        yield
        return
    recomputed = torch.is_grad_enabled() and _checkpointing(model)
    if recomputed and not training:
        raise ConfigError(
            "activation checkpointing is on and gradients are enabled: enter the dial with "
            "training=True around forward and backward, or turn checkpointing or gradients off"
        )
    swaps = [(e, weight, at) for e, weight, at in given if isinstance(e, Swap)]
    edits = [(e, weight, at) for e, weight, at in given if isinstance(e, Edit)]
    edits.sort(key=lambda several: several[0].order)
    tracker: Tracker | None = None
    with ExitStack() as stack:
        stack.enter_context(models.uncompiled())
        stack.enter_context(contexts.on(model))
        if training:
            stack.enter_context(models.differentiable(model))
        conditions = {id(e.condition): e.condition for e, *_ in edits if e.condition is not None}
        if any(needs_tracking(edit.positions, edit.condition) for edit, *_ in edits):
            tracker = Tracker(model)
            first = min(reach(model, edit.site) for edit, *_ in edits)
            tracker.register(stack, list(conditions.values()), first)
        sites = {edit.site for edit, *_ in edits} | {c.site for c in conditions.values()}
        heed_embeddings(model, sites, stack)
        within = (f"{swap.path}:out" for swap, *_ in swaps)
        stack.enter_context(edited_after(model, before(model, (*sites, *within))))
        if tracker is not None or by_row:
            stack.enter_context(rows_apart(model))
        guard = _Guard(model) if recomputed else None
        for swap, weight, strength in swaps:
            module, site = model.get_submodule(swap.path), f"{swap.path}:out"
            axes = _axes(model, site) if isinstance(strength, Tensor) else None
            if isinstance(axes, str):
                raise _untold(site, axes)
            watch = guard.watch if guard else None
            stack.enter_context(swapped(module, swap, weight, strength, axes, watch))
        for edit, weight, strength in edits:
            module, is_input = module_at(model, edit.site)
            if is_input:
                raise ConfigError(f"site {edit.site!r}: edits are made to outputs")
            tracked = tracker if needs_tracking(edit.positions, edit.condition) else None
            axes = _axes(model, edit.site) if tracked or isinstance(strength, Tensor) else None
            run = _run(edit, weight, strength, axes, tracked, guard, fuse=not training)
            stack.enter_context(contexts.hooked(module, run))
        yield


def _scaled(weight: float | Tensor, strength: float | Tensor) -> tuple[float, float | Tensor]:
    """A weight that is a number, and the strength that it multiplies."""
    return (1.0, as_alpha(weight * strength)) if isinstance(weight, Tensor) else (weight, strength)


def as_alpha(alpha: Alpha) -> float | Tensor:
    """A float, or a float32 tensor `[B]` or `[B, T]`; every value finite."""
    if isinstance(alpha, str):
        if alpha not in PRESETS:
            raise ConfigError(f"alpha is {alpha!r}; expected a number, or {', '.join(PRESETS)}")
        return PRESETS[alpha]
    if isinstance(alpha, int | float):
        if isinstance(alpha, float) and not math.isfinite(alpha):
            raise ConfigError(f"alpha is {alpha}; expected a finite number")
        if abs(alpha) > STRONGEST:
            said = f"{alpha:g}" if abs(alpha) < 1e300 else "larger than any float"
            raise ConfigError(f"alpha is {said}; expected a number within +-{STRONGEST:g}")
        return float(alpha)
    try:
        values = torch.as_tensor(alpha, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"alpha is {alpha!r}; expected a number or a tensor of them") from error
    if values.ndim == 0:
        return as_alpha(values.item())
    if values.ndim > 2 or not values.numel() or not values.isfinite().all():
        raise ConfigError(
            f"alpha of shape {tuple(values.shape)}: expected finite numbers, a value a row "
            "[B] or a value a token [B, T]"
        )
    if values.abs().max() > STRONGEST:
        raise ConfigError(
            f"alpha has {values.abs().max():g}; expected numbers within +-{STRONGEST:g}"
        )
    return values


def _run(
    edit: Edit,
    weight: float,
    alpha: float | Tensor,
    axes: Axes | str | None,
    tracker: Tracker | None,
    guard: _Guard | None,
    *,
    fuse: bool,
) -> Callable[..., Any]:
    """An edit at a strength, as `(args, kwargs, output) -> output` of its module."""
    make = edit.fused if fuse and isinstance(alpha, float) else None
    fused: Callable[[Tensor, Tensor], Tensor] | None = None
    checked = False

    def run(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        nonlocal fused, checked
        several = isinstance(output, tuple | list)
        y = output[0] if several else output
        if not isinstance(y, Tensor):
            raise ConfigError(f"site {edit.site!r}: it gives a {type(y).__name__}, no states")
        x = input_of(args, kwargs)
        if isinstance(axes, str):
            raise _untold(edit.site, axes)
        if isinstance(alpha, Tensor):
            assert axes is not None
            rows = axes.spread(of_the_line(alpha), y, "alpha")
            new = torch.where(rows == 0, y, edit.fn(x, y, weight * rows))
        elif make is not None and not torch.is_grad_enabled():
            fused = fused or make(weight * alpha)
            new = fused(x, y)
        else:
            new = edit.fn(x, y, weight * alpha)
        where = tracker.at(edit.positions, edit.condition) if tracker else None
        if where is not None:
            assert axes is not None
            new = torch.where(axes.spread(where, y, "the positions' mask"), new, y)
        if not checked:  # once a context: it asks the device to wait
            _check_size(edit.site, y, new, alpha)
            checked = True
        if guard is not None:
            new = guard.watch(new)
        if not several:
            return new
        return [new, *output[1:]] if isinstance(output, list) else (new, *output[1:])

    return run


def _check_size(site: Site, y: Tensor, new: Tensor, alpha: float | Tensor) -> None:
    """Raise ConfigError where an edit makes states so large that they, or their squares, overflow."""
    most = min(torch.finfo(new.dtype).max, LARGEST * STRONGEST)
    with torch.no_grad():
        if not new.numel() or not new.abs().max() > most or y.abs().max() > most:
            return
    strongest = alpha.abs().max().item() if isinstance(alpha, Tensor) else alpha
    raise ConfigError(
        f"site {site!r}: at alpha {strongest:g} the dial makes states too large for {new.dtype}; "
        "expected a smaller alpha"
    )


def _axes(model: nn.Module, site: Site) -> Axes | str:
    """The axes of a site's output; why there are none, where a few tokens do not pass it."""
    found = axes_at(model, site)
    if isinstance(found, str) and found != UNRUN:
        raise _untold(site, found)
    return found


def _untold(site: Site, why: str) -> ConfigError:
    return ConfigError(
        f"site {site!r}: which row each state belongs to cannot be told ({why}): expected alpha to be "
        "one number, and no positions or condition"
    )


class _Guard:
    """Under activation checkpointing, sees to it that the backward pass finds the dials that the
    forward pass ran with: what is recomputed there would otherwise be another model's."""

    def __init__(self, model: nn.Module):
        self.model, self.forwards = model, 0

    def watch(self, y: Tensor) -> Tensor:
        """y, with its gradient on the condition that nothing has changed."""
        if torch._C._current_graph_task_id() == -1:
            self.forwards += 1
        elif not self.forwards:
            raise ConfigError(_CHANGED.format("entered"))
        return _Unchanged.apply(y, self.model) if y.requires_grad else y


_CHANGED = (
    "a dial was {} between the forward and the backward pass: under activation checkpointing the "
    "gradients would be wrong; keep one context open, at one alpha, around both"
)


class _Unchanged(torch.autograd.Function):
    """The identity; its backward raises where the open contexts are not those of its forward."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, model: nn.Module) -> Tensor:
        ctx.model, ctx.attached = model, contexts.opened(model)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        if contexts.opened(ctx.model) != ctx.attached:
            raise ConfigError(_CHANGED.format("entered or left"))
        return grads[0], None


def _checkpointing(model: nn.Module) -> bool:
    """Whether decoder layers are run again in the backward pass: transformers' switch, or ours."""
    return any(
        getattr(m, "gradient_checkpointing", False) and m.training for m in model.modules()
    ) or any(
        isinstance(own := vars(layer).get("forward"), partial) and own.func is checkpoint
        for layer in models.layers(model)
    )
