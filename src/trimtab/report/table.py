"""The tables of a run on the console, made to read well at 100 columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trimtab.report import wording
from trimtab.report.results import (
    ALPHA_1,
    BASE,
    EQUAL_KL,
    NEUTRAL,
    TRAIN,
    Difference,
    Measurement,
    Results,
    read_grid,
    read_results,
)
from trimtab.study.results import is_grid

PER_TABLE = 4
"""Splits side by side in one table: what 100 columns hold."""

VERDICT_STYLE = {"better": "green", "worse": "red", "cannot tell": "dim"}


def console_tables(run_dir: str | Path) -> RenderableType:
    """Accuracies, verdicts and dose–response of a run, to be printed with a rich console.

    Raises:
        TrimtabError: a result file is missing or malformed.
    """
    if is_grid(run_dir):
        grid = read_grid(run_dir)
        parts: list[RenderableType] = []
        for results in grid.studies:
            study = results.study
            parts.append(Text(f"{study.suite} on {wording.model(study.model)}", "bold underline"))
            parts += [*accuracy_tables(results), *verdict_tables(results)]
        return Group(*parts, Text(wording.grid_headline(grid.studies)))
    results = read_results(run_dir)
    parts = [*accuracy_tables(results)]
    parts += verdict_tables(results)
    dose = dose_table(results)
    if dose is not None:
        parts.append(dose)
    return Group(*parts)


def accuracy_tables(results: Results) -> list[Table]:
    """Accuracy in percent a method and split, with 95 % intervals; training items apart."""
    splits = [TRAIN] if any(results.read(m, TRAIN) for m in results.methods) else []
    splits += results.splits
    tables = []
    for start in range(0, len(splits), PER_TABLE):
        title = "Accuracy, % [95 % interval], dials at α = 1"
        table = _table(title if start == 0 else "")
        table.add_column("method", no_wrap=True, max_width=20)
        shown = splits[start : start + PER_TABLE]
        for split in shown:
            items = results.study.splits.get(split)
            note = "seen" if split == TRAIN else f"{items.items} items" if items else ""
            table.add_column(f"{split}\n[dim]{note}[/]", justify="right", no_wrap=True)
        for method in (BASE, *results.methods):
            cells = [_accuracy(results.read(method, split)) for split in shown]
            table.add_row(Text(wording.label(method)), *cells)
        tables.append(table)
    return tables


def verdict_tables(results: Results) -> list[Table]:
    """Differences from the baseline in points: at alpha 1, and at equal KL."""
    tables = []
    for at in (ALPHA_1, EQUAL_KL):
        rows = results.at(at)
        if not rows:
            continue
        baseline = wording.label(rows[0].against)
        where = "at α = 1" if at == ALPHA_1 else f"where KL equals {baseline}'s at α = 1"
        table = _table(f"Against {baseline}, {where}: points [95 % interval]")
        table.add_column("split", no_wrap=True, max_width=14)
        table.add_column("method", no_wrap=True, max_width=18)
        if at == EQUAL_KL:
            table.add_column("α", justify="right", no_wrap=True)
        table.add_column("difference", justify="right", no_wrap=True)
        table.add_column("p (Holm)", justify="right", no_wrap=True)
        table.add_column("verdict", no_wrap=True)
        table.add_column("could see", justify="right", no_wrap=True)
        before = ""
        for c in rows:
            alpha = [wording.alpha(c.alpha)] if at == EQUAL_KL else []
            table.add_row(
                Text(c.split if c.split != before else ""),
                Text(wording.label(c.method)),
                *alpha,
                _difference(c),
                wording.small(c.p_holm),
                _verdict(c),
                wording.points(c.mde, sign=False),
            )
            before = c.split
        table.caption = "p and verdict: adjusted (Holm) over the table; intervals: each for itself"
        if any(c.told and c.in_this_run for c in rows):
            table.caption += "\n* in this run: fewer than 5 seeds say nothing about other seeds"
        tables.append(table)
    return tables


def dose_table(results: Results) -> Table | None:
    """Slope, straightness and monotonicity of the margin over alpha, and the damage at alpha 1."""
    if not wording.has_dose(results):
        return None
    table = _table("Dose–response: margin (nats a token) over α; damage on neutral text at α = 1")
    table.add_column("method", no_wrap=True, max_width=18)
    for name in (
        "slope per α",
        "R²",
        "monotone",
        "KL",
        "NLL rise",
        "α at equal KL",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for method in results.methods:
        slope = results.summary(method, "slope")
        r2, monotone = (results.summary(method, m) for m in ("r2", "monotone"))
        equal = 1.0 if method == results.baseline else results.alpha_of_equal_kl(method)
        table.add_row(
            Text(wording.label(method)),
            _slope(slope),
            wording.number(r2.value if r2 else None),
            wording.number(monotone.value if monotone else None),
            *(wording.number(_damage(results, method, m), 3) for m in ("kl", "nll_rise")),
            wording.alpha(equal),
        )
    return table


def _table(title: str) -> Table:
    return Table(
        title=title or None,
        min_width=len(title) or None,  # rich would wrap the title of a narrow table
        title_justify="left",
        title_style="bold",
        caption_justify="left",
        caption_style="dim",
        collapse_padding=True,
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        header_style="",
    )


def _accuracy(row: Measurement | None) -> Text:
    if row is None:
        return Text(wording.NOTHING, "dim")
    interval = wording.bounds(row.low, row.high, lambda x: wording.share(x, 0))
    text = Text(wording.share(row.value))
    return text.append(f" {f'[{interval}]' if interval else '':>8}", "dim")


def _difference(c: Difference) -> Text:
    interval = wording.bounds(c.low, c.high, wording.points, ", ")
    text = Text(wording.points(c.value))
    return text.append(f" {f'[{interval}]' if interval else '':>14}", "dim")


def _verdict(c: Difference) -> Text:
    text = Text(c.verdict, VERDICT_STYLE[c.verdict])
    return text.append("*" if c.told and c.in_this_run else "", "dim")


def _slope(row: Measurement | None) -> Text:
    if row is None:
        return Text(wording.NOTHING, "dim")
    interval = wording.bounds(row.low, row.high, wording.number, ", ")
    text = Text(wording.number(row.value, sign=True))
    return text.append(f" [{interval}]" if interval else "", "dim")


def _damage(results: Results, method: str, metric: str) -> float | None:
    at_1: Sequence[Measurement] = [
        p for p in results.curve(method, NEUTRAL, metric) if p.alpha == 1
    ]
    return at_1[0].value if at_1 else None
