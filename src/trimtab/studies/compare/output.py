"""The result files of a comparison, from its finished cells."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from trimtab.provenance import commit
from trimtab.studies.compare import tables
from trimtab.studies.compare.cell import COSTS
from trimtab.studies.compare.grid import Study, rows_of
from trimtab.studies.compare.measure import read_history
from trimtab.studies.panel import lines as side_effects
from trimtab.study.files import Rows, write_rows
from trimtab.study.made import VERSIONS, made_with
from trimtab.study.records import read_json
from trimtab.study.results import (
    ABOUT,
    ALPHA_1,
    BASE,
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

if TYPE_CHECKING:
    from trimtab.studies.compare.comparison import Compare


def write_results(run: Compare, command: str, title: str) -> None:
    """Result files of every part of a comparison, all of whose cells are done.

    All lines at one alpha are one table, whatever the number of models and suites: the p-values of
    each are adjusted over all of them.
    """
    studies, out, grid = list(run.parts), run.out, len(run.parts) > 1
    notes = [*run.notes, *_budgets(run.methods, run.varied)]
    rows = [s.rows() for s in studies]
    against, gains = (
        _judged_together(
            [
                tables.differences(r, s.methods, list(s.suite.evaluate), _common(s), **how)
                for s, r in zip(studies, rows, strict=True)
            ]
        )
        for how in ({}, {"baseline": BASE, "places": (ALPHA_1,)})
    )
    if grid and sum(map(len, against)):
        compared = sum(
            (line.metric, line.at) == ("accuracy", ALPHA_1) for lines in against for line in lines
        )
        notes.append(
            f"p-values are adjusted over all {compared} comparisons of the grid, not only those of "
            "one model and suite."
        )
    for study, own, *told in zip(studies, rows, against, gains, strict=True):
        heading = title if title and not grid else _title(run.methods, [study])
        about = {"title": heading, "command": command, "notes": tuple(notes)}
        _write_part(run, study, own, [line for lines in told for line in lines], about)
    for file in [out / name for name in (ABOUT, COSTS, *FILES)] if grid else [out / GRID]:
        file.unlink(missing_ok=True)
    if grid:
        names = tuple(s.folder.name for s in studies)
        heading = title or _title(run.methods, studies)
        write_grid(out, Grid(heading, command, tuple(notes), names))


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


def _write_part(
    run: Compare, study: Study, rows: Rows, told: list[Difference], about: dict[str, Any]
) -> None:
    suite, setting, cells = study.suite, study.setting, study.cells
    found = [(cell, read_json(cell.result)) for cell in cells]
    sizes = found[0][1]["pairs"]
    made, mixed = made_with((cell.said, summary.get(VERSIONS, {})) for cell, summary in found)
    described = {m.name: f"{m.where}; {m.what}" for m in run.methods}
    if INSTRUCTION in study.methods:
        described[INSTRUCTION] = f"the bare model; every prompt led by “{suite.instruction}”"
    capability = {split: rows_of(own) for split, own in study.capability.items()}
    common = _common(study)
    lines = tables.results(rows, common)
    lines += tables.elicitation(rows, capability, study.methods, common)
    sides, changed, more = _side_effects(study, common)
    lines += sides
    costs: dict[str, Any] = {}
    for cell in cells:
        if cell.method and cell.name not in costs and (cell.folder / COSTS).is_file():
            costs[cell.name] = read_json(cell.folder / COSTS)
    whole = About(
        study="compare",
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
        seeds=tuple(run.settings.seeds),
        dtype=setting.dtype,
        device=setting.device,
        threads=setting.threads,
        versions=made,
        commit=commit(),
        limit=setting.limit,
        equal_kl=study.target(),
        published=suite.published,
        trials={m.name: run.varied.trials.get(m.name, 0) for m in run.methods if m.trained},
        equivalent=_equivalent(run.methods),
        more=more,
        **{**about, "notes": (*about["notes"], *mixed)},
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
        for cell, summary in found
        for g in summary["generations"]
    ]
    differences = (*told, *changed, *tables.steered(rows, common))
    write(study.folder, Run(whole, tuple(lines), differences, tuple(curves), tuple(texts), costs))
    write_rows(study.folder / "items.parquet", rows)


def _side_effects(study: Study, common: Any) -> tuple[list[Any], list[Difference], dict[str, Any]]:
    """Lines of the panel, and what its page has to know; nothing where none was asked for."""
    if study.panel is None:
        return [], [], {}
    bare, *dialled = (side_effects.read_of(r) for cell in study.sides() for r in cell.read())
    trained = {m: [study.suite.train] for m in study.methods if m not in ("random", INSTRUCTION)}
    known = side_effects.about(study.panel.properties, bare, dialled, trained, study.target())
    known["not_reached"] = [m for m in known["not_reached"] if m != tables.BASELINE]
    return *side_effects.lines(bare, dialled, common), {"panel": known}
