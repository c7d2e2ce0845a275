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
    from trimtab.report.pages import PARTS, write_own_page, write_pages
    from trimtab.study.reading import is_grid, kind_of

    kind = kind_of(args.run)
    if is_grid(args.run) or (kind and kind not in PARTS):
        show(args.run)
        return
    if not args.run.is_dir():
        raise ConfigError(f"{args.run}: no such folder; give the --out of a comparison")
    made = write_own_page(args.run) or write_pages(args.run)
    if not made:
        raise ConfigError(f"{args.run}: no study.json there, nor in a folder below: not a run")
    for page in made:
        print(page)
