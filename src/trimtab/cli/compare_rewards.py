"""`trimtab compare-rewards`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from trimtab.cli.parse import command, parse


def main(words: list[str]) -> None:
    """Run what is not done yet, and say where the results lie."""
    from trimtab.studies.rewards.comparison import RewardComparison, compare_rewards

    @dataclass(frozen=True)
    class Args:
        """Flags."""

        out: Path
        """Folder of the run; a finished cell is not run again."""
        comparison: Annotated[RewardComparison, tyro.conf.arg(name="")] = field(
            default_factory=RewardComparison
        )
        jobs: int = 1
        """Cells at once, each in a process of its own."""
        ray: bool = False
        """Spread the cells over a Ray cluster (RAY_ADDRESS, or one on this machine)."""
        title: str = "Preference heads on multiple choice"
        """Heading of the part of the page."""
        quiet: bool = False
        """No progress."""

    about = "Preference heads beside the bare model, SFT and DPO on multiple-choice tasks."
    args = parse(Args, words, verb="compare-rewards", about=about)
    from trimtab.progress import Progress

    out = compare_rewards(
        args.comparison,
        args.out,
        jobs=args.jobs,
        ray=args.ray,
        command=command("compare-rewards", words),
        title=args.title,
        progress=Progress(args.quiet),
    )
    print(f"results: {out}")
