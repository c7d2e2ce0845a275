"""The page of a comparison, and that of several: blocks from result files. Computes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rich.console import RenderableType

from trimtab.report import figures, panel, render, tables, wording
from trimtab.report.blocks import (
    Block,
    Figure,
    On,
    Page,
    Section,
    Table,
    Text,
    code,
    fenced,
    listed,
    plain,
    reading,
)
from trimtab.report.results import (
    ALPHA_1,
    BASE,
    EQUAL_KL,
    Difference,
    Grid,
    Results,
    read_grid,
    read_results,
)
from trimtab.study.reading import is_grid
from trimtab.study.results import random_for


def read_page(run_dir: str | Path) -> Page:
    """The page of a run, or of several models and suites.

    Raises:
        TrimtabError: a result file is missing or malformed.
    """
    if is_grid(run_dir):
        return grid_page(*read_grid(run_dir))
    return page(read_results(run_dir))


def write_page(run_dir: str | Path, out: str | Path | None = None) -> Path:
    """Write a run's HTML page, and those of its parts where it has some.

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
    made = read_page(run_dir)
    for name in read_grid(run_dir)[0].studies if is_grid(run_dir) else ():
        write_page(Path(run_dir) / name)
    return render.write(made, path, On.HTML)


def write_markdown(run_dir: str | Path, out_md: str | Path) -> Path:
    """Write a run's Markdown page, and its figure as `<name>.svg` in the same folder.

    Same result files, same bytes. Both files are written aside and renamed.

    Args:
        run_dir: a folder with `study.json` and `results.jsonl` (see `results.py`).
        out_md: the page to write; its folder is made.

    Returns:
        the page's path.

    Raises:
        TrimtabError: a result file is missing or malformed, or the page cannot be written.
    """
    return render.write(read_page(run_dir), Path(out_md))


def console_tables(run_dir: str | Path) -> RenderableType:
    """Accuracies, verdicts and dose–response of a run, to be printed with a rich console.

    Raises:
        TrimtabError: a result file is missing or malformed.
    """
    return render.console(read_page(run_dir))


# ---- one run ------------------------------------------------------------------------------------


def page(results: Results) -> Page:
    """A run."""
    study = results.study
    panels = figures.accuracy(results)
    return Page(
        plain(study.title),
        [*_answer(results, panels), *_sections(results, panels)],
        f"suite {study.suite} · " * bool(study.suite) + wording.model(study.model),
        tables.looks(results.methods),
    )


def _answer(results: Results, panels: Sequence[figures.Panel]) -> Iterator[Block]:
    yield Text(plain(wording.headline(results)), lead=True)
    for at in (ALPHA_1, EQUAL_KL):
        said = wording.answers(results, at) if at == ALPHA_1 or results.at(at) else []
        sentences = listed([plain(wording.label(m) + s) for m, s in said])
        if said and at == ALPHA_1:
            yield sentences
        elif said:
            baseline = plain(wording.label(results.baseline or ""))
            title = f"The same with every dial turned until its KL equals {baseline}’s"
            yield Section(title, [sentences], On.HTML, folded=True)
    learned = wording.trained(results)
    if learned:
        yield Text(plain(learned))
    yield Figure(panels, "Accuracy per split with 95 % intervals", on=On.MARKDOWN)


def _sections(results: Results, panels: Sequence[figures.Panel]) -> Iterator[Block]:
    many = len(results.study.seeds) > 1
    dots = "; small dots are single seeds" if many else ""
    shown = (
        f"Accuracy on each evaluation split with 95 % intervals over items. The dashed line is the bare "
        f"model{dots}."
    )
    others = [
        block
        for m in wording.shown_metrics(results)[1:]
        for block in tables.other_metric(results, m)
    ]
    yield Section(
        "Accuracy",
        [
            Text("Percent, dials at α = 1, with 95 % intervals.", On.ALL),
            *tables.accuracies(results),
            Figure(panels, caption=shown, on=On.HTML),
            Section("Other ways of scoring", others, On.HTML, folded=True),
        ],
    )
    if results.over_base:
        told = [Text(wording.ADJUSTED, On.ALL), tables.verdicts(results.over_base)]
        where = ", at α = 1" * all(d.at == ALPHA_1 for d in results.over_base)
        yield Section(f"Against the bare model{where}", told)
    gains = figures.gain(results)
    for at in (ALPHA_1, EQUAL_KL):
        rows = results.at(at)
        if rows:
            baseline = plain(wording.label(rows[0].against))
            where = "α = 1" if at == ALPHA_1 else f"the α where KL equals {baseline}'s at α = 1"
            caption = (
                f"Points of accuracy above {baseline}, on the same items. Upper line: α = 1; thinner "
                "lower line: the α of equal KL. A filled marker is a verdict, a hollow one “cannot "
                "tell”; the grey bar spans what this run could not have seen."
            )
            drawn = Figure(gains if at == ALPHA_1 else (), caption=caption, on=On.HTML)
            told = [Text(wording.ADJUSTED, On.ALL), drawn, tables.verdicts(rows)]
            yield Section(f"Against {baseline}, at {where}", told)
    if rows := [d for d in results.margins if (d.against != BASE) == bool(results.comparisons)]:
        against = plain(wording.label(rows[0].against))
        told = [Text(wording.ADJUSTED, On.ALL), tables.verdicts(rows, "nats a token")]
        yield Section(f"Against {against}, by the mean margin", told, On.HTML)
    yield _dose(results)
    yield Section("What else the dials change", panel.blocks(results))
    yield Section("Answers side by side", list(tables.prompts(results)), On.HTML)
    yield Section("Training", [_training(results, many)], On.HTML)
    yield Section("Costs", [tables.costs(results)], On.HTML)
    yield Section("How to read it", [reading("compare")], On.HTML)
    methods = listed([f"{code(m)} {plain(line)}" for m, line in results.study.methods.items()])
    ran = f"{tables.what_ran(results)}\n\n{fenced(results.study.command)}"
    yield Section("What was run", [Text(ran), Text(methods.words, On.HTML)], On.PAGES)
    yield from _caveats(wording.caveats(results))


def _caveats(found: Iterable[str]) -> list[Section]:
    lines = [plain(c) for c in found]
    return [Section("Caveats", [listed(lines)], On.PAGES)] if lines else []


def _dose(results: Results) -> Section:
    """What turning the dial does, and the damage it is bought with."""

    def summed(metric: str, **how: Any) -> Callable[[str], str]:
        return lambda m: wording.figure(results.summary(m, metric), wording.number, ", ", **how)

    def damage(metric: str) -> Callable[[str], str]:
        return lambda m: wording.number(results.damage(m, metric), 3)

    columns = {
        "slope": summed("slope", value=wording.signed),
        "R²": summed("r2"),
        "monotone": summed("monotone"),
        "KL at 1": damage("kl"),
        "NLL rise": damage("nll_rise"),
        "α at equal KL": lambda m: wording.alpha(results.alpha_of_equal_kl(m)),
    }
    ring = (
        f" In the panel of KL the dashed line is {plain(wording.label(results.baseline))} at α = 1, and "
        "the rings are where each dial reaches it; beyond the axis, the table has it."
        if results.baseline
        else ""
    )
    drawn = Figure(
        figures.dose(results),
        caption="What turning the dial does on held-out items (margin, accuracy; bands are 95 % "
        "intervals) and what it damages on neutral text (KL from the bare model; rise in NLL)."
        + ring,
        columns=2,
        legend=[wording.label(m) for m in results.methods],
        on=On.HTML,
    )
    about = Text(
        "The margin’s line over α: its slope (nats per token for one unit of α), how straight it is "
        "(R²), whether every step goes up (1 = always); damage on neutral text at α = 1.",
        On.ALL,
    )
    table = tables.by_method(results.methods, list(columns), lambda m, c: columns[c](m))
    shown = [drawn, about, table] if wording.has_dose(results) else []
    if any(results.summary(m, "steerability") for m in results.methods):
        shown += [Text(STEERED, On.ALL), _steered(results)]
    return Section("Dose–response, and what it costs", shown, On.HTML | On.CONSOLE)


STEERED = (
    "Steerability: the slope over α of log p(better answer) − log p(worse answer), sums in nats, of every "
    "item the mean over its pairs (both orders of a lettered question); wrong way: the share of items whose "
    "slope is below 0. Beside a vector, a random one as long."
)


def _steered(results: Results) -> Table:
    """Slopes and wrong ways, and those of the control."""

    def of(metric: str, name: str, **how: Any) -> str:
        return wording.figure(results.summary(name, metric), to=", ", **how)

    def slope(name: str) -> str:
        return of("steerability", name, form=wording.number, value=wording.signed)

    columns = {
        "steerability": slope,
        "wrong way, %": lambda m: of("wrong_way", m),
        "random": lambda m: slope(random_for(m)),
        "random, wrong way, %": lambda m: of("wrong_way", random_for(m)),
    }
    return tables.by_method(results.methods, list(columns), lambda m, c: columns[c](m))


def _training(results: Results, many: bool) -> Figure:
    seen = {point.method for point in results.curves}
    line = ", a line a seed" if many else ""
    return Figure(
        figures.training(results),
        caption=f"Training metrics over optimiser steps{line}. Losses of different objectives are in "
        "different units.",
        columns=2,
        legend=[wording.label(m) for m in results.methods if m in seen],
    )


# ---- several ------------------------------------------------------------------------------------


def grid_page(grid: Grid, studies: Sequence[Results]) -> Page:
    """Several models and suites: the answer, gains by shift, a part each."""
    baseline = wording.label(next((s.baseline for s in studies if s.baseline), ""))
    caption = (
        f"Points of accuracy above {baseline} on the same items, dials at α = 1, with 95 % "
        "intervals. A filled marker is a verdict, a hollow one “cannot tell”; the grey bar "
        "spans what could not have been seen."
    )
    about = f"Gain over {baseline} on each shift with 95 % intervals"
    blocks: list[Block] = [
        Text(plain(wording.headline(*studies)), On.ALL, lead=True),
        Figure(figures.shifts(studies), about, caption, 2),
    ]
    said = f"Points of accuracy at α = 1 [interval]; bold where it is a verdict. {wording.ADJUSTED}"
    for other, gains in (
        (baseline, [r.at(ALPHA_1) for r in studies]),
        ("the bare model", [r.over_base for r in studies]),
    ):
        told = [Text(said), _gains(studies, gains)] if any(gains) else []
        blocks.append(Section(f"Gain over {other}", told, On.PAGES))
    lines = []
    for name, r in zip(grid.studies, studies, strict=True):
        where = plain(f"{r.study.suite} on {wording.model(r.study.model)}")
        lines.append(f"[{where}]({quote(name)}/report.html): {plain(wording.headline(r))}")
        parts = [
            Text("Accuracy in percent, dials at α = 1."),
            *tables.accuracies(r),
            Text(tables.what_ran(r)),
        ]
        against = [tables.verdicts(rows) for at in (ALPHA_1, EQUAL_KL) if (rows := r.at(at))]
        told = [Section(f"Against {baseline}", against, On.CONSOLE)]
        blocks.append(Section(where, [*parts, *told], On.MARKDOWN | On.CONSOLE))
    blocks.append(Section("Each on its own page", [listed(lines)], On.HTML))
    blocks.append(Section("What was run", [Text(fenced(grid.command))], On.PAGES))
    blocks += _caveats(dict.fromkeys(c for r in studies for c in wording.caveats(r)))
    methods = list(dict.fromkeys(m for r in studies for m in r.methods))
    kicker = wording.count(len(studies), "study", "studies")
    return Page(plain(grid.title), blocks, kicker, tables.looks(methods))


def _gains(studies: Sequence[Results], gains: Sequence[Sequence[Difference]]) -> Table:
    """A row a method, a column a shift; the differences of a study each."""
    many = len({r.study.model for r in studies}) > 1
    found: dict[str, dict[str, Difference]] = {}
    for r, differences in zip(studies, gains, strict=True):
        for c in differences:
            shift = wording.shift(r.study.suite, c.split)
            column = f"{wording.model(r.study.model)}, {shift}" if many else shift
            found.setdefault(column, {})[c.method] = c
    methods = dict.fromkeys(m for r in studies for m in r.methods)
    shown = [m for m in methods if any(m in column for column in found.values())]
    return tables.by_method(shown, list(found), lambda m, c: wording.difference(found[c].get(m)))
