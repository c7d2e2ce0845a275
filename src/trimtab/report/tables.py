"""Tables that the pages of comparisons share, a function each, and what was run in a list."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from trimtab.report import wording
from trimtab.report.blocks import Block, Section, Table, Text, listed, plain
from trimtab.report.looks import Look, looks_of
from trimtab.report.results import BASE, TRAIN, About, Difference, Results

COSTS = {
    "fit_seconds": "time to fit, s",
    "fit_cpu_seconds": "processor time to fit, s",
    "evaluate_seconds": "time to evaluate, s",
    "parameters": "parameters",
    "size_bytes": "size on disk, bytes",
    "peak_memory_bytes": "peak memory, bytes",
    "steps": "optimiser steps",
}
"""What costs are called on the page; others show their own name."""
UNITS = {
    "margin": "nats per token: mean log-prob of the better answer less that of the worse",
    "elicitation": "the gain over the bare model as a share of the capability of a model trained on the "
    "target's reference (GENIES)",
}
"""Of metrics that are no percentages."""


def looks(methods: Sequence[str]) -> Mapping[str, Look]:
    """The looks of methods, by the names that a page has for them."""
    known = looks_of(methods)
    return {wording.label(m): known[m] for m in (BASE, *methods)}


def splits_of(results: Results) -> list[str]:
    """Training items first, where they were scored, then each split."""
    seen = [TRAIN] if any(results.read(m, TRAIN) for m in results.methods) else []
    return [*seen, *results.splits]


def by_method(
    methods: Iterable[str],
    columns: Sequence[str],
    cell: Callable[[str, str], str],
    header: Sequence[str] | None = None,
) -> Table:
    """A row a method, a column each of `columns`, headed by their names or by `header`."""
    rows = [[plain(wording.label(m)), *(cell(m, c) for c in columns)] for m in methods]
    return Table(["method", *(header or columns)], rows)


def accuracies(results: Results) -> list[Block]:
    """A row a method, a column a split; then what an earlier publication has."""
    splits, published = splits_of(results), results.study.published
    table = by_method(
        (BASE, *results.methods),
        splits,
        lambda method, split: wording.figure(results.read(method, split)),
        [_titled(results, s) for s in splits],
    )
    if not published:
        return [table]
    rows = [
        [f"*published: {plain(wording.label(name))}*", *(wording.share(x.get(s)) for s in splits)]
        for name, x in published.rows.items()
    ]
    table = replace(table, rows=[*table.rows, *rows])
    return [table, Text(f"*Published: {plain(published.note)}*")]


def _titled(results: Results, split: str) -> str:
    known = results.study.splits.get(split)
    under = "seen" if split == TRAIN else wording.count(known.items, "item") if known else ""
    return f"{split}\n{under}" if under else split


def other_metric(results: Results, metric: str) -> list[Block]:
    """A metric beside accuracy, at alpha 1."""
    splits, share = splits_of(results), metric.startswith("accuracy")
    form, to = (wording.share, "–") if share else (wording.number, ", ")
    methods = [
        m
        for m in (BASE, *results.methods)
        if any(results.read(m, s, metric) is not None for s in splits)
    ]
    table = by_method(
        methods, splits, lambda m, s: wording.figure(results.read(m, s, metric), form, to)
    )
    name = wording.METRICS[metric]
    about = Text(f"{name[0].upper()}{name[1:]}, {UNITS.get(metric, 'percent')}.")
    return [about, table] if methods else []


def judged(
    rows: Sequence[Difference],
    header: Sequence[str],
    lead: Callable[[Difference], Sequence[str]],
    difference: str = "difference",
    *,
    grouped: bool = False,
    form: Callable[..., str] = wording.points,
) -> Table:
    """Differences with their verdicts, a row each, after the cells that `lead` gives."""
    body = [
        [
            *map(plain, lead(c)),
            wording.figure(c, form, ", "),
            plain(wording.small(c.p_holm)),
            form(c.mde, sign=False),
            wording.verdict(c),
        ]
        for c in rows
    ]
    figures = (2 if grouped else len(header), len(header) + 3)
    header = [*header, difference, "p (Holm)", "could see", "verdict"]
    return Table(header, body, figures, grouped=grouped)


def verdicts(rows: Sequence[Difference], unit: str = "points") -> Table:
    """Those of a run, by split; in points, or in another unit as they are."""

    def lead(c: Difference) -> list[str]:
        return [c.split, wording.label(c.method), wording.alpha(c.alpha)]

    form = wording.points if unit == "points" else _plain
    header = ["split", "method", "α"]
    return judged(rows, header, lead, f"difference, {unit}", grouped=True, form=form)


def _plain(value: float, *, sign: bool = True) -> str:
    return wording.number(value, 3, sign=sign)


def costs(results: Results) -> Table:
    """Seconds, parameters, …: a row a method."""
    fields = list(dict.fromkeys(name for cost in results.costs.values() for name in cost))
    order = {m: i for i, m in enumerate(results.methods)}
    return by_method(
        sorted(results.costs, key=lambda m: order.get(m, 99)),
        fields,
        lambda m, field: _cost(results.costs[m].get(field)),
        [COSTS.get(name, name.replace("_", " ")) for name in fields],
    )


def _cost(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return wording.NOTHING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return plain(str(value))
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return wording.number(value, 1)


def prompts(results: Results) -> Iterator[Section]:
    """Answers side by side, of the first seed of each method."""
    first: dict[str, int | None] = {}
    for g in results.generations:
        first.setdefault(g.method, g.seed)
    shown = [g for g in results.generations if g.seed == first[g.method]]
    order = {m: i for i, m in enumerate(results.methods)}
    for prompt in dict.fromkeys(g.prompt for g in shown):
        mine = [g for g in shown if g.prompt == prompt]
        bare = {g.text for g in mine if g.alpha == 0}
        same = len(bare) == 1
        # At 0 every dial is the bare model: said once. Where texts differ, each is shown.
        rest = [g for g in mine if g.method != BASE and not (same and g.alpha == 0)]
        texts = {(g.method, g.alpha): g.text for g in rest}
        alphas = sorted({alpha for _, alpha in texts})
        rows = [
            [wording.label(m), *(texts.get((m, a), wording.NOTHING) for a in alphas)]
            for m in sorted({m for m, _ in texts}, key=lambda m: (order.get(m, 99), m))
        ]
        header = ["method", *(f"α = {wording.alpha(a)}" for a in alphas)]
        tables = [Table(header, rows, (0, 0), words=True)]
        if same:
            row = ["bare model", *bare]
            tables.insert(0, Table(["", "α = 0, under every dial"], [row], (0, 0), words=True))
        yield Section(plain(prompt), tables, folded=True)


def what_ran(results: Results) -> str:
    """Model, data, seeds, versions as a list."""
    study, count = results.study, wording.count
    sizes = [count(study.train_items, "item")] if study.train_items else []
    sizes += [count(study.train_pairs, "pair")] if study.train_pairs and sizes else []
    known = f"trained on `{study.train}`" if study.train else "training data not known"
    lines = [
        f"model `{study.model}`, digest `{study.model_digest}`, {study.dtype} on {study.device}",
        (f"suite `{study.suite}`, " if study.suite else "")
        + known
        + (f" ({', '.join(sizes)})" if sizes else ""),
    ]
    for name, split in study.splits.items():
        dropped = f", {split.dropped} dropped as over-long" if split.dropped else ""
        sizes = [count(split.items, "item"), count(split.pairs, "pair")]
        lines.append(f"{plain(name)}: `{split.spec}`, {', '.join(sizes)}{dropped}")
    lines += [f"seeds {', '.join(map(str, study.seeds)) or wording.NOTHING}", versions(study)]
    return listed([*lines, *([f"commit `{study.commit}`"] if study.commit else [])]).words


def versions(study: About) -> str:
    """Of packages."""
    return ", ".join(f"{name} {version}" for name, version in study.versions.items())
