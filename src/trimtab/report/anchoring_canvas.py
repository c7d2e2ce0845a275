"""What the figures of the anchoring experiments share: a run, a section, axes, colours of grids."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb, to_hex
from matplotlib.ticker import NullLocator

from trimtab.report import svg
from trimtab.report.blocks import Figure, Section, plain
from trimtab.report.looks import Look
from trimtab.report.svg import INK, RULE, Panel

SHADES = [svg.PAINT[f"m{i}"] for i in range(8)]
DPI = 200
"""Resolution of clouds of points, which are pictures within the drawing."""


@dataclass(frozen=True)
class Run:
    """An experiment's result and arrays."""

    name: str
    result: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]

    def array(self, name: str) -> np.ndarray:
        """One of its arrays, in float64."""
        return self.arrays[name].astype(float)


def section(title: str, caption: str, panels: Sequence[Panel], columns: int = 2) -> Section:
    """Drawings under one heading, with what they show."""
    return Section(title, [Figure(panels, caption=plain(caption), columns=columns)])


QUIET = ("control", "baseline", "untouched", "recon", "learned the first time")
"""What others are compared with: drawn in grey."""
Curves = Mapping[str, tuple[Any, Any]]
"""Places on the x axis, and values `[x]` or, a line a seed, `[seed, x]`, by name."""


def chart(
    run: Run,
    title: str,
    unit: str,
    curves: Curves,
    key: str,
    x: str = "step",
    *,
    marker: str = "",
    log: bool = False,
    legend: bool | None = None,
    also: Callable[[Axes], object] | None = None,
) -> Panel:
    """Lines over one axis: of several seeds the median, in a band from the least to the largest.

    Args:
        legend: whether lines are named; by default where there are several.
        also: what else is drawn, or done to the axes.
    """
    named = legend if legend is not None else len(curves) > 1
    room = 0 if not named else 6 + 16 * math.ceil(len(curves) / _columns(curves))
    with svg.canvas(WIDE, HIGH + room) as figure:
        ax = svg.axes(figure, 54, room + 46, WIDE - 68, HIGH - 84)
        colours = (f"m{i % len(SHADES)}" for i in range(len(curves)))
        for name, (at, values) in curves.items():
            table = np.atleast_2d(np.asarray(values, float))
            band = (table.min(0), table.max(0)) if len(table) > 1 else None
            look = Look("muted" if name in QUIET else next(colours), marker)
            middle: Any = np.median(table, 0)
            svg.line(ax, look, at, middle, band, label=name, **SMALL[marker])
        if log:
            ax.set_yscale("log")
            ax.yaxis.set_minor_locator(NullLocator())
        else:
            svg.ticks(ax.yaxis)
        svg.ticks(ax.xaxis, 6)
        ax.set_xlabel(x)
        ax.tick_params(labelsize=11)
        ax.grid(axis="y")
        if also:
            also(ax)
        if named:  # beneath the axes, where no line runs through it
            place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (46 / WIDE, 0)}
            style: dict[str, Any] = {"fontsize": 10, "labelcolor": INK, "handlelength": 1.2}
            style |= {"columnspacing": 1.2, "borderpad": 0.2}
            figure.legend(frameon=False, ncols=_columns(curves), **place, **style)
        svg.titled(figure, svg.short(title, 46), unit)
        return svg.panel(figure, title, f"{run.name}-{key}")


WIDE, HIGH = 420, 270
"""Pixels of a panel without its legend."""


def _columns(names: Iterable[str]) -> int:
    """Columns of a legend in a panel's width."""
    return max(1, min(len(list(names)), (WIDE - 60) // (40 + 6 * max(map(len, names)))))


SMALL: dict[str, dict[str, float]] = {"": {}, "o": {"ms": 5}}


def cloud(
    run: Run,
    title: str,
    unit: str,
    points: tuple[Any, Any],
    colours: np.ndarray,
    key: str,
    names: Sequence[str],
    also: Callable[[Axes], object] | None = None,
) -> Panel:
    """Points in the colours that they stand for; `names` of the x axis and, if any, the y axis."""
    with svg.plane(title, unit) as (figure, ax):
        figure.set_dpi(DPI)
        ax.scatter(*points, c=colours, s=18, lw=0, rasterized=True)
        svg.ticks(ax.yaxis)
        svg.ticks(ax.xaxis, 6)
        ax.set(**dict(zip(("xlabel", "ylabel"), names, strict=False)))
        if also:
            also(ax)
        return svg.panel(figure, title, f"{run.name}-{key}")


def circle(ax: Axes) -> None:
    """The unit circle."""
    t = np.linspace(0, 2 * np.pi, 121)
    ax.plot(np.cos(t), np.sin(t), color=RULE, lw=1, zorder=0.5)


def square_axes(ax: Axes, x: str, y: str) -> None:
    """Axes from -1 to 1 with names."""
    ax.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), xticks=[-1, 0, 1], yticks=[-1, 0, 1])
    ax.set_xlabel(x, labelpad=1)
    ax.set_ylabel(y, labelpad=-2)
    ax.tick_params(labelsize=10)


def hue_strip(ax: Axes, axis: str) -> None:
    """A strip of the colours themselves along the x axis."""
    t = np.linspace(0, 1, 73)
    one = np.ones_like(t)
    hsv = {"hue": (t, one, one), "saturation": (0 * t, t, one), "value": (0 * t, one, t)}[axis]
    high = 360 if axis == "hue" else 1
    rgb = hsv_to_rgb(np.stack(hsv, -1))
    for i in range(72):  # each to the end, under the next: no seams
        ax.axvspan(t[i] * high, high, ymin=0, ymax=0.025, color=to_hex(rgb[i]), lw=0)
    ax.set_xlim(0, high)


def grid_colours(n: int) -> np.ndarray:
    """RGB of the n x n x n grid, in the order of the result files."""
    axis = np.linspace(0, 1, n)
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)


def slice_colours() -> np.ndarray:
    """RGB of the slices, `[saturation, value, hue, 3]`."""
    s, v, h = np.meshgrid(
        np.linspace(0, 1, 4), np.linspace(0, 1, 5), np.arange(12) / 12, indexing="ij"
    )
    return hsv_to_rgb(np.stack([h, s, v], -1))
