"""GGUF files, read through a dequantised copy in the cache folder."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from trimtab.errors import ModelError
from trimtab.models.digests import cache_root, digest_of_gguf, remembered
from trimtab.models.quiet import quiet_transformers


def converted(file: Path, convert: bool) -> tuple[str, str | None]:
    """The dequantised copy of a GGUF file in the cache folder, made on first use."""
    digest = remembered(file, lambda: digest_of_gguf(file))
    folder = cache_root() / "models" / digest[:24]
    if (folder / "config.json").is_file() or not convert:
        return str(folder), digest
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # The bar of the conversion heeds no setting.
    with quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                str(file.parent), gguf_file=file.name, dtype=torch.float32
            )
            tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ModelError(f"{file}: transformers cannot read this GGUF file: {error}") from error
    # The weights are plain float32 already; only the quantizer's marks keep it from being saved.
    for owner, key in (
        (model, "hf_quantizer"),
        (model.config, "quantization_config"),
        (model, "quantization_method"),
    ):
        with contextlib.suppress(AttributeError):
            delattr(owner, key)
    model.is_quantized = False
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".converting-", dir=folder.parent))
    try:
        with quiet_transformers():
            model.save_pretrained(aside)
            tokenizer.save_pretrained(aside)
        (aside / "trimtab.json").write_text(json.dumps({"source_digest": digest}))
        with contextlib.suppress(OSError):  # another process was first: its copy is the same
            aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return str(folder), digest
