"""`dose`: every way to steer towards a trait, at the damage that a persona prompt does.

From `personas:TRAIT` each method makes a dial. The damage of a prompt with the trait's persona is
measured first; each dial is then turned to where its damage on the same passages is that of the
prompt, and read there, at twice that alpha and at the opposites, on questions that share nothing with
the personas (`traits:TRAIT/test`). One cell is one file, written when it is done.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from trimtab import models, provenance
from trimtab.progress import SILENT, Progress
from trimtab.provenance import commit
from trimtab.studies.steering import tables
from trimtab.studies.steering.cells import Stage, read_cell
from trimtab.studies.steering.plan import Cell, Dosing
from trimtab.study import cells
from trimtab.study.cells import Host
from trimtab.study.files import free_folder
from trimtab.study.made import VERSIONS, made_with, say_older
from trimtab.study.results import About, Generation, Run, Split, write
from trimtab.study.workers import work

__all__ = ["Dosing", "dose"]


def dose(
    dosing: Dosing,
    out: str | Path,
    *,
    jobs: int = 1,
    ray: bool = False,
    command: str = "",
    progress: Progress = SILENT,
) -> list[Path]:
    """Fit and measure what is not done yet; write the result files of every trait.

    A cell that fails is reported at the end; the others are run all the same.

    Args:
        out: the trait's folder, of several traits one in it for each: `cells/` (a file each,
            written when it is done), `dials/`, and the result files.
        jobs: cells at once, each in a process of its own.
        ray: spread the cells over a Ray cluster.
        command: what was typed, for the record.

    Returns:
        The traits' folders.

    Raises:
        ConfigError: settings that make no sense, an `out` that holds something else.
        StudyError: cells failed; the text says which and why.
    """
    several = len(dosing.traits) > 1
    places = [Path(out) / t if several else Path(out) for t in dosing.traits]
    folders = [
        free_folder(place, "cells", "dose.json", "study.json").absolute() for place in places
    ]
    host = Host(progress)
    stages = [
        Stage(replace(dosing, traits=(trait,)), folder, host)
        for trait, folder in zip(dosing.traits, folders, strict=True)
    ]
    for folder in folders:
        say_older((folder / "cells").glob("*.json"), progress)
    name = f"steering: {', '.join(dosing.traits)}"
    many = {"jobs": jobs, "ray": ray, "threads": dosing.threads}
    try:
        work(name, _waves(stages), host, **many)
    finally:
        for stage in stages:
            if all(cell.file.is_file() for cell in stage.cells):
                _write(stage.out, stage, stage.cells, command)
    return [Path(place) for place in places]


def _waves(stages: list[Stage]) -> Iterator[list[cells.Cell]]:
    """The prompts, to whose damage the others are turned; then these."""
    yield [_task(stage, stage.cells[0]) for stage in stages]
    led = [stage for stage in stages if stage.cells[0].file.is_file()]
    yield [_task(stage, cell) for stage in led for cell in stage.cells[1:]]


def _task(stage: Stage, cell: Cell) -> cells.Cell:
    """A cell as the engine runs it."""
    return cells.Cell(
        stage.out,
        cell.file.with_suffix(""),
        "trimtab.studies.steering.cells:Stage.measure",
        stage.dosing,
        {"name": cell.name},
        f"{stage.trait}, {cell.name}",
        provenance.digest(stage.common),
        cell.file,
    )


def _write(folder: Path, stage: Stage, planned: list[Cell], command: str) -> None:
    """The trait's result files, from its cells'."""
    found = [read_cell(cell) for cell in planned]
    made, mixed = made_with([(c["name"], c.get(VERSIONS, {})) for c in found])
    for line in mixed:
        stage.progress.say(line)
    dosing, items = stage.dosing, len(found[0]["items"])
    passages = len(found[0]["kl_passages"][0])
    common: Any = {"model": dosing.model, "suite": stage.trait}
    about = About(
        study="steering",
        title=f"Steering: {stage.trait}",
        **common,
        model_digest=models.identify(dosing.model).digest,
        train=stage.train.name,
        train_items=len(stage.train),
        train_pairs=len(stage.train),
        splits={
            "test": Split(stage.test.name, items, len(stage.test), 0),
            "neutral": Split("neutral passages", passages, 0, 0),
        },
        methods={tables.named(c)["method"]: c["kind"] for c in found},
        seeds=dosing.random_seeds,
        dtype=dosing.dtype,
        device=dosing.device,
        threads=dosing.threads,
        versions=made,
        notes=tuple(mixed),
        commit=commit(),
        command=command,
        equal_kl=dosing.kl or next((c["kl_target"] for c in found[1:]), None),
        settings=json.loads(json.dumps(asdict(dosing))),
        more={
            "personas": {str(k): v for k, v in stage.personas.items()},
            "not_reached": [c["name"] for c in found if not c.get("reached", True)],
        },
    )
    said = [
        Generation(dosing.model, **tables.named(c), **g) for c in found for g in c["generations"]
    ]
    costs = {
        c["name"]: {f"fit_{k}": c[k] for k in ("seconds", "cpu_seconds")}
        for c in found
        if c["method"] != tables.PROMPT
    }
    lines, differences = tables.results(found, common), tables.comparisons(found, common)
    write(folder, Run(about, tuple(lines), tuple(differences), (), tuple(said), costs))
