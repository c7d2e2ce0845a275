"""`trimtab anchor (list | run NAME | check NAME | report NAME)`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional

from trimtab.bounds import Count
from trimtab.cli.parse import parse
from trimtab.errors import ConfigError, near

if TYPE_CHECKING:
    from trimtab.studies.anchoring.gates import Gate

ROOT = Path("runs/anchor")


@dataclass(frozen=True)
class Run:
    """Flags of `run`."""

    name: Annotated[str, Positional] = ""
    """An experiment (see `trimtab anchor list`)."""
    all: bool = False
    """Every experiment, one after another."""
    seeds: Count | None = None
    """How many seeds; each experiment has its own default."""
    steps: Count | None = None
    """A shorter run with the same sheets, to see that all runs; it proves nothing."""
    data_root: Path | None = None
    """Folder of local data, for `natural` (default: TRIMTAB_DATA)."""
    runs: Path = ROOT
    """Folder of the runs."""
    quiet: bool = False
    """No progress."""


@dataclass(frozen=True)
class Check:
    """Flags of `check`."""

    name: Annotated[str, Positional] = ""
    """An experiment that was run."""
    all: bool = False
    """Every experiment that was run."""
    runs: Path = ROOT
    """Folder of the runs."""


@dataclass(frozen=True)
class Report:
    """Flags of `report`."""

    name: Annotated[str, Positional] = ""
    """An experiment that was run."""
    all: bool = False
    """Every experiment that was run, and one page of Markdown over all of them."""
    runs: Path = ROOT
    """Folder of the runs."""
    out: Path | None = None
    """With --all: the Markdown page (by default anchoring.md beside the runs)."""


def main(words: list[str]) -> None:
    """One of the four."""
    verbs = {"list": _list, "run": _run, "check": _check, "report": _report}
    if not words or words[0] in ("-h", "--help"):
        print("usage: trimtab anchor (list | run NAME | check NAME | report NAME) [flags]\n")
        print("Anchoring experiments: a concept's direction chosen before training.")
        print("Flags of each: trimtab anchor run --help")
        return
    if words[0] not in verbs:
        raise ConfigError(
            f"anchor: unknown {words[0]!r}{near(words[0], verbs)} (known: {', '.join(verbs)})"
        )
    verbs[words[0]](words[1:])


def _list(_: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from trimtab.studies.anchoring.registry import ENTRIES

    table = Table(box=None, padding=(0, 2))
    for column in ("name", "seeds", "what"):
        table.add_column(column, overflow="fold", justify="right" if column == "seeds" else "left")
    for e in ENTRIES.values():
        table.add_row(e.name, str(e.seeds or "–"), f"[bold]{e.title}.[/] {e.about}")
    Console().print(table)


def _run(words: list[str]) -> None:
    args = parse(Run, words, verb="anchor run", about="Run an experiment on anchoring.")
    import torch

    from trimtab.progress import Progress
    from trimtab.studies.anchoring import registry

    names = list(registry.ENTRIES) if args.all else [_name(args.name, "run")]
    for name in names:
        registry.entry(name)
    if args.all:
        names = [n for n in names if _has_data(n, args.data_root)]
    # Models this small lose more to waiting for each other's threads than they gain by them.
    torch.set_num_threads(1)
    for name in names:
        out = registry.run(
            name,
            args.runs,
            seeds=args.seeds,
            steps=args.steps,
            data_root=args.data_root,
            progress=Progress(args.quiet),
        )
        print(f"{name}: {out / 'result.json'}")


def _has_data(name: str, data_root: Path | None) -> bool:
    """Whether the data of an experiment are there; says so where they are not."""
    from trimtab.errors import DataError
    from trimtab.studies.anchoring import corpus, registry

    if name in registry.NATURAL:
        try:
            corpus.read(corpus.data_root(data_root))
        except DataError as error:
            print(f"{name} is left out: {error}")
            return False
    return True


def _check(words: list[str]) -> None:
    args = parse(Check, words, verb="anchor check", about="Hold a run against its gates.")
    from trimtab.studies.anchoring import registry

    failed = []
    names = _which(args.name, args.all, args.runs, "check")
    for name in names:
        found = registry.judge(name, args.runs)
        _show(registry.entry(name).title, name, found, args.runs)
        if any(not g.passed and not g.stretch for g in found):
            failed.append(name)
    if args.all and (rest := [n for n in registry.ENTRIES if n not in names]):
        print(f"\nnot run in {args.runs}: {', '.join(rest)}")
    if failed:
        raise ConfigError(f"gates failed: {', '.join(failed)}")


def _show(title: str, name: str, gates: list[Gate], root: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from trimtab.studies.anchoring import results

    result = results.read(root / name)
    console = Console()
    count = len(result["seeds"])
    seeds = f"{count} seed{'' if count == 1 else 's'}" if count else "a figure: no gates"
    console.print(f"\n[bold]{name}[/] {title} [dim]({seeds})[/]")
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
    spread = next(iter(result.get("arms", {}).values()), {}).get("summary", {})
    shown = [k for k in spread if k.startswith("r2/") or k == "recon"]
    for key in shown:
        s = spread[key]
        console.print(
            f"[dim]{key}: mean {s['mean']:.3g} ± {s['sd']:.2g}, min {s['min']:.3g}, "
            f"10 % {s['p10']:.3g}, median {s['median']:.3g}, 90 % {s['p90']:.3g}, "
            f"max {s['max']:.3g}[/]"
        )


def _report(words: list[str]) -> None:
    args = parse(Report, words, verb="anchor report", about="Make the page of a run.")
    from trimtab.report.anchoring import write_anchoring, write_anchoring_page
    from trimtab.studies.anchoring import registry

    names = _which(args.name, args.all, args.runs, "report")
    gates = {name: registry.judge(name, args.runs) for name in names}
    if args.all:
        out = args.out or args.runs.parent / "anchoring.md"
        print(write_anchoring(args.runs, names, gates, out))
        return
    print(f"page: {write_anchoring_page(args.runs / names[0], gates[names[0]])}")


def _name(name: str, verb: str) -> str:
    if not name:
        raise ConfigError(f"anchor {verb}: which experiment? (see trimtab anchor list), or --all")
    return name


def _which(name: str, every: bool, root: Path, verb: str) -> list[str]:
    from trimtab.studies.anchoring import registry

    if not every:
        registry.entry(_name(name, verb))
        return [name]
    found = [n for n in registry.ENTRIES if (root / n / "result.json").is_file()]
    if not found:
        raise ConfigError(f"{root}: no runs there; trimtab anchor run NAME")
    return found
