"""What lies beside an export so that the tool finds all it needs: base, tokenizer, card, old spellings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from trimtab import models
from trimtab.dials import Dial

PLAIN_TOKENIZER = "PreTrainedTokenizerFast"
"""A tokenizer that is what its tokenizer.json says, under the name that transformers 4 and 5 share."""


def base_of(model: nn.Module) -> tuple[str, str]:
    """What an adapter's config calls its base so that it is found again, and what is to be said of that."""
    name = models.source_of(model).name
    local = Path(name).expanduser()
    if name in (models.DEFAULT_MODEL, models.SECOND_MODEL) or name.endswith(".gguf"):
        place = Path(models.folder_of(name)).absolute()
        return str(place), f"base_model_name_or_path is this machine's copy of {name}"
    if local.is_dir():
        return str(local.absolute()), "base_model_name_or_path is a folder of this machine"
    if not name or name == "unnamed":
        return (
            "",
            "the base model has no name: PEFT needs it given, PeftModel.from_pretrained(base, …)",
        )
    return name.removeprefix("hub:"), ""


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer that transformers 4 opens, too."""
    if tokenizer is None:
        return
    tokenizer.save_pretrained(folder)
    for_older(folder)


def for_older(folder: Path) -> None:
    """Add to a saved model's and tokenizer's settings what transformers 4 reads in their place:
    transformers 5 calls its tokenizers `TokenizersBackend`, which 4 cannot open, and keeps rotary
    frequencies in `rope_parameters` alone, in whose place 4 would take its default in silence."""
    file = folder / "tokenizer_config.json"
    if file.is_file():
        note = json.loads(file.read_text())
        if note.get("tokenizer_class") == "TokenizersBackend":
            note["tokenizer_class"] = PLAIN_TOKENIZER
        if isinstance(extra := note.get("extra_special_tokens"), list):
            del note["extra_special_tokens"]
            note.setdefault("additional_special_tokens", extra)
        for mine in ("backend", "is_local", "local_files_only"):
            note.pop(mine, None)
        write_note(file, note)
    file = folder / "config.json"
    if file.is_file():
        note = json.loads(file.read_text())
        for part in (note, note.get("text_config")):
            if isinstance(part, dict):
                _older_rope(part)
        write_note(file, note)


def _older_rope(note: dict[str, Any]) -> None:
    """`rope_theta`, `rope_scaling` and what else transformers 4 has for `rope_parameters`."""
    rope = note.get("rope_parameters")
    if not isinstance(rope, dict):
        return
    whole = rope.get("full_attention", rope)
    for part, name in (
        (whole, "rope_theta"),
        (rope.get("sliding_attention"), "rope_local_base_freq"),
    ):
        if isinstance(part, dict) and "rope_theta" in part:
            note.setdefault(name, part["rope_theta"])
    if isinstance(whole, dict):
        if "partial_rotary_factor" in whole:
            note.setdefault("partial_rotary_factor", whole["partial_rotary_factor"])
        if whole.get("rope_type", "default") != "default" and whole is rope:
            note.setdefault("rope_scaling", dict(whole))


def write_note(file: Path, note: dict[str, Any]) -> None:
    """A JSON file as transformers lays them out."""
    file.write_text(json.dumps(note, indent=2, ensure_ascii=False) + "\n")


def write_card(folder: Path, dial: Dial, alpha: float, base: str, load: str) -> None:
    """A card: what it is, of which base and data, how it is loaded."""
    head = ["---", f"base_model: {json.dumps(base)}"] if base else ["---"]
    head += ["library_name: peft"] if (folder / "adapter_config.json").is_file() else []
    data = ", ".join(f"`{spec}` ({digest[:12]})" for spec, digest in dial.info.data.items())
    text = [
        *head,
        "tags: [trimtab]",
        "---",
        "",
        f"# A {dial.info.method or dial.kind} dial at α = {alpha:g}",
        "",
        f"Of {dial.info.base_model or 'an unnamed model'}"
        + (f", from {data}" if data else "")
        + ". Made with trimtab; `receipt.json` says how it was checked and what is not carried over.",
        "",
        "```python",
        load,
        "```",
    ]
    (folder / "README.md").write_text("\n".join(text) + "\n")
