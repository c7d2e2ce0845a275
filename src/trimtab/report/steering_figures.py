"""Dose and damage of every way to steer: two panels a trait, and what the lines are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from trimtab.report import wording
from trimtab.report.doses import RANDOM, Doses
from trimtab.report.figures import (
    _PLACEHOLDER,
    INK,
    MUTED,
    NICE,
    PAGE,
    RULE,
    Panel,
    _figure,
    _panel,
    _plane,
)
from trimtab.report.looks import looks_of
from trimtab.study.results import PERSONA

Look = tuple[str, str, str]
"""Colour, marker, how its line is drawn."""


def panels(found: Sequence[Doses]) -> list[Panel]:
    """For each trait the shift of the log-ratio, and the rise of NLL beside it, both over damage; then
    the legend."""
    looks, labels = _looks(found)
    drawn = []
    for doses in found:
        for metric, title, unit in (
            ("shift", doses.trait.capitalize(), "log-ratio, nats a token"),
            ("nll_rise", f"{doses.trait.capitalize()}: damage", "rise of NLL, nats a token"),
        ):
            with _plane(title, unit) as (figure, ax):
                ax.axhline(0, color=RULE, lw=1, zorder=0.6)
                ax.axvline(0, color=RULE, lw=1, zorder=0.6)
                for name, look in looks.items():
                    if name in doses.cells:
                        _line(ax, doses.cells[name].curve, metric, look)
                ax.xaxis.set_major_locator(MaxNLocator(5, steps=NICE))
                ax.yaxis.set_major_locator(MaxNLocator(5, steps=NICE))
                ax.set_xlabel("√KL from the bare model, with the sign of α")
            drawn.append(_panel(figure, f"{title}: {unit}", f"{metric}-{doses.trait}"))
    return [*drawn, _legend({labels[name]: look for name, look in looks.items()})]


def _looks(found: Sequence[Doses]) -> tuple[dict[str, Look], dict[str, str]]:
    """A look and a label for each cell that is drawn: no halves, and of equal curves the first, under
    both names."""
    looks: dict[str, Look] = {}
    labels = {}
    rows = {c.name: c.method for d in found for c in d.cells.values() if not c.half}
    table = looks_of(rows)
    for name, method in sorted(rows.items(), key=lambda item: item[1] != RANDOM):
        if method == RANDOM:
            looks[name], labels[name] = (MUTED, "", "-"), wording.label(RANDOM)
        elif method == PERSONA:
            looks[name], labels[name] = (INK, "D", "--"), wording.label(PERSONA)
        elif equal := next((other for other in looks if _same(found, name, other)), None):
            labels[equal] += f", {name}"
        else:
            colour, marker = table[name]
            looks[name], labels[name] = (_PLACEHOLDER[colour], marker, "-"), name
    return looks, labels


def _same(found: Sequence[Doses], one: str, other: str) -> bool:
    """Whether two cells have the same curve everywhere."""

    def curve(doses: Doses, name: str) -> list[tuple[float, ...]]:
        points = doses.cells[name].curve if name in doses.cells else ()
        return [(c["alpha"], c["shift"], c["kl"]) for c in points]

    return all(curve(d, one) == curve(d, other) for d in found)


def _line(ax: Axes, rows: Sequence[Mapping[str, float]], metric: str, look: Look) -> None:
    colour, marker, style = look
    ax.plot(
        [r["dose"] for r in rows],
        [r[metric] for r in rows],
        color=colour,
        lw=1.2 if colour == MUTED else 1.6,
        ls=style,
        marker=marker or None,
        ms=6.5,
        mec=PAGE,
        mew=1,
        zorder=2 if colour == MUTED else 3,
        clip_on=False,
    )


def _legend(shown: dict[str, Look]) -> Panel:
    columns, pitch = 4, 22
    width, height = 860, 12 + pitch * -(-len(shown) // columns)
    with _figure(width, height) as figure:
        ax = figure.add_axes((0, 0, 1, 1))
        ax.set_xlim(0, width)
        ax.set_ylim(height, 0)
        ax.axis("off")
        for i, (name, (colour, marker, style)) in enumerate(shown.items()):
            x, y = 16 + (i % columns) * (width // columns), 14 + pitch * (i // columns)
            ax.plot([x, x + 26], [y, y], color=colour, lw=1.6, ls=style)
            if marker:
                ax.plot([x + 13], [y], color=colour, marker=marker, ms=6.5, mec=PAGE, mew=1)
            ax.text(x + 34, y, name, va="center", size=12)
        return _panel(figure, "Legend", "legend")
