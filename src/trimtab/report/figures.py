"""Figures of a comparison: accuracies, differences, dose and damage, training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from trimtab.report import svg, wording
from trimtab.report.looks import Look, looks_of
from trimtab.report.results import (
    ALPHA_1,
    BASE,
    DOSE,
    EQUAL_KL,
    NEUTRAL,
    Difference,
    Results,
)
from trimtab.report.svg import GRID, MUTED, NICE, RULE, Panel


def accuracy(results: Results) -> list[Panel]:
    """A panel a split: accuracy of the bare model and of every method, with 95 % intervals.

    Small dots are single seeds; the dashed line is the bare model.
    """
    methods = [m for m in (BASE, *results.methods) if _any(results, m)]
    rows = {s: [(m, r) for m in methods if (r := results.read(m, s))] for s in results.splits}
    ends = [
        100 * x
        for pairs in rows.values()
        for _, r in pairs
        for x in (r.value, r.low, r.high)
        if math.isfinite(x)
    ]
    limits, looks = svg.limits(ends, 5, at_most=100), looks_of(results.methods)
    panels = []
    for split, pairs in rows.items():
        items = next((r.items for _, r in pairs if r.items is not None), None)
        names = [wording.label(m) for m, _ in pairs]
        note = wording.count(items, "item") if items else ""
        with svg.rows(names, limits, 24, split, note) as (figure, ax):
            base = results.read(BASE, split)
            if base is not None and math.isfinite(base.value):
                ax.axvline(100 * base.value, color=MUTED, lw=1, dashes=(3, 3))
            for y, (method, row) in enumerate(pairs):
                seeds = results.seeds(method, split)
                for seed in seeds if len(seeds) > 1 else []:
                    svg.dot(ax, looks[method], 100 * seed.value, y + 0.3, size=2.5)
                svg.whisker(ax, looks[method], 100 * row.low, 100 * row.high, y)
                svg.dot(ax, looks[method], 100 * row.value, y)
            ax.set_xlabel("accuracy, %")
        panels.append(svg.panel(figure, f"Accuracy on {split}", f"acc-{split}"))
    return panels


def gain(*runs: Results, named: Callable[[Results, str], str] | None = None) -> list[Panel]:
    """A panel a run and split: each method's difference from the baseline in points, with 95 %
    intervals.

    Two lines a method: at alpha 1 above, at equal KL below and thinner. A filled marker is a
    verdict, a hollow one "cannot tell"; the grey bar spans what could not have been seen. `named`
    gives a panel its heading; by default it is the split.
    """
    rows = [c for r in runs for c in r.comparisons if math.isfinite(c.value)]
    if not rows:
        return []
    baseline = wording.label(rows[0].against)
    limits = svg.limits([100 * x for c in rows for x in (c.low, c.high, c.value, 0)], 5)
    panels = []
    for results, split in [(r, s) for r in runs for s in r.splits]:
        mine = [c for c in results.comparisons if c.split == split and math.isfinite(c.value)]
        if not mine:
            continue
        methods = [m for m in results.methods if any(c.method == m for c in mine)]
        name = named(results, split) if named else split
        look: dict[str, Any] = {"width": 480, "most": 30} if named else {}
        names, note = [wording.label(m) for m in methods], f"against {baseline}"
        looks = looks_of(results.methods)
        with svg.rows(names, limits, 34, name, note, **look) as (figure, ax):
            ax.axvline(0, color=MUTED, lw=1)
            for c in mine:
                second = c.at == EQUAL_KL
                y = methods.index(c.method) + (0.22 if second else -0.16)
                size, width = (5, 1) if second else (7.5, 2)
                _difference(ax, c, looks[c.method], y, size, width, bar=0.26)
            ax.set_xlabel(f"points above {baseline}")
        panels.append(svg.panel(figure, f"Difference from {baseline} on {name}", f"gain-{name}"))
    return panels


def shifts(studies: Sequence[Results]) -> list[Panel]:
    """A panel a model and method: its gain over the baseline on every shift, at alpha 1.

    Rows are splits of suites, in order. A filled marker is a verdict, a hollow one "cannot tell";
    the grey bar spans what could not have been seen.
    """
    rows = [(r, c) for r in studies for c in r.at(ALPHA_1) if math.isfinite(c.value)]
    if not rows:
        return []
    baseline = wording.label(rows[0][1].against)
    limits = svg.limits([100 * x for _, c in rows for x in (c.low, c.high, c.value, 0)], 5)
    panels = []
    for model in dict.fromkeys(r.study.model for r, _ in rows):
        here = [(r, c) for r, c in rows if r.study.model == model]
        many = len({r.study.model for r in studies}) > 1
        names = list(dict.fromkeys(wording.shift(r.study.suite, c.split) for r, c in here))
        for method in dict.fromkeys(c.method for _, c in here):
            mine = [(r, c) for r, c in here if c.method == method]
            note = wording.model(model) if many else f"against {baseline}"
            look = {"width": 400, "most": 27}
            with svg.rows(names, limits, 24, wording.label(method), note, **look) as (figure, ax):
                ax.axvline(0, color=MUTED, lw=1)
                for r, c in mine:
                    y = names.index(wording.shift(r.study.suite, c.split))
                    _difference(ax, c, looks_of(r.methods)[method], y, 6.5)
                ax.set_xlabel(f"points above {baseline}")
            title = f"Gain of {wording.label(method)} over {baseline} on each shift"
            panels.append(svg.panel(figure, title, f"shift-{len(panels)}"))
    return panels


def dose(results: Results) -> list[Panel]:
    """Margin and accuracy over alpha with their intervals; beside them KL and the rise in NLL."""
    panels, looks = [], looks_of(results.methods)
    for split, metric, title, unit in (
        (DOSE, "margin", "Margin", "nats per token"),
        (DOSE, "accuracy", "Accuracy", "%"),
        (NEUTRAL, "kl", "Damage: KL from the bare model", "nats per token, root scale"),
        (NEUTRAL, "nll_rise", "Damage: rise in NLL", "nats per token, neutral text"),
    ):
        scale = 100 if metric == "accuracy" else 1
        curves = {m: results.curve(m, split, metric) for m in results.methods}
        curves = {m: points for m, points in curves.items() if len(points) > 1}
        if not curves:
            continue
        with svg.plane(title, unit) as (figure, ax):
            alphas = sorted({p.alpha for points in curves.values() for p in points if p.alpha})
            for x in (0, 1):
                if x == 0 or 1 in alphas:
                    ax.axvline(x, color=RULE, lw=1, dashes=() if x == 0 else (3, 3), zorder=0.6)
            if metric == "kl":
                svg.root_scale(ax)
                _equal_kl(ax, results)
            for method, points in curves.items():
                x = [p.alpha or 0.0 for p in points]
                value, low, high = (
                    [scale * getattr(p, end) for p in points] for end in ("value", "low", "high")
                )
                svg.line(ax, looks[method], x, value, (low, high))
            alpha_axis(ax, [p.alpha or 0.0 for points in curves.values() for p in points])
            if metric == "kl":
                top = [p.value for points in curves.values() for p in points]
                svg.root_ticks(ax, max([x for x in top if math.isfinite(x)], default=0.0))
            else:
                ax.yaxis.set_major_locator(MaxNLocator(5, steps=NICE))
                ax.axhline(0, color=RULE, lw=1, zorder=0.6) if metric != "accuracy" else None
        panels.append(svg.panel(figure, f"{title} over alpha", f"dose-{metric}"))
    return panels


def training(results: Results) -> list[Panel]:
    """A panel a training metric: its value over optimiser steps, a line a method and seed."""
    metrics = dict.fromkeys(point.metric for point in results.curves)
    first = [m for m in ("loss", "accuracy", "margin") if m in metrics]
    panels = []
    for metric in dict.fromkeys([*first, *metrics]):
        lines: dict[tuple[str, int | None], list[tuple[int, float]]] = {}
        for p in results.curves:
            if p.metric == metric:
                lines.setdefault((p.method, p.seed), []).append((p.step, p.value))
        lines = {key: sorted(line) for key, line in lines.items() if len(line) > 1}
        if not lines:
            continue
        with svg.plane(metric.replace("_", " "), "") as (figure, ax):
            many = len({seed for _, seed in lines}) > 1
            order = {m: i for i, m in enumerate(results.methods)}
            for key in sorted(lines, key=lambda k: (order.get(k[0], 99), k[0], k[1] or 0)):
                step, value = zip(*lines[key], strict=True)
                look = Look(looks_of(results.methods)[key[0]].colour, "")
                style: dict[str, Any] = {"lw": 1.1, "alpha": 0.75} if many else {"lw": 1.6}
                svg.line(ax, look, step, value, **style)
            ax.xaxis.set_major_locator(MaxNLocator(5, steps=NICE, integer=True))
            ax.yaxis.set_major_locator(MaxNLocator(5, steps=NICE))
            ax.set_xlabel("optimiser step")
            ax.margins(x=0.02)
        panels.append(svg.panel(figure, f"Training: {metric}", f"train-{metric}"))
    return panels


def _any(results: Results, method: str) -> bool:
    return any(results.read(method, split) is not None for split in results.splits)


def _difference(
    ax: Axes, c: Difference, look: Look, y: float, size: float, width: float = 2, bar: float = 0.4
) -> None:
    """A difference in points: what could not have been seen, the interval, the marker."""
    if math.isfinite(c.mde):
        ax.barh(y, 200 * c.mde, left=-100 * c.mde, height=bar, color=GRID, zorder=0.5)
    svg.whisker(ax, look, 100 * c.low, 100 * c.high, y, width)
    svg.dot(ax, look, 100 * c.value, y, size, hollow=not c.told)


def _equal_kl(ax: Axes, results: Results) -> None:
    """The baseline's KL at alpha 1 as a line: where it is crossed, dials are compared again."""
    if results.baseline is None:
        return
    at_1 = [p for p in results.curve(results.baseline, NEUTRAL, "kl") if p.alpha == 1]
    if not at_1 or not math.isfinite(at_1[0].value):
        return
    level = at_1[0].value
    ax.axhline(level, color=MUTED, lw=1, dashes=(3, 3), zorder=0.7)
    looks = looks_of(results.methods)
    for method in results.methods:
        reached = 1 if method == results.baseline else results.alpha_of_equal_kl(method)
        if reached is not None:
            svg.dot(ax, looks[method], reached, level, size=6, hollow=True)


def alpha_axis(ax: Axes, alphas: Sequence[float]) -> None:
    """Ticks at the alphas themselves, where they are few."""
    ticks = sorted(set(alphas))
    if len(ticks) <= 9:
        ax.xaxis.set_major_locator(FixedLocator(ticks))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: wording.alpha(x)))
    ax.set_xlabel("α")
    ax.margins(x=0.04)
