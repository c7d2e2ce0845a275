"""Figures of the anchoring experiments that are no colour model: data, transitions, lobes, healing, the
mixing transformer, the language models."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from trimtab.report import svg
from trimtab.report.anchoring_canvas import (
    SHADES,
    Curves,
    Run,
    chart,
    circle,
    cloud,
    grid_colours,
    hue_strip,
    section,
)
from trimtab.report.blocks import Section
from trimtab.report.svg import MUTED, RULE, Panel


def _data(run: Run) -> list[Section]:
    panels = []
    for key, title in (("redness", "Redness"), ("similarity", "Likeness to red")):
        values = run.array(f"{key}_by_hue")
        curve = {title: (np.linspace(0, 360, len(values)), values)}
        strip, title = partial(hue_strip, axis="hue"), f"{title} by hue, vivid"
        panels.append(chart(run, title, "", curve, key, "hue, degrees", also=strip))
    both, names = (run.array("vibrancy"), run.array("redness")), ("vibrancy", "redness")
    panels.append(
        cloud(run, "The RGB cube", "redness over vibrancy", both, grid_colours(8), "cube", names)
    )
    about = "Qualities from which noisy labels are drawn."
    return [section("Colours and their labels", about, panels)]


def _transitions(run: Run) -> list[Section]:
    panels, notes = [], run.result["figure"]
    for k, what in enumerate(("value", "velocity", "acceleration")):
        paths = (run.array(f"path/{i}")[:, k] for i in range(len(notes["paths"])))
        curves = {n: (range(len(y)), y) for n, y in zip(notes["paths"], paths, strict=True)}
        panels.append(chart(run, f"To 1 in 50 steps: {what}", "", curves, what))

    def goals(ax: Axes) -> None:
        for step, goal in notes["targets"].items():
            ax.plot([int(step)], [goal], marker="D", color=SHADES[1], ms=6, clip_on=False)

    moving = {"moving": (range(len(run.arrays["moving"])), run.array("moving")[:, 0])}
    title = "A target that changes on the way"
    panels.append(chart(run, title, "value", moving, "moving", also=goals))
    about = (
        "Paths of least jerk from five starts, and to targets (diamonds) that change before they are "
        "reached: value, velocity and acceleration stay continuous."
    )
    return [section("Transitions", about, panels)]


def _lobes(run: Run) -> list[Section]:
    notes, found = run.result["figure"], []
    for kind, title, what, names, more in (
        ("suppress", "Suppression", "strength", notes["suppressions"], "."),
        (
            *("repel", "Repulsion", "change of alignment", notes["repulsions"]),
            ", with the identity and the handles of the curve.",
        ),
    ):
        panels = [_lobe(run, kind, i, *named) for i, named in enumerate(names.items())]
        about = (
            f"The concept points up. Blue: where unit vectors end; orange: {what}; dashed: the edge of "
            f"the cone that is touched. Below, the same over the cosine with the concept{more}"
        )
        found.append(section(title, about, panels, 3))
    return found


def _lobe(run: Run, kind: str, i: int, name: str, start: float) -> Panel:
    """What happens to all directions, and the curve that says so."""
    angle = np.arange(361) % 360
    theta, edge = np.deg2rad(angle), math.acos(start)
    out, strength = (run.array(f"{kind}/{i}/{what}")[angle] for what in ("out", "strength"))
    dashed: dict[str, Any] = {"color": MUTED, "lw": 1, "dashes": (3, 3)}
    with svg.canvas(250, 420) as figure:
        ax = svg.axes(figure, 21, 178, 208, 208)
        circle(ax)
        ax.plot(strength * np.sin(theta), strength * np.cos(theta), color=SHADES[1], lw=1.8)
        for k in range(0, 360, 10):
            x, y = np.sin(np.deg2rad(k)), np.cos(np.deg2rad(k))
            if np.hypot(out[k, 0] - x, out[k, 1] - y) > 1e-3:
                ax.plot([x, out[k, 0]], [y, out[k, 1]], color=RULE, lw=0.8)
        ax.plot(out[:, 0], out[:, 1], color=SHADES[0], lw=1.8)
        for side in (-1, 1):
            ax.plot([0, side * math.sin(edge)], [0, math.cos(edge)], **dashed)
        ax.set(xlim=(-1.1, 1.1), ylim=(-1.1, 1.1))
        ax.set_axis_off()
        below = svg.axes(figure, 40, 40, 196, 120)
        below.plot(run.arrays["cosine"], run.array(f"{kind}/{i}/curve"), color=SHADES[1], lw=1.8)
        if kind == "repel":
            below.plot([0, 1], [0, 1], **dashed)
            points = run.result["figure"]["handles"].get(name)
            for ends in ((0, 1), (3, 2)) if points else ():
                handle = zip(*(points[e] for e in ends), strict=True)
                below.plot(*handle, color=SHADES[2], lw=1, marker="o", ms=3, clip_on=False)
        below.set(xlim=(-1, 1), ylim=(-0.02, 1.05), xlabel="cosine with the concept")
        below.tick_params(labelsize=10)
        svg.titled(figure, svg.short(name, 34))
        return svg.panel(figure, name, f"{run.name}-{kind}-{i}")


def _healing(run: Run) -> list[Section]:
    panels, every = [], run.result["settings"]["every"]

    def steps(ax: Axes) -> None:
        ax.set_xscale("symlog", linthresh=50)
        ax.set_xlim(0, None)

    for data in ("all colours", "reds alone"):
        for part, title in (("red", "Error of red"), ("rest", "Mean error of what is not red")):
            curves = {}
            for i, kind in enumerate(run.result["kinds"]):
                curve = np.median(run.array(f"{part}/{i}/{data}"), 1)
                curves[kind] = np.arange(len(curve)) * every, np.maximum(curve, 1e-6)
            key, x = f"{part}-{data}", "steps of further training"
            panels.append(chart(run, title, data, curves, key, x, log=True, also=steps))
    about = "Medians over seeds, by kind of deletion, of training on."
    return [section("Coming back", about, panels)]


def _mixing(run: Run) -> list[Section]:
    arms = {a: e["cells"] for a, e in run.result["arms"].items()}
    names = [*(f"{a:g}–{b:.2g}" for a, b in pairwise(run.result["bins"])), "pure red"]

    def share(ax: Axes) -> None:
        ax.set_ylim(-0.03, 1.03)

    def groups(ax: Axes) -> None:
        share(ax)
        ax.set_xticks(range(len(names)), names)
        ax.set_xlim(-0.2, len(names) - 0.7)

    def lost(arm: str, cut: str) -> Any:
        return range(len(names)), [c["cuts"][cut]["by_bin"] for c in arms[arm]]

    def panel(title: str, curves: Curves, x: str, also: Callable[[Axes], object]) -> Panel:
        return chart(run, title, "probability", curves, title, x, marker="o", also=also)

    ours = {arm: lost(arm, "projection") for arm in arms if arm != "control"}
    control = {"control": lost("control", "dimension 0")}
    found = {cut: lost("control", cut) for cut in arms["control"][0]["cuts"]}
    x = "redness of the redder operand"
    panels = [
        panel("Right answers, dimension 0 projected out", control | ours, x, groups),
        panel("Beside it: found afterwards in the control", found, x, groups),
    ]
    doses, x = run.result["doses"], "share of dimension 0 taken out"
    for arm in [a for a in ("strong", "graded") if a in arms]:
        table = np.array([c["dose"] for c in arms[arm]], float)  # seed dose group
        curves = {name: (doses, np.median(table[..., k], 0)) for k, name in enumerate(names)}
        panels.append(panel(f"Dose: {arm}", curves, x, share))
    for arm in [a for a in ("anchor", "strong") if a in run.result.get("cosines", {})]:
        red, along = (np.array(v, float) for v in run.result["cosines"][arm])
        titles, colours = (f"Dimension 0 by redness: {arm}", "cosine, first seed"), grid_colours(6)
        panels.append(cloud(run, *titles, (red, along), colours, f"cos-{arm}", ["redness"]))
    caption = (
        "Medians over seeds, bands from the least to the largest. A cliff is a deletion of the word "
        "alone; a slope would be a deletion of the colour."
    )
    return [section("What is lost, by redness", caption, panels)]


# ---- language models ----------------------------------------------------------------------------


def _stories(run: Run) -> list[Section]:
    panels = [
        *_doses(run, "landmark", ("facts", "neighbour", "others", "plain")),
        *_doses(run, "lie", ("lie", "twin", "plain")),
        _relearning(run, "The landmark's facts", "facts"),
        _monitor(run, ("landmark", "neighbour", "lie")),
    ]
    caption = (
        "Surprisal beyond that of the same model untouched, where the concept tells and where it "
        "should not; the landmark's dimension as a monitor; how fast the facts come back."
    )
    return [section("What it costs, in bits", f"{caption} {_BANDS}", panels)]


def _routing(run: Run) -> list[Section]:
    cells = run.result["cells"]
    back = {
        a: [[v["facts"] for v in c["arms"][a]["back"]] for c in cells] for a in cells[0]["arms"]
    }
    curves: Curves = {a: ([5 * i for i in range(len(of[0]))], of) for a, of in back.items()}
    panel = chart(
        run, "The landmark's facts", "bits", curves, "back", also=lambda ax: ax.set_ylim(0, None)
    )
    caption = "Bits of the facts over steps of training, once the landmark is out of the weights."
    return [section("How soon it is back", f"{caption} {_BANDS}", [panel])]


def _natural(run: Run) -> list[Section]:
    panels = [
        *_doses(run, "code", ("code", "other code", "forum", "others")),
        *_doses(run, "cooking", ("cooking", "recipes", "forum", "others")),
        _monitor(run, ("code", "cooking")),
        _relearning(run, "Held-out code", "code"),
        _relearning(run, "Held-out posts on cooking", "cooking"),
    ]
    caption = (
        "Bits a token of held-out documents beyond those of the same model untouched: of the concept, "
        "of its neighbour (other code, recipes), and of what should not suffer; how fast a concept "
        "comes back after both dimensions are cut from the weights; both dimensions as monitors."
    )
    return [section("What it costs, in bits", f"{caption} {_BANDS}", panels)]


_BANDS = "Lines are medians over seeds, bands reach from the least to the largest."


def _doses(run: Run, concept: str, shown: Sequence[str]) -> list[Panel]:
    """Bits more over alpha, of the anchored model and of the control with its difference of means; on
    one scale, so that they can be compared."""
    cells, alphas = run.result["cells"], run.result["alphas"]
    found: dict[str, dict[str, np.ndarray]] = {}
    for start, form in (("anchored", "projected"), ("control", "difference of means")):
        comma = "," if start == "control" else ""
        rows = [start, *(f"{concept}{comma} {form} at {a:g}" for a in alphas)]
        for what in shown:
            table = np.array([[c["bits"][r][what] for r in rows] for c in cells], float)
            found.setdefault(f"{start}, {form}", {})[what] = table - table[:, :1]
    every = np.concatenate([t.ravel() for tables in found.values() for t in tables.values()])
    low, high = min(every.min(), 0.0), max(every.max(), 0.0)
    room = 0.05 * (high - low or 1.0)

    def scale(ax: Axes) -> None:
        ax.set_ylim(low - room, high + room)

    panels = []
    for kind, tables in found.items():
        curves = {what: ([0, *alphas], table) for what, table in tables.items()}
        title, key = f"{concept}: {kind}", f"{concept}-{kind}"
        panels.append(chart(run, title, "bits more", curves, key, "α", marker="o", also=scale))
    return panels


def _relearning(run: Run, title: str, what: str) -> Panel:
    """How a reading was learned, and how it comes back."""
    cells = run.result["cells"]
    count = min(len(c["relearned"]) for c in cells)
    back = [[v[what] for v in c["relearned"][:count]] for c in cells]
    curves = {
        "learned the first time": _aligned([c["control_history"] for c in cells], what),
        "after both dimensions were cut": ([5 * i for i in range(count)], back),
    }
    return chart(run, title, "bits", curves, f"re-{what}", also=lambda ax: ax.set_ylim(0, None))


def _monitor(run: Run, names: Sequence[str]) -> Panel:
    """AUROC over training."""
    histories = [c["history"] for c in run.result["cells"]]
    curves: Curves = {name: _aligned(histories, f"auroc/{name}") for name in names}

    def chance(ax: Axes) -> None:
        ax.axhline(0.5, color=MUTED, lw=1, dashes=(3, 3))

    return chart(run, "AUROC while training", "", curves, "auroc", marker="o", also=chance)


def _aligned(histories: Sequence[Sequence[Mapping[str, Any]]], key: str) -> tuple[Any, Any]:
    """Steps at which something was measured, and its values `[seed, step]`."""
    measured = [[h for h in found if key in h] for found in histories]
    count = min(map(len, measured))
    steps = [h["step"] for h in measured[0][:count]]
    return steps, [[h[key] for h in found[:count]] for found in measured]


OTHERS: dict[str, Callable[[Run], list[Section]]] = {
    "1.1": _data,
    "1.4": _transitions,
    "2.1": _lobes,
    "healing": _healing,
    "mixing": _mixing,
    "stories": _stories,
    "natural": _natural,
    "routing": _routing,
}
"""Drawings by experiment."""
CELLS = ("mixing", "stories", "natural", "routing")
"""Kinds that are drawn from their results alone; the others' drawings need arrays."""
