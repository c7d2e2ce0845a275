"""Figures of the comparisons of heads: shares with intervals a row, and curves over alpha."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from trimtab.report import figures, svg
from trimtab.report.figures import Mark
from trimtab.report.looks import Look, looks_of
from trimtab.report.svg import Panel
from trimtab.report.wording import label
from trimtab.study.results import About, Measurement

IN_DOMAIN, HELD_OUT = "in-domain average", "held-out average"
ABLATED = "dph, "
"""How the methods of the ablation begin: `dph, identity × listwise`."""


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
    names = {(a, r): f"{label(a)}, {r}".replace("more data, ", "more, ") for a, r in arms(lines)}
    found = []
    for split, title in ((IN_DOMAIN, "In domain"), (HELD_OUT, "Held out")):
        mine = [x for x in lines if x.split == split]
        marks = [
            Mark(names[x.method, x.read_out or ""], look(x.method), x, x.read_out != "reward")
            for x in mine
        ]
        found.append(_rows(title, f"shares-{split}", marks, mine[0].value))
    return found


def _ablation(lines: Sequence[Measurement]) -> list[Panel]:
    found = []
    for split in dict.fromkeys(x.split for x in lines):
        mine = [x for x in lines if x.split == split]
        marks = [Mark(", ".join(parts_of(x.method)), look("dph frozen"), x) for x in mine]
        title = f"Pooling and loss: {split.removesuffix(' average').replace('-', ' ')}"
        found.append(_rows(title, f"ablation-{split}", marks))
    return found


def _rows(title: str, name: str, marks: Sequence[Mark], bare: float | None = None) -> Panel:
    ends = figures.limits([m.line for m in marks])
    head = (title, f"{marks[0].line.items:,} items", title, name)
    return figures.rows(*head, marks, ends, "answered rightly, %", at=bare, width=440)


def _curve(lines: Sequence[Measurement], test: str, metric: str) -> Panel:
    """Accuracy or KL over alpha, a line an arm, from the bare model at 0."""
    mine = [x for x in lines if x.split == test]
    (base,) = [x for x in mine if x.method == "base"]
    start = replace(base, alpha=0.0)
    if metric == "kl":
        start = replace(start, metric=metric, value=0.0, low=0.0, high=0.0)
    curves = {}
    for arm in dict.fromkeys(x.method for x in mine if x.method != "base"):
        own = [x for x in mine if (x.method, x.metric) == (arm, metric)]
        own.sort(key=lambda x: x.alpha or 0.0)
        # the draws of ARGS are not the bare model's at 0
        curves[arm] = own if (arm, metric) == ("args", "kl") else [start, *own]
    title, unit = ("Accuracy", "%") if metric == "accuracy" else ("KL", "nats a token, root scale")
    return figures.over_alpha(
        f"{title}: {svg.short(test, 30)}",
        unit,
        f"{title} over alpha on {test}",
        f"{metric}-{test}",
        curves,
        {arm: look(arm) for arm in curves},
        legend=label,
    )
