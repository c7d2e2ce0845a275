"""What `load` sets for quantised models, and the settings that it refuses."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trimtab.errors import ModelError
from trimtab.models.quantised import is_quantised

LOAD_IN = ("4bit", "8bit")


def check_load_in(load_in: str | None) -> None:
    """Raise ModelError where `load_in` is unknown, or bitsandbytes is not installed."""
    if not load_in:
        return
    if load_in not in LOAD_IN:
        raise ModelError(f"load_in {load_in}: expected one of {', '.join(LOAD_IN)}")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(f"load_in {load_in}: needs bitsandbytes: pip install 'trimtab[quant]'")


def quantising(load_in: str | None, given: Any, dtype: torch.dtype) -> dict[str, Any]:
    """The argument with which transformers quantises a model as it loads it; none where nothing is
    asked for.

    Args:
        load_in: `4bit`, `8bit` or None.
        given: a config of transformers', in its place.

    Raises:
        ModelError: both are given, `load_in` is unknown, or bitsandbytes is not installed.
    """
    if load_in and given is not None:
        raise ModelError("load_in and quantization_config: give one of them")
    if not load_in:
        return {} if given is None else {"quantization_config": given}
    check_load_in(load_in)
    from transformers import BitsAndBytesConfig

    if load_in == "8bit":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )
    return {"quantization_config": config}


def unpack_floats(model: nn.Module, dtype: torch.dtype, folder: Path) -> None:
    """Bring a model to the dtype that was asked for, whose files are quantised and were dequantised to
    another one as they were loaded (FP8 and MXFP4 on a CPU)."""
    stored = "quantization_config" in json.loads((folder / "config.json").read_text())
    if stored and not any(is_quantised(m) for m in model.modules()):
        model.to(dtype)
