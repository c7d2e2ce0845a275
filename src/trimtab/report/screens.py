"""The page of `inspect --layers`: what each block's states say of a direction before one is fitted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trimtab.report import svg, wording
from trimtab.report.blocks import Figure, On, Page, Section, Table, Text, listed, plain
from trimtab.report.looks import Look
from trimtab.report.svg import MUTED, RULE, Panel
from trimtab.sites import Site

if TYPE_CHECKING:
    from trimtab.directions.screens import Found
    from trimtab.training.screens import Screen

LOOK = Look("m0", "o")
ABOUT = (
    "Agreement: mean cosine between the differences (chosen − rejected) of two items, 1 where all point one "
    "way; chance: what the same differences reach with signs drawn at random (97.5 %). d′: how far the mean "
    "direction of half the items parts the other half, mean over standard deviation. Lens: how often the "
    "block's states, read by the final norm and the head, put the chosen answer's first own token above the "
    "rejected one's, and by how many logits. Intervals: 95 %, by bootstrap over items. None of it sees what "
    "a dial does or damages."
)


def screens_page(
    name: str, model: str, screens: Sequence[Screen], best: Site, said: Sequence[str] = ()
) -> Page:
    """A table, a drawing a screen, and what is to be said; `best` is the site that `auto` takes."""
    rows = [
        [
            f"**{s.site}**" if s.site == best else str(s.site),
            _cell(s.agreement),
            wording.number(s.agreement.chance),
            _cell(s.separation),
            _cell(s.lens, 100, 0),
            _cell(s.margin),
        ]
        for s in screens
    ]
    header = ["block", "agreement", "chance", "d′ held out", "lens, %", "margin, logits"]
    lines = [f"largest d′: block {best}, which `--sites auto` takes", *map(plain, said)]
    blocks = [
        Text(ABOUT, On.ALL),
        Table(header, rows),
        Figure(_panels(screens), "Screens by block", ABOUT.partition(". d′")[0], 3),
        Section("Beside it", [Text(listed(lines).words, On.ALL)]),
    ]
    return Page(f"{plain(name)} on {plain(model)}, block by block", blocks, "inspect")


def _cell(found: Found | None, scale: float = 1, digits: int = 2) -> str:
    if found is None:
        return wording.NOTHING
    value, low, high = (wording.number(scale * x, digits) for x in found[:3])
    return f"{value} [{low}, {high}]" if found.low == found.low else value


def _panels(screens: Sequence[Screen]) -> list[Panel]:
    shown = (
        ("Agreement", "mean cosine", "agreement", 1, 0.0),
        ("Held-out separation", "d′", "separation", 1, 0.0),
        ("Logit lens", "% of items right", "lens", 100, 50.0),
    )
    panels = []
    for title, unit, name, scale, nothing in shown:
        found = [(s.site, f) for s in screens if (f := getattr(s, name)) is not None]
        if len(found) < 2 or not all(isinstance(site, int) for site, _ in found):
            continue
        at = [float(site) for site, _ in found]
        value, low, high = ([scale * f[i] for _, f in found] for i in range(3))
        with svg.plane(title, unit) as (figure, ax):
            ax.axhline(nothing, color=RULE, lw=1, zorder=0.6)
            if name == "agreement":
                ax.plot(
                    at, [f.chance for _, f in found], color=MUTED, lw=1, dashes=(3, 3), zorder=0.7
                )
            svg.line(ax, LOOK, at, value, (low, high), ms=5)
            svg.ticks(ax.xaxis, integer=True)
            svg.ticks(ax.yaxis)
            ax.set_xlabel("block")
        panels.append(svg.panel(figure, f"{title} by block: {unit}", f"screen-{name}"))
    return panels
