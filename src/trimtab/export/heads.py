"""An alignment head for plain PEFT and plain transformers."""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from trimtab import models
from trimtab.dials import LogitsDial
from trimtab.dials.logits import untie
from trimtab.errors import ConfigError, DialError


def export_lora(
    dial: LogitsDial, model: nn.Module, out: str | Path, alpha: float = 1.0, tokenizer: Any = None
) -> Path:
    """The head as a PEFT LoRA on the LM head, alpha as its scale.

    Where the LM head is tied to the embedding, `out/base` is the base model with an untied copy of
    it, for which the LoRA is made: merged into a tied head, it would change what the model reads.

    Raises:
        DialError: the head has no low rank, or a trained base head beside it.
        ConfigError: `out` is taken, or alpha is 0 or no number.
    """
    if alpha == 0:
        raise ConfigError("an export at alpha 0 would be the bare model")
    dial.check_base(model)
    ((path, (A, B)),) = dial.low_rank(model, 1.0).items()

    def write(folder: Path) -> None:
        from peft import LoraConfig

        name = models.source_of(model).name
        if models.head(model).weight is models.embed(model).weight:
            base: Any = copy.deepcopy(model)
            untie(base, models.head(model).weight.detach())  # type: ignore[union-attr,operator]
            base.save_pretrained(folder / "base")
            if tokenizer is not None:
                tokenizer.save_pretrained(folder / "base")
            name = "base"
        config = LoraConfig(
            r=len(A),
            lora_alpha=alpha * len(A),  # type: ignore[arg-type]
            target_modules=[path],
            bias="none",
            task_type="CAUSAL_LM",
            inference_mode=True,
            base_model_name_or_path=name,
        )
        note = {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
        (folder / "adapter_config.json").write_text(
            json.dumps(note, indent=2, sort_keys=True, default=str) + "\n"
        )
        tensors = {
            f"base_model.model.{path}.lora_A.weight": A.cpu().contiguous(),
            f"base_model.model.{path}.lora_B.weight": B.cpu().contiguous(),
        }
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    return _whole(Path(out), write)


def export_merged(
    dial: LogitsDial, model: nn.Module, out: str | Path, alpha: float = 1.0, tokenizer: Any = None
) -> Path:
    """A plain checkpoint whose LM head holds the alignment head at `alpha`, untied.

    Raises:
        DialError: the head is not linear.
        ConfigError: `out` is taken.
    """
    merged: Any = dial.merged(model, alpha)

    def write(folder: Path) -> None:
        merged.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)

    return _whole(Path(out), write)


def _whole(out: Path, write: Callable[[Path], None]) -> Path:
    """A folder, written aside and renamed."""
    out = out.expanduser().absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: exists; choose another folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            (stage / "new").mkdir()
            write(stage / "new")
            os.replace(stage / "new", out)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    except OSError as error:
        raise DialError(f"{out}: cannot be written ({error})") from error
    return out
