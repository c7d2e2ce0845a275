"""`trimtab study (list | run NAME | check DIR | report DIR)`, and the studies' verbs of their own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional

from trimtab.cli.flags import WithCells
from trimtab.cli.parse import command, config_file, one_of, parse, with_settings
from trimtab.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Running(WithCells):
    """Flags."""

    comparison: Annotated[Any, tyro.conf.arg(name="")]
    out: Path
    """Folder of the run; what is done is not done again."""
    title: str = ""
    """Heading of the page, or of the part of it."""


@dataclass(frozen=True)
class OfRun:
    """Flags of `check` and `report`."""

    run: Annotated[Path, Positional]
    """A run's folder, or a folder of such folders."""


def main(words: list[str]) -> None:
    """One of the four."""
    about = "Studies: what is asked of many cells, run one by one, several at once or on a cluster."
    one_of(
        words,
        "study",
        about,
        {"list": _list, "run NAME": _run, "check DIR": _check, "report DIR": _report},
    )


def _list(_: list[str]) -> None:
    from trimtab.studies import STUDIES, about

    wide = max(map(len, STUDIES))
    for name in STUDIES:
        print(f"{name:<{wide}}  {about(name)}")


def _run(words: list[str]) -> None:
    if not words or words[0].startswith("-"):
        raise ConfigError("study run: which study? (see trimtab study list)")
    run_study(words[0], f"study run {words[0]}", words[1:])


def run_study(name: str, verb: str, words: list[str]) -> None:
    """Run what is not done yet of a study, under its own verb or under `study run`, and show it."""
    from trimtab import studies

    kind, about = studies.study(name), studies.about(name)
    flags = with_settings(Running, comparison=kind.Settings)
    default = flags(comparison=kind.Settings(), out=tyro.MISSING)
    args = parse(flags, words, verb=verb, about=about, default=default, beside=kind.beside)
    from trimtab.study.forecast import forecast_of
    from trimtab.study.study import run

    asked = kind.with_file(args.comparison, config_file(words))
    made = kind.at(asked, args.out, progress=args.progress)
    if args.dry_run:
        print(forecast_of(made, args.jobs))
        return
    said = command(verb, words)
    show(run(made, jobs=args.jobs, ray=args.ray, command=said, title=args.title))


def show(out: Path) -> None:
    """Print a run's tables, write its page, and say where it is."""
    from trimtab import terminal
    from trimtab.report import render
    from trimtab.studies.pages import page_of, write_page

    written = write_page(out)
    if page := page_of(out):
        terminal.console().print(render.console(page))
    print(f"page: {written}")


def _check(words: list[str]) -> None:
    args = parse(OfRun, words, verb="study check", about="Read a run's result files and cells.")
    from trimtab.study.reading import check

    for line in check(args.run):
        print(line)


def _report(words: list[str]) -> None:
    from trimtab.cli import main_of

    main_of("report")(words)
