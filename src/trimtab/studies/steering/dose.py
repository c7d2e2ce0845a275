"""`dose`: every way to steer towards a trait, at the damage that a persona prompt does.

From `personas:TRAIT` each method makes a dial. The damage of a prompt with the trait's persona is
measured first; each dial is then turned to where its damage on the same passages is that of the
prompt, and read there, at twice that alpha and at the opposites, on questions that share nothing with
the personas (`traits:TRAIT/test`). One cell is one file, written when it is done.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trimtab import models
from trimtab.errors import StudyError, TrimtabError
from trimtab.progress import SILENT, Progress
from trimtab.provenance import commit
from trimtab.studies.steering import tables
from trimtab.studies.steering.cells import Stage, read_cell, run_cell
from trimtab.studies.steering.plan import Cell, Dosing, plan
from trimtab.study.cells import threads
from trimtab.study.files import free_folder
from trimtab.study.made import VERSIONS, made_with, say_older
from trimtab.study.results import About, Generation, Run, Split, write

__all__ = ["Dosing", "dose"]


def dose(
    dosing: Dosing,
    out: str | Path,
    *,
    command: str = "",
    progress: Progress = SILENT,
) -> list[Path]:
    """Fit and measure what is not done yet; write the result files of every trait.

    A cell that fails is reported at the end; the others are run all the same.

    Args:
        out: the trait's folder, of several traits one in it for each: `cells/` (a file each,
            written when it is done), `dials/`, `dose.json`, `results.jsonl`, `comparisons.jsonl`,
            `curves.jsonl`, `generations.jsonl`.
        command: what was typed, for the record.

    Returns:
        The traits' folders.

    Raises:
        ConfigError: settings that make no sense, an `out` that holds something else.
        StudyError: cells failed; the text says which and why.
    """
    several = len(dosing.traits) > 1
    places = [Path(out) / t if several else Path(out) for t in dosing.traits]
    folders = [free_folder(place, "cells", "dose.json", "study.json") for place in places]
    source = models.identify(dosing.model)
    failed: dict[str, str] = {}
    loaded: list[Any] = []
    for trait, folder in zip(dosing.traits, folders, strict=True):
        stage = Stage(dosing, trait, loaded, progress)
        cells = plan(dosing, stage.train, stage.test, folder, source.whole)
        todo = [cell for cell in cells if not cell.file.is_file()]
        say_older((folder / "cells").glob("*.json"), progress)
        progress.say(f"{trait}: {len(cells)} cells, {len(cells) - len(todo)} of them done already")
        for number, cell in enumerate(todo, 1):
            try:
                with threads(dosing.threads):
                    run_cell(cell, cells, stage)
            except TrimtabError as error:
                failed[f"{trait}, {cell.name}"] = str(error)
                progress.say(f"{trait}, {cell.name}: failed: {error}")
                if cell.method is None:
                    break  # the others are turned to its damage
            else:
                progress.say(f"{trait}, {cell.name}: {number} of {len(todo)}")
        if all(cell.file.is_file() for cell in cells):
            _write(folder, stage, cells, source.digest, command)
    if failed:
        said = "; ".join(f"{cell}: {error}" for cell, error in failed.items())
        raise StudyError(f"failed: {said}; the others are kept, the same command tries again")
    return folders


def _write(folder: Path, stage: Stage, cells: list[Cell], digest: str, command: str) -> None:
    """The trait's result files, from its cells'."""
    found = [read_cell(cell) for cell in cells]
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
        model_digest=digest,
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
