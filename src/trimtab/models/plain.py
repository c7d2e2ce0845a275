"""What a model consists of, tensor by tensor, and plain copies of quantised models."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.errors import ModelError
from trimtab.models.quantised import (
    dense_weight,
    int8_parts,
    is_plain,
    present,
    quantisation_of,
    unpacked,
)

MARKS = ("hf_quantizer", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit")
"""What transformers leaves on a quantised model."""


def own_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that makes up a model, by the name that `state_dict` gives it, on its device.

    Tensors of quantisers come as the plain ones that they consist of, offloaded ones with their
    values. `state_dict` is not called: of bitsandbytes' 4-bit layers that have run it changes the
    weights. Names come twice where modules are shared.

    Raises:
        ModelError: a tensor has no values (it lies on the meta device).
    """
    for prefix, module in model.named_modules(remove_duplicate=False):
        with present(module):
            mine = [*module._parameters.items()]
            mine += [
                (n, b)
                for n, b in module._buffers.items()
                if n not in module._non_persistent_buffers_set
            ]
            for name, tensor in [*mine, *_beside(module)]:
                if tensor is not None:
                    path = f"{prefix}.{name}" if prefix else name
                    yield from _plain_parts(path, _codes(tensor))


def plain_copy(model: nn.Module) -> Any:
    """A deep copy of a model with ordinary weights: quantised layers become `nn.Linear` with the
    weights that they multiply by, what is offloaded is brought in.

    Raises:
        ModelError: a quantised layer is no linear one, or its weights cannot be read.
    """
    memo: dict[int, Any] = {}
    dtype = next((p.dtype for p in model.parameters() if is_plain(p)), torch.float32)
    for path in quantisation_of(model):
        module: Any = model.get_submodule(path)
        if not hasattr(module, "in_features"):
            raise ModelError(
                f"{path}: a {type(module).__name__} of quantised weights, and no linear layer: no "
                "plain copy of the model can be made"
            )
        memo[id(module)] = _plain_linear(module, dtype)
    result: Any = copy.deepcopy(model, memo)
    _bring_in(model, result)
    if memo:
        strip_marks(result)
    return result.requires_grad_(False)


def strip_marks(model: Any) -> None:
    """Take away what tells transformers that a model is quantised, which keeps it from being saved as
    the plain one that it has become."""
    for owner, key in (*((model, mark) for mark in MARKS), (model.config, "quantization_config")):
        with contextlib.suppress(AttributeError):
            delattr(owner, key)
    model.is_quantized = False


# ---- parts ---------------------------------------------------------------------------------------


def _beside(module: Any) -> list[tuple[str, Tensor | None]]:
    """Tensors of a quantised layer that are neither parameters nor buffers."""
    state: Any = getattr(getattr(module, "weight", None), "quant_state", None)
    if hasattr(state, "absmax"):
        absmax = state.absmax
        if getattr(state, "packing_format_for_cpu", False):
            absmax = absmax.T.reshape(-1)
        elif state.nested:
            from bitsandbytes.functional import dequantize_blockwise

            absmax = dequantize_blockwise(absmax, state.state2) + state.offset
        # Rounded as the layer itself rounds them in its first pass, so that running changes nothing.
        return [("weight.absmax", absmax.to(torch.bfloat16)), ("weight.quant_map", state.code)]
    if hasattr(getattr(module, "state", None), "SCB"):
        return [("SCB", int8_parts(module)[1])]
    if isinstance(meta := getattr(module, "meta", None), dict):
        return [(f"meta.{k}", v) for k, v in sorted(meta.items()) if isinstance(v, Tensor)]
    return []


def _codes(tensor: Any) -> Tensor:
    state = getattr(tensor, "quant_state", None)
    return tensor if state is None else unpacked(tensor.data, state)[0]


def _plain_parts(name: str, tensor: Any) -> Iterator[tuple[str, Tensor]]:
    if tensor.is_meta:
        raise ModelError(f"{name}: a tensor without values (on the meta device)")
    if not hasattr(tensor, "__tensor_flatten__") or type(tensor) in (nn.Parameter, Tensor):
        yield name, tensor.detach()
        return
    for part in tensor.__tensor_flatten__()[0]:
        yield from _plain_parts(f"{name}.{part}", getattr(tensor, part))


@torch.no_grad()
def _plain_linear(module: Any, dtype: torch.dtype) -> nn.Linear:
    weight, bias = dense_weight(module), getattr(module, "bias", None)
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    if bias is not None:
        with present(module):
            linear.bias = nn.Parameter(module.bias.detach().to(dtype), requires_grad=False)
    return linear.train(module.training)


def _bring_in(model: nn.Module, result: nn.Module) -> None:
    """Give a copy the values of what is offloaded, and take accelerate's hooks from it."""
    if not any(hasattr(m, "_hf_hook") for m in model.modules()):
        return
    from accelerate.hooks import remove_hook_from_module

    remove_hook_from_module(result, recurse=True)
    for path, module in model.named_modules():
        target = result.get_submodule(path)
        with present(module):
            for kind in ("_parameters", "_buffers"):
                mine = getattr(target, kind)
                for name, t in getattr(module, kind).items():
                    if t is not None and getattr(mine.get(name), "is_meta", False):
                        own = t.detach().clone()
                        mine[name] = nn.Parameter(own, False) if kind == "_parameters" else own
