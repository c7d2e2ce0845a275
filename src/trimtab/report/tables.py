"""Tables that the pages of comparisons share, a function each, and what was run in a list."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from trimtab.report import wording
from trimtab.report.blocks import Block, Section, Table, Text, listed, plain
from trimtab.report.looks import Look, looks_of
from trimtab.report.results import BASE, TRAIN, Difference, Measurement, Results

COSTS = {
    "fit_seconds": "time to fit, s",
    "evaluate_seconds": "time to evaluate, s",
    "parameters": "parameters",
    "size_bytes": "size on disk, bytes",
    "peak_memory_bytes": "peak memory, bytes",
    "steps": "optimiser steps",
}
"""What costs are called on the page; others show their own name."""


def looks(methods: Sequence[str]) -> Mapping[str, Look]:
    """The looks of methods, by the names that a page has for them."""
    known = looks_of(methods)
    return {wording.label(m): known[m] for m in (BASE, *methods)}


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


def other_metric(results: Results, metric: str) -> list[Block]:
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
    return wording.within(wording.share(row.value), wording.bounds(row.low, row.high))


def _number(row: Measurement | None) -> str:
    if row is None:
        return wording.NOTHING
    ends = wording.bounds(row.low, row.high, wording.number, ", ")
    return wording.within(wording.number(row.value), ends)


def gain(c: Difference | None, *, strong: bool = True) -> str:
    """A difference in points with its interval; bold where it is a verdict."""
    if c is None:
        return wording.NOTHING
    interval = wording.bounds(c.low, c.high, wording.points, ", ")
    value = wording.points(c.value)
    return wording.within(f"**{value}**" if c.told and strong else value, interval)


def verdicts(rows: Sequence[Difference]) -> Table:
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


def by_split(results: Results) -> list[Difference]:
    """The gains over the bare model by split, then by method."""
    splits, methods = list(results.splits), list(results.methods)
    known = [c for c in results.gains if c.split in splits and c.method in methods]
    return sorted(known, key=lambda c: (splits.index(c.split), methods.index(c.method)))


def costs(results: Results) -> Iterator[Block]:
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
            Table(
                ["", "α = 0, under every dial"], [["bare model", answer or ""]], (0, 0), words=True
            )
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
    if study.commit:
        lines.append(f"commit `{study.commit}`")
    return listed(lines).words
