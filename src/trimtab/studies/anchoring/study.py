"""The study of anchoring: experiments, each in a folder of its own; their gates and pages."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.errors import ConfigError, DataError
from trimtab.progress import SILENT, Progress
from trimtab.studies import named
from trimtab.studies.anchoring.experiment import RESULT, Experiment, Settings, read_result
from trimtab.studies.anchoring.gates import Gate, judged
from trimtab.studies.anchoring.registry import ENTRIES, entry
from trimtab.study.cells import Host
from trimtab.study.reading import as_written
from trimtab.study.study import Study
from trimtab.study.study import run as run_study

if TYPE_CHECKING:
    from trimtab.report.blocks import Page

KINDS = {
    "figure": "colour:Figures",
    "colour": "colour:Colour",
    "healing": "recovery:Healing",
    "mixing": "mixing:Mixing",
    "stories": "stories:Stories",
    "natural": "natural:Natural",
    "routing": "routing:Routing",
}
"""By kind of experiment, the class; those of language models bring transformers."""


class Anchoring(Study[Settings]):
    """Experiments by name, or all whose data are there."""

    name, title, Settings = "anchoring", "Anchoring", Settings
    marks = Experiment.marks

    def __init__(self, settings: Settings, out: Path, host: Host) -> None:
        super().__init__(settings, out, host)
        self.parts: list[Experiment] = []
        for name in settings.experiments or ENTRIES:
            kind = named(f"trimtab.studies.anchoring.{KINDS[entry(name).kind]}")
            mine = dataclasses.replace(settings, experiments=(name,))
            try:
                self.parts.append(kind(mine, out / name, host))
            except DataError as error:
                if settings.experiments:
                    raise
                host.progress.say(f"{name} is left out: {error}")

    @classmethod
    def folders(cls, settings: Settings, out: str | Path) -> Sequence[Path]:
        """One an experiment."""
        return [Path(out) / name for name in settings.experiments or ENTRIES]


def run(
    name: str,
    root: Path,
    *,
    seeds: int | None = None,
    steps: int | None = None,
    data_root: Path | None = None,
    jobs: int = 1,
    progress: Progress = SILENT,
) -> Path:
    """Run an experiment on seeds 0 to `seeds` - 1; result files go to `root / name`.

    Raises:
        ConfigError: unknown experiment, no seeds, too few steps.
        DataError: data that it needs are not there.
    """
    settings = Settings((name,), seeds, steps, str(data_root) if data_root else None)
    run_study(Anchoring.at(settings, root, progress=progress), jobs=jobs)
    return root / name


def judge(name: str, root: Path) -> list[Gate]:
    """The gates of an experiment that was run.

    Raises:
        ConfigError: it was not run, or was cut short.
    """
    entry(name)
    result = read_result(root / name)
    if result.get("steps") is not None:
        raise ConfigError(f"{root / name}: a short run of {result['steps']} steps proves nothing")
    with as_written(root / name / RESULT):
        return judged(result)


def found(root: Path) -> list[str]:
    """The experiments whose results lie in a folder."""
    return [name for name in ENTRIES if (root / name / RESULT).is_file()]


def page(folder: Path) -> Page | None:
    """The page of an experiment's folder, or of all whose folders lie in one; None where there is none.
    Short runs are held against no gates."""
    from trimtab.report import anchoring

    def shown(run: Path) -> tuple[anchoring.Run, list[Gate]]:
        result = read_result(run)
        return anchoring.read_run(run), [] if result.get("steps") else judged(result)

    if (folder / RESULT).is_file():
        with as_written(folder / RESULT):
            return anchoring.page(*shown(folder))
    names = found(folder)
    with as_written(folder):
        return anchoring.overview([shown(folder / name) for name in names]) if names else None
