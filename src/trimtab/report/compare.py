"""The page of a comparison, and that of several: blocks from result files. Computes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from rich.console import RenderableType

from trimtab.report import figures, render, wording
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
)
from trimtab.report.looks import Look, looks_of
from trimtab.report.results import (
    ALPHA_1,
    BASE,
    EQUAL_KL,
    NEUTRAL,
    TRAIN,
    Comparison,
    Grid,
    Measurement,
    Results,
    is_grid,
    read_grid,
    read_results,
)

COSTS = {
    "fit_seconds": "time to fit, s",
    "evaluate_seconds": "time to evaluate, s",
    "parameters": "parameters",
    "size_bytes": "size on disk, bytes",
    "peak_memory_bytes": "peak memory, bytes",
    "steps": "optimiser steps",
}
"""What costs are called on the page; others show their own name."""

READING = {
    "dial, α": "Each method yields a dial on the same model. At α = 0 the model is untouched; at 1 the "
    "dial is fully on; below 0 it pushes the other way.",
    "accuracy": "Of two answers to a prompt, the model should find the better one likelier per token. "
    "50 % is a coin toss.",
    "95 % interval": "Where the figure may lie if other items of the same kind had been drawn, and "
    "other seeds where there are several.",
    "verdict": "“Better” or “worse” where a difference on the same items is larger than chance explains, "
    "all rows of the table taken together; else “cannot tell”, which does not mean “the same”.",
    "could see": "The smallest true difference, in points, that this many items would have shown four "
    "times in five; above 5 points a comparison is underpowered.",
    "KL, rise in NLL": "How far the dial moves the model on text that has nothing to do with the "
    "preference. A gain bought with damage is a poor one, hence the second reading at equal KL.",
}


def read_page(run_dir: str | Path) -> Page:
    """The page of a run, or of several models and suites.

    Raises:
        TrimtabError: a result file is missing or malformed.
    """
    if is_grid(run_dir):
        return grid_page(read_grid(run_dir))
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
    if is_grid(run_dir):
        grid = read_grid(run_dir)
        for name in grid.names:
            write_page(Path(run_dir) / name)
        return render.write(grid_page(grid), path, On.HTML)
    return render.write(page(read_results(run_dir)), path, On.HTML)


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
        " · ".join(filter(None, (study.suite and f"suite {study.suite}", study.model))),
        looks(results.methods),
    )


def looks(methods: Sequence[str]) -> Mapping[str, Look]:
    """The looks of methods, by the names that a page has for them."""
    known = looks_of(methods)
    return {wording.label(m): known[m] for m in (BASE, *methods)}


def _answer(results: Results, panels: Sequence[figures.Panel]) -> Iterator[Block]:
    yield Text(plain(wording.headline(results)), lead=True)
    for at in (ALPHA_1, EQUAL_KL):
        said = wording.answers(results, at) if results.at(at) else []
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
        block for m in wording.shown_metrics(results)[1:] for block in _other_metric(results, m)
    ]
    yield Section(
        "Accuracy",
        [
            Text("Percent, dials at α = 1, with 95 % intervals.", On.ALL),
            *accuracies(results),
            Figure(panels, caption=shown, on=On.HTML),
            Section("Other ways of scoring", others, On.HTML, folded=True),
        ],
    )
    gains = figures.gain(results)
    for at in (ALPHA_1, EQUAL_KL):
        rows = results.at(at)
        if rows:
            baseline = plain(wording.label(rows[0].baseline))
            where = "α = 1" if at == ALPHA_1 else f"the α where KL equals {baseline}'s at α = 1"
            caption = (
                f"Points of accuracy above {baseline}, on the same items. Upper line: α = 1; thinner "
                "lower line: the α of equal KL. A filled marker is a verdict, a hollow one “cannot "
                "tell”; the grey bar spans what this run could not have seen."
            )
            drawn = Figure(gains if at == ALPHA_1 else (), caption=caption, on=On.HTML)
            told = [Text(wording.ADJUSTED, On.ALL), drawn, _verdicts(rows)]
            yield Section(f"Against {baseline}, at {where}", told)
    if results.gains:
        told = [Text(wording.ADJUSTED), _verdicts(_ordered(results))]
        yield Section("Against the bare model, at α = 1", told, On.PAGES)
    yield _dose(results)
    yield Section("Answers side by side", list(_prompts(results)), On.HTML)
    yield Section("Training", [_training(results, many)], On.HTML)
    yield Section("Costs", list(_costs(results)), On.HTML)
    reading = listed([f"**{name}**: {text}" for name, text in READING.items()])
    yield Section("How to read it", [reading], On.HTML)
    methods = listed([f"{code(m)} {plain(line)}" for m, line in results.study.methods.items()])
    ran = f"{what_ran(results)}\n\n{fenced(results.study.command)}"
    yield Section("What was run", [Text(ran), Text(methods.words, On.HTML)], On.PAGES)
    found = wording.caveats(results)
    if found:
        yield Section("Caveats", [listed([plain(c) for c in found])], On.PAGES)


def splits_of(results: Results) -> list[str]:
    """Training items first, where they were scored, then each split."""
    seen = [TRAIN] if any(results.read(m, TRAIN) for m in results.methods) else []
    return [*seen, *results.splits]


def accuracies(results: Results) -> list[Block]:
    """A row a method, a column a split; then what an earlier publication has."""
    splits = splits_of(results)
    rows = [
        [plain(wording.label(m)), *(share(results.read(m, s)) for s in splits)]
        for m in (BASE, *results.methods)
    ]
    published = results.study.published
    for name, shares in published.rows.items() if published else ():
        cells = [wording.share(shares.get(s)) for s in splits]
        rows.append([f"*published: {plain(wording.label(name))}*", *cells])
    table = Table(["method", *(_titled(results, s) for s in splits)], rows)
    return [table, Text(f"*Published: {plain(published.note)}*")] if published else [table]


def _titled(results: Results, split: str) -> str:
    known = results.study.splits.get(split)
    under = "seen" if split == TRAIN else wording.count(known.items, "item") if known else ""
    return f"{split}\n{under}" if under else split


def _other_metric(results: Results, metric: str) -> list[Block]:
    """A metric beside accuracy, at alpha 1."""
    splits = splits_of(results)
    rows = []
    for m in (BASE, *results.methods):
        read = [results.read(m, s, metric) for s in splits]
        if any(read):
            form = share if metric.startswith("accuracy") else _number
            rows.append([plain(wording.label(m)), *(form(r) for r in read)])
    unit = {
        "margin": "nats per token: mean log-prob of the better answer less that of the worse",
        "elicitation": "the gain over the bare model as a share of the capability of a model trained on "
        "the target's reference (GENIES)",
    }.get(metric, "percent")
    name = wording.METRICS[metric]
    about = Text(f"{name[0].upper()}{name[1:]}, {unit}.")
    return [about, Table(["method", *splits], rows)] if rows else []


def share(row: Measurement | None) -> str:
    """A share of 1 in percent, with its interval."""
    if row is None:
        return wording.NOTHING
    return wording.within(wording.share(row.value), wording.bounds(row.ci_low, row.ci_high))


def _number(row: Measurement | None) -> str:
    if row is None:
        return wording.NOTHING
    ends = wording.bounds(row.ci_low, row.ci_high, wording.number, ", ")
    return wording.within(wording.number(row.value), ends)


def gain(c: Comparison | None, *, strong: bool = True) -> str:
    """A difference in points with its interval; bold where it is a verdict."""
    if c is None:
        return wording.NOTHING
    interval = wording.bounds(c.ci_low, c.ci_high, wording.points, ", ")
    value = wording.points(c.difference)
    return wording.within(f"**{value}**" if c.told and strong else value, interval)


def _verdicts(rows: Sequence[Comparison]) -> Table:
    header = [
        "split",
        "method",
        "α",
        "difference, points",
        "p (Holm)",
        "could see",
        "verdict",
    ]
    body = []
    for c in rows:
        verdict = f"{c.verdict} in this run" if c.told and c.in_this_run else c.verdict
        body.append(
            [
                plain(c.split),
                plain(wording.label(c.method)),
                wording.alpha(c.alpha),
                gain(c, strong=False),
                plain(wording.small(c.p_holm)),
                wording.points(c.mde, sign=False),
                f"**{verdict}**" if c.told else verdict,
            ]
        )
    return Table(header, body, (2, 6), grouped=True)


def _ordered(results: Results) -> list[Comparison]:
    """The gains over the bare model by split, then by method."""
    splits, methods = list(results.splits), list(results.methods)
    known = [c for c in results.gains if c.split in splits and c.method in methods]
    return sorted(known, key=lambda c: (splits.index(c.split), methods.index(c.method)))


def _dose(results: Results) -> Section:
    """What turning the dial does, and the damage it is bought with."""
    rows = []
    for method in results.methods:
        slope, r2, monotone = (results.summary(method, m) for m in ("slope", "r2", "monotone"))
        equal = 1.0 if method == results.baseline else results.alpha_of_equal_kl(method)
        rows.append(
            [
                plain(wording.label(method)),
                _slope(slope),
                wording.number(r2.value if r2 else None),
                wording.number(monotone.value if monotone else None),
                *(wording.number(_damage(results, method, m), 3) for m in ("kl", "nll_rise")),
                wording.alpha(equal),
            ]
        )
    header = ["method", "slope", "R²", "monotone", "KL at 1", "NLL rise", "α at equal KL"]
    ring = (
        f" In the panel of KL the dashed line is {plain(wording.label(results.baseline))} at α = 1, and "
        "the rings are where each dial reaches it."
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
    shown = [drawn, about, Table(header, rows)] if wording.has_dose(results) else []
    return Section("Dose–response, and what it costs", shown, On.HTML | On.CONSOLE)


def _slope(row: Measurement | None) -> str:
    if row is None:
        return wording.NOTHING
    ends = wording.bounds(row.ci_low, row.ci_high, wording.number, ", ")
    return wording.within(wording.number(row.value, sign=True), ends)


def _damage(results: Results, method: str, metric: str) -> float | None:
    at_1 = [p for p in results.curve(method, NEUTRAL, metric) if p.alpha == 1]
    return at_1[0].value if at_1 else None


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


def _costs(results: Results) -> Iterator[Block]:
    fields = dict.fromkeys(name for cost in results.costs.values() for name in cost)
    names = [COSTS.get(name, name.replace("_", " ")) for name in fields]
    order = {m: i for i, m in enumerate(results.methods)}
    rows = sorted(results.costs.items(), key=lambda item: order.get(item[0], 99))
    yield Table(
        ["method", *names],
        [[plain(wording.label(m)), *(_cost(cost.get(f)) for f in fields)] for m, cost in rows],
    )


def _cost(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return wording.NOTHING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return plain(str(value))
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return wording.number(value, 1)


def _prompts(results: Results) -> Iterator[Section]:
    """Answers side by side, of the first seed of each method."""
    first: dict[str, int | None] = {}
    for g in results.generations:
        first.setdefault(g.method, g.seed)
    shown = [g for g in results.generations if g.seed == first[g.method]]
    order = {m: i for i, m in enumerate(results.methods)}
    for prompt in dict.fromkeys(g.prompt for g in shown):
        mine = [g for g in shown if g.prompt == prompt]
        bare = {g.text for g in mine if g.alpha == 0}
        answer = bare.pop() if len(bare) == 1 else None
        # At 0 every dial is the bare model: said once. Where texts differ, each is shown.
        rest = [g for g in mine if g.method != BASE and (answer is None or g.alpha != 0)]
        alphas = sorted({g.alpha for g in rest})
        texts = {(g.method, g.alpha): g.text for g in rest}
        methods = sorted({g.method for g in rest}, key=lambda m: (order.get(m, 99), m))
        rows = [
            [wording.label(m), *(texts.get((m, a), wording.NOTHING) for a in alphas)]
            for m in methods
        ]
        columns = [f"α = {wording.alpha(a)}" for a in alphas]
        same = [
            Table(["", "α = 0, under every dial"], [["bare model", answer]], (0, 0), words=True)
        ]
        tables = [
            *(same if answer is not None else []),
            Table(["method", *columns], rows, (0, 0), words=True),
        ]
        yield Section(plain(prompt), tables, folded=True)


def what_ran(results: Results) -> str:
    """Model, data, seeds, versions as a list."""
    study = results.study
    lines = [
        f"model `{study.model}`, digest `{study.model_digest}`, {study.dtype} on {study.device}",
        (f"suite `{study.suite}`, " if study.suite else "")
        + (f"trained on `{study.train}`" if study.train else "training data not known")
        + (f" ({wording.count(study.train_items, 'item')}" if study.train_items else "")
        + (f", {wording.count(study.train_pairs, 'pair')})" if study.train_pairs else "")
        + ("" if study.train_pairs or not study.train_items else ")"),
    ]
    for name, split in study.splits.items():
        lines.append(
            f"{plain(name)}: `{split.spec}`, {wording.count(split.items, 'item')}, "
            f"{wording.count(split.pairs, 'pair')}"
            + (f", {split.dropped} dropped as over-long" if split.dropped else "")
        )
    lines.append(f"seeds {', '.join(map(str, study.seeds)) or wording.NOTHING}")
    lines.append(", ".join(f"{k} {v}" for k, v in study.versions.items()))
    commits = wording.commits(results.measurements)
    if commits:
        lines.append(f"commit {', '.join(f'`{c}`' for c in commits)}")
    return listed(lines).words


# ---- several ------------------------------------------------------------------------------------


def grid_page(grid: Grid) -> Page:
    """Several models and suites: the answer, gains by shift, a part each."""
    studies = grid.studies
    baseline = wording.label(next((s.baseline for s in studies if s.baseline), ""))
    caption = (
        f"Points of accuracy above {baseline} on the same items, dials at α = 1, with 95 % "
        "intervals. A filled marker is a verdict, a hollow one “cannot tell”; the grey bar "
        "spans what could not have been seen."
    )
    about = f"Gain over {baseline} on each shift with 95 % intervals"
    blocks: list[Block] = [
        Text(plain(wording.grid_headline(studies)), On.ALL, lead=True),
        Figure(figures.shifts(studies), about, caption, 2),
    ]
    for against, title in ((ALPHA_1, f"Gain over {baseline}"), (None, "Gain over the bare model")):
        said = "Points of accuracy at α = 1 [interval]; bold where it is a verdict."
        table = _gains(grid, against)
        told = [Text(f"{said} {wording.ADJUSTED}"), table] if table.rows else []
        blocks.append(Section(title, told, On.PAGES))
    lines = []
    for name, r in zip(grid.names, studies, strict=True):
        where = plain(f"{r.study.suite} on {wording.model(r.study.model)}")
        lines.append(f"[{where}]({quote(name)}/report.html): {plain(wording.headline(r))}")
        parts = [Text("Accuracy in percent, dials at α = 1."), *accuracies(r), Text(what_ran(r))]
        against = [_verdicts(rows) for at in (ALPHA_1, EQUAL_KL) if (rows := r.at(at))]
        told = [Section(f"Against {baseline}", against, On.CONSOLE)]
        blocks.append(Section(where, [*parts, *told], On.MARKDOWN | On.CONSOLE))
    blocks.append(Section("Each on its own page", [listed(lines)], On.HTML))
    blocks.append(Section("What was run", [Text(fenced(grid.command))], On.PAGES))
    found = dict.fromkeys(c for r in studies for c in wording.caveats(r))
    if found:
        blocks.append(Section("Caveats", [listed([plain(c) for c in found])], On.PAGES))
    methods = list(dict.fromkeys(m for r in studies for m in r.methods))
    kicker = wording.count(len(studies), "study", "studies")
    return Page(plain(grid.title), blocks, kicker, looks(methods))


def _gains(grid: Grid, at: str | None) -> Table:
    """A row a shift, a column a method: against the baseline (`at`), or against the bare model."""
    many = len({r.study.model for r in grid.studies}) > 1
    methods = list(dict.fromkeys(m for r in grid.studies for m in r.methods))
    lines: dict[tuple[str, str], dict[str, Comparison]] = {}
    for r in grid.studies:
        for c in r.at(at) if at else _ordered(r):
            key = (wording.model(r.study.model), wording.shift(r.study.suite, c.split))
            lines.setdefault(key, {})[c.method] = c
    methods = [m for m in methods if any(m in row for row in lines.values())]
    header = [*(["model"] if many else []), "shift", *(wording.label(m) for m in methods)]
    body = [
        [*([plain(model)] if many else []), plain(shift), *(gain(row.get(m)) for m in methods)]
        for (model, shift), row in lines.items()
    ]
    return Table(header, body if methods else [], (2 if many else 1, None), grouped=many)
