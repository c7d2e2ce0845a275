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
    """The same path on a handful of items, in half a minute."""
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
        about="A persona's dial, turned; then dials on the embedded data set `facts`, with verdicts.",
    )
    from rich.table import Table
    from rich.text import Text

    from trimtab import terminal
    from trimtab.progress import Progress
    from trimtab.studies.compare.demo import PERSONA, demo, first_look
    from trimtab.terminal import visible

    progress = Progress(args.quiet)
    folder, answers = first_look(args.out, quick=args.quick, progress=progress)
    asked = dict.fromkeys(answer.prompt for answer in answers)
    table = Table("alpha", *asked, title=f"A dial for {PERSONA}, turned", title_justify="left")
    for alpha in dict.fromkeys(answer.alpha for answer in answers):
        texts = [Text(visible(answer.text.strip())) for answer in answers if answer.alpha == alpha]
        table.add_row(f"{alpha:g}" if alpha else "0: the bare model", *texts, end_section=True)
    terminal.console().print(table)
    print(f"kept: {folder}\n", flush=True)
    show(demo(args.out, quick=args.quick, command=command("demo", words), progress=progress))
