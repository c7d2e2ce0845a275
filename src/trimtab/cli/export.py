"""`trimtab export --dial DIAL --to FORMAT`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from trimtab.cli.flags import Alpha, Forced, InFloat32
from trimtab.cli.parse import parse
from trimtab.progress import warn


@dataclass(frozen=True, kw_only=True)
class Args(Forced, InFloat32):
    """Flags."""

    dial: str
    """The dial's folder or Hub id."""
    to: str
    """gguf, gguf-lora, repeng, peft, merged or steering-vectors."""
    out: Path
    """Folder to write; for gguf and repeng also a file named ….gguf."""
    alpha: Alpha = 1.0
    """The strength that the export is made at."""
    base_gguf: Path | None = None
    """The base model as an F32 GGUF file: the check of a control vector is then llama.cpp's, and a LoRA
    of llama.cpp's (gguf-lora) is made for it."""
    python: str | None = None
    """Interpreter that makes the check, where the tool lies in another environment (default: this one)."""
    overwrite: bool = False
    """Replace an export that lies at --out."""


def main(words: list[str]) -> None:
    """Write the export and its receipt."""
    args = parse(Args, words, verb="export", about="A dial in another tool's format.")
    if args.to == "dial":  # of earlier versions
        from trimtab.cli.import_dial import main as take_in

        warn(f"trimtab export {args.dial} --to dial is trimtab import {args.dial} now")
        return take_in([args.dial, "--out", str(args.out), "--model", args.model])
    from trimtab import models
    from trimtab.evaluation.items import check_alphas
    from trimtab.export import FORMATS, export
    from trimtab.export.run import check_format

    check_format(args.to, args.base_gguf)
    check_alphas([args.alpha])
    args.check_model()
    (dial,) = args.read_dials(args.dial)
    model, tokenizer = args.load(dial)
    receipt = export(
        dial,
        model,
        tokenizer,
        args.to,
        args.out,
        alpha=args.alpha,
        base=models.folder_of(args.model),
        base_gguf=args.base_gguf,
        python=args.python or sys.executable,
        overwrite=args.overwrite,
        force=args.force,
        progress=args.progress,
    )
    difference = receipt["largest_logit_difference"]
    change = receipt["largest_logit_change_by_the_dial"]
    print(f"saved: {args.out} ({FORMATS[args.to].what}, alpha {args.alpha:g})")
    print(
        f"{receipt['checked']}; logits differ by at most {difference:.2g} "
        f"(the dial moves them by up to {change:.2g})"
    )
    print("not carried over:", *receipt["not_carried_over"], sep="\n  ")
