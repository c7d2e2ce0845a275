"""Drawings as SVG that follow the page's theme: text stays text, colours are CSS variables.

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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from trimtab.report.looks import LOOKS, Look

LIGHT, DARK = ({name: both[i] for name, both in LOOKS["colours"].items()} for i in (0, 1))
"""Colours of page and figures; `looks` says whose the methods' eight are."""

SANS = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'

WIDER = {"P": 1.25, "X": 1.2, "d": 1.2, "*": 1.3}
"""Markers of thin parts, which their rim would eat, are drawn larger."""
NICE = (1, 2, 2.5, 5, 10)
"""Steps that ticks may take, times a power of ten."""

# Placeholder colours: no real colour, so that exchanging them afterwards is safe.
PAINT = {name: f"#0{i:x}a{i:x}0{i:x}" for i, name in enumerate(LIGHT)}
INK, MUTED, RULE, GRID, PAGE = (PAINT[n] for n in ("ink", "muted", "rule", "grid", "page"))

_STYLE: dict[Any, Any] = {
    **matplotlib.rc_params_from_file(
        Path(__file__).with_name("page.mplstyle"), fail_on_error=True, use_default_template=False
    ),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), RULE),
    **dict.fromkeys(("axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), MUTED),
    **{"text.color": INK, "grid.color": GRID},
}


@dataclass(frozen=True)
class Panel:
    """One drawing: an `<svg>` element in CSS variables, its size in CSS pixels, what it shows."""

    svg: str
    width: int
    height: int
    title: str


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
        f'viewBox="0 0 {width} {height}" role="img" aria-label="{attribute(names)}">\n'
        f"<style>svg{{{variables(LIGHT)}--sans:{SANS}}}"
        f"@media (prefers-color-scheme:dark){{svg{{{variables(DARK)}}}}}</style>\n"
        f'<rect width="{width}" height="{height}" fill="var(--page)"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def variables(colours: dict[str, str]) -> str:
    """CSS declarations of a set of colours."""
    return "".join(f"--{name}:{value};" for name, value in colours.items())


@contextmanager
def canvas(width: int, height: int) -> Iterator[Figure]:
    """A figure of that many CSS pixels, whatever style the user's matplotlib has."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=(width / 72, height / 72), facecolor="none")
        FigureCanvasSVG(figure)
        yield figure


@contextmanager
def rows(
    names: Sequence[str],
    limits: tuple[float, float],
    pitch: int,
    title: str,
    note: str,
    *,
    width: int = 340,
    most: int = 32,
) -> Iterator[tuple[Figure, Axes]]:
    """A panel with one row a method (or a shift), named at the left, and a common x axis. Names over
    19 characters make it wider."""
    top, bottom = 36, 42
    names = [short(name, most) for name in names]
    left = 20 + 7 * max(len(name) for name in names)
    width += max(0, left - 153)
    height = top + pitch * len(names) + bottom
    with canvas(width, height) as figure:
        ax = axes(figure, left, bottom, width - left - 14, pitch * len(names))
        ax.set_xlim(limits)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.set_yticks(range(len(names)), names)
        ax.tick_params(axis="y", length=0, labelcolor=INK, pad=6)
        ax.tick_params(axis="x", labelsize=11)
        ax.spines["left"].set_visible(False)
        ticks(ax.xaxis, integer=True)
        ax.grid(axis="x")
        titled(figure, short(title, 30), note, 15)
        yield figure, ax


@contextmanager
def plane(title: str, unit: str) -> Iterator[tuple[Figure, Axes]]:
    """A panel for lines over a continuous axis."""
    width, height, left, top, bottom = 420, 270, 54, 38, 46
    with canvas(width, height) as figure:
        ax = axes(figure, left, bottom, width - left - 14, height - top - bottom)
        ax.tick_params(labelsize=11)
        ax.grid(axis="y")
        titled(figure, title, unit)
        yield figure, ax


def axes(figure: Figure, x: float, y: float, width: float, height: float) -> Axes:
    """Axes at a place in pixels, from the lower left."""
    w, h = _size(figure)
    return figure.add_axes((x / w, y / h, width / w, height / h))


def titled(figure: Figure, title: str, unit: str = "", down: float = 16) -> None:
    """Title at the left, unit at the right, so far below the upper edge."""
    width, height = _size(figure)
    figure.text(4 / width, 1 - down / height, title, weight="bold", size=13)
    figure.text(1 - 14 / width, 1 - down / height, unit, ha="right", size=11, color=MUTED)


def _size(figure: Figure) -> tuple[int, int]:
    """Width and height in pixels."""
    width, height = (round(72 * x) for x in figure.get_size_inches())
    return width, height


def dot(
    ax: Axes, look: Look, x: float, y: float, size: float = 7.5, *, hollow: bool = False
) -> None:
    """A marker; whole at the axes' edges, too."""
    fill, size = PAINT[look.colour], size * WIDER.get(look.marker, 1)
    # A rim in the page's colour parts a marker from lines; a small one it would swallow.
    edge = PAGE if size > 5 and not hollow else fill
    ax.plot(
        [x],
        [y],
        marker=look.marker,
        ms=size + (1 if edge == PAGE else 0),
        mfc=PAGE if hollow else fill,
        mec=edge,
        mew=1.5 if hollow else 1,
        ls="none",
        zorder=3,
        clip_on=False,
    )


def line(
    ax: Axes,
    look: Look,
    x: Sequence[float],
    y: Sequence[float],
    band: tuple[Sequence[float], Sequence[float]] | None = None,
    **style: Any,
) -> None:
    """Points joined by a line, in their band."""
    colour = PAINT[look.colour]
    if band:
        ax.fill_between(x, *band, color=colour, alpha=0.1, lw=0)
    size = style.pop("ms", 7.5) * WIDER.get(look.marker, 1)
    rim = {"ms": size, "mec": PAGE, "mew": 1} if look.marker else {}
    more = {"lw": 1.8, "zorder": 3, "clip_on": False} | rim | style
    ax.plot(x, y, color=colour, marker=look.marker or None, **more)


def ticks(axis: Axis, most: int = 5, *, integer: bool = False) -> None:
    """About so many, at round numbers."""
    axis.set_major_locator(MaxNLocator(most, steps=NICE, integer=integer))


def root_scale(ax: Axes) -> None:
    """Damage grows with the square of a dial's strength: on this scale, with the strength."""
    ax.set_yscale("function", functions=(lambda x: abs(x) ** 0.5, lambda x: x**2))


def root_ticks(ax: Axes, top: float) -> None:
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


def limits(
    values: Sequence[float], step: float, at_most: float | None = None
) -> tuple[float, float]:
    """Axis limits at multiples of `step` with a little air around the finite values."""
    finite = [x for x in values if math.isfinite(x)] or [0.0, 100.0]
    low = step * math.floor((min(finite) - 1) / step)
    high = step * math.ceil((max(finite) + 1) / step)
    if at_most is not None:
        high = min(high, at_most + 1)
    return low, max(high, low + step)


def short(text: str, most: int = 19) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def attribute(text: str) -> str:
    return html.escape(text, quote=True)


def _rounded(tag: re.Match[str]) -> str:
    """A tag whose coordinates have two decimals."""
    return re.sub(r"-?\d+\.\d{3,}", lambda m: f"{float(m[0]):.2f}".rstrip("0").rstrip("."), tag[0])


def panel(figure: Figure, title: str, name: str) -> Panel:
    """Draw, then make the SVG follow its page: variables for colours, ids of its own."""
    raw = io.BytesIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context(_STYLE):  # the text is drawn now, not when it was placed
        figure.savefig(raw, format="svg", metadata=nothing, transparent=True)
    svg = raw.getvalue().decode("utf-8")
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    for colour, placeholder in PAINT.items():
        svg = svg.replace(placeholder, f"var(--{colour})")
    svg = re.sub(r"'DejaVu Sans'(, [^;\"]+)?", "var(--sans)", svg)
    # A style element would leak into the page; groups need no names, text at 0 degrees no turn.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r' transform="rotate\(-0 [^"]*\)"', "", svg)
    svg = re.sub(r"<[^>]*>", _rounded, svg)  # places, not the figures that are written
    svg = _lean(svg)
    prefix = re.sub(r"[^A-Za-z0-9]+", "-", name)
    ids: dict[str, int] = {}  # numbered: those of matplotlib are digests of what is drawn
    svg = re.sub(
        r'(\bid="|url\(#|\bhref="#)(\w+)',
        lambda m: f"{m[1]}{prefix}-{ids.setdefault(m[2], len(ids))}",
        svg.replace('xlink:href="#', 'href="#'),
    )
    width, height = _size(figure)
    head = (
        f'<svg viewBox="0 0 {width} {height}" role="img" stroke-linejoin="round" '
        f'style="font-family:var(--sans)" aria-label="{attribute(title)}"><title>{html.escape(title)}</title>'
    )
    svg = re.sub(r"<svg.*?>", lambda _: head, svg, count=1, flags=re.DOTALL)
    return Panel(svg.strip(), width, height, title)


def _lean(svg: str) -> str:
    """The same drawing in half the bytes: an element a line, no groups around single things."""
    svg = svg.replace("font-family: var(--sans); ", "")  # the panel has it
    svg = re.sub(r'\bd="[^"]*"', lambda m: re.sub(r"\s*([A-Zz\"])\s*", r"\1", m[0]), svg)
    svg = re.sub(r'\bstyle="[^"]*"', lambda m: re.sub(r"([:;]) ", r"\1", m[0]), svg)
    svg = re.sub(r'<path d="[^"]*" style="fill:none"/>', "", svg)  # nothing to be seen
    svg = re.sub(r">\s+<", ">\n<", re.sub(r"[^\S\n]+", " ", svg))
    before = ""
    while svg != before:
        before, svg = svg, re.sub(r"<g>\n((?:(?!<g\b).)*?)</g>\n", r"\1", svg, flags=re.DOTALL)
    return svg
