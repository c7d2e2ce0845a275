"""`trimtab tune METHOD`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from trimtab.cli.flags import Quiet
from trimtab.cli.parse import command, parse
from trimtab.study.tune import FIT, RECIPE, Search, tune


@dataclass(frozen=True, kw_only=True)
class Args(Quiet):
    """Flags."""

    method: Annotated[str, Positional]
    """The method to tune."""
    out: Path
    """Folder of the search; the same command goes on where it was stopped."""
    search: Annotated[Search, tyro.conf.arg(name="")] = field(default_factory=Search)


def main(words: list[str]) -> None:
    """Run the trials that are not done yet, and say what they found."""
    about = "Choose a method's settings by trials on held-out training items."
    args = parse(Args, words, verb="tune", about=about)
    given = command("tune", words)
    out = tune(args.method, args.search, args.out, command=given, progress=args.progress)
    print((out / RECIPE).read_text(encoding="utf-8").strip())
    print(f"\nfor comparisons: --recipes {out / RECIPE}; for fit: --config {out / FIT}")
