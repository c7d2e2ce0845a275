"""`trimtab compare`."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from trimtab.cli.demo import show
from trimtab.cli.parse import command, config_file, parse


def main(words: list[str]) -> None:
    """Run what is not done yet of a comparison, and show it."""
    from trimtab.studies.compare.comparison import compare
    from trimtab.studies.compare.grid import Comparison

    @dataclass(frozen=True)
    class Args:
        """Flags."""

        out: Path
        """Folder of the run; a finished cell is not run again."""
        comparison: Annotated[Comparison, tyro.conf.arg(name="")] = field(
            default_factory=Comparison
        )
        jobs: int = 1
        """Cells at once, each in a process of its own."""
        ray: bool = False
        """Spread the cells over a Ray cluster (RAY_ADDRESS, or one on this machine)."""
        title: str = ""
        """Heading of the page."""
        quiet: bool = False
        """No progress."""

    args = parse(
        Args,
        words,
        verb="compare",
        about="Models x suites x methods x seeds, with verdicts against DPO.",
        beside=("settings", "tuned"),
    )
    from trimtab.config_files import read_yaml
    from trimtab.progress import Progress

    comparison, file = args.comparison, config_file(words)
    if file and "settings" in read_yaml(file):  # a file may hold a whole comparison
        comparison = replace(comparison, recipes=(*comparison.recipes, str(file)))
    show(
        compare(
            comparison,
            args.out,
            jobs=args.jobs,
            ray=args.ray,
            title=args.title,
            command=command("compare", words),
            progress=Progress(args.quiet),
        )
    )
