"""Loading any causal language model and its tokenizer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from trimtab.errors import ModelError
from trimtab.models import identity
from trimtab.models.digests import content_of_gguf, open_gguf
from trimtab.models.files import DEFAULT_MODEL, locate, trusts_code
from trimtab.models.identity import Source
from trimtab.models.quantised import check_attention, settle
from trimtab.models.quantising import quantising, unpack_floats
from trimtab.models.quiet import quiet_transformers
from trimtab.models.tokenizer import load_own
from trimtab.progress import warn

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def load(
    name: str = DEFAULT_MODEL,
    *,
    dtype: str = "auto",
    device: str = "auto",
    attention: str = "auto",
    load_in: str | None = None,
    quantization_config: Any = None,
    trust_remote_code: bool | None = None,
) -> tuple[Any, Any]:
    """Load a causal language model and its tokenizer, ready for evaluation.

    Args:
        name: `smollm2-135m`, a folder, a `.gguf` file, or a Hub id.
        dtype: `float32`, `bfloat16`, `float16`, or `auto`: float32 on a CPU, bfloat16 on a GPU.
        device: a torch device, or `auto`: the first GPU, else the CPU.
        attention: `sdpa`, `eager`, …, or `auto`: sdpa, but eager for half precision on a CPU,
            where its backward pass is the faster one.
        load_in: `4bit` (NF4) or `8bit` by bitsandbytes; None for the weights as they are.
        quantization_config: any of transformers', in place of `load_in`.
        trust_remote_code: run Python code that comes with the model; by default only where the
            command line was given `--trust-remote-code`.

    Returns:
        `(model, tokenizer)`. The model's weights are frozen (`requires_grad=False`).

    Raises:
        ModelError: the model is not there, cannot be read or quantised or is not whole, has weights
            that are not finite, or dtype, device or `load_in` are unknown; an attention kernel that
            does not run on the device.
    """
    where = resolve_device(device)
    kind = resolve_dtype(dtype, where)
    check_attention(attention, where)
    packing = quantising(load_in, quantization_config, kind)
    kernel: str | None = attention
    if attention == "auto":  # None: sdpa where the architecture has it, else eager
        kernel = "eager" if where.type == "cpu" and kind != torch.float32 else None
    trust = trusts_code() if trust_remote_code is None else trust_remote_code
    folder = locate(name).folder
    identity.check_finite(folder, name)
    with quiet_transformers():
        try:
            loaded: Any = auto_class(folder, trust).from_pretrained(
                folder,
                dtype=kind,
                attn_implementation=kernel,
                output_loading_info=True,
                **packing,
                **({"device_map": {"": where}} if packing else {}),
                trust_remote_code=trust,
            )
            model, found = loaded
        except Exception as error:  # of many kinds; each means that it cannot be loaded
            raise ModelError(
                f"{name}: not a causal language model that transformers can load: {_reason(error)}"
            ) from error
    # transformers would draw them at random, in silence
    if missing := sorted(found["missing_keys"]):
        raise ModelError(
            f"{name}: its files lack {len(missing)} of the weights that a {type(model).__name__} "
            f"has, {missing[0]} among them"
        )
    if unexpected := sorted(found["unexpected_keys"]):
        more = f" and {len(unexpected) - 1} more" if len(unexpected) > 1 else ""
        warn(
            f"{name}: a {type(model).__name__} has no place for {unexpected[0]}{more} of its files"
        )
    tokenizer = _tokenizer(name, folder, trust)
    if not packing:
        model.to(where)
    model.eval().requires_grad_(False)
    unpack_floats(model, kind, folder)
    settle(model)
    strange = (n for n, p in model.named_parameters() if not torch.isfinite(p).all())
    if kind == torch.float16 and (bad := next(strange, None)):
        raise ModelError(f"{name}: {bad} has weights beyond float16's range; use --dtype bfloat16")
    source = identity.of_files(folder, name, type(model))
    if not source.digest:
        source = replace(identity.source_of(model), name=name)
    generation = getattr(model, "generation_config", None)
    identity.remember(model, identity.with_tokenizer(source, tokenizer, generation, model.config))
    return model, tokenizer


def auto_class(folder: Path, trust: bool) -> Any:
    """What loads a folder: AutoModelForCausalLM; AutoModelForImageTextToText, used for its text, where
    the config is of a kind that the first does not know and the second does."""
    import transformers
    from transformers.models.auto import modeling_auto as auto

    kind = type(transformers.AutoConfig.from_pretrained(folder, trust_remote_code=trust))
    causal = kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING
    if not causal and kind in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return transformers.AutoModelForImageTextToText
    return transformers.AutoModelForCausalLM


def _reason(error: Exception) -> str:
    """An error of transformers' in one line, with our flag for its argument."""
    text = str(error)
    if "trust_remote_code" in text:
        return (
            "it brings code of its own; look at it, and add --trust-remote-code "
            "(trust_remote_code=True) to run it"
        )
    return next(iter(text.strip().splitlines()), type(error).__name__)


def _tokenizer(name: str, folder: Path, trust: bool) -> Any:
    try:
        return load_own(str(folder), trust_remote_code=trust)
    except Exception as error:  # of many kinds; each means that it cannot be loaded
        raise ModelError(f"{name}: its tokenizer cannot be loaded: {_reason(error)}") from error


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a model, without the model. Raises ModelError as `load` does."""
    return _tokenizer(name, locate(name).folder, trusts_code())


def identify(name: str) -> Source:
    """What a model is by name, without loading its weights: as `source_of` the model that `load`
    makes of it. Reads files that were not read before, and converts a GGUF file that was not.

    Raises:
        ModelError: it is not there, or cannot be read.
    """
    from transformers import GenerationConfig

    folder, trust = locate(name).folder, trusts_code()
    try:
        with quiet_transformers():
            config, kind = identity.class_in(folder, trust)
    except Exception as error:  # of many kinds; each means that it cannot be loaded
        raise ModelError(
            f"{name}: not a causal language model that transformers can load: {_reason(error)}"
        ) from error
    source = identity.of_files(folder, name, kind)
    if not source.digest:
        raise ModelError(f"{name}: no safetensors files in {folder} to take a digest of")
    try:
        generation = GenerationConfig.from_pretrained(folder)
    except OSError:  # there is none
        generation = None
    source = replace(
        source,
        config=identity.config_text(config),
        quantisation=source.quantisation or identity.NONE,
    )
    tokenizer = _tokenizer(name, folder, trust)
    return identity.with_tokenizer(source, tokenizer, generation, config)


def check(name: str) -> None:
    """Fail now, in one line, if `load(name)` could not find the model. Loads nothing."""
    locate(name, convert=False)


def depth_of(name: str) -> int | None:
    """How many decoder layers a model has, by name and without loading it; None where its files do not
    say so in the usual words."""
    place = locate(name, convert=False)
    try:
        if place.gguf:
            fields = open_gguf(place.gguf).fields
            found = [f.contents() for key, f in fields.items() if key.endswith(".block_count")]
            return int(found[0])
        config = json.loads((place.folder / "config.json").read_text("utf-8"))
        config = config.get("text_config") or config
        return int(config.get("num_hidden_layers") or config["n_layer"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def digest_of(name: str) -> str:
    """Digest of a model's weights by name, without loading them."""
    place = locate(name, convert=False)
    if place.gguf:
        return content_of_gguf(place.gguf).digest
    digest = identity.of_files(place.folder, name).digest
    if not digest:
        raise ModelError(f"{name}: no safetensors files in {place.folder} to take a digest of")
    return digest


def folder_of(name: str) -> str:
    """The folder that `load(name)` reads, made first where the source is a GGUF file."""
    return str(locate(name).folder)


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
