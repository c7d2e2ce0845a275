"""`trimtab anchor (list | run NAME | check NAME | report NAME)`: the study `anchoring` by experiment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import Positional

from trimtab import terminal
from trimtab.bounds import Count
from trimtab.cli.flags import WithCells
from trimtab.cli.parse import command, one_of, parse
from trimtab.errors import ConfigError

if TYPE_CHECKING:
    from trimtab.studies.anchoring.gates import Gate


@dataclass(frozen=True)
class Which:
    """Flags of `check`."""

    name: Annotated[str, Positional] = ""
    """An experiment (see `trimtab anchor list`)."""
    all: bool = False
    """Every experiment, one after another; of a folder, every one that was run."""
    runs: Path = Path("runs/anchor")
    """Folder of the runs."""


@dataclass(frozen=True)
class Run(WithCells, Which):
    """Flags of `run`."""

    runs: Annotated[Path, tyro.conf.arg(name="out")] = Path("runs/anchor")
    """Folder of the runs."""
    seeds: Count | None = None
    """How many seeds; each experiment has its own default."""
    steps: Count | None = None
    """A shorter run with the same sheets, to see that all runs; it proves nothing."""
    data_root: Path | None = None
    """Folder of local data, for `natural` (default: TRIMTAB_DATA)."""


@dataclass(frozen=True)
class Report(Which):
    """Flags of `report`."""

    out: Path | None = None
    """With --all: the Markdown page over all (by default anchoring.md beside the runs)."""


def main(words: list[str]) -> None:
    """One of the four."""
    about = "Anchoring experiments: a concept's direction chosen before training."
    one_of(
        words,
        "anchor",
        about,
        {"list": _list, "run NAME": _run, "check NAME": _check, "report NAME": _report},
    )


def _list(_: list[str]) -> None:
    from rich.table import Table

    from trimtab.studies.anchoring.registry import ENTRIES

    table = Table(box=None, padding=(0, 2))
    for column in ("name", "seeds", "what"):
        table.add_column(column, overflow="fold", justify="right" if column == "seeds" else "left")
    for e in ENTRIES.values():
        about = e.about.replace("{seeds}", f"{e.seeds} seeds")
        table.add_row(e.name, str(e.seeds or "–"), f"[bold]{e.title}.[/] {about}")
    terminal.console().print(table)


def _run(words: list[str]) -> None:
    args = parse(Run, words, verb="anchor run", about="Run an experiment on anchoring.")
    from trimtab.studies.anchoring.experiment import RESULT, Settings
    from trimtab.studies.anchoring.study import Anchoring
    from trimtab.study.forecast import forecast_of
    from trimtab.study.study import run

    names = () if args.all else (_name(args.name, "run"),)
    root = str(args.data_root) if args.data_root else None
    settings = Settings(names, args.seeds, args.steps, root)
    made = Anchoring.at(settings, args.runs, progress=args.progress)
    if args.dry_run:
        print(forecast_of(made, args.jobs))
        return
    run(made, jobs=args.jobs, ray=args.ray, command=command("anchor run", words))
    for part in made.parts:
        print(f"{part.what}: {part.out / RESULT}")


def _check(words: list[str]) -> None:
    args = parse(Which, words, verb="anchor check", about="Hold a run against its gates.")
    from trimtab.studies.anchoring.registry import ENTRIES
    from trimtab.studies.anchoring.study import judge

    failed, names = [], _which(args, "check")
    for name in names:
        gates = judge(name, args.runs)
        _show(name, gates, args.runs)
        if any(not g.passed and not g.stretch for g in gates):
            failed.append(name)
    if args.all and (rest := [n for n in ENTRIES if n not in names]):
        print(f"\nnot run in {args.runs}: {', '.join(rest)}")
    if failed:
        raise ConfigError(f"gates failed: {', '.join(failed)}")


def _show(name: str, gates: list[Gate], root: Path) -> None:
    from rich.table import Table

    from trimtab.report.anchoring import spread
    from trimtab.studies.anchoring.experiment import read_result

    result = read_result(root / name)
    console = terminal.console()
    count = len(result["seeds"])
    seeds = f"{count} seed{'' if count == 1 else 's'}" if count else "a figure: no gates"
    console.print(f"\n[bold]{name}[/] {result['title']} [dim]({seeds})[/]")
    if not gates:
        return
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("gate", overflow="fold")
    for column in ("value", "bound", "published", ""):
        table.add_column(column, justify="right", overflow="fold")
    for g in gates:
        missed = "[yellow]missed (a stretch)[/]" if g.stretch else "[red]fail[/]"
        table.add_row(
            g.what, f"{g.value:.3g}", g.bound, g.published, "[green]pass[/]" if g.passed else missed
        )
        if g.over:
            table.add_row(f"[dim]{', '.join(f'{v:.3g}' for v in g.over)}, seed by seed[/]")
    console.print(table)
    values = next(iter(result.get("arms", {}).values()), {}).get("values", {})
    for key in (k for k in values if k.startswith("r2/") or k == "recon"):
        mean, sd, least, low, middle, high, most = spread(values[key])
        console.print(
            f"[dim]{key}: mean {mean:.3g} ± {sd:.2g}, min {least:.3g}, 10 % {low:.3g}, "
            f"median {middle:.3g}, 90 % {high:.3g}, max {most:.3g}[/]"
        )


def _report(words: list[str]) -> None:
    args = parse(Report, words, verb="anchor report", about="Make the page of a run.")
    from trimtab.report.render import write
    from trimtab.studies.anchoring.study import judge, page
    from trimtab.studies.pages import write_page

    names = _which(args, "report")
    for name in names:
        judge(name, args.runs)
    if args.all and (whole := page(args.runs)):
        print(write(whole, args.out or args.runs.parent / "anchoring.md"))
    elif not args.all:
        print(f"page: {write_page(args.runs / names[0])}")


def _name(name: str, verb: str) -> str:
    if not name:
        raise ConfigError(f"anchor {verb}: which experiment? (see trimtab anchor list), or --all")
    return name


def _which(args: Which, verb: str) -> list[str]:
    from trimtab.studies.anchoring.registry import entry
    from trimtab.studies.anchoring.study import found

    if not args.all:
        return [entry(_name(args.name, verb)).name]
    if names := found(args.runs):
        return names
    raise ConfigError(f"{args.runs}: no runs there; trimtab anchor run NAME")
