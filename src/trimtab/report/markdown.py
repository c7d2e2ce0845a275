"""A run's tables as Markdown with a figure beside it: the pages under `docs/results/`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trimtab.report import figures, wording
from trimtab.report.files import write_text
from trimtab.report.results import (
    ALPHA_1,
    BASE,
    EQUAL_KL,
    TRAIN,
    Difference,
    Grid,
    Measurement,
    Results,
    read_grid,
    read_results,
)
from trimtab.study.results import is_grid


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
    page = Path(out_md)
    if page.suffix != ".md":
        page = page.with_name(f"{page.name}.md")
    if is_grid(run_dir):
        return _write_grid(read_grid(run_dir), page)
    results = read_results(run_dir)
    figure = page.with_suffix(".svg")
    panels = figures.accuracy(results)
    if panels:
        write_text(figure, figures.sheet(panels))
    write_text(page, markdown(results, figure.name if panels else None))
    return page


def markdown(results: Results, figure: str | None = None) -> str:
    """A run as Markdown: the answer, the figure, the tables, what was run."""
    study = results.study
    parts = [f"# {_plain(study.title)}", _plain(wording.headline(results))]
    sentences = wording.answers(results)
    if sentences:
        parts.append("\n".join(f"- {_plain(wording.label(m) + s)}" for m, s in sentences))
    learned = wording.trained(results)
    if learned:
        parts.append(_plain(learned))
    if figure:
        parts.append(f"![Accuracy per split with 95 % intervals]({figure.replace(' ', '%20')})")
    parts += [
        "## Accuracy",
        "Percent, dials at α = 1, with 95 % intervals.",
        _accuracy(results),
    ]
    for at in (ALPHA_1, EQUAL_KL):
        rows = results.at(at)
        if rows:
            baseline = wording.label(rows[0].against)
            where = "α = 1" if at == ALPHA_1 else f"the α where KL equals {baseline}'s at α = 1"
            parts += [f"## Against {baseline}, at {where}", wording.ADJUSTED, _verdicts(rows)]
    if results.gains:
        parts += ["## Against the bare model, at α = 1", wording.ADJUSTED]
        parts.append(_verdicts(_ordered(results)))
    parts += ["## What was run", f"{_ran(results)}\n\n```\n{results.study.command}\n```"]
    caveats = wording.caveats(results)
    if caveats:
        parts += ["## Caveats", "\n".join(f"- {_plain(c)}" for c in caveats)]
    return "\n\n".join(parts) + "\n"


def _write_grid(grid: Grid, page: Path) -> Path:
    figure = page.with_suffix(".svg")
    panels = figures.shifts(grid.studies)
    if panels:
        write_text(figure, figures.sheet(panels, columns=2))
    write_text(page, grid_markdown(grid, figure.name if panels else None))
    return page


def grid_markdown(grid: Grid, figure: str | None = None) -> str:
    """Several models and suites as Markdown: the answer, the figure, gains by shift, a part each."""
    baseline = wording.label(next((s.baseline for s in grid.studies if s.baseline), ""))
    parts = [f"# {_plain(grid.title)}", _plain(wording.grid_headline(grid.studies))]
    if figure:
        alt = f"Gain over {baseline} on each shift with 95 % intervals"
        parts.append(f"![{alt}]({figure.replace(' ', '%20')})")
        parts.append(
            f"Points of accuracy above {baseline} on the same items, dials at α = 1, with 95 % "
            "intervals. A filled marker is a verdict, a hollow one “cannot tell”; the grey bar "
            "spans what could not have been seen."
        )
    for against, title in ((ALPHA_1, f"Gain over {baseline}"), (None, "Gain over the bare model")):
        table = _gains(grid, against)
        if table:
            about = "Points of accuracy at α = 1 [interval]; bold where it is a verdict."
            parts += [f"## {title}", f"{about} {wording.ADJUSTED}", table]
    for results in grid.studies:
        study = results.study
        where = f"{study.suite} on {wording.model(study.model)}"
        parts += [f"## {_plain(where)}", "Accuracy in percent, dials at α = 1."]
        parts += [_accuracy(results), _ran(results)]
    parts += ["## What was run", f"```\n{grid.command}\n```"]
    caveats = dict.fromkeys(c for results in grid.studies for c in wording.caveats(results))
    if caveats:
        parts += ["## Caveats", "\n".join(f"- {_plain(c)}" for c in caveats)]
    return "\n\n".join(parts) + "\n"


def _gains(grid: Grid, at: str | None) -> str:
    """A row a shift, a column a method: against the baseline (`at`), or against the bare model."""
    many = len({r.study.model for r in grid.studies}) > 1
    methods = list(dict.fromkeys(m for r in grid.studies for m in r.methods))
    lines: dict[tuple[str, str], dict[str, Difference]] = {}
    for r in grid.studies:
        for c in r.at(at) if at else _ordered(r):
            key = (wording.model(r.study.model), wording.shift(r.study.suite, c.split))
            lines.setdefault(key, {})[c.method] = c
    methods = [m for m in methods if any(m in row for row in lines.values())]
    if not methods:
        return ""
    header = [*(["model"] if many else []), "shift", *(wording.label(m) for m in methods)]
    body = [
        [*([_plain(model)] if many else []), _plain(shift), *(_gain(row.get(m)) for m in methods)]
        for (model, shift), row in lines.items()
    ]
    return _table(header, body, numeric_from=2 if many else 1)


def _gain(c: Difference | None) -> str:
    if c is None:
        return wording.NOTHING
    interval = wording.bounds(c.low, c.high, wording.points, ", ")
    value = wording.points(c.value)
    return (f"**{value}**" if c.told else value) + (f" [{interval}]" if interval else "")


def _ordered(results: Results) -> list[Difference]:
    """The gains over the bare model by split, then by method."""
    splits, methods = list(results.splits), list(results.methods)
    known = [c for c in results.gains if c.split in splits and c.method in methods]
    return sorted(known, key=lambda c: (splits.index(c.split), methods.index(c.method)))


def _accuracy(results: Results) -> str:
    splits = [TRAIN] if any(results.read(m, TRAIN) for m in results.methods) else []
    splits += results.splits
    rows = [
        [_plain(wording.label(m)), *(_cell(results.read(m, s)) for s in splits)]
        for m in (BASE, *results.methods)
    ]
    published = results.study.published
    for name, shares in published.rows.items() if published else ():
        cells = [wording.share(shares.get(s)) for s in splits]
        rows.append([f"*published: {_plain(wording.label(name))}*", *cells])
    table = _table(["method", *splits], rows, numeric_from=1)
    return f"{table}\n\n*Published: {_plain(published.note)}*" if published else table


def _cell(row: Measurement | None) -> str:
    if row is None:
        return wording.NOTHING
    interval = wording.bounds(row.low, row.high)
    return f"{wording.share(row.value)} [{interval}]" if interval else wording.share(row.value)


def _verdicts(rows: Sequence[Difference]) -> str:
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
        interval = wording.bounds(c.low, c.high, wording.points, ", ")
        verdict = f"{c.verdict} in this run" if c.told and c.in_this_run else c.verdict
        body.append(
            [
                _plain(c.split),
                _plain(wording.label(c.method)),
                wording.alpha(c.alpha),
                wording.points(c.value) + (f" [{interval}]" if interval else ""),
                _plain(wording.small(c.p_holm)),
                wording.points(c.mde, sign=False),
                f"**{verdict}**" if c.told else verdict,
            ]
        )
    return _table(header, body, numeric_from=2, numeric_to=6)


def _ran(results: Results) -> str:
    study = results.study
    lines = [
        f"- model `{study.model}`, digest `{study.model_digest}`, {study.dtype} on {study.device}",
        (f"- suite `{study.suite}`, " if study.suite else "- ")
        + (f"trained on `{study.train}`" if study.train else "training data not known")
        + (f" ({wording.count(study.train_items, 'item')}" if study.train_items else "")
        + (f", {wording.count(study.train_pairs, 'pair')})" if study.train_pairs else "")
        + ("" if study.train_pairs or not study.train_items else ")"),
    ]
    for name, split in study.splits.items():
        lines.append(
            f"- {_plain(name)}: `{split.spec}`, {wording.count(split.items, 'item')}, "
            f"{wording.count(split.pairs, 'pair')}"
            + (f", {split.dropped} dropped as over-long" if split.dropped else "")
        )
    lines.append(f"- seeds {', '.join(map(str, study.seeds)) or wording.NOTHING}")
    lines.append(f"- {', '.join(f'{k} {v}' for k, v in study.versions.items())}")
    if study.commit:
        lines.append(f"- commit `{study.commit}`")
    return "\n".join(lines)


def _table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    numeric_from: int,
    numeric_to: int | None = None,
) -> str:
    """A Markdown table whose columns line up in the source, too."""
    cells = [[_plain(h) for h in header], *rows]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(header))]
    numeric = range(numeric_from, len(header) if numeric_to is None else numeric_to)
    rule = [
        f"{'-' * (widths[i] - 1)}:" if i in numeric else "-" * widths[i] for i in range(len(header))
    ]
    lines = []
    for row in [cells[0], rule, *cells[1:]]:
        padded = [
            text.rjust(widths[i]) if i in numeric else text.ljust(widths[i])
            for i, text in enumerate(row)
        ]
        lines.append(f"| {' | '.join(padded)} |")
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Text that Markdown shows as it stands."""
    for character in "\\`*_<>|":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())
