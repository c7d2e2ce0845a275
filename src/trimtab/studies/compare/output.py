"""The result files of a comparison, from its finished cells."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from trimtab.provenance import commit
from trimtab.studies.compare import tables
from trimtab.studies.compare.cell import SUMMARY
from trimtab.studies.compare.grid import Comparison, Study
from trimtab.studies.compare.measure import read_history
from trimtab.studies.panel import lines as side_effects
from trimtab.study.files import Rows, read_rows, write_rows
from trimtab.study.made import VERSIONS, made_with
from trimtab.study.results import (
    ABOUT,
    ALPHA_1,
    BASE,
    COSTS,
    FILES,
    GRID,
    INSTRUCTION,
    About,
    Curve,
    Difference,
    Generation,
    Grid,
    Run,
    Split,
    write,
    write_grid,
)
from trimtab.study.settings import Settings
from trimtab.training import METHODS, Method


def write_results(
    out: Path,
    studies: list[Study],
    comparison: Comparison,
    chosen: list[Method],
    settings: Settings,
    command: str,
    title: str,
    notes: Sequence[str],
) -> None:
    """Result files of every study, all of whose cells are done.

    All lines at one alpha are one table, whatever the number of models and suites: the p-values of
    each are adjusted over all of them.
    """
    notes = [*notes, *_budgets(chosen, settings)]
    grid = len(studies) > 1
    rows = {id(s): s.rows() + s.turned() for s in studies}
    against, gains = (
        _judged_together(
            [
                tables.differences(
                    rows[id(s)], s.methods, list(s.suite.evaluate), _common(s), **how
                )
                for s in studies
            ]
        )
        for how in ({}, {"baseline": BASE, "places": (ALPHA_1,)})
    )
    if grid and against and sum(map(len, against)):
        compared = sum(line.at == ALPHA_1 for lines in against for line in lines)
        notes.append(
            f"p-values are adjusted over all {compared} comparisons of the grid, not only those of "
            "one model and suite."
        )
    for study, verdicts, gained in zip(studies, against, gains, strict=True):
        _write_study(
            study,
            rows[id(study)],
            verdicts,
            gained,
            comparison,
            chosen,
            settings,
            command,
            title,
            notes,
        )
    stale = [out / name for name in (ABOUT, COSTS, *FILES)] if grid else [out / GRID]
    for file in stale:
        file.unlink(missing_ok=True)
    if grid:
        names = tuple(s.folder.name for s in studies)
        write_grid(out, Grid(title or _title(chosen, studies), command, tuple(notes), names))


def _common(study: Study) -> dict[str, Any]:
    """What all lines of a study share."""
    return {"model": study.setting.model, "suite": study.suite.name}


def _judged_together(parts: list[list[Difference]]) -> list[list[Difference]]:
    """The lines of several studies, judged as one table, apart again."""
    done = iter(tables.judged_apart([line for part in parts for line in part]))
    return [[next(done) for _ in part] for part in parts]


def _budgets(chosen: list[Method], settings: Settings) -> list[str]:
    """A caveat where some methods had more trials to find their settings than others."""
    trials = {m.name: settings.trials.get(m.name, 0) for m in chosen if m.trained}
    if len(set(trials.values())) < 2:
        return []
    said = ", ".join(f"{name} {n}" for name, n in trials.items())
    return [f"Settings were not chosen with the same number of trials: {said}."]


def _equivalent(chosen: Iterable[Method]) -> dict[str, str]:
    """Methods that need not be run, being provably one that was, with its own settings."""
    run = {m.name for m in chosen if m == METHODS.get(m.name)}
    return {
        m.name: m.equivalent
        for m in METHODS.values()
        if m.name not in run and m.equivalent is not None and m.equivalent in run
    }


def _title(chosen: Iterable[Method], studies: list[Study]) -> str:
    names = dict.fromkeys(s.suite.name for s in studies)
    return f"{', '.join(m.name for m in chosen)} on {', '.join(names)}"


def _write_study(
    study: Study,
    rows: Rows,
    verdicts: list[Difference],
    gains: list[Difference],
    comparison: Comparison,
    chosen: list[Method],
    settings: Settings,
    command: str,
    title: str,
    notes: Sequence[str],
) -> None:
    out, suite, setting, cells = study.folder, study.suite, study.setting, study.cells
    summaries = {cell: json.loads((cell.folder / SUMMARY).read_text()) for cell in cells}
    sizes = summaries[cells[0]]["pairs"]
    made, mixed = made_with([(cell.label, summaries[cell].get(VERSIONS, {})) for cell in cells])
    described = {m.name: f"{m.where}; {m.what}" for m in chosen}
    if INSTRUCTION in study.methods:
        described[INSTRUCTION] = f"the bare model; every prompt led by “{suite.instruction}”"
    capability = {
        split: [row for cell in own for row in read_rows(cell.folder / "items.parquet")]
        for split, (_, own) in study.capability.items()
    }
    common = _common(study)
    lines = tables.results(rows, common)
    lines += tables.elicitation(rows, capability, study.methods, common)
    sides, told, more = _side_effects(study, common)
    lines += sides
    costs: dict[str, Any] = {}
    for cell in cells:
        if cell.method and cell.name not in costs and (cell.folder / COSTS).is_file():
            costs[cell.name] = json.loads((cell.folder / COSTS).read_text())
    about = About(
        study="compare",
        title=title if title and out == cells[0].folder.parent.parent else _title(chosen, [study]),
        model=setting.model,
        model_digest=setting.digest,
        suite=suite.name,
        suite_digest=suite.digest,
        description=suite.description,
        train=suite.train,
        train_items=len(setting.data.train.items()),
        train_pairs=len(setting.data.train),
        splits={name: Split(spec, **sizes[name]) for name, spec in suite.evaluate.items()},
        methods=described,
        seeds=tuple(comparison.seeds),
        dtype=setting.dtype,
        device=setting.device,
        threads=setting.threads,
        versions=made,
        commit=commit(),
        command=command,
        limit=comparison.limit,
        equal_kl=study.target(),
        published=suite.published,
        trials={m.name: settings.trials.get(m.name, 0) for m in chosen if m.trained},
        equivalent=_equivalent(chosen),
        notes=(*notes, *mixed),
        more=more,
    )
    curves = [
        Curve(setting.model, cell.name, cell.seed, record["step"], metric, record[metric])
        for cell in cells
        for record in read_history(cell)
        for metric in record
        if metric not in ("step", "epoch")
    ]
    texts = [
        Generation(setting.model, **{**g, "method": cell.name})
        for cell, summary in summaries.items()
        for g in summary["generations"]
    ]
    differences = (*verdicts, *gains, *told)
    write(out, Run(about, tuple(lines), differences, tuple(curves), tuple(texts), costs))
    write_rows(out / "items.parquet", rows)


def _side_effects(study: Study, common: Any) -> tuple[list[Any], list[Difference], dict[str, Any]]:
    """Lines of the panel, and what its page has to know; nothing where none was asked for."""
    if study.panel is None:
        return [], [], {}
    bare, *dialled = (side_effects.read_of(r) for cell in study.sides() for r in cell.read())
    trained = {m: [study.suite.train] for m in study.methods if m not in ("random", INSTRUCTION)}
    known = side_effects.about(study.panel.properties, bare, dialled, trained, study.target())
    known["not_reached"] = [m for m in known["not_reached"] if m != tables.BASELINE]
    return *side_effects.lines(bare, dialled, common), {"panel": known}
