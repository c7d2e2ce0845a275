"""Dose and damage of every way to steer: two panels a trait, and what the lines are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.report import svg, wording
from trimtab.report.doses import RANDOM, Doses
from trimtab.report.looks import CONTROLS, Look, looks_of
from trimtab.report.svg import RULE, Panel
from trimtab.study.results import PERSONA

_GREY = Look(CONTROLS[RANDOM].colour, "")
"""Random directions: many, so without markers."""


def panels(found: Sequence[Doses]) -> list[Panel]:
    """For each trait the shift of the log-ratio, and the rise of NLL beside it, both over damage."""
    looks, drawn = _looks(found), []
    for doses in found:
        for metric, title, unit in (
            ("shift", doses.trait.capitalize(), "log-ratio, nats a token"),
            ("nll_rise", f"{doses.trait.capitalize()}: damage", "rise of NLL, nats a token"),
        ):
            with svg.plane(title, unit) as (figure, ax):
                ax.axhline(0, color=RULE, lw=1, zorder=0.6)
                ax.axvline(0, color=RULE, lw=1, zorder=0.6)
                for name, (_, look) in looks.items():
                    rows = doses.cells[name].curve if name in doses.cells else ()
                    at, values = [r["dose"] for r in rows], [r[metric] for r in rows]
                    svg.line(ax, look, at, values, **_style(look))
                svg.ticks(ax.xaxis)
                svg.ticks(ax.yaxis)
                ax.set_xlabel("√KL from the bare model, with the sign of α")
            drawn.append(svg.panel(figure, f"{title}: {unit}", f"{metric}-{doses.trait}"))
    return drawn


def legend(found: Sequence[Doses]) -> dict[str, Look]:
    """What the lines are called, and their looks."""
    return {label: look for label, look in _looks(found).values()}


def _looks(found: Sequence[Doses]) -> dict[str, tuple[str, Look]]:
    """A label and a look for each cell that is drawn: no halves, and of equal curves the first, under
    both names."""
    rows = {c.name: c.method for d in found for c in d.cells.values() if not c.half}
    table, drawn = looks_of(rows), {}
    for name, method in sorted(rows.items(), key=lambda item: item[1] != RANDOM):
        if method in (RANDOM, PERSONA):
            look = _GREY if method == RANDOM else CONTROLS[PERSONA]
            drawn[name] = wording.label(method), look
        elif equal := next((other for other in drawn if _same(found, name, other)), None):
            drawn[equal] = f"{drawn[equal][0]}, {name}", drawn[equal][1]
        else:
            drawn[name] = name, table[name]
    return drawn


def _same(found: Sequence[Doses], one: str, other: str) -> bool:
    """Whether two cells have the same curve everywhere."""

    def curve(doses: Doses, name: str) -> list[tuple[float, ...]]:
        points = doses.cells[name].curve if name in doses.cells else ()
        return [(c["alpha"], c["shift"], c["kl"]) for c in points]

    return all(curve(d, one) == curve(d, other) for d in found)


def _style(look: Look) -> dict[str, Any]:
    """How a line is drawn: what is measured against stands behind, the prompt's is dashed."""
    if look == _GREY:
        return {"lw": 1.2, "zorder": 2}
    return {"lw": 1.6, "ms": 6.5, "ls": "--" if look == CONTROLS[PERSONA] else "-"}


def key(shown: Mapping[str, Look]) -> Panel:
    """The legend as a panel."""
    columns, pitch = 4, 22
    width, height = 860, 12 + pitch * -(-len(shown) // columns)
    with svg.canvas(width, height) as figure:
        ax = figure.add_axes((0, 0, 1, 1))
        ax.set_xlim(0, width)
        ax.set_ylim(height, 0)
        ax.axis("off")
        for i, (name, look) in enumerate(shown.items()):
            x, y = 16 + (i % columns) * (width // columns), 14 + pitch * (i // columns)
            svg.line(ax, Look(look.colour, ""), [x, x + 26], [y, y], **_style(look))
            if look.marker:
                svg.dot(ax, look, x + 13, y, 5.5)
            ax.text(x + 34, y, name, va="center", size=12)
        return svg.panel(figure, "Legend", "legend")
