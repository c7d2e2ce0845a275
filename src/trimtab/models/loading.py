"""Loading any causal language model and its tokenizer."""

from __future__ import annotations

from typing import Any

import torch

from trimtab.errors import ModelError
from trimtab.models.files import DEFAULT_MODEL, locate
from trimtab.models.identity import Source, _sources, digest_of_parameters
from trimtab.models.quantised import check_attention, settle
from trimtab.models.quantising import quantising, unpack_floats
from trimtab.models.quiet import quiet_transformers

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def load(
    name: str = DEFAULT_MODEL,
    *,
    dtype: str = "auto",
    device: str = "auto",
    attention: str = "auto",
    load_in: str = "",
    quantization_config: Any = None,
) -> tuple[Any, Any]:
    """Load a causal language model and its tokenizer, ready for evaluation.

    Args:
        name: `smollm2-135m`, a folder, a `.gguf` file, or a Hub id.
        dtype: `float32`, `bfloat16`, `float16`, or `auto`: float32 on a CPU, bfloat16 on a GPU.
        device: a torch device, or `auto`: the first GPU, else the CPU.
        attention: `sdpa`, `eager`, …, or `auto`: sdpa, but eager for half precision on a CPU,
            where its backward pass is the faster one.
        load_in: `4bit` (NF4) or `8bit` by bitsandbytes; empty for the weights as they are.
        quantization_config: any of transformers', in place of `load_in`.

    Returns:
        `(model, tokenizer)`. The model's weights are frozen (`requires_grad=False`).

    Raises:
        ModelError: the model is not there, cannot be read or quantised, or dtype, device or `load_in`
            are unknown; an attention kernel that does not run on the device.
    """
    where = resolve_device(device)
    kind = resolve_dtype(dtype, where)
    check_attention(attention, where)
    packing = quantising(load_in, quantization_config, kind)
    kernel: str | None = attention
    if attention == "auto":  # None: sdpa where the architecture has it, else eager
        kernel = "eager" if where.type == "cpu" and kind != torch.float32 else None
    folder, digest = locate(name)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet_transformers():
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=kind,
                attn_implementation=kernel,
                output_loading_info=True,
                **packing,
                **({"device_map": {"": where}} if packing else {}),
            )
            model, found = loaded
            tokenizer = AutoTokenizer.from_pretrained(folder)
        except Exception as error:  # of many kinds; each means that it cannot be loaded
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ModelError(
                f"{name}: not a causal language model that transformers can load: {reason}"
            ) from error
    # transformers would draw them at random, in silence
    if missing := sorted(found["missing_keys"]):
        raise ModelError(
            f"{name}: its files lack {len(missing)} of the weights that a {type(model).__name__} "
            f"has, {missing[0]} among them"
        )
    if not packing:
        model.to(where)
    model.eval().requires_grad_(False)
    unpack_floats(model, kind)
    settle(model)
    _sources[model] = Source(name, digest or digest_of_parameters(model))
    return model, tokenizer


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a model, without the model. Raises ModelError as `load` does."""
    folder, _ = locate(name)
    from transformers import AutoTokenizer

    with quiet_transformers():
        try:
            return AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"{name}: its tokenizer cannot be loaded: {error}") from error


def check(name: str) -> None:
    """Fail now, in one line, if `load(name)` could not find the model. Loads nothing."""
    locate(name, convert=False)


def digest_of(name: str) -> str:
    """Digest of a model by name, without loading it where its source is a file or a folder."""
    folder, digest = locate(name, convert=False)
    if digest is None:
        raise ModelError(f"{name}: no safetensors files in {folder} to take a digest of")
    return digest


def folder_of(name: str) -> str:
    """The folder that `load(name)` reads, made first where the source is a GGUF file."""
    return locate(name)[0]


def resolve_device(device: str) -> torch.device:
    """The torch device that a `--device` value names (`auto`: a GPU if there is one)."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"--device {device}: {str(error).splitlines()[0]}") from error
    return where


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The torch dtype that a `--dtype` value names (`auto`: bfloat16 on a GPU, else float32)."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    try:
        return _DTYPES[_SHORT.get(dtype, dtype)]
    except KeyError:
        raise ModelError(f"--dtype {dtype}: expected one of auto, {', '.join(_DTYPES)}") from None
