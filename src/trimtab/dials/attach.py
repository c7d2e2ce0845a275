"""The one place where hooks that edit a model are registered, ordered, scaled and undone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.errors import ConfigError
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
    """

    site: Site
    order: int
    fn: Callable[[Tensor, Tensor, float | Tensor], Tensor]


@contextmanager
def attach(
    model: nn.Module,
    weighted: Sequence[tuple[Sequence[Edit], float]],
    alpha: Alpha,
    *,
    training: bool = False,
) -> Iterator[None]:
    """Apply edits to a model, each at its weight times `alpha`, until the context is left.

    A scalar 0 attaches nothing. In a batch whose rows differ, rows at 0 are selected, never
    multiplied by 0. Where a batch has k times as many rows as `alpha` (beams, several returned
    sequences), each value serves k rows in a row.

    Args:
        training: the context spans forward *and* backward. Without it, entering while activation
            checkpointing is on and gradients are enabled is refused: the recomputation in the
            backward pass would run without the dial and give wrong gradients in silence.

    Raises:
        ConfigError: alpha is not finite, or of another shape; checkpointing, as above.
    """
    strength = as_alpha(alpha)
    edits = [(edit, weight) for group, weight in weighted if weight != 0 for edit in group]
    if (isinstance(strength, float) and strength == 0) or not edits:
        yield
        return
    if not training and torch.is_grad_enabled() and _checkpointing(model):
        raise ConfigError(
            "activation checkpointing is on and gradients are enabled: enter the dial with "
            "training=True around forward and backward, or turn checkpointing or gradients off"
        )
    with ExitStack() as stack:
        for edit, weight in sorted(edits, key=lambda pair: pair[0].order):
            module, is_input = module_at(model, edit.site)
            if is_input:
                raise ConfigError(f"site {edit.site!r}: edits are made to outputs")
            handle = module.register_forward_hook(_hook(edit, weight, strength), with_kwargs=True)
            stack.callback(handle.remove)
        yield


def as_alpha(alpha: Alpha) -> float | Tensor:
    """A float, or a float32 tensor `[B]` or `[B, T]`; every value finite."""
    if isinstance(alpha, str):
        if alpha not in PRESETS:
            raise ConfigError(f"alpha is {alpha!r}; expected a number, or {', '.join(PRESETS)}")
        return PRESETS[alpha]
    if isinstance(alpha, int | float):
        if not math.isfinite(alpha):
            raise ConfigError(f"alpha is {alpha}; expected a finite number")
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
    return values


def _hook(edit: Edit, weight: float, alpha: float | Tensor) -> Callable[..., Any]:
    def run(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        y = output[0] if isinstance(output, tuple) else output
        x = input_of(args, kwargs)
        if isinstance(alpha, Tensor):
            rows = _rows(alpha, y)
            new = torch.where(rows == 0, y, edit.fn(x, y, weight * rows))
        else:
            new = edit.fn(x, y, weight * alpha)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    return run


def _rows(alpha: Tensor, y: Tensor) -> Tensor:
    """alpha as `[B, 1, 1]` or `[B, T, 1]` for an output `[B, T, d]`; as `[B T, 1]` for the
    `[B T, d]` of a module that sees its tokens in one line (a router's)."""
    flat = y.ndim == 2
    per_token = alpha.ndim == 2
    many = alpha.numel() if flat and per_token else len(alpha)
    repeat, rest = divmod(y.shape[0], many)
    if rest or not repeat:
        raise ConfigError(f"alpha has {many} rows, the batch has {y.shape[0]}")
    alpha = alpha.to(y.device).repeat_interleave(repeat, 0)
    if flat:
        return alpha.reshape(-1, 1)
    if per_token and alpha.shape[1] != y.shape[1]:
        raise ConfigError(f"alpha has {alpha.shape[1]} tokens a row, the batch has {y.shape[1]}")
    return alpha.view(len(alpha), -1, *[1] * (y.ndim - 2))


def _checkpointing(model: nn.Module) -> bool:
    return any(getattr(m, "gradient_checkpointing", False) and m.training for m in model.modules())
