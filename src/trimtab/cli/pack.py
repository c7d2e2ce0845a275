"""`trimtab pack RUN`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from trimtab.bounds import Positive
from trimtab.cli.parse import parse


@dataclass(frozen=True)
class Args:
    """Flags."""

    run: Annotated[Path, Positional]
    """A finished run's folder, its cells within it."""
    out: Path | None = None
    """The pack (default: beside the folder, its name with .pack.json)."""
    tolerance: Positive = 0.1
    """How far a figure may be off, as a share of half its 95 % interval."""


def main(words: list[str]) -> None:
    """Write a pack."""
    about = (
        "Write one file from which a run's figures are made again elsewhere (trimtab reproduce)."
    )
    args = parse(Args, words, verb="pack", about=about)
    from trimtab.studies import study
    from trimtab.studies.packs import pack, plan_of

    run = args.run.expanduser().absolute()
    out = args.out or run.with_name(f"{run.name}.pack.json")
    content = pack(run, out, study(plan_of(run)["study"]), args.tolerance)
    figures = sum(map(len, content.expected.values()))
    print(f"{out}: {content.study}, {len(content.inputs)} cells, {figures} figures")
