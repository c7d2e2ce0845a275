"""`trimtab import PATH`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from trimtab.cli.flags import InFloat32
from trimtab.cli.parse import parse
from trimtab.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Args(InFloat32):
    """Flags."""

    path: Annotated[Path, Positional]
    """A control vector (.gguf of llama.cpp or repeng), directions by layer (.safetensors, .pt, .npz, .npy,
    .csv), a folder of steering-vectors' layer activations, or a PEFT folder."""
    out: Path
    """Folder to save the dial in."""
    layer: int | None = None
    """Of a single direction, the block after which it is added (negative from the end)."""
    first: Literal[0, 1] = 0
    """What the file calls the first block: 1 where it counts as hidden_states does."""
    overwrite: bool = False
    """Replace the dial that lies at --out."""


def main(words: list[str]) -> None:
    """Take a dial in, check it on its model, save it as one of ours."""
    about = "A dial of another tool as one of ours, checked on the model that it is for."
    args = parse(Args, words, verb="import", about=about)
    if not args.path.expanduser().exists():
        raise ConfigError(f"{args.path}: nothing is there")
    taken = args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir()))
    if taken and not (args.overwrite and (args.out / "dial.json").is_file()):
        raise ConfigError(f"{args.out}: exists; choose another --out, or --overwrite a dial")
    args.check_model()
    from trimtab.export.importing import import_dial, read_directions

    if args.path.suffix == ".gguf":
        read_directions(args.path)  # fails before the model is loaded

    model, tokenizer = args.load()
    found = import_dial(args.path, model, tokenizer, layer=args.layer, first=args.first)
    found.dial.save_pretrained(args.out)
    print(f"saved: {args.out}")
    for line in found.said:
        print(f"  {line}")
