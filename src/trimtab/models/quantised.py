"""Quantised layers of any library: the weights that they multiply by, how they are told apart, and
plain copies. Packed weights are never read by their shape."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trimtab.errors import ModelError

UNREADABLE = 0.05
"""Relative error beyond which a layer is no product with the weights that were found by trying."""


_differentiable: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
"""Layers that compute as in training, and how many contexts have them do so."""


def is_plain(weight: Any) -> bool:
    """Whether a weight is what it seems: an ordinary tensor of 16, 32 or 64 bit floats, with values."""
    return (
        type(weight) in (nn.Parameter, Tensor)
        and weight.is_floating_point()
        and weight.itemsize > 1
        and not weight.is_meta
    )


def is_quantised(module: nn.Module) -> bool:
    """Whether a layer's own weights are packed codes, or it keeps them elsewhere than in `weight`."""
    if hasattr(module, "in_features") and not isinstance(getattr(module, "weight", None), Tensor):
        return hasattr(module, "out_features")
    return any(
        p is not None and not is_plain(p) and not (p.is_meta and p.is_floating_point())
        for p in module._parameters.values()
    )


def quantisation_of(model: nn.Module) -> dict[str, str]:
    """What quantises each layer of a model, by path: library, scheme, block sizes. Empty for a plain
    model. The same before and after the model has run."""
    return {n: _scheme(m) for n, m in model.named_modules() if is_quantised(m)}


def quantisation_digest(model: nn.Module) -> str:
    """sha256 over `quantisation_of`; empty for a plain model."""
    found = quantisation_of(model)
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest() if found else ""


def quantisation_name(model: nn.Module) -> str:
    """In a few words, how a model is quantised: `float32`, `bitsandbytes nf4 64`, …"""
    kinds = sorted({_short(scheme) for scheme in quantisation_of(model).values()})
    return ", ".join(kinds) or str(next(model.parameters()).dtype).removeprefix("torch.")


@torch.no_grad()
def dense_weight(module: Any) -> Float[Tensor, "out in"]:
    """W of a linear layer in float32; of a quantised one what it multiplies by, from its library's own
    dequantisation, or else found by trying.

    Raises:
        ModelError: its weights cannot be read.
    """
    with present(module):
        weight: Any = getattr(module, "weight", None)
        if is_plain(weight) and weight.ndim == 2:
            turned = type(module).__name__ == "Conv1D"
            return (weight.T if turned else weight).detach().float()
        for read in (_bitsandbytes_4bit, _bitsandbytes_8bit, _compressed, _fp8, _dequantize):
            if (found := read(module)) is not None:
                return found.detach().float()
        return _by_trial(module)


def bare(module: Any, x: Tensor) -> Tensor:
    """W x without bias and without hooks, whatever holds W (quantised layers, too)."""
    y = module.forward(x)
    bias = getattr(module, "bias", None)
    return y if bias is None else y - bias.to(y.dtype)


def settle(model: nn.Module) -> None:
    """Make a model ready to be read and trained on: layers that repack their weights when they first
    run are brought into the layout that has a gradient, and stay in it.

    bitsandbytes' 4-bit layers on a CPU with AVX512-BF16 repack their weights in a pass without
    gradients, and from then on hand no gradient to their input, without an error; saving them
    then gives other weights. Layers of compressed-tensors are decompressed in the first pass.

    Raises:
        ModelError: the model is set to an attention kernel that its device cannot run.
    """
    config: Any = getattr(model, "config", None)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    check_attention(getattr(config, "_attn_implementation", None), device)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
            weight: Any = module.weight
            if getattr(state := getattr(weight, "quant_state", None), "packing_format_for_cpu", 0):
                weight.data, weight.quant_state = unpacked(weight.data, state)
                module.quant_state = weight.quant_state
    if hasattr(model, "ct_decompress_hook"):
        from compressed_tensors.compressors import decompress_module

        for module in list(model.modules()):
            if _is_compressed(module):
                decompress_module(module)
        model.ct_decompress_hook.remove()  # type: ignore[union-attr,operator]
        del model.ct_decompress_hook


@contextlib.contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """Within it layers that round their inputs compute as they do in training, where their library
    has a way for it: bitsandbytes' 8-bit layers, on a CPU, with inputs as they are. Their rows then
    do not depend on one another, and gradients are those on the dequantised weights."""

    def begin(module: nn.Module, _: Any) -> None:
        module.training = True

    def end(module: nn.Module, _: Any, __: Any) -> None:
        module.training = False

    handles: list[Any] = []
    rounding = [m for m in model.modules() if hasattr(getattr(m, "state", None), "SCB")]
    for module in rounding:
        _differentiable[module] = _differentiable.get(module, 0) + 1
        handles.append(module.register_forward_pre_hook(begin))
        handles.append(module.register_forward_hook(end, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module in rounding:
            _differentiable[module] -= 1


def check_attention(attention: str | None, device: torch.device) -> None:
    """Raise ModelError for an attention kernel that ends the process instead of raising an error."""
    if attention == "flex_attention" and device.type == "cpu":
        raise ModelError(
            "attention flex_attention does not run on a CPU: choose sdpa or eager, or a GPU"
        )


def rows_depend(model: nn.Module) -> str:
    """Why a row's scores depend on what else is in its batch; empty where nothing is known of it."""
    for module in model.modules():
        state = getattr(module, "state", None)
        if getattr(state, "threshold", 0.0) and hasattr(state, "SCB"):
            exact = module.weight.device.type in ("cpu", "xpu")  # type: ignore[union-attr]
            if exact and _differentiable.get(module):
                continue
            return "bitsandbytes' 8-bit layers choose their outlier columns over the whole batch"
    return ""


@contextlib.contextmanager
def present(module: nn.Module) -> Iterator[None]:
    """Within it the weights of a layer that accelerate has offloaded have their values, on the CPU."""
    if not hasattr(module, "_hf_hook"):
        yield
        return
    from accelerate.utils import align_module_device, has_offloaded_params

    if not has_offloaded_params(module):
        yield
        return
    with align_module_device(module, torch.device("cpu")):
        yield


# ---- one reader a library ------------------------------------------------------------------------


def _bitsandbytes_4bit(module: Any) -> Tensor | None:
    weight = getattr(module, "weight", None)
    state = getattr(weight, "quant_state", None) or getattr(module, "quant_state", None)
    if weight is None or not hasattr(state, "absmax"):
        return None
    from bitsandbytes.functional import dequantize_4bit

    codes, state = unpacked(weight.data, state)
    return dequantize_4bit(codes, state)


def unpacked(codes: Tensor, state: Any) -> tuple[Tensor, Any]:
    """Codes and statistics in the layout in which they are saved. bitsandbytes' own way back leaves
    the statistics as they were packed, where they are not quantised themselves."""
    if not getattr(state, "packing_format_for_cpu", False):
        return codes, state
    from bitsandbytes import functional

    state = copy.copy(state)
    absmax = state.absmax.T.reshape(-1).float()
    state.original_nested = False
    codes, state = functional._convert_weight_packed_for_cpu_inverse(codes, state)
    state.absmax = absmax
    return codes, state


def _bitsandbytes_8bit(module: Any) -> Tensor | None:
    state = getattr(module, "state", None)
    if not hasattr(state, "SCB"):
        return None
    codes, scale = int8_parts(module)
    if scale is None:  # float weights that are quantised anew at every pass
        return module.weight.data
    return codes.float() * (scale.float()[:, None] / 127)


def int8_parts(module: Any) -> tuple[Tensor, Tensor | None]:
    """Codes and row scales of an 8-bit layer, which moves them when it first runs."""
    weight, state = module.weight, module.state
    if (scale := getattr(weight, "SCB", None)) is not None:
        return weight.CB if weight.CB is not None else weight.data, scale
    return (weight.data if state.CB is None else state.CB), state.SCB


def _is_compressed(module: nn.Module) -> bool:
    status = getattr(module, "quantization_status", None)
    return str(getattr(status, "value", status)) == "compressed"


def _compressed(module: Any) -> Tensor | None:
    if not _is_compressed(module):
        return None
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.format import infer_module_format
    from compressed_tensors.utils import get_direct_state_dict

    scheme = module.quantization_scheme
    kind = scheme.format or infer_module_format(type(module), scheme)
    compressor: Any = BaseCompressor.get_value_from_registry(str(getattr(kind, "value", kind)))
    return compressor.decompress(get_direct_state_dict(module), scheme)["weight"]


def _fp8(module: Any) -> Tensor | None:
    scale, codes = getattr(module, "weight_scale_inv", None), getattr(module, "weight", None)
    if scale is None or codes is None:
        return None
    if codes.itemsize > 1:  # dequantised as it was loaded
        return codes
    scale = scale.float()
    if scale.ndim == 2:
        for axis, size in enumerate(module.block_size):
            scale = scale.repeat_interleave(size, axis).narrow(axis, 0, codes.shape[axis])
    return codes.float() * scale


def _dequantize(module: Any) -> Tensor | None:
    """HQQ's layers, and tensors of torchao and quanto."""
    for owner in (module, getattr(module, "weight", None)):
        if owner is not None and type(owner) not in (nn.Parameter, Tensor):
            with contextlib.suppress(AttributeError, NotImplementedError, RuntimeError, TypeError):
                return owner.dequantize()
    return None


def _by_trial(module: Any) -> Tensor:
    """What a layer multiplies by, from the identity, held to be a product on other inputs."""
    what = f"{type(module).__name__} ({type(module).__module__.partition('.')[0]})"
    try:
        device = next(t.device for t in (*module.parameters(), *module.buffers()))
        found = bare(module, torch.eye(module.in_features, device=device)).T.float()
        x = torch.randn(8, module.in_features, generator=torch.Generator().manual_seed(0))
        y, expected = bare(module, x.to(device)).float(), x.to(device) @ found.T
    except Exception as error:  # whatever a foreign layer raises means that it cannot be tried
        raise ModelError(f"{what}: its weights cannot be read: {error}") from error
    if not (y - expected).norm() <= UNREADABLE * expected.norm():
        raise ModelError(f"{what}: its weights cannot be read: it is no product with a matrix")
    return found


# ---- names -----------------------------------------------------------------------------


def _short(scheme: str) -> str:
    words = " ".join(scheme.split()[:2])
    return f"{words} with quantised activations" if "act_quant_kwargs=Q" in scheme else words


def _scheme(module: Any) -> str:
    weight: Any = getattr(module, "weight", None)
    if getattr(weight, "quant_type", None) and hasattr(weight, "compress_statistics"):
        nested = " nested" if weight.compress_statistics else ""
        return f"bitsandbytes {weight.quant_type} {weight.blocksize}{nested}"
    if hasattr(state := getattr(module, "state", None), "SCB"):
        return f"bitsandbytes int8 {getattr(state, 'threshold', 0.0):g}"
    library = type(module).__module__.partition(".")[0]
    if isinstance(weight, Tensor) and type(weight) not in (nn.Parameter, Tensor):
        library = type(weight).__module__.partition(".")[0]
        return f"{library} {_flattened_scheme(weight)}"
    for owner, name in (
        (module, "quantization_scheme"),
        (module, "quant_config"),
        (module, "quantization_config"),
    ):
        if (found := getattr(owner, name, None)) is not None:
            text = found.model_dump_json() if hasattr(found, "model_dump_json") else repr(found)
            return f"{library} {type(module).__name__} {text}"
    settings = [
        f"{name} {value}"
        for name in ("bits", "w_bit", "group_size", "block_size", "activation_scheme")
        if (value := getattr(module, name, None)) is not None
    ]
    return " ".join([library, type(module).__name__, *settings])


_BESIDE_THE_POINT = ("size", "stride", "shape", "dtype", "kernel_preference", "mm_config")


def _flattened_scheme(weight: Any) -> str:
    """A tensor subclass in words: its kind, the dtype of its codes, its settings but for those that a
    model's shapes, dtype or machine decide."""
    if not hasattr(weight, "__tensor_flatten__"):
        return type(weight).__name__
    parts, settings = weight.__tensor_flatten__()
    codes = str(getattr(weight, parts[0]).dtype).removeprefix("torch.")
    kept = settings.items() if isinstance(settings, dict) else enumerate(settings)
    said = [f"{k}={v}" for k, v in kept if k not in _BESIDE_THE_POINT]
    return " ".join([type(weight).__name__, codes, *said])
