"""Figures of a comparison: accuracies, differences, dose and damage, training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.ticker import FixedLocator, FuncFormatter

from trimtab.report import svg, wording
from trimtab.report.looks import Look, looks_of
from trimtab.report.results import ALPHA_1, BASE, DOSE, EQUAL_KL, NEUTRAL, Measurement, Results
from trimtab.report.results import Difference as Diff
from trimtab.report.svg import GRID, INK, MUTED, PAINT, RULE, Panel


class Mark(NamedTuple):
    """A share or a difference on a row: marker and interval."""

    row: str
    look: Look
    line: Measurement | Diff
    hollow: bool = False
    size: float = 7.5
    width: float = 2
    down: float = 0.0
    """How far below the middle of its row."""
    bar: float = 0.0
    """Height of the bar that spans what a difference could not have seen."""
    seeds: Sequence[Measurement] = ()
    """Small dots."""


def rows(
    title: str,
    note: str,
    about: str,
    name: str,
    marks: Sequence[Mark],
    limits: tuple[float, float],
    axis: str,
    *,
    at: float | None = None,
    pitch: int = 24,
    scale: float = 100,
    **size: Any,
) -> Panel:
    """Marks on named rows, in percent or points (`scale` 1: in their own unit), with a line at 0 or,
    dashed, at the bare model's share."""
    names = list(dict.fromkeys(m.row for m in marks))
    with svg.rows(names, limits, pitch, title, note, **size) as (figure, ax):
        if at is not None and math.isfinite(at):
            ax.axvline(scale * at, color=MUTED, lw=1, dashes=(3, 3) if at else ())
        for m in marks:
            y, line = names.index(m.row) + m.down, m.line
            if m.bar and isinstance(line, Diff) and math.isfinite(line.mde):
                left, colour = -scale * line.mde, {"color": GRID, "zorder": 0.5}
                ax.barh(y, 2 * scale * line.mde, m.bar, left, **colour)
            for seed in m.seeds:
                svg.dot(ax, m.look, scale * seed.value, y + 0.3, size=2.5)
            ends = [scale * line.low, scale * line.high]
            ax.plot(ends, [y, y], color=PAINT[m.look.colour], lw=m.width, zorder=2)
            svg.dot(ax, m.look, scale * line.value, y, m.size, hollow=m.hollow)
        if scale != 100:
            svg.ticks(ax.xaxis)
        ax.set_xlabel(axis)
    return svg.panel(figure, about, name)


def limits(lines: Sequence[Measurement | Diff]) -> tuple[float, float]:
    """Axis limits for shares, at most 100 %, or for differences, 0 among them."""
    ends = [100 * x for c in lines for x in (c.low, c.high, c.value)]
    if any(isinstance(c, Diff) for c in lines):
        return svg.limits([*ends, 0], 5)
    return svg.limits(ends, 5, at_most=100)


def accuracy(results: Results) -> list[Panel]:
    """A panel a split: accuracy of the bare model and of every method, with 95 % intervals.

    Small dots are single seeds; the dashed line is the bare model.
    """
    looks, methods = looks_of(results.methods), (BASE, *results.methods)
    found = {
        s: [(m, r) for m in methods if (r := results.read(m, s)) is not None]
        for s in results.splits
    }
    ends, panels = limits([r for pairs in found.values() for _, r in pairs]), []
    for split, pairs in found.items():
        seeds = {m: results.seeds(m, split) for m, _ in pairs}
        marks = [
            Mark(wording.label(m), looks[m], row, seeds=seeds[m] if len(seeds[m]) > 1 else ())
            for m, row in pairs
        ]
        items = next((r.items for _, r in pairs if r.items is not None), None)
        note, base = wording.count(items, "item") if items else "", results.read(BASE, split)
        named = (split, note, f"Accuracy on {split}", f"acc-{split}")
        at = base.value if base else None
        panels.append(rows(*named, marks, ends, "accuracy, %", at=at))
    return panels


def gain(*runs: Results, named: Callable[[Results, str], str] | None = None) -> list[Panel]:
    """A panel a run and split: each method's difference from the baseline in points, with 95 %
    intervals.

    Two lines a method: at alpha 1 above, at equal KL below and thinner. A filled marker is a
    verdict, a hollow one "cannot tell"; the grey bar spans what could not have been seen. `named`
    gives a panel its heading; by default it is the split.
    """
    known = [c for x in runs for c in x.comparisons if math.isfinite(c.value)]
    ends, panels = limits(known), []
    for r, split in [(x, s) for x in runs for s in x.splits]:
        rank = {m: i for i, m in enumerate(r.methods)}
        mine = [c for c in r.comparisons if c.split == split and math.isfinite(c.value)]
        looks, marks = looks_of(r.methods), []
        for c in sorted(mine, key=lambda c: rank[c.method]):
            size, width, down = (5, 1, 0.22) if c.at == EQUAL_KL else (7.5, 2, -0.16)
            row = wording.label(c.method)
            marks.append(Mark(row, looks[c.method], c, not c.told, size, width, down, 0.26))
        if marks:
            baseline, name = wording.label(known[0].against), named(r, split) if named else split
            about = f"Difference from {baseline} on {name}"
            head, axis = (
                (name, f"against {baseline}", about, f"gain-{name}"),
                f"points above {baseline}",
            )
            size = {"width": 440} if named else {}
            panels.append(rows(*head, marks, ends, axis, at=0, pitch=34, **size))
    return panels


def shifts(studies: Sequence[Results]) -> list[Panel]:
    """A panel a model and method: its gain over the baseline on every shift, at alpha 1.

    Rows are splits of suites, in order. A filled marker is a verdict, a hollow one "cannot tell";
    the grey bar spans what could not have been seen.
    """
    known = [(r, c) for r in studies for c in r.at(ALPHA_1) if math.isfinite(c.value)]
    ends, panels = limits([c for _, c in known]), []
    many = len({r.study.model for r in studies}) > 1
    for model, method in dict.fromkeys((r.study.model, c.method) for r, c in known):
        marks = [
            Mark(
                *(wording.shift(r.study.suite, c.split), looks_of(r.methods)[method], c),
                *(not c.told, 6.5, 2, 0, 0.4),
            )
            for r, c in known
            if (r.study.model, c.method) == (model, method)
        ]
        baseline, name = (wording.label(m) for m in (known[0][1].against, method))
        note = wording.model(model) if many else f"against {baseline}"
        head = (name, note, f"Gain of {name} over {baseline} on each shift", f"shift-{len(panels)}")
        panels.append(rows(*head, marks, ends, f"points above {baseline}", at=0, width=400))
    return panels


def dose(results: Results) -> list[Panel]:
    """Margin and accuracy over alpha with their intervals; beside them KL and the rise in NLL."""
    panels = []
    for split, metric, title, unit in (
        (DOSE, "margin", "Margin", "nats per token"),
        (DOSE, "accuracy", "Accuracy", "%"),
        (NEUTRAL, "kl", "Damage: KL from the bare model", "nats per token, root scale"),
        (NEUTRAL, "nll_rise", "Damage: rise in NLL", "nats per token, neutral text"),
    ):
        curves = {m: results.curve(m, split, metric) for m in results.methods}
        curves = {m: points for m, points in curves.items() if len(points) > 1}
        if curves:
            about, rings = f"{title} over alpha", _equal_kl(results) if metric == "kl" else ()
            looks = looks_of(results.methods)
            panels.append(over_alpha(title, unit, about, f"dose-{metric}", curves, looks, rings))
    return panels


def over_alpha(
    title: str,
    unit: str,
    about: str,
    name: str,
    curves: Mapping[str, Sequence[Measurement]],
    looks: Mapping[str, Look],
    rings: Sequence[tuple[Look, float, float]] = (),
    *,
    legend: Callable[[str], str] | None = None,
) -> Panel:
    """A line a method over alpha with its band; KL on a root scale. `rings` are where dials reach a
    level, the dashed line."""
    every = [p for points in curves.values() for p in points]
    alphas, metric = sorted({p.alpha or 0.0 for p in every}), every[0].metric
    scale = 100 if metric == "accuracy" else 1
    with svg.plane(title, unit) as (figure, ax):
        for x in {0, *alphas} & {0, 1}:
            ax.axvline(x, color=RULE, lw=1, dashes=(3, 3) if x else (), zorder=0.6)
        if metric == "kl":
            svg.root_scale(ax)
        for _, _, level in rings[:1]:
            ax.axhline(level, color=MUTED, lw=1, dashes=(3, 3), zorder=0.7)
        for look, at, level in rings:
            if alphas[0] <= at <= alphas[-1]:
                svg.dot(ax, look, at, level, size=6, hollow=True)
        for method, points in curves.items():
            at = [p.alpha or 0.0 for p in points]
            ends = ([scale * getattr(p, e) for p in points] for e in ("value", "low", "high"))
            value, low, high = ends
            label = {"label": legend(method)} if legend else {}
            svg.line(ax, looks[method], at, value, (low, high), **label)
        if len(alphas) <= 9:  # ticks at the alphas themselves
            ax.xaxis.set_major_locator(FixedLocator(alphas))
            ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: wording.alpha(x)))
        ax.set_xlabel("α")
        ax.margins(x=0.04)
        if metric == "kl":
            svg.root_ticks(ax, max([p.value for p in every if math.isfinite(p.value)], default=0.0))
        else:
            svg.ticks(ax.yaxis)
            ax.axhline(0, color=RULE, lw=1, zorder=0.6) if metric != "accuracy" else None
        if legend:
            ax.legend(frameon=False, fontsize=10, labelcolor=INK, ncols=2)
    return svg.panel(figure, about, name)


def training(results: Results) -> list[Panel]:
    """A panel a training metric: its value over optimiser steps, a line a method and seed."""
    metrics = dict.fromkeys(point.metric for point in results.curves)
    first = [m for m in ("loss", "accuracy", "margin") if m in metrics]
    order, looks = {m: i for i, m in enumerate(results.methods)}, looks_of(results.methods)
    panels = []
    for metric in dict.fromkeys([*first, *metrics]):
        lines: dict[tuple[str, int | None], list[tuple[int, float]]] = {}
        for p in results.curves:
            if p.metric == metric:
                lines.setdefault((p.method, p.seed), []).append((p.step, p.value))
        lines = {key: sorted(line) for key, line in lines.items() if len(line) > 1}
        if not lines:
            continue
        many = len({seed for _, seed in lines}) > 1
        style: dict[str, Any] = {"lw": 1.1, "alpha": 0.75} if many else {"lw": 1.6}
        with svg.plane(metric.replace("_", " "), "") as (figure, ax):
            for key in sorted(lines, key=lambda k: (order.get(k[0], 99), k[0], k[1] or 0)):
                step, value = zip(*lines[key], strict=True)
                svg.line(ax, Look(looks[key[0]].colour, ""), step, value, **style)
            svg.ticks(ax.xaxis, integer=True)
            svg.ticks(ax.yaxis)
            ax.set_xlabel("optimiser step")
            ax.margins(x=0.02)
        panels.append(svg.panel(figure, f"Training: {metric}", f"train-{metric}"))
    return panels


def _equal_kl(results: Results) -> list[tuple[Look, float, float]]:
    """Where each dial has the baseline's KL at alpha 1: there dials are compared again."""
    level = results.damage(results.baseline, "kl") if results.baseline else None
    if level is None or not math.isfinite(level):
        return []
    looks = looks_of(results.methods)
    reached = {m: results.alpha_of_equal_kl(m) for m in results.methods}
    return [(looks[m], at, level) for m, at in reached.items() if at is not None]
