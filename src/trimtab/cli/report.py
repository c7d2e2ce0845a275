"""`trimtab report DIR`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from trimtab.cli.parse import parse
from trimtab.cli.study import show
from trimtab.errors import ConfigError


@dataclass(frozen=True)
class Args:
    """Flags."""

    run: Annotated[Path, Positional]
    """A run's folder, or a folder of such folders (then each gets a Markdown page beside it)."""


def main(words: list[str]) -> None:
    """Make the page of a run, or the Markdown pages of committed results."""
    args = parse(Args, words, verb="report", about="Make the page of a run from its result files.")
    from trimtab.report import render
    from trimtab.report.blocks import On
    from trimtab.studies.pages import COMPARED, page_of, write_pages
    from trimtab.study.reading import is_grid, kind_of

    if is_grid(args.run) or kind_of(args.run) in COMPARED:
        show(args.run)
        return
    if not args.run.is_dir():
        raise ConfigError(f"{args.run}: no such folder; give the --out of a comparison")
    if page := page_of(args.run):
        files = (("report.md", On.MARKDOWN), ("report.html", On.HTML))
        made = [render.write(page, args.run / name, to) for name, to in files]
    else:
        made = write_pages(args.run)
    if not made:
        raise ConfigError(f"{args.run}: no study.json there, nor in a folder below: not a run")
    for page in made:
        print(page)
