"""The result files of a comparison, from its finished cells."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trimtab.files import write_json, write_lines
from trimtab.provenance import commit
from trimtab.study import tables
from trimtab.study.cell import BASE, COSTS, PROMPT, SUMMARY
from trimtab.study.files import Rows, read_rows, write_rows
from trimtab.study.grid import Comparison, Study
from trimtab.study.made import VERSIONS, made_with
from trimtab.study.measure import read_history
from trimtab.study.settings import Settings
from trimtab.training import METHODS, Method

RESULTS = (
    "study.json",
    "results.jsonl",
    "verdicts.jsonl",
    "gains.jsonl",
    "items.parquet",
    "curves.jsonl",
    "generations.jsonl",
    "costs.json",
)
GRID = "grid.json"


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
                    rows[id(s)], s.methods, list(s.suite.evaluate), s.suite.name, **how
                )
                for s in studies
            ]
        )
        for how in ({}, {"baseline": BASE, "places": ("alpha_1",)})
    )
    if grid and against and sum(map(len, against)):
        compared = sum(line["at"] == "alpha_1" for lines in against for line in lines)
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
    stale = [out / name for name in RESULTS] if grid else [out / GRID]
    for file in stale:
        file.unlink(missing_ok=True)
    if grid:
        what = {"title": title or _title(chosen, studies), "command": command, "notes": notes}
        write_json(out / GRID, {**what, "studies": [s.folder.name for s in studies]})


def _judged_together(parts: list[Rows]) -> list[Rows]:
    """The lines of several studies, judged as one table, apart again."""
    done = iter(tables.judged([line for part in parts for line in part]))
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
    verdicts: Rows,
    gains: Rows,
    comparison: Comparison,
    chosen: list[Method],
    settings: Settings,
    command: str,
    title: str,
    notes: Sequence[str],
) -> None:
    out, suite, setting, cells = study.folder, study.suite, study.setting, study.cells
    out.mkdir(parents=True, exist_ok=True)
    summaries = {cell: json.loads((cell.folder / SUMMARY).read_text()) for cell in cells}
    sizes = summaries[cells[0]]["pairs"]
    made, mixed = made_with([(cell.label, summaries[cell].get(VERSIONS, {})) for cell in cells])
    common = {
        "suite": suite.name,
        "suite_digest": suite.digest,
        "dtype": setting.dtype,
        "commit": commit(),
    }
    described = {m.name: f"{m.where}; {m.what}" for m in chosen}
    if PROMPT in study.methods:
        described[PROMPT] = f"the bare model; every prompt led by “{suite.instruction}”"
    capability = {
        split: [row for cell in own for row in read_rows(cell.folder / "items.parquet")]
        for split, (_, own) in study.capability.items()
    }
    lines = tables.results(rows, setting.model, common)
    lines += tables.elicitation(rows, capability, study.methods, setting.model, common)
    write_json(
        out / "study.json",
        {
            "title": title
            if title and out == cells[0].folder.parent.parent
            else _title(chosen, [study]),
            "model": setting.model,
            "model_digest": setting.digest,
            "suite": suite.name,
            "description": suite.description,
            "train": suite.train,
            "train_items": len(setting.data.train.items()),
            "train_pairs": len(setting.data.train),
            "splits": {
                name: {"spec": spec, **sizes[name]} for name, spec in suite.evaluate.items()
            },
            "methods": described,
            "seeds": list(comparison.seeds),
            "dtype": setting.dtype,
            "device": setting.device,
            "threads": setting.threads,
            "versions": made,
            "command": command,
            "limit": comparison.limit,
            "equal_kl": study.target(),
            "published": asdict(suite.published) if suite.published else None,
            "trials": {m.name: settings.trials.get(m.name, 0) for m in chosen if m.trained},
            "equivalent": _equivalent(chosen),
            "notes": [*notes, *mixed],
        },
    )
    write_lines(out / "results.jsonl", lines)
    write_lines(out / "verdicts.jsonl", verdicts)
    write_lines(out / "gains.jsonl", gains)
    write_rows(out / "items.parquet", rows)
    curves = [
        {
            "method": cell.name,
            "seed": cell.seed,
            "step": record["step"],
            "metric": metric,
            "value": record[metric],
        }
        for cell in cells
        for record in read_history(cell)
        for metric in record
        if metric not in ("step", "epoch")
    ]
    write_lines(out / "curves.jsonl", curves)
    texts = [g for s in summaries.values() for g in s["generations"]]
    write_lines(out / "generations.jsonl", texts)
    costs: dict[str, Any] = {}
    for cell in cells:
        if cell.name not in costs and (cell.folder / COSTS).is_file():
            costs[cell.name] = json.loads((cell.folder / COSTS).read_text())
    write_json(out / "costs.json", {k: v for k, v in costs.items() if k not in (BASE, PROMPT)})
