"""Figures of the anchoring experiments, from their result files. Points carry the colours that they
stand for; everything else follows the page's theme."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from trimtab.report import svg
from trimtab.report.anchoring_canvas import (
    DPI,
    SHADES,
    Run,
    chart,
    circle,
    cloud,
    grid_colours,
    hue_strip,
    section,
    slice_colours,
    square_axes,
)
from trimtab.report.anchoring_others import CELLS, OTHERS
from trimtab.report.blocks import Section
from trimtab.report.svg import GRID, INK, MUTED, Panel


def sections(run: Run) -> list[Section]:
    """Every drawing of a run for which its files are kept."""
    if run.result["kind"] != "colour":
        drawn = OTHERS.get(run.name) if run.arrays or run.result["kind"] in CELLS else None
        return drawn(run) if drawn else []
    found = [_seeds(run)]
    if run.arrays:
        found += [_errors(run), _slices(run), _latents(run)]
    if "schedule" in run.result:
        found.append(_training(run))
    if "history" in run.arrays:
        about = "The best seed's states over training, dimensions 0 and 1."
        panels = [_history(run), _animation(run)]
        found.append(section("The space as it forms", about, panels))
    return found


def overview(runs: Sequence[Run]) -> list[Panel]:
    """A panel an experiment that deletes or dampens: how selective, seed by seed."""
    return [
        _selectivity(run, svg.short(f"{run.name}: {run.result['title']}", 40))
        for run in runs
        if run.result["kind"] == "colour" and run.result["scores"] and len(run.result["seeds"]) > 10
    ]


# ---- over seeds ---------------------------------------------------------------------------------


def _seeds(run: Run) -> Section:
    """Distributions over seeds."""
    arms = {arm: entry["values"] for arm, entry in run.result["arms"].items()}
    panels = []
    first = next(iter(arms.values()))
    if run.result["scores"] and len(arms) == 1:
        panels.append(_selectivity(run, "Selectivity"))
    shown = [c for c in _cuts(run) if c != "baseline"][:4]
    if shown and len(arms) == 1:
        for colour in ("red", "cyan"):
            values = {c: first[f"{c}/{colour}"] for c in shown}
            panels.append(boxes(run, f"Error of {colour}", "MSE", values, colour))
    panels.append(_of_arms(run, "Reconstruction", "recon", "MSE", log=True))
    if len(arms) > 2:
        for key, title in (
            ("geometry/red_cosine", "Cosine of red with its anchor"),
            ("geometry/off_plane", "Vivid colours off the plane"),
            ("geometry/radius", "Mean length"),
            ("geometry/spread", "Mean cosine between colours"),
        ):
            panels.append(_of_arms(run, title, key))
    about = "A dot a seed; the box spans the middle half, the line is the median."
    return section("Over seeds", about, panels, 2 if len(arms) > 2 else 3)


def _cuts(run: Run) -> list[str]:
    """Interventions without those that only show that two are one."""
    return [c for c in run.result["cuts"] if "pruning" not in c and "renormalised" not in c]


def _of_arms(run: Run, title: str, key: str, unit: str = "", log: bool = False) -> Panel:
    values = {arm: entry["values"][key] for arm, entry in run.result["arms"].items()}
    return boxes(run, title, unit, values, key, log)


def _selectivity(run: Run, title: str) -> Panel:
    values = next(iter(run.result["arms"].values()))["values"]
    rows = {s["cut"]: values[f"r2/{s['cut']}"] for s in run.result["scores"]}
    return boxes(run, title, "R²", rows, "score")


def boxes(
    run: Run,
    title: str,
    unit: str,
    rows: Mapping[str, Sequence[float | None]],
    key: str,
    log: bool = False,
) -> Panel:
    """A row a group: every seed as a dot, quartiles as a box."""
    many = len(rows) >= 12
    width, top, bottom, pitch = 480 if many else 340, 36, 42, 18 if many else 30
    names = [svg.short(r, 42 if many else 22) for r in rows]
    left = min(290 if many else 150, 20 + round(6.6 * max(map(len, names))))
    height = top + pitch * len(rows) + bottom
    with svg.canvas(width, height) as figure:
        ax = svg.axes(figure, left, bottom, width - left - 14, pitch * len(rows))
        rng = np.random.default_rng(0)
        for y, values in enumerate(rows.values()):
            x = np.array([v for v in values if v is not None and math.isfinite(v)], float)
            if not len(x):
                continue
            low, middle, high = np.quantile(x, [0.25, 0.5, 0.75])
            ax.plot([low, high], [y, y], color=GRID, lw=min(14, pitch * 0.6), solid_capstyle="butt")
            ax.plot([middle], [y], marker="|", ms=min(16, pitch * 0.7), mew=2, color=SHADES[0])
            jitter = (rng.random(len(x)) - 0.5) * 0.4
            dots = {"ls": "none", "marker": "o", "ms": 2.6, "mew": 0, "alpha": 0.6}
            ax.plot(x, y + jitter, color=SHADES[0], clip_on=False, **dots)
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.set_yticks(range(len(rows)), names)
        ax.tick_params(axis="y", length=0, labelcolor=INK, pad=6, labelsize=11)
        ax.tick_params(axis="x", labelsize=11)
        ax.spines["left"].set_visible(False)
        if log:
            ax.set_xscale("log")
            low, high = ax.get_xlim()
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
            ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            ax.xaxis.set_minor_locator(NullLocator())
        else:
            svg.ticks(ax.xaxis, 4)
        ax.grid(axis="x")
        svg.titled(figure, svg.short(title, 40), unit)
        return svg.panel(figure, f"{title} over seeds", f"{run.name}-box-{key}")


# ---- errors by colour ---------------------------------------------------------------------------


def _errors(run: Run) -> Section:
    """Error against likeness, and along hue, saturation and value."""
    panels = [_scatter(run, score) for score in run.result["scores"]]
    for axis, at, top, name in (
        ("hue", "vivid", 360, "hue, degrees"),
        ("saturation", "at red", 1, "saturation"),
        ("value", "at red", 1, "value"),
    ):
        errors = {c: run.array(f"line/{axis}/{c}") for c in _cuts(run)}
        curves = {c: (np.linspace(0, top, len(y)), y) for c, y in errors.items()}
        title, strip = f"Error by {axis}, {at}", partial(hue_strip, axis=axis)
        panels.append(chart(run, title, "MSE", curves, f"line-{axis}", name, also=strip))
    about = (
        f"The best seed ({run.result['best']['seed']}). Above: error of each colour of the 8×8×8 grid "
        "against its likeness to what was removed, to the power at which they should lie on a line. "
        "Below: error along hue, saturation and value."
    )
    return section("Which colours are lost", about, panels)


def _scatter(run: Run, score: Mapping[str, Any]) -> Panel:
    cut, power = score["cut"], score["power"]
    red = score["of"] == "red"
    kind, what = ("similarity", "likeness to red") if red else ("vibrancy", "vibrancy")
    base = run.array(kind) ** power
    error = run.array(f"error/{cut}")
    r2 = float(run.arrays[f"r2_fine/{cut}"].reshape(-1)[0])
    slope, offset = np.polyfit(base, error, 1)

    def fit(ax: Axes) -> None:
        ax.plot([0, 1], [offset, slope + offset], color=MUTED, lw=1, dashes=(3, 3))

    names, titles = (f"{what} to the power {power:g}", "MSE"), (f"After {cut}", f"R² {r2:.2f}")
    return cloud(run, *titles, (base, error), grid_colours(8), f"sim-{cut}", names, fit)


def _slices(run: Run) -> Section:
    """Patches: what the model makes of each colour, with the truth inside."""
    panels = []
    truth = slice_colours()
    for cut in _cuts(run):
        made = run.array(f"slice/{cut}").reshape(4, 5, 12, 3)
        width, height = 420, 116
        with svg.canvas(width, height) as figure:
            for k, s in enumerate((0, 1 / 3, 2 / 3, 1)):
                ax = svg.axes(figure, 4 + k * 104, 8, 100, 72)
                ax.set_axis_off()
                ax.set(xlim=(0, 12), ylim=(0, 5))
                for v in range(5):
                    for h in range(12):
                        ax.add_patch(_square(h, v, 1, made[k, v, h]))
                        ax.add_patch(_square(h + 0.32, v + 0.32, 0.36, truth[k, v, h]))
                at = (4 + k * 104) / width, 84 / height
                figure.text(*at, f"S = {s:.2g}", size=10, color=MUTED)
            svg.titled(figure, svg.short(cut, 34))
            panels.append(svg.panel(figure, f"Slices, {cut}", f"{run.name}-slice-{cut}"))
    return section(
        "What it shows instead",
        "Slices of the HSV cube: hue runs to the right, value upwards. Each patch is what the model "
        "makes of a colour; the small square inside is the colour itself.",
        panels,
    )


def _square(x: float, y: float, size: float, colour: np.ndarray) -> Any:
    return Rectangle((x, y), size, size, facecolor=tuple(np.clip(colour, 0, 1)), lw=0)


# ---- latent space -------------------------------------------------------------------------------


def _latents(run: Run) -> Section:
    """Projections of the states, before and after."""
    panels = []
    z = run.array("states")
    width = z.shape[1]
    pairs = [(0, 1), (0, 2), (1, 2)] if width > 2 else [(0, 1)]
    for a, b in pairs:
        panels.append(_cloud(run, z, a, b, "Untouched", f"view-{a}{b}"))
    for cut in [c for c in run.result["cuts"] if f"states/{c}" in run.arrays and "renorm" not in c]:
        after = run.array(f"states/{cut}")
        panels.append(_cloud(run, after, 0, 1, cut, f"view-{cut}"))
    return section(
        "Where the model keeps its colours",
        f"The best seed ({run.result['best']['seed']}): the states of the 8×8×8 grid seen along two "
        "dimensions at a time, each dot in the colour that it stands for. Nothing was searched for: "
        "dimension 0 is where red was put.",
        panels,
        3,
    )


def _cloud(run: Run, z: np.ndarray, a: int, b: int, title: str, key: str) -> Panel:
    with svg.canvas(250, 270) as figure:
        figure.set_dpi(DPI)
        ax = svg.axes(figure, 30, 30, 208, 208)
        circle(ax)
        order = np.argsort(z[:, 3 - a - b] if z.shape[1] > 2 and a + b < 4 else z[:, 0])
        ax.scatter(z[order, a], z[order, b], c=grid_colours(8)[order], s=16, lw=0, rasterized=True)
        square_axes(ax, f"dimension {a}", f"dimension {b}")
        svg.titled(figure, svg.short(title, 34))
        return svg.panel(figure, f"{title}: dimensions {a} and {b}", f"{run.name}-{key}")


def _history(run: Run) -> Panel:
    history = run.array("history")
    frames = run.result["frames"]
    chosen = [round(i * (len(frames) - 1) / 7) for i in range(8)]
    width, height = 430, 270
    with svg.canvas(width, height) as figure:
        figure.set_dpi(DPI)
        for k, index in enumerate(chosen):
            x, y = 8 + (k % 4) * 106, 122 if k < 4 else 4
            ax = svg.axes(figure, x, y, 98, 98)
            circle(ax)
            points = history[index]
            ax.scatter(points[:, 0], points[:, 1], c=grid_colours(6), s=5, lw=0, rasterized=True)
            most = max(1.15, 1.1 * float(np.abs(points[:, :2]).max()))
            ax.set(xlim=(-most, most), ylim=(-most, most))
            ax.set_axis_off()
            at = x / width, (y + 100) / height
            figure.text(*at, f"step {frames[index]:,}", size=9, color=MUTED)
        svg.titled(figure, "On the way", "dimensions 0 and 1")
        return svg.panel(figure, "States during training", f"{run.name}-history")


def _animation(run: Run) -> Panel:
    """The states during training as an animated SVG (dimensions 0 and 1), twelve seconds long."""
    history = run.array("history")[..., :2]  # frame point 2
    colours = grid_colours(6)
    most = max(1.15, 1.05 * float(np.abs(history[-10:]).max()))
    place = np.clip(history / most, -1.2, 1.2) * 100
    dots = []
    for i in range(len(colours)):
        x = ";".join(f"{v:.0f}" for v in place[:, i, 0])
        y = ";".join(f"{-v:.0f}" for v in place[:, i, 1])
        timing = 'dur="12s" repeatCount="indefinite"'
        dots.append(
            f'<circle r="3" fill="{to_hex(colours[i])}"><animate attributeName="cx" values="{x}" '
            f'{timing}/><animate attributeName="cy" values="{y}" {timing}/></circle>'
        )
    drawn = (
        '<svg viewBox="-120 -120 240 240" role="img" aria-label="States during training, animated">'
        f'<circle r="{100 / most:.1f}" fill="none" stroke="var(--rule)"/>'
        + "".join(dots)
        + "</svg>"
    )
    return Panel(drawn, 330, 330, "States during training, animated")


# ---- training -----------------------------------------------------------------------------------


def _training(run: Run) -> Section:
    """The timeline, and what it did to the loss."""
    steps, values = run.result["schedule"]["step"], run.result["schedule"]["values"]
    lines = {n: (steps, v) for n, v in values.items() if n != "lr" and not n.startswith("data")}
    losses = dict(run.result["losses"])
    at = losses.pop("step")
    shown = {n: (at, [v if v and v > 0 else math.nan for v in y]) for n, y in losses.items()}
    title, unit = "Loss and terms, unweighted", "mean over models"
    panels = [
        *([chart(run, "Weights", "", lines, "weights")] if lines else []),
        chart(run, "Learning rate", "", {"lr": (steps, values["lr"])}, "lr"),
        chart(run, title, unit, shown, "losses", log=True, legend=True),
    ]
    return section("Training", "The timeline, and the terms over training.", panels)
