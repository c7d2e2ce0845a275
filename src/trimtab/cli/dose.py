"""`trimtab dose`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from trimtab.cli.parse import command, parse


def main(words: list[str]) -> None:
    """Run what is not done yet, and show a table a trait."""
    from trimtab.studies.steering.dose import Dosing, dose

    @dataclass(frozen=True)
    class Args:
        """Flags."""

        out: Path
        """Folder of the run, of several traits one in it for each; what is done is not done again."""
        comparison: Annotated[Dosing, tyro.conf.arg(name="")] = field(default_factory=Dosing)
        jobs: int = 1
        """Cells at once, each in a process of its own."""
        ray: bool = False
        """Spread the cells over a Ray cluster (RAY_ADDRESS, or one on this machine)."""
        quiet: bool = False
        """No progress."""

    args = parse(
        Args,
        words,
        verb="dose",
        about="Every way to steer towards a trait, at the damage of a persona prompt.",
    )
    from trimtab.cli.ready import check_model
    from trimtab.progress import Progress
    from trimtab.report.steering import console

    check_model(args.comparison.model, args.comparison.dtype, args.comparison.device)
    for folder in dose(
        args.comparison,
        args.out,
        jobs=args.jobs,
        ray=args.ray,
        command=command("dose", words),
        progress=Progress(args.quiet),
    ):
        print(console(folder))
