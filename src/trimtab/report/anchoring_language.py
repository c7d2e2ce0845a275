"""Figures of the language models: dose curves, relearning, AUROC while training; medians over seeds
with bands from the least to the largest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from trimtab.report import svg
from trimtab.report.anchoring_canvas import SHADES, Run, plane, section
from trimtab.report.blocks import Section
from trimtab.report.svg import INK, MUTED, Panel


def stories(run: Run) -> list[Section]:
    """The landmark and the lie."""
    panels = [
        *_doses(run, "landmark", ("facts", "neighbour", "others", "plain")),
        *_doses(run, "lie", ("lie", "twin", "plain")),
        _relearning(run, "The landmark's facts", "facts", None),
        _monitor(run, ("landmark", "neighbour", "lie")),
    ]
    caption = (
        "Surprisal beyond that of the same model untouched, where the concept tells and where it "
        "should not; the landmark's dimension as a monitor; how fast the facts come back."
    )
    return [section("What it costs, in bits", f"{caption} {_BANDS}", panels, "two")]


def natural(run: Run) -> list[Section]:
    """Code and cooking."""
    panels = [
        *_doses(run, "code", ("code", "other code", "forum", "others")),
        *_doses(run, "cooking", ("cooking", "recipes", "forum", "others")),
        _monitor(run, ("code", "cooking")),
        _relearning(run, "Held-out code", "code", "code"),
        _relearning(run, "Held-out posts on cooking", "cooking", "cooking"),
    ]
    caption = (
        "Bits a token of held-out documents beyond those of the same model untouched: of the concept, "
        "of its neighbour (other code, recipes), and of what should not suffer; how fast a concept "
        "comes back after both dimensions are cut from the weights; both dimensions as monitors."
    )
    return [section("What it costs, in bits", f"{caption} {_BANDS}", panels, "two")]


_BANDS = "Lines are medians over seeds, bands reach from the least to the largest."


def _doses(run: Run, concept: str, shown: Sequence[str]) -> list[Panel]:
    """Bits more over alpha, of the anchored model and of the control with its difference of means; on
    one scale, so that they can be compared."""
    cells, alphas = run.result["cells"], run.result["alphas"]
    curves: dict[str, dict[str, np.ndarray]] = {}
    for start, form in (
        ("anchored", f"{concept} projected at {{:g}}"),
        ("control", f"{concept}, difference of means at {{:g}}"),
    ):
        rows = [start, *(form.format(a) for a in alphas)]
        curves[start] = {}
        for what in shown:
            table = np.array([[c["bits"][r][what] for r in rows] for c in cells], float)
            curves[start][what] = table - table[:, :1]
    values = np.concatenate([t.ravel() for found in curves.values() for t in found.values()])
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    room = 0.05 * (high - low or 1.0)
    panels = []
    for start, kind in (
        ("anchored", "anchored, projected"),
        ("control", "control, difference of means"),
    ):
        with plane(f"{concept}: {kind}", "bits more") as (figure, ax):
            for i, (what, table) in enumerate(curves[start].items()):
                _band(ax, [0, *alphas], table, SHADES[i], what)
            ax.set_ylim(low - room, high + room)
            ax.set_xlabel("α")
            _legend(ax)
            panels.append(svg.panel(figure, f"{concept}, {kind}", f"{run.name}-{concept}-{start}"))
    return panels


def _relearning(run: Run, title: str, what: str, key: str | None) -> Panel:
    """How a reading was learned, and how it comes back."""
    cells = run.result["cells"]
    with plane(title, "bits") as (figure, ax):
        first = [[h for h in c["control_history"] if what in h] for c in cells]
        steps, learned = _aligned(first, what)
        _band(ax, steps, learned, MUTED, "learned the first time", marker="")
        count = min(len(c["relearned"]) for c in cells)
        back = [[v if key is None else v[key] for v in c["relearned"][:count]] for c in cells]
        ticks = [5 * i for i in range(count)]
        _band(ax, ticks, np.array(back, float), SHADES[0], "after both dimensions were cut", "")
        ax.set_xlabel("step")
        ax.set_ylim(0, None)
        _legend(ax)
        return svg.panel(figure, f"Learning and relearning: {title}", f"{run.name}-re-{what}")


def _monitor(run: Run, names: Sequence[str]) -> Panel:
    """AUROC over training."""
    cells = run.result["cells"]
    with plane("AUROC while training", "") as (figure, ax):
        for i, name in enumerate(names):
            entry = f"auroc/{name}"
            steps, table = _aligned([[h for h in c["history"] if entry in h] for c in cells], entry)
            _band(ax, steps, table, SHADES[i], name)
        ax.axhline(0.5, color=MUTED, lw=1, dashes=(3, 3))
        ax.set_xlabel("step")
        _legend(ax)
        return svg.panel(figure, "AUROC while training", f"{run.name}-auroc")


def _aligned(histories: Sequence[Sequence[Mapping[str, Any]]], key: str) -> tuple[list[float], Any]:
    """Steps, and values `[seed, step]`."""
    count = min(map(len, histories))
    steps = [h["step"] for h in histories[0][:count]]
    return steps, np.array([[h[key] for h in found[:count]] for found in histories], float)


def _band(
    ax: Axes, x: Sequence[float], table: np.ndarray, shade: str, label: str, marker: str = "o"
) -> None:
    if len(table) > 1:
        ax.fill_between(x, table.min(0), table.max(0), color=shade, alpha=0.12, lw=0)
    ax.plot(
        x, np.median(table, 0), color=shade, lw=1.8, marker=marker, ms=4, label=label, clip_on=False
    )


def _legend(ax: Axes) -> None:
    ax.legend(frameon=False, fontsize=9, labelcolor=INK, handlelength=1.2)
