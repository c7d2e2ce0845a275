"""`trimtab report DIR`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from trimtab.cli.demo import show
from trimtab.cli.parse import parse
from trimtab.errors import ConfigError


@dataclass(frozen=True)
class Args:
    """Flags."""

    run: Annotated[Path, Positional]
    """A run's folder, or a folder of such folders (then each gets a Markdown page beside it)."""


def main(words: list[str]) -> None:
    """Make the page of a run, or the Markdown pages of committed results."""
    args = parse(Args, words, verb="report", about="Make the page of a run from its result files.")
    if any((args.run / name).is_file() for name in ("study.json", "grid.json")):
        show(args.run)
        return
    if not args.run.is_dir():
        raise ConfigError(f"{args.run}: no such folder; give the --out of a comparison")
    from trimtab.report.heads import is_heads, write_heads

    of_heads = [f for f in (args.run, *sorted(args.run.iterdir())) if f.is_dir() and is_heads(f)]
    if (args.run / "heads.json").is_file():  # one run of several on a page
        of_heads = [args.run.absolute().parent]
    for folder in of_heads:
        print(write_heads(folder, folder.parent / f"{folder.name}.md"))
    files = [*args.run.glob("*/study.json"), *args.run.glob("*/grid.json")]
    runs = sorted({file.parent for file in files})
    if not runs and not of_heads:
        raise ConfigError(f"{args.run}: no study.json there, nor in a folder below: not a run")
    from trimtab.report import write_markdown

    for run in runs:
        print(write_markdown(run, run.parent / f"{run.name}.md"))
