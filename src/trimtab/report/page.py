"""One self-contained HTML page from a run's result files: no script, no request, both themes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.report import figures, wording
from trimtab.report.files import write_text
from trimtab.report.html import render
from trimtab.report.results import (
    ALPHA_1,
    BASE,
    EQUAL_KL,
    TRAIN,
    Difference,
    Generation,
    Grid,
    Measurement,
    Results,
    read_grid,
    read_results,
)
from trimtab.study.results import is_grid

COSTS = {
    "fit_seconds": "time to fit, s",
    "evaluate_seconds": "time to evaluate, s",
    "parameters": "parameters",
    "size_bytes": "size on disk, bytes",
    "peak_memory_bytes": "peak memory, bytes",
    "steps": "optimiser steps",
}
"""What costs are called on the page; others show their own name."""


@dataclass(frozen=True)
class Cell:
    """A figure with its interval, both as text."""

    value: str
    interval: str = ""


@dataclass(frozen=True)
class Table:
    """A table of figures: a row a method, a column a split."""

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]


@dataclass(frozen=True)
class Prompt:
    """The answers to one prompt: the bare model's where all share it, then a row a method."""

    text: str
    bare: str | None
    alphas: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str | None]]]


def write_page(run_dir: str | Path, out: str | Path | None = None) -> Path:
    """Write a run's HTML page.

    Same result files, same bytes. The page is written aside and renamed.

    Args:
        run_dir: a folder with `study.json` and `results.jsonl` (see `results.py`).
        out: the file to write; `report.html` in the run's folder where not given.

    Returns:
        the page's path.

    Raises:
        TrimtabError: a result file is missing or malformed, or the page cannot be written.
    """
    path = Path(out) if out is not None else Path(run_dir) / "report.html"
    if is_grid(run_dir):
        grid = read_grid(run_dir)
        for name in grid.names:
            write_page(Path(run_dir) / name)
        write_text(path, grid_page(grid))
        return path
    write_text(path, page(read_results(run_dir)))
    return path


def grid_page(grid: Grid) -> str:
    """Several models and suites as one HTML page that leads to each one's own."""
    tables = []
    for against in (True, False):
        lines: dict[tuple[str, str, str], dict[str, Difference]] = {}
        for name, r in zip(grid.names, grid.studies, strict=True):
            for c in r.at(ALPHA_1) if against else r.gains:
                shift = wording.shift(r.study.suite, c.split)
                lines.setdefault((name, wording.model(r.study.model), shift), {})[c.method] = c
        methods = list(dict.fromkeys(m for r in grid.studies for m in r.methods))
        methods = [m for m in methods if any(m in row for row in lines.values())]
        rows = [(key, [_gain(row.get(m)) for m in methods]) for key, row in lines.items()]
        if rows:
            tables.append((against, methods, rows))
    return render(
        "grid.html",
        title=grid.title,
        command=grid.command,
        headline=wording.grid_headline(grid.studies),
        baseline=wording.label(next((s.baseline for s in grid.studies if s.baseline), "")),
        figure=figures.shifts(grid.studies),
        tables=tables,
        several=len({r.study.model for r in grid.studies}) > 1,
        studies=[
            (name, r.study.suite, wording.model(r.study.model), wording.headline(r))
            for name, r in zip(grid.names, grid.studies, strict=True)
        ],
        caveats=list(dict.fromkeys(c for r in grid.studies for c in wording.caveats(r))),
    )


def _gain(c: Difference | None) -> tuple[Cell, bool]:
    """A difference in points with its interval, and whether it is a verdict."""
    if c is None:
        return Cell(wording.NOTHING), False
    interval = wording.bounds(c.low, c.high, wording.points, " to ")
    return Cell(wording.points(c.value), interval), c.told


def page(results: Results) -> str:
    """A run as one HTML page. Every text from the results is escaped."""
    trained = results.methods
    every = (BASE, *trained)
    return render(
        "page.html",
        study=results.study,
        title=results.study.title,
        headline=wording.headline(results),
        answers=wording.answers(results),
        answers_equal_kl=wording.answers(results, EQUAL_KL) if results.at(EQUAL_KL) else [],
        trained=wording.trained(results),
        baseline=wording.label(results.baseline) if results.baseline else None,
        accuracy=_table(results, "accuracy"),
        other_metrics=[_table(results, m) for m in wording.shown_metrics(results)[1:]],
        gains=_gains(results),
        published=_published(results),
        figure_accuracy=figures.accuracy(results),
        figure_gain=figures.gain(results),
        figure_dose=figures.dose(results),
        figure_training=figures.training(results),
        keys=figures.keys(results, trained),
        keys_training=figures.keys(results, _curved(results)),
        key_of={m: figures.keys(results, [m])[0] for m in every},
        dose_rows=_dose(results),
        verdicts=[(at, _verdicts(results.at(at))) for at in (ALPHA_1, EQUAL_KL) if results.at(at)],
        costs=_costs(results),
        prompts=_prompts(results.generations, trained),
        caveats=wording.caveats(results),
        dash=wording.NOTHING,
    )


def _curved(results: Results) -> list[str]:
    seen = {point.method for point in results.curves}
    return [m for m in results.methods if m in seen]


def _table(results: Results, metric: str) -> Table:
    """A metric at alpha 1: training items first, where they were scored, then each split."""
    methods = [BASE, *results.methods]
    splits = [TRAIN] if any(results.read(m, TRAIN, metric) for m in results.methods) else []
    splits += [s for s in results.splits if any(results.read(m, s, metric) for m in methods)]
    rows = [(m, [_cell(results.read(m, s, metric), metric) for s in splits]) for m in methods]
    rows = [(m, cells) for m, cells in rows if any(c.value != wording.NOTHING for c in cells)]
    return Table(wording.METRICS[metric], splits, rows)


def _gains(results: Results) -> Table | None:
    """Differences from the bare model in points at alpha 1, a column a split."""
    found = {(c.method, c.split): c for c in results.gains}
    methods = [m for m in results.methods if any(m == method for method, _ in found)]
    if not methods:
        return None
    rows = []
    for m in methods:
        cells = []
        for split in results.splits:
            cell, told = _gain(found.get((m, split)))
            cells.append(
                Cell(cell.value, f"{cell.interval}; {found[m, split].verdict}") if told else cell
            )
        rows.append((m, cells))
    return Table("gain", results.splits, rows)


def _published(results: Results) -> Table | None:
    """Accuracies of an earlier publication, a column a split."""
    found = results.study.published
    if found is None:
        return None
    splits = list(dict.fromkeys(s for row in found.rows.values() for s in row))
    rows = [(m, [Cell(wording.share(row.get(s))) for s in splits]) for m, row in found.rows.items()]
    return Table(found.note, splits, rows)


def _cell(row: Measurement | None, metric: str) -> Cell:
    if row is None:
        return Cell(wording.NOTHING)
    form = wording.share if metric.startswith("accuracy") else wording.number
    to = "–" if metric.startswith("accuracy") else " to "
    return Cell(form(row.value), wording.bounds(row.low, row.high, form, to))


def _verdicts(rows: Sequence[Difference]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Verdict rows grouped by split, every figure as text."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for c in rows:
        groups.setdefault(c.split, []).append(
            {
                "method": c.method,
                "alpha": wording.alpha(c.alpha),
                "difference": Cell(
                    wording.points(c.value),
                    wording.bounds(c.low, c.high, wording.points, " to "),
                ),
                "p": wording.small(c.p_holm),
                "verdict": c.verdict,
                "in_this_run": c.told and c.in_this_run,
                "mde": wording.points(c.mde, sign=False),
                "seeds": c.seeds,
                "n_items": wording.NOTHING if c.items is None else f"{c.items:,}",
            }
        )
    return list(groups.items())


def _dose(results: Results) -> list[tuple[str, Cell, str, str, str]]:
    """Slope with its interval, R², monotonicity and the alpha of equal KL, a row a method."""
    rows = []
    for method in results.methods:
        slope, r2, monotone = (results.summary(method, m) for m in ("slope", "r2", "monotone"))
        if slope is None and r2 is None and monotone is None:
            continue
        equal = 1.0 if method == results.baseline else results.alpha_of_equal_kl(method)
        interval = wording.bounds(slope.low, slope.high, wording.number, " to ") if slope else ""
        rows.append(
            (
                method,
                Cell(wording.number(slope.value if slope else None, sign=True), interval),
                wording.number(r2.value if r2 else None),
                wording.number(monotone.value if monotone else None),
                wording.alpha(equal),
            )
        )
    return rows


def _costs(results: Results) -> tuple[list[str], list[tuple[str, list[str]]]] | None:
    """Column names and a row a method; None where nothing was recorded."""
    if not results.costs:
        return None
    fields = dict.fromkeys(name for cost in results.costs.values() for name in cost)
    names = [COSTS.get(name, name.replace("_", " ")) for name in fields]
    order = {m: i for i, m in enumerate(results.methods)}
    rows = sorted(results.costs.items(), key=lambda item: order.get(item[0], 99))
    return names, [(m, [_cost(cost.get(name)) for name in fields]) for m, cost in rows]


def _cost(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return wording.NOTHING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return wording.number(value, 1)


def _prompts(generations: Sequence[Generation], methods: Sequence[str]) -> list[Prompt]:
    """Answers side by side, of the first seed of each method."""
    first: dict[str, int | None] = {}
    for g in generations:
        first.setdefault(g.method, g.seed)
    shown = [g for g in generations if g.seed == first[g.method]]
    order = {m: i for i, m in enumerate(methods)}
    prompts = []
    for text in dict.fromkeys(g.prompt for g in shown):
        mine = [g for g in shown if g.prompt == text]
        bare = {g.text for g in mine if g.alpha == 0}
        answer = bare.pop() if len(bare) == 1 else None
        # At 0 every dial is the bare model: said once. Where texts differ, each is shown.
        rest = [g for g in mine if g.method != BASE and (answer is None or g.alpha != 0)]
        alphas = sorted({g.alpha for g in rest})
        texts = {(g.method, g.alpha): g.text for g in rest}
        rows = [
            (m, [texts.get((m, a)) for a in alphas])
            for m in sorted({g.method for g in rest}, key=lambda m: (order.get(m, 99), m))
        ]
        prompts.append(Prompt(text, answer, [wording.alpha(a) for a in alphas], rows))
    return prompts
