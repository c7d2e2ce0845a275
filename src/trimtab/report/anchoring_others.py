"""Figures of the anchoring experiments that are no colour model: data, transitions, lobes, healing,
the mixing transformer; the language models by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
from matplotlib.ticker import NullLocator

from trimtab.report import anchoring_language, svg
from trimtab.report.anchoring_canvas import (
    DPI,
    SHADES,
    Run,
    circle,
    grid_colours,
    hue_strip,
    plane,
    section,
    titled,
)
from trimtab.report.blocks import Section
from trimtab.report.svg import INK, MUTED, RULE


def _data(run: Run) -> list[Section]:
    panels = []
    hues = np.linspace(0, 360, len(run.arrays["redness_by_hue"]))
    rgb = grid_colours(8)
    for key, title in (("redness", "Redness"), ("similarity", "Likeness to red")):
        with plane(f"{title} by hue, vivid", "") as (figure, ax):
            ax.plot(hues, run.arrays[f"{key}_by_hue"], color=SHADES[0], lw=1.8)
            hue_strip(ax, "hue")
            ax.set_xlabel("hue, degrees")
            panels.append(svg.panel(figure, f"{title} by hue", f"{run.name}-{key}"))
    with plane("The RGB cube", "redness over vibrancy") as (figure, ax):
        figure.set_dpi(DPI)
        x, y = run.arrays["vibrancy"].astype(float), run.arrays["redness"].astype(float)
        ax.scatter(x, y, c=rgb, s=18, lw=0, rasterized=True)
        ax.set_xlabel("vibrancy")
        ax.set_ylabel("redness")
        panels.append(svg.panel(figure, "The RGB cube", f"{run.name}-cube"))
    return [
        section(
            "Colours and their labels",
            "Qualities from which noisy labels are drawn.",
            panels,
            "two",
        )
    ]


def _transitions(run: Run) -> list[Section]:
    panels = []
    notes = run.result["figure"]
    for k, what in enumerate(("value", "velocity", "acceleration")):
        with plane(f"To 1 in 50 steps: {what}", "") as (figure, ax):
            for i, name in enumerate(notes["paths"]):
                ax.plot(
                    run.arrays[f"path/{i}"][:, k].astype(float), color=SHADES[i], lw=1.8, label=name
                )
            ax.set_xlabel("step")
            if k == 0:
                ax.legend(frameon=False, fontsize=10, labelcolor=INK, handlelength=1.2)
            panels.append(svg.panel(figure, f"Transitions: {what}", f"{run.name}-{what}"))
    with plane("A target that changes on the way", "value") as (figure, ax):
        ax.plot(run.arrays["moving"][:, 0].astype(float), color=SHADES[0], lw=1.8)
        for step, goal in notes["targets"].items():
            ax.plot([int(step)], [goal], marker="D", color=SHADES[1], ms=6)
        ax.set_xlabel("step")
        panels.append(svg.panel(figure, "Changing targets", f"{run.name}-moving"))
    return [
        section(
            "Transitions",
            "Paths of least jerk from five starts, and to targets (diamonds) that change before they are "
            "reached: value, velocity and acceleration stay continuous.",
            panels,
            "two",
        )
    ]


def _lobes(run: Run) -> list[Section]:
    notes, angle = run.result["figure"], np.arange(361) % 360
    found = []
    for kind, names in (("suppress", notes["suppressions"]), ("repel", notes["repulsions"])):
        panels = []
        for i, (name, start) in enumerate(names.items()):
            out = run.arrays[f"{kind}/{i}/out"].astype(float)[angle]
            strength = run.arrays[f"{kind}/{i}/strength"].astype(float)[angle]
            with svg.canvas(250, 420) as figure:
                ax = figure.add_axes((14 / 250, 178 / 420, 222 / 250, 208 / 420))
                circle(ax)
                theta = np.deg2rad(angle)
                ax.plot(strength * np.sin(theta), strength * np.cos(theta), color=SHADES[1], lw=1.8)
                for k in range(0, 360, 10):
                    x, y = np.sin(np.deg2rad(k)), np.cos(np.deg2rad(k))
                    if np.hypot(out[k, 0] - x, out[k, 1] - y) > 1e-3:
                        ax.plot([x, out[k, 0]], [y, out[k, 1]], color=RULE, lw=0.8)
                ax.plot(out[:, 0], out[:, 1], color=SHADES[0], lw=1.8)
                edge = math.acos(start)
                for side in (-1, 1):
                    ax.plot(
                        [0, side * math.sin(edge)],
                        [0, math.cos(edge)],
                        color=MUTED,
                        lw=1,
                        dashes=(3, 3),
                    )
                ax.set_xlim(-1.1, 1.1)
                ax.set_ylim(-1.1, 1.1)
                ax.set_axis_off()
                below = figure.add_axes((40 / 250, 40 / 420, 196 / 250, 120 / 420))
                below.plot(
                    run.arrays["cosine"],
                    run.arrays[f"{kind}/{i}/curve"].astype(float),
                    color=SHADES[1],
                    lw=1.8,
                )
                if kind == "repel":
                    below.plot([0, 1], [0, 1], color=MUTED, lw=1, dashes=(3, 3))
                    points = notes["handles"].get(name)
                    if points:
                        for one, other in ((0, 1), (3, 2)):
                            xs, ys = zip(points[one], points[other], strict=True)
                            below.plot(xs, ys, color=SHADES[2], lw=1, marker="o", ms=3)
                below.set_xlim(-1, 1)
                below.set_ylim(-0.02, 1.05)
                below.set_xlabel("cosine with the concept")
                below.tick_params(labelsize=10)
                titled(figure, name, "")
                panels.append(svg.panel(figure, name, f"{run.name}-{kind}-{i}"))
        what = (
            ("Suppression", "strength")
            if kind == "suppress"
            else ("Repulsion", "change of alignment")
        )
        found.append(
            section(
                what[0],
                f"The concept points up. Blue: where unit vectors end; orange: {what[1]}; dashed: the "
                "edge of the cone that is touched. Below, the same over the cosine with the concept"
                + (", with the identity and the handles of the curve." if kind == "repel" else "."),
                panels,
            )
        )
    return found


def _healing(run: Run) -> list[Section]:
    panels = []
    kinds = list(run.result["kinds"])
    every = run.result["settings"]["every"]
    for data in ("all colours", "reds alone"):
        for part, title in (("red", "Error of red"), ("rest", "Mean error of what is not red")):
            with plane(title, data) as (figure, ax):
                for i, kind in enumerate(kinds):
                    curve = run.arrays[f"{part}/{i}/{data}"].astype(float)
                    x = np.arange(len(curve)) * every
                    shade = MUTED if kind == "untouched" else SHADES[(i - 1) % 8]
                    ax.plot(
                        x, np.maximum(np.median(curve, 1), 1e-6), color=shade, lw=1.6, label=kind
                    )
                ax.set_yscale("log")
                ax.yaxis.set_minor_locator(NullLocator())
                ax.set_xscale("symlog", linthresh=50)
                ax.set_xlabel("steps of further training")
                if part == "red" and data == "all colours":
                    ax.legend(frameon=False, fontsize=9, labelcolor=INK, handlelength=1.2)
                panels.append(svg.panel(figure, f"{title}, {data}", f"{run.name}-{part}-{data}"))
    return [
        section(
            "Coming back", "Medians over seeds, by kind of deletion, of training on.", panels, "two"
        )
    ]


def _mixing(run: Run) -> list[Section]:
    arms = {a: e["cells"] for a, e in run.result["arms"].items()}
    groups = run.result["bins"]
    names = [*(f"{a:g}–{b:g}" for a, b in pairwise(groups)), "pure red"]
    anchored = [a for a in arms if a != "control"]
    panels = []
    for title, lines in (
        (
            "Right answers, dimension 0 projected out",
            {"control": ("control", "dimension 0")} | {a: (a, "projection") for a in anchored},
        ),
        (
            "Beside it: found afterwards in the control",
            {c: ("control", c) for c in arms["control"][0]["cuts"]},
        ),
    ):
        with plane(title, "probability") as (figure, ax):
            for i, (label, (arm, cut)) in enumerate(lines.items()):
                table = np.array([c["cuts"][cut]["by_bin"] for c in arms[arm]], float)
                middle = np.median(table, 0)
                shade = MUTED if label == "control" else SHADES[i % 8]
                ax.fill_between(
                    range(len(names)), table.min(0), table.max(0), color=shade, alpha=0.1, lw=0
                )
                ax.plot(
                    range(len(names)), middle, color=shade, lw=1.8, marker="o", ms=4, label=label
                )
            ax.set_xticks(range(len(names)), names)
            ax.set_ylim(-0.03, 1.03)
            ax.set_xlabel("redness of the redder operand")
            ax.legend(frameon=False, fontsize=9, labelcolor=INK, handlelength=1.2)
            panels.append(svg.panel(figure, title, f"{run.name}-{title[:6]}"))
    doses = run.result["doses"]
    for arm in [a for a in ("strong", "graded") if a in arms]:
        with plane(f"Dose: {arm}", "probability") as (figure, ax):
            table = np.median(np.array([c["dose"] for c in arms[arm]], float), 0)
            for k, name in enumerate(names):
                ax.plot(doses, table[:, k], color=SHADES[k], lw=1.8, marker="o", ms=4, label=name)
            ax.set_ylim(-0.03, 1.03)
            ax.set_xlabel("share of dimension 0 taken out")
            ax.legend(frameon=False, fontsize=9, labelcolor=INK, handlelength=1.2)
            panels.append(svg.panel(figure, f"Dose, {arm}", f"{run.name}-dose-{arm}"))
    cosines = run.result.get("cosines", {})
    for arm in [a for a in ("anchor", "strong") if a in cosines]:
        with plane(f"Dimension 0 by redness: {arm}", "cosine, first seed") as (figure, ax):
            figure.set_dpi(DPI)
            red, along = (np.array(v, float) for v in cosines[arm])
            ax.scatter(red, along, c=grid_colours(6), s=22, lw=0, rasterized=True)
            ax.set_xlabel("redness")
            panels.append(svg.panel(figure, f"Cosine by redness, {arm}", f"{run.name}-cos-{arm}"))
    caption = (
        "Medians over seeds, bands from the least to the largest. A cliff is a deletion of the word "
        "alone; a slope would be a deletion of the colour."
    )
    return [section("What is lost, by redness", caption, panels, "two")]


OTHERS: dict[str, Callable[[Run], list[Section]]] = {
    "1.1": _data,
    "1.4": _transitions,
    "2.1": _lobes,
    "healing": _healing,
    "mixing": _mixing,
    "stories": anchoring_language.stories,
    "natural": anchoring_language.natural,
}
"""Drawings by experiment."""
CELLS = ("mixing", "stories", "natural")
"""Kinds that are drawn from their results alone; the others' drawings need arrays."""
