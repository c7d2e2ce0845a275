"""`trimtab demo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trimtab.cli.parse import command, parse
from trimtab.cli.study import show


@dataclass(frozen=True)
class Args:
    """Flags."""

    quick: bool = False
    """Two methods on two dozen items: the same path, under two minutes."""
    out: Path = Path("runs/demo")
    """Folder of the run; a finished part is not run again."""
    quiet: bool = False
    """No progress."""


def main(words: list[str]) -> None:
    """Run the demo and say where its page is."""
    args = parse(
        Args,
        words,
        verb="demo",
        about="Four dials on smollm2-135m and the embedded data set `facts`.",
    )
    from trimtab.progress import Progress
    from trimtab.studies.compare.demo import demo

    out = demo(
        args.out, quick=args.quick, command=command("demo", words), progress=Progress(args.quiet)
    )
    show(out)
