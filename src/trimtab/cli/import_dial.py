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
    from trimtab.dials import Dial
    from trimtab.dials.saved import same
    from trimtab.export.importing import import_dial, read_directions
    from trimtab.files import clear_left, sha256
    from trimtab.holding import held

    exists = ConfigError(f"{args.out}: exists; choose another --out, or --overwrite a dial")
    taken = args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir()))
    before = (
        Dial.from_pretrained(args.out) if taken and (args.out / "dial.json").is_file() else None
    )
    if taken and before is None:
        raise exists
    if before is not None and not args.overwrite:  # that of this very file may be made again
        known = before.info.config.get("sha256")
        if known is None or not args.path.is_file() or known != sha256(args.path):
            raise exists
    args.check_model()

    if args.path.suffix == ".gguf":
        read_directions(args.path)  # fails before the model is loaded

    model, tokenizer = args.load()
    found = import_dial(args.path, model, tokenizer, layer=args.layer, first=args.first)
    if before is None or args.overwrite:
        found.dial.save_pretrained(args.out)
        print(f"saved: {args.out}")
    elif same(before, found.dial):
        with held(args.out):
            clear_left(args.out.absolute())
        print(f"{args.out} holds this very dial already: nothing to do")
    else:
        raise exists
    for line in found.said:
        print(f"  {line}")
