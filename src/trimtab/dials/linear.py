"""Linear layers of any model, found by what they are: nn.Linear and its kin, GPT-2's Conv1D."""

from __future__ import annotations

import re

from torch import nn

from trimtab import models
from trimtab.errors import DialError
from trimtab.models import bare, dense_weight

__all__ = ["bare", "dense_weight", "linear_at", "linear_modules", "linear_shape"]


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) features of a linear layer (nn.Linear and its kin, GPT-2's Conv1D); None else."""
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]
    if type(module).__name__ == "Conv1D":
        return tuple(module.weight.shape)  # type: ignore[union-attr,return-value]
    return None


def linear_modules(
    model: nn.Module, targets: str = "all-linear", blocks: range | None = None
) -> dict[str, tuple[int, int]]:
    """Linear layers inside decoder layers, by path, with (in, out) features.

    Args:
        targets: `all-linear`, or a regular expression searched in the paths.
        blocks: only these decoder layers.

    Raises:
        DialError: nothing matches; the linear layers of the first block are listed.
    """
    found: dict[str, tuple[int, int]] = {}
    names: list[str] = []
    try:
        search = re.compile(targets).search
    except re.error as error:
        raise DialError(f"targets {targets!r}: not a regular expression ({error})") from error
    for k, prefix in enumerate(models.layer_paths(model)):
        for name, module in models.layers(model)[k].named_modules():
            if (shape := linear_shape(module)) is None:
                continue
            path = f"{prefix}.{name}"
            names.append(path)
            if (blocks is None or k in blocks) and (targets == "all-linear" or search(path)):
                found[path] = shape
    if not found:
        few = ", ".join(sorted({re.sub(r"\.\d+\.", ".N.", n) for n in names})[:12])
        raise DialError(f"targets {targets!r} match no linear layer; the model has {few}")
    return found


def linear_at(model: nn.Module, path: str, shape: tuple[int, int], what: str) -> nn.Module:
    """The linear layer at a path. Raises DialError where there is none, or of another shape; a size
    of 0 is one that does not matter."""
    try:
        module = model.get_submodule(path)
    except AttributeError:
        raise DialError(f"the {what}'s module {path!r} is not in the model") from None
    found = linear_shape(module)
    if found is None or any(n and n != m for n, m in zip(shape, found, strict=True)):
        raise DialError(
            f"{path}: the {what} maps {shape[0]} to {shape[1]} features, the model's module {found}"
        )
    return module
