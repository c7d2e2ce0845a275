"""`trimtab export --dial DIAL --to FORMAT`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from trimtab.cli.flags import Alpha, Forced, InFloat32
from trimtab.cli.parse import parse
from trimtab.errors import ConfigError, near


@dataclass(frozen=True, kw_only=True)
class Args(Forced, InFloat32):
    """Flags."""

    dial: str
    """A dial's folder or Hub id; or a control vector file (.gguf), with `--to dial`."""
    to: str
    """gguf, repeng, peft, merged, steering-vectors; or dial, which takes a .gguf file in."""
    out: Path
    """Folder to write; for gguf and repeng also a file named ….gguf."""
    alpha: Alpha = 1.0
    """The strength that the export is made at."""
    base_gguf: Path | None = None
    """The base model as an F32 GGUF file: the check of a control vector is then llama.cpp's."""
    python: str | None = None
    """Interpreter that makes the check, where the tool lies in another environment (default: this one)."""
    overwrite: bool = False
    """Replace an export that lies at --out."""


def main(words: list[str]) -> None:
    """Write the export and its receipt, or take a control vector in."""
    args = parse(Args, words, verb="export", about="A dial in another tool's format.")
    from trimtab import models
    from trimtab.evaluation.items import check_alphas
    from trimtab.export import FORMATS, REFUSED, control_vector_dial, export, read_control_vector
    from trimtab.export.run import check_base_gguf

    taken_in = args.dial.endswith(".gguf")
    if taken_in != (args.to == "dial"):
        raise ConfigError(
            f"export {args.dial} --to {args.to}: a .gguf file is taken in with --to dial, "
            "and nothing else is"
        )
    if args.to in REFUSED:
        raise ConfigError(f"--to {args.to}: {REFUSED[args.to]}")
    if not taken_in and args.to not in FORMATS:
        known = (*FORMATS, "dial")
        raise ConfigError(
            f"--to {args.to}: no such format{near(args.to, known)} ({', '.join(known)})"
        )
    check_alphas([args.alpha])
    if args.base_gguf is not None and taken_in:
        raise ConfigError("--to dial --base-gguf: nothing is checked there; leave it out")
    if not taken_in:
        check_base_gguf(args.to, args.base_gguf)
    args.check_model()
    if taken_in:
        read_control_vector(args.dial)  # fails before the model is loaded
        dial = control_vector_dial(args.dial, args.load()[0])
        print(f"saved: {dial.save_pretrained(args.out)} ({len(dial.sites)} sites)")
        return
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
