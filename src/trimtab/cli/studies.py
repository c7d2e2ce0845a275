"""`trimtab compare`, `compare-heads`, `compare-rewards`, `dose`: studies of cells."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro

from trimtab.bounds import Count
from trimtab.cli.demo import show
from trimtab.cli.flags import Quiet
from trimtab.cli.parse import command, config_file, parse, with_settings


@dataclass(frozen=True, kw_only=True)
class Args(Quiet):
    """Flags."""

    comparison: Annotated[Any, tyro.conf.arg(name="")]
    out: Path
    """Folder of the run; what is done is not done again."""
    jobs: Count = 1
    """Cells at once, each in a process of its own."""
    ray: bool = False
    """Spread the cells over a Ray cluster (RAY_ADDRESS, or one on this machine)."""


@dataclass(frozen=True, kw_only=True)
class Titled(Args):
    """Flags."""

    title: str = ""
    """Heading of the page, or of the part of it."""


def _results(out: Path) -> None:
    print(f"results: {out}")


def _tables(folders: list[Path]) -> None:
    from trimtab.report.steering import console

    for folder in folders:
        print(console(folder))


class Verb(NamedTuple):
    """A study: its settings and its function (module:name), what it says of itself and at the end."""

    settings: str
    run: str
    about: str
    show: Callable[[Any], None]
    kind: type[Args] = Titled
    title: str = ""


STUDIES = {
    "compare": Verb(
        "compare.grid:Comparison",
        "compare.comparison:compare",
        "Models x suites x methods x seeds, with verdicts against DPO.",
        show,
    ),
    "compare-heads": Verb(
        "heads.settings:HeadComparison",
        "heads.comparison:compare_heads",
        "An alignment head beside DPO, GenARM and ARGS, over alpha.",
        _results,
        title="An alignment head",
    ),
    "compare-rewards": Verb(
        "rewards.comparison:RewardComparison",
        "rewards.comparison:compare_rewards",
        "Preference heads beside the bare model, SFT and DPO on multiple-choice tasks.",
        _results,
        title="Preference heads on multiple choice",
    ),
    "dose": Verb(
        "steering.dose:Dosing",
        "steering.dose:dose",
        "Every way to steer towards a trait, at the damage of a persona prompt.",
        _tables,
        kind=Args,
    ),
}


def main(words: list[str], verb: str) -> None:
    """Run what is not done yet of a study, and show it."""
    study = STUDIES[verb]
    kind = with_settings(study.kind, comparison=_named(study.settings))
    titled: dict[str, Any] = {"title": study.title} if study.kind is Titled else {}
    default = kind(comparison=_named(study.settings)(), out=tyro.MISSING, **titled)
    beside = ("settings", "tuned") if verb == "compare" else ()
    args = parse(kind, words, verb=verb, about=study.about, default=default, beside=beside)
    comparison, file = args.comparison, config_file(words)
    if verb == "compare" and file:  # a file may hold a whole comparison
        from trimtab.config_files import read_yaml

        if "settings" in read_yaml(file):
            comparison = replace(comparison, recipes=(*comparison.recipes, str(file)))
    if verb == "dose":
        from trimtab.cli.ready import check_model

        check_model(comparison.model, comparison.dtype, comparison.device)
    how = {name: getattr(args, name) for name in ("jobs", "ray", *titled, "progress")}
    study.show(_named(study.run)(comparison, args.out, command=command(verb, words), **how))


def _named(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(f"trimtab.studies.{module}"), name)
