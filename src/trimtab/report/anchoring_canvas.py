"""What the figures of the anchoring experiments share: a run, a section, axes, colours of grids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb, to_hex
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import MaxNLocator

from trimtab.report import svg
from trimtab.report.blocks import Figure, Section, plain
from trimtab.report.svg import MUTED, NICE, RULE, Panel

SHADES = [svg.PAINT[f"m{i}"] for i in range(8)]
DPI = 200
"""Resolution of clouds of points, which are pictures within the drawing."""


@dataclass(frozen=True)
class Run:
    """An experiment's result and arrays."""

    name: str
    result: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]


def section(title: str, caption: str, panels: Sequence[Panel], kind: str = "three") -> Section:
    """Drawings under one heading, with what they show."""
    columns = {"two": 2, "three": 3}[kind]
    return Section(title, [Figure(panels, caption=plain(caption), columns=columns)])


@contextmanager
def plane(title: str, unit: str) -> Iterator[tuple[Drawing, Axes]]:
    """A panel for lines, with a title and a unit."""
    with svg.plane(title, unit) as (figure, ax):
        ax.yaxis.set_major_locator(MaxNLocator(5, steps=NICE))
        ax.xaxis.set_major_locator(MaxNLocator(6, steps=NICE))
        yield figure, ax


def titled(figure: Drawing, title: str, unit: str) -> None:
    """Title at the left, unit at the right."""
    width, height = (72 * x for x in figure.get_size_inches())
    figure.text(4 / width, 1 - 16 / height, svg.short(title, 34), weight="bold", size=13)
    figure.text(1 - 14 / width, 1 - 16 / height, unit, ha="right", size=11, color=MUTED)


def circle(ax: Axes) -> None:
    """The unit circle."""
    t = np.linspace(0, 2 * np.pi, 121)
    ax.plot(np.cos(t), np.sin(t), color=RULE, lw=1, zorder=0.5)


def square_axes(ax: Axes, x: str, y: str) -> None:
    """Axes from -1 to 1 with names."""
    ax.set_xlim(-1.15, 1.15)
    ax.set_ylim(-1.15, 1.15)
    ax.set_xticks([-1, 0, 1])
    ax.set_yticks([-1, 0, 1])
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
    for i in range(72):
        ax.axvspan(t[i] * high, t[i + 1] * high, ymin=0, ymax=0.025, color=to_hex(rgb[i]), lw=0)
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
