"""Figures of the comparisons of heads: shares with intervals a row, and curves over alpha."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from matplotlib.ticker import MaxNLocator

from trimtab.report import figures, svg
from trimtab.report.looks import Look, looks_of
from trimtab.report.svg import INK, MUTED, NICE, Panel
from trimtab.study.results import About, Measurement

IN_DOMAIN, HELD_OUT = "in-domain average", "held-out average"
ARMS = {
    "base": "bare model",
    "sft": "SFT",
    "dpo": "DPO",
    "dph joint": "DPH joint",
    "dph frozen": "DPH frozen",
    "dph frozen, more data": "DPH frozen, more data",
    "iav": "IAV",
    "iav merged": "IAV merged",
    "genarm": "GenARM",
    "args": "ARGS",
}
ABLATED = "dph, "
"""How the methods of the ablation begin: `dph, identity × listwise`."""


def arm_name(arm: str) -> str:
    """An arm's name for people."""
    return ARMS.get(arm, arm)


def look(arm: str) -> Look:
    """An arm's colour and marker: those of its method."""
    name = re.sub(r"[^a-z0-9]+", "-", arm)
    return looks_of([name])[name]


def arms(lines: Sequence[Measurement]) -> list[tuple[str, str]]:
    """Arms and their read-outs, in order."""
    return list(dict.fromkeys((x.method, x.read_out or "") for x in lines))


def parts_of(method: str) -> list[str]:
    """Pooling and loss of a method of the ablation."""
    return method.removeprefix(ABLATED).split(" × ")


def panels(
    study: About, lines: Sequence[Measurement], ablation: Sequence[Measurement] = ()
) -> list[Panel]:
    """The panels of a run."""
    if study.study == "rewards":
        return _shares(lines) + _ablation(ablation)
    return [_curve(lines, test, metric) for test in study.splits for metric in ("accuracy", "kl")]


def _shares(lines: Sequence[Measurement]) -> list[Panel]:
    """A panel each of both averages: every arm with its interval; the bare model's as a line."""
    found = []
    names = {(a, r): f"{arm_name(a)}, {r}".replace("more data, ", "more, ") for a, r in arms(lines)}
    for split, title in ((IN_DOMAIN, "In domain"), (HELD_OUT, "Held out")):
        mine = [x for x in lines if x.split == split]
        rows = [
            (names[x.method, x.read_out or ""], x, x.method, x.read_out != "reward") for x in mine
        ]
        found.append(_rows(rows, title, f"shares-{split}", bare=mine[0].value, most=27))
    return found


def _ablation(lines: Sequence[Measurement]) -> list[Panel]:
    found = []
    for split in dict.fromkeys(x.split for x in lines):
        rows = [
            (", ".join(parts_of(x.method)), x, "dph frozen", False)
            for x in lines
            if x.split == split
        ]
        title = f"Pooling and loss: {split.removesuffix(' average').replace('-', ' ')}"
        found.append(_rows(rows, title, f"ablation-{split}", most=27))
    return found


def _rows(
    rows: Sequence[tuple[str, Measurement, str, bool]],
    title: str,
    name: str,
    *,
    bare: float | None = None,
    most: int = 19,
) -> Panel:
    """A row each: name, line, arm, whether its marker is hollow."""
    ends = [100 * getattr(x, k) for _, x, _, _ in rows for k in ("value", "low", "high")]
    note = f"{rows[0][1].items:,} items"
    limits = svg.limits(ends, 5, at_most=100)
    labels = [label for label, *_ in rows]
    with svg.rows(labels, limits, 24, title, note, width=440, most=most) as (figure, ax):
        if bare is not None:
            ax.axvline(100 * bare, color=MUTED, lw=1, dashes=(3, 3))
        for y, (_, line, arm, hollow) in enumerate(rows):
            svg.whisker(ax, look(arm), 100 * line.low, 100 * line.high, y)
            svg.dot(ax, look(arm), 100 * line.value, y, hollow=hollow)
        ax.set_xlabel("answered rightly, %")
    return svg.panel(figure, title, name)


def _curve(lines: Sequence[Measurement], test: str, metric: str) -> Panel:
    """Accuracy or KL over alpha, a line an arm, from the bare model at 0."""
    mine = [x for x in lines if x.split == test]
    (base,) = [x for x in mine if x.method == "base"]
    scale = 100 if metric == "accuracy" else 1
    title, unit = ("Accuracy", "%") if metric == "accuracy" else ("KL", "nats a token, root scale")
    with svg.plane(f"{title}: {svg.short(test, 30)}", unit) as (figure, ax):
        top = 0.0
        if metric == "kl":
            svg.root_scale(ax)
        order = dict.fromkeys(x.method for x in mine if x.method != "base")
        for arm in order:
            own = sorted(
                (x for x in mine if (x.method, x.metric) == (arm, metric)),
                key=lambda x: x.alpha or 0.0,
            )
            at = [x.alpha or 0.0 for x in own]
            values, low, high = (
                [scale * getattr(x, k) for x in own] for k in ("value", "low", "high")
            )
            if metric == "accuracy":
                ends = [scale * getattr(base, k) for k in ("value", "low", "high")]
                at = [0.0, *at]
                values, low, high = (
                    [e, *v] for e, v in zip(ends, (values, low, high), strict=True)
                )
            elif arm != "args":  # whose draws are not the bare model's at 0
                at, values, low, high = ([0.0, *v] for v in (at, values, low, high))
            top = max([top, *(v for v in values if math.isfinite(v))])
            svg.line(ax, look(arm), at, values, (low, high), label=arm_name(arm), ms=7)
        figures.alpha_axis(ax, [0.0, *(x.alpha or 0.0 for x in mine)])
        if metric == "kl":
            svg.root_ticks(ax, top)
        else:
            ax.yaxis.set_major_locator(MaxNLocator(5, steps=NICE))
        ax.legend(frameon=False, fontsize=10, labelcolor=INK, ncols=2)
    return svg.panel(figure, f"{title} over alpha on {test}", f"{metric}-{test}")
