"""`trimtab compare-heads`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from trimtab.cli.parse import command, parse


def main(words: list[str]) -> None:
    """Run what is not done yet, and say where the results lie."""
    from trimtab.studies.heads.comparison import HeadComparison, compare_heads

    @dataclass(frozen=True)
    class Args:
        """Flags."""

        out: Path
        """Folder of the run; a finished cell is not run again."""
        comparison: Annotated[HeadComparison, tyro.conf.arg(name="")] = field(
            default_factory=HeadComparison
        )
        jobs: int = 1
        """Cells at once, each in a process of its own."""
        ray: bool = False
        """Spread the cells over a Ray cluster (RAY_ADDRESS, or one on this machine)."""
        title: str = "An alignment head"
        """Heading of the part of the page."""
        quiet: bool = False
        """No progress."""

    about = "An alignment head beside DPO, GenARM and ARGS, over alpha."
    args = parse(Args, words, verb="compare-heads", about=about)
    from trimtab.progress import Progress

    out = compare_heads(
        args.comparison,
        args.out,
        jobs=args.jobs,
        ray=args.ray,
        command=command("compare-heads", words),
        title=args.title,
        progress=Progress(args.quiet),
    )
    print(f"results: {out}")
