"""Linear layers of any model, found by what they are: nn.Linear and its kin, GPT-2's Conv1D."""

from __future__ import annotations

from torch import nn

from trimtab.errors import DialError
from trimtab.models import bare, dense_weight

__all__ = ["bare", "dense_weight", "linear_at", "linear_shape"]


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) features of a linear layer (nn.Linear and its kin, GPT-2's Conv1D); None else."""
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]
    if type(module).__name__ == "Conv1D":
        return tuple(module.weight.shape)  # type: ignore[union-attr,return-value]
    return None


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
