"""Figures as SVG that follow the page's theme: text stays text, colours are CSS variables.

Matplotlib draws each panel at its real size, one unit a CSS pixel, in placeholder colours that are
then exchanged for variables (`var(--ink)`, `var(--m0)`, …), which the page sets for light and for
dark. The same panels, laid out in one drawing that carries its own colours, make the figure beside
a Markdown page. Same results, same bytes: no dates, fixed ids.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from trimtab.report import wording
from trimtab.report.looks import MARKERS, looks_of
from trimtab.report.results import (
    ALPHA_1,
    BASE,
    DOSE,
    EQUAL_KL,
    NEUTRAL,
    Measurement,
    Results,
)

LIGHT = {
    "page": "#fdfcfa",
    "ink": "#21201d",
    "muted": "#6b6862",
    "rule": "#d9d5cd",
    "grid": "#e9e6df",
    "m0": "#0b67a8",
    "m1": "#c2500c",
    "m2": "#00805a",
    "m3": "#a6428b",
    "m4": "#8f6c00",
    "m5": "#147386",
    "m6": "#8f2d33",
    "m7": "#5a5fb0",
}
DARK = {
    "page": "#16171a",
    "ink": "#e6e4df",
    "muted": "#a09d96",
    "rule": "#3a3b40",
    "grid": "#2a2b30",
    "m0": "#5fb2f0",
    "m1": "#f5904e",
    "m2": "#3fcc9e",
    "m3": "#e48fcb",
    "m4": "#e0b93f",
    "m5": "#7bd3e2",
    "m6": "#ee8a8a",
    "m7": "#a8aef5",
}
"""Colours of page and figures. The methods' eight are Okabe and Ito's hues (2008), moved in
lightness until each has at least 4.5:1 against its page; `looks` says whose they are."""

SANS = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'

NICE = (1, 2, 2.5, 5, 10)
"""Steps that ticks may take, times a power of ten."""

# Placeholder colours: no real colour, so that exchanging them afterwards is safe.
_PLACEHOLDER = {name: f"#0{i:x}a{i:x}0{i:x}" for i, name in enumerate(LIGHT)}
INK, MUTED, RULE, GRID, PAGE = (_PLACEHOLDER[n] for n in ("ink", "muted", "rule", "grid", "page"))

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "trimtab",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 12,
    "axes.unicode_minus": True,
    "axes.facecolor": "none",
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 11,
    "axes.linewidth": 1,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "grid.color": GRID,
    "grid.linewidth": 1,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True)
class Panel:
    """One drawing: an `<svg>` element in CSS variables, its size in CSS pixels, what it shows."""

    svg: str
    width: int
    height: int
    title: str


@dataclass(frozen=True)
class Key:
    """A legend entry: the method's name, the CSS variable of its colour, its marker's path."""

    name: str
    colour: str
    path: str


def keys(results: Results, methods: Sequence[str]) -> list[Key]:
    """Legend entries for `methods`, in the colours and shapes that every figure uses."""
    looks = looks_of(results.methods)
    return [
        Key(wording.label(m), f"var(--{looks[m].colour})", MARKERS[looks[m].marker])
        for m in methods
    ]


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
    limits = _limits(ends, 5, at_most=100)
    panels = []
    for split, pairs in rows.items():
        items = next((r.items for _, r in pairs if r.items is not None), None)
        with _rows(
            [m for m, _ in pairs],
            limits,
            24,
            split,
            wording.count(items, "item") if items else "",
        ) as (figure, ax):
            base = results.read(BASE, split)
            if base is not None and math.isfinite(base.value):
                ax.axvline(100 * base.value, color=MUTED, lw=1, dashes=(3, 3))
            for y, (method, row) in enumerate(pairs):
                seeds = results.seeds(method, split)
                for seed in seeds if len(seeds) > 1 else []:
                    _dot(ax, results, method, 100 * seed.value, y + 0.3, size=2.5)
                _whisker(ax, results, method, 100 * row.low, 100 * row.high, y)
                _dot(ax, results, method, 100 * row.value, y)
            ax.set_xlabel("accuracy, %")
        panels.append(_panel(figure, f"Accuracy on {split}", f"acc-{split}"))
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
    limits = _limits([100 * x for c in rows for x in (c.low, c.high, c.value, 0)], 5)
    panels = []
    for results, split in [(r, s) for r in runs for s in r.splits]:
        mine = [c for c in results.comparisons if c.split == split and math.isfinite(c.value)]
        if not mine:
            continue
        methods = [m for m in results.methods if any(c.method == m for c in mine)]
        name = named(results, split) if named else split
        look: dict[str, Any] = {"width": 480, "most": 30} if named else {}
        with _rows(methods, limits, 34, name, f"against {baseline}", **look) as (figure, ax):
            ax.axvline(0, color=MUTED, lw=1)
            for c in mine:
                second = c.at == EQUAL_KL
                y = methods.index(c.method) + (0.22 if second else -0.16)
                if math.isfinite(c.mde):
                    bar = {"left": -100 * c.mde, "height": 0.26, "color": GRID}
                    ax.barh(y, 200 * c.mde, zorder=0.5, **bar)
                low, high, width = 100 * c.low, 100 * c.high, 1 if second else 2
                _whisker(ax, results, c.method, low, high, y, width=width)
                size = 5 if second else 7.5
                x = 100 * c.value
                _dot(ax, results, c.method, x, y, size=size, hollow=not c.told)
            ax.set_xlabel(f"points above {baseline}")
        panels.append(_panel(figure, f"Difference from {baseline} on {name}", f"gain-{name}"))
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
    limits = _limits([100 * x for _, c in rows for x in (c.low, c.high, c.value, 0)], 5)
    panels = []
    for model in dict.fromkeys(r.study.model for r, _ in rows):
        here = [(r, c) for r, c in rows if r.study.model == model]
        many = len({r.study.model for r in studies}) > 1
        names = list(dict.fromkeys(wording.shift(r.study.suite, c.split) for r, c in here))
        for method in dict.fromkeys(c.method for _, c in here):
            mine = [(r, c) for r, c in here if c.method == method]
            note = wording.model(model) if many else f"against {baseline}"
            look = {"width": 400, "most": 27}
            with _rows(names, limits, 24, wording.label(method), note, **look) as (figure, ax):
                ax.axvline(0, color=MUTED, lw=1)
                for r, c in mine:
                    y = names.index(wording.shift(r.study.suite, c.split))
                    if math.isfinite(c.mde):
                        size = {"left": -100 * c.mde, "height": 0.4, "color": GRID}
                        ax.barh(y, 200 * c.mde, zorder=0.5, **size)
                    _whisker(ax, r, method, 100 * c.low, 100 * c.high, y)
                    _dot(ax, r, method, 100 * c.value, y, size=6.5, hollow=not c.told)
                ax.set_xlabel(f"points above {baseline}")
            title = f"Gain of {wording.label(method)} over {baseline} on each shift"
            panels.append(_panel(figure, title, f"shift-{len(panels)}"))
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
        scale = 100 if metric == "accuracy" else 1
        curves = {m: results.curve(m, split, metric) for m in results.methods}
        curves = {m: points for m, points in curves.items() if len(points) > 1}
        if not curves:
            continue
        with _plane(f"{title}", unit) as (figure, ax):
            alphas = sorted({p.alpha for points in curves.values() for p in points if p.alpha})
            for x in (0, 1):
                if x == 0 or 1 in alphas:
                    ax.axvline(x, color=RULE, lw=1, dashes=() if x == 0 else (3, 3), zorder=0.6)
            if metric == "kl":
                ax.set_yscale("function", functions=(_root, _square))
                _equal_kl(ax, results)
            for method, points in curves.items():
                _line(ax, results, method, points, scale)
            _alpha_axis(ax, [p.alpha or 0.0 for points in curves.values() for p in points])
            if metric == "kl":
                top = [p.value for points in curves.values() for p in points]
                _root_ticks(ax, max([x for x in top if math.isfinite(x)], default=0.0))
            else:
                ax.yaxis.set_major_locator(MaxNLocator(5, steps=NICE))
                ax.axhline(0, color=RULE, lw=1, zorder=0.6) if metric != "accuracy" else None
        panels.append(_panel(figure, f"{title} over alpha", f"dose-{metric}"))
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
        with _plane(metric.replace("_", " "), "") as (figure, ax):
            many = len({seed for _, seed in lines}) > 1
            order = {m: i for i, m in enumerate(results.methods)}
            for key in sorted(lines, key=lambda k: (order.get(k[0], 99), k[0], k[1] or 0)):
                line, (colour, _) = lines[key], _look(results, key[0])
                ax.plot(
                    [step for step, _ in line],
                    [value for _, value in line],
                    color=colour,
                    lw=1.1 if many else 1.6,
                    alpha=0.75 if many else 1,
                )
            ax.xaxis.set_major_locator(MaxNLocator(5, steps=NICE, integer=True))
            ax.yaxis.set_major_locator(MaxNLocator(5, steps=NICE))
            ax.set_xlabel("optimiser step")
            ax.margins(x=0.02)
        panels.append(_panel(figure, f"Training: {metric}", f"train-{metric}"))
    return panels


def sheet(panels: Sequence[Panel], columns: int = 3) -> str:
    """One standalone SVG file from several panels, with its own colours, light and dark."""
    gap, margin = 20, 16
    parts, y, width = [], margin, 0
    for start in range(0, len(panels), columns):
        line = panels[start : start + columns]
        x = margin
        for panel in line:
            place = f'<svg x="{x}" y="{y}" width="{panel.width}" height="{panel.height}" '
            parts.append(panel.svg.replace("<svg ", place, 1))
            x += panel.width + gap
        width = max(width, x - gap + margin)
        y += max(panel.height for panel in line) + gap
    height = y - gap + margin
    names = ", ".join(panel.title for panel in panels)
    # Pictures within a drawing are linked by a prefix that a page knows and a file must declare.
    linked = any("xlink:" in part for part in parts)
    prefix = ' xmlns:xlink="http://www.w3.org/1999/xlink"' if linked else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg"{prefix} width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" aria-label="{_attribute(names)}">\n'
        f"<style>svg{{{variables(LIGHT)}--sans:{SANS}}}"
        f"@media (prefers-color-scheme:dark){{svg{{{variables(DARK)}}}}}</style>\n"
        f'<rect width="{width}" height="{height}" fill="var(--page)"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def variables(colours: dict[str, str]) -> str:
    """CSS declarations of a set of colours."""
    return "".join(f"--{name}:{value};" for name, value in colours.items())


def _look(results: Results, method: str) -> tuple[str, str]:
    """A method's placeholder colour and marker."""
    look = looks_of(results.methods)[method]
    return _PLACEHOLDER[look.colour], look.marker


def _any(results: Results, method: str) -> bool:
    return any(results.read(method, split) is not None for split in results.splits)


@contextmanager
def _figure(width: int, height: int) -> Iterator[Figure]:
    """A figure of that many CSS pixels, whatever style the user's matplotlib has."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=(width / 72, height / 72), facecolor="none")
        FigureCanvasSVG(figure)
        yield figure


@contextmanager
def _rows(
    methods: Sequence[str],
    limits: tuple[float, float],
    pitch: int,
    title: str,
    note: str,
    *,
    width: int = 340,
    most: int = 19,
) -> Iterator[tuple[Figure, Axes]]:
    """A panel with one row a method (or a shift), named at the left, and a common x axis."""
    top, bottom = 36, 42
    names = [_short(wording.label(m), most) for m in methods]
    left = min(17 + 7 * most, 20 + round(7 * max(len(name) for name in names)))
    height = top + pitch * len(methods) + bottom
    with _figure(width, height) as figure:
        inside = (width - left - 14) / width, pitch * len(methods) / height
        ax = figure.add_axes((left / width, bottom / height, *inside))
        ax.set_xlim(limits)
        ax.set_ylim(len(methods) - 0.5, -0.5)
        ax.set_yticks(range(len(methods)), names)
        ax.tick_params(axis="y", length=0, labelcolor=INK, pad=6)
        ax.tick_params(axis="x", labelsize=11)
        ax.spines["left"].set_visible(False)
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=NICE, integer=True))
        ax.grid(axis="x")
        figure.text(4 / width, 1 - 15 / height, _short(title, 30), weight="bold", size=13)
        figure.text(1 - 14 / width, 1 - 15 / height, note, ha="right", size=11, color=MUTED)
        yield figure, ax


@contextmanager
def _plane(title: str, unit: str) -> Iterator[tuple[Figure, Axes]]:
    """A panel for lines over a continuous axis."""
    width, height, left, top, bottom = 420, 270, 54, 38, 46
    with _figure(width, height) as figure:
        inside = (width - left - 14) / width, (height - top - bottom) / height
        ax = figure.add_axes((left / width, bottom / height, *inside))
        ax.tick_params(labelsize=11)
        ax.grid(axis="y")
        figure.text(4 / width, 1 - 16 / height, title, weight="bold", size=13)
        figure.text(1 - 14 / width, 1 - 16 / height, unit, ha="right", size=11, color=MUTED)
        yield figure, ax


def _dot(
    ax: Axes,
    results: Results,
    method: str,
    x: float,
    y: float,
    size: float = 7.5,
    hollow: bool = False,
) -> None:
    fill, marker = _look(results, method)
    # A rim in the page's colour parts a marker from lines; a small one it would swallow.
    edge = PAGE if size > 5 and not hollow else fill
    ax.plot(
        [x],
        [y],
        marker=marker,
        ms=size + (1 if edge == PAGE else 0),
        mfc=PAGE if hollow else fill,
        mec=edge,
        mew=1.5 if hollow else 1,
        ls="none",
        zorder=3,
        clip_on=False,  # at 0 and 100 %, too, it is whole
    )


def _whisker(
    ax: Axes,
    results: Results,
    method: str,
    low: float,
    high: float,
    y: float,
    width: float = 2,
) -> None:
    colour, _ = _look(results, method)
    ax.plot([low, high], [y, y], color=colour, lw=width, zorder=2)


def _line(
    ax: Axes, results: Results, method: str, points: Sequence[Measurement], scale: float
) -> None:
    colour, marker = _look(results, method)
    x = [p.alpha or 0.0 for p in points]
    low, high = ([scale * getattr(p, end) for p in points] for end in ("low", "high"))
    ax.fill_between(x, low, high, color=colour, alpha=0.1, lw=0)
    ax.plot(
        x,
        [scale * p.value for p in points],
        color=colour,
        lw=1.8,
        marker=marker,
        ms=7.5,
        mec=PAGE,
        mew=1,
        zorder=3,
        clip_on=False,
    )


def _equal_kl(ax: Axes, results: Results) -> None:
    """The baseline's KL at alpha 1 as a line: where it is crossed, dials are compared again."""
    if results.baseline is None:
        return
    at_1 = [p for p in results.curve(results.baseline, NEUTRAL, "kl") if p.alpha == 1]
    if not at_1 or not math.isfinite(at_1[0].value):
        return
    level = at_1[0].value
    ax.axhline(level, color=MUTED, lw=1, dashes=(3, 3), zorder=0.7)
    for method in results.methods:
        reached = 1 if method == results.baseline else results.alpha_of_equal_kl(method)
        if reached is not None:
            _dot(ax, results, method, reached, level, size=6, hollow=True)


def _alpha_axis(ax: Axes, alphas: Sequence[float]) -> None:
    ticks = sorted(set(alphas))
    if len(ticks) <= 9:
        ax.xaxis.set_major_locator(FixedLocator(ticks))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: wording.alpha(x)))
    ax.set_xlabel("α")
    ax.margins(x=0.04)


def _root(x):
    return abs(x) ** 0.5


def _square(x):
    return x**2


def _root_ticks(ax: Axes, top: float) -> None:
    """At most six ticks on a root scale, from round numbers, spread evenly to the eye."""
    ticks = [0.0]
    for exponent in range(-5, 3):
        for step in (1, 2, 5):
            x = step * 10.0**exponent
            if x <= 1.05 * top and x**0.5 - ticks[-1] ** 0.5 >= 0.16 * top**0.5:
                ticks.append(x)
    ax.set_ylim(0, 1.1 * top if top > 0 else 1)
    ax.yaxis.set_major_locator(FixedLocator(ticks))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))


def _limits(
    values: Sequence[float], step: float, at_most: float | None = None
) -> tuple[float, float]:
    """Axis limits at multiples of `step` with a little air around the finite values."""
    finite = [x for x in values if math.isfinite(x)] or [0.0, 100.0]
    low = step * math.floor((min(finite) - 1) / step)
    high = step * math.ceil((max(finite) + 1) / step)
    if at_most is not None:
        high = min(high, at_most + 1)
    return low, max(high, low + step)


def _short(text: str, most: int = 19) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _attribute(text: str) -> str:
    return html.escape(text, quote=True)


def _panel(figure: Figure, title: str, name: str) -> Panel:
    """Draw, then make the SVG follow its page: variables for colours, ids of its own."""
    raw = io.BytesIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context(_STYLE):  # the text is drawn now, not when it was placed
        figure.savefig(raw, format="svg", metadata=nothing, transparent=True)
    svg = raw.getvalue().decode("utf-8")
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    for colour, placeholder in _PLACEHOLDER.items():
        svg = svg.replace(placeholder, f"var(--{colour})")
    svg = re.sub(r"'DejaVu Sans'(, [^;\"]+)?", "var(--sans)", svg)
    # A style element would leak into the page; groups need no names, text at 0 degrees no turn.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r' transform="rotate\(-0 [^"]*\)"', "", svg)
    svg = re.sub(r"-?\d+\.\d{3,}", lambda m: f"{float(m[0]):.2f}".rstrip("0").rstrip("."), svg)
    prefix = re.sub(r"[^A-Za-z0-9]+", "-", name)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(xlink:href|href)="#', f'href="#{prefix}-', svg)
    svg = svg.replace("url(#", f"url(#{prefix}-")
    width, height = (round(72 * x) for x in figure.get_size_inches())
    head = (
        f'<svg viewBox="0 0 {width} {height}" role="img" stroke-linejoin="round" '
        f'aria-label="{_attribute(title)}"><title>{html.escape(title)}</title>'
    )
    svg = re.sub(r"<svg.*?>", lambda _: head, svg, count=1, flags=re.DOTALL)
    return Panel(svg.strip(), width, height, title)
