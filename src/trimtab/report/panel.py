"""What else dials change: a figure, a table a dial, an answer in a sentence or two; in pages of
comparisons, and as a page of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from trimtab.report import figures, tables, wording
from trimtab.report.blocks import Block, Figure, On, Page, Section, Table, Text, fenced, plain
from trimtab.report.looks import looks_of
from trimtab.report.results import ALPHA_1, BASE, EQUAL_KL, Difference, Results, read_results
from trimtab.report.svg import Panel
from trimtab.study.reading import runs_in
from trimtab.study.results import PANEL

RANDOM = "random"
SCALES = {"points": 100.0}
DIGITS = {"points": 1, "tokens": 1}
NAMES = {
    **{
        f"{m}_ambiguous": f"{n}, ambiguous" for m, n in (("accuracy", "accuracy"), ("bias", "lean"))
    },
    **{
        f"{m}_disambiguated": f"{n}, clear" for m, n in (("accuracy", "accuracy"), ("bias", "lean"))
    },
    **{"bias_score_ambiguous": "score, ambiguous", "bias_score_disambiguated": "score, clear"},
    **{"over_refusal": "over-refusal", "kl": "KL", "kl_p95": "KL, 95th percentile"},
}
"""Metrics that have another name for people."""


class Row(NamedTuple):
    """A metric of a property."""

    name: str
    """The property's."""
    metric: str
    unit: str
    judged: bool
    trained_on: Sequence[str]
    """Dials that were trained on what it is measured on."""

    @property
    def label(self) -> str:
        """As tables and figures have it."""
        metric = NAMES.get(self.metric, self.metric.replace("_", " "))
        return self.name if metric == self.name else f"{self.name}: {metric}"

    def number(self, value: float, *, sign: bool = False) -> str:
        """In its unit, shares in percent."""
        digits = DIGITS.get(self.unit, 2)
        return wording.number(SCALES.get(self.unit, 1.0) * value, digits, sign=sign)


class SideEffects:
    """The panel of a run."""

    def __init__(self, results: Results):
        self.results, about = results, results.study.more["panel"]
        self.kl, self.not_reached = about["kl"], about["not_reached"]
        self.about = {name: of["about"] for name, of in about["properties"].items()}
        self.rows = [
            Row(name, metric, unit, better != 0, tuple(of["trained_on"]))
            for name, of in about["properties"].items()
            for metric, (unit, better) in of["metrics"].items()
        ]
        self.found = {
            (d.method, d.at, d.split, d.metric): d
            for d in results.gains
            if d.split.startswith(PANEL)
        }
        self.methods = list(dict.fromkeys(key[0] for key in self.found))

    def read(self, method: str, at: str, row: Row) -> Difference | None:
        """What a dial changes of a metric."""
        return self.found.get((method, at, PANEL + row.name, row.metric))

    def told(self, method: str, at: str) -> list[tuple[Row, Difference]]:
        """What one can tell of a dial, but for what it was trained on."""
        found = ((row, self.read(method, at, row)) for row in self.rows)
        return [
            (row, d)
            for row, d in found
            if d and d.told and row.judged and method not in row.trained_on
        ]

    def where(self, at: str) -> str:
        """A place in words."""
        return "α = 1" if at == ALPHA_1 else f"KL {self.kl:.3g}" if self.kl else "equal KL"

    def places(self, method: str) -> list[str]:
        """Where a dial was measured."""
        return [at for at in (ALPHA_1, EQUAL_KL) if any(k[:2] == (method, at) for k in self.found)]


def blocks(results: Results) -> list[Block]:
    """Everything that a page says of a panel; nothing where there is none."""
    if "panel" not in results.study.more:
        return []
    panel = SideEffects(results)
    drawn = [p for method in panel.methods for p in drawings(panel, method)]
    note = " A dagger (†) marks what a dial was trained on, which is no side effect."
    how = (
        "What the dial changes beside what it was made for: the figure with it less that of the bare model, "
        "on the same items, with 95\u00a0% intervals, each for itself; shares in percent, differences in "
        "points. "
        "“Worse” and “better” are said where one can tell, p-values being adjusted (Holm) over all that is "
        "judged of a dial at one strength. “Could see” is the smallest difference that is found with "
        "80\u00a0% power at α\u00a0=\u00a01, unadjusted. In italics is what is only described."
    )
    caption = (
        "The line at 0 is the bare model; beside each name what it has. Large: the dial at α\u00a0=\u00a01; "
        f"small: at {panel.where(EQUAL_KL)}; grey: a random direction of that KL. Filled where one can tell."
    )
    shown = "What each dial changes of each property, with 95 % intervals"
    several = len(panel.methods) > 2
    return [
        Text(plain(answer(panel)), On.ALL, lead=True),
        Figure(drawn, shown, caption, 2),
        *([_overview(panel)] if several else []),
        Text(how + (note if any(row.trained_on for row in panel.rows) else ""), On.ALL),
        *(
            Section(plain(wording.label(m)), [_table(panel, m)], level=3)
            for m in panel.methods
            if m != RANDOM or len(panel.methods) == 1
        ),
    ]


def page(folder: Path) -> Page | None:
    """The page of dials on a panel, on one model or on several."""
    found = [read_results(run) for run in runs_in(folder, "panel")]
    if not found:
        return None
    parts: list[Block] = []
    for results in found:
        own = blocks(results)
        parts += own if len(found) == 1 else [Section(wording.model(results.study.model), own)]
    known = {name: said for r in found for name, said in SideEffects(r).about.items()}
    listed = Table(
        ["property", "what it is"], [[plain(k), plain(v)] for k, v in known.items()], (2, 2)
    )
    parts.append(Section("The properties", [listed], On.PAGES))
    ran = [f"{tables.what_ran(r)}\n\n{fenced(r.study.command)}" for r in found]
    parts.append(Section("What was run", [Text(each) for each in ran], On.PAGES))
    methods = list(dict.fromkeys(m for r in found for m in r.methods))
    return Page(plain(found[0].study.title), parts, "panel", tables.looks(methods))


def answer(panel: SideEffects) -> str:
    """Whether a dial has a side effect that its KL alone would not have told."""
    noise = {(row, d.verdict) for row, d in panel.told(RANDOM, EQUAL_KL)}
    own, first = [], []
    for method in (m for m in panel.methods if m != RANDOM):
        told = panel.told(method, EQUAL_KL)
        own += _made(method, [(row, d) for row, d in told if (row, d.verdict) not in noise])
        first += _made(method, panel.told(method, ALPHA_1))
    if own and RANDOM in panel.methods:
        return (
            f"At the same damage ({panel.where(EQUAL_KL)} nats a token) {'; '.join(own)}. A random direction "
            "of that damage does not, so that KL alone would not have said so."
        )
    at_1 = f" At α\u00a0=\u00a01 {'; '.join(first)}." if first else ""
    return f"No side effect was found that KL alone would not have told.{at_1}"


def _made(method: str, told: Sequence[tuple[Row, Difference]]) -> list[str]:
    """What a dial makes worse or better, in a clause; none where one cannot tell."""
    said = [
        f"{row.label} {d.verdict} ({row.number(d.value, sign=True)} {row.unit}".rstrip() + ")"
        for row, d in told
    ]
    return [f"{wording.label(method)} makes {wording.join(said)}"] if said else []


def _overview(panel: SideEffects) -> Table:
    """A row a dial: its damage, and what it makes worse or better."""

    def told(method: str, at: str, word: str) -> str:
        found = [row.label for row, d in panel.told(method, at) if d.verdict == word]
        return plain(", ".join(found)) or wording.NOTHING

    columns = [(at, word) for at in (ALPHA_1, EQUAL_KL) for word in ("worse", "better")]
    header = ["dial", *(f"{word} at {panel.where(at)}" for at, word in columns)]
    rows = [
        [plain(wording.label(m)), *(told(m, at, word) for at, word in columns)]
        for m in panel.methods
    ]
    return Table(header, rows, (5, 5))


def _table(panel: SideEffects, method: str) -> Table:
    """A row a metric: the bare model, the dial at each strength, a random direction beside it."""
    shown = [(method, at) for at in panel.places(method)]
    if method != RANDOM:
        shown += [(RANDOM, at) for at in panel.places(RANDOM)[-1:]]
    header = ["property", "bare model", "could see"]
    for name, at in shown:
        alpha = next((d.alpha for k, d in panel.found.items() if k[:2] == (name, at)), None)
        who = "random, " if name == RANDOM and method != RANDOM else ""
        turned = "" if at == ALPHA_1 else f"\nα = {wording.alpha(alpha)}"
        header.append(f"{who}{panel.where(at)}{turned}")
    rows = []
    for row in panel.rows:
        base = panel.results.read(BASE, PANEL + row.name, row.metric)
        label = plain(row.label) + (f", {row.unit}" if row.unit != "points" else "")
        label += " †" if method in row.trained_on else ""
        cells = [_cell(row, panel.read(name, at, row)) for name, at in shown]
        figure = wording.NOTHING if base is None else row.number(base.value)
        first = panel.read(*shown[0], row)
        seen = row.number(first.mde) if first and row.judged else wording.NOTHING
        rows.append([label if row.judged else f"*{label}*", figure, seen, *cells])
    return Table(header, rows)


def _cell(row: Row, d: Difference | None) -> str:
    signed = partial(row.number, sign=True)
    said = wording.figure(d, signed, ", ")
    if d is None or not d.told:
        return said
    value, space, ends = said.partition(" ")
    return f"**{value} {d.verdict}**{space}{ends}"


def drawings(panel: SideEffects, method: str) -> list[Panel]:
    """A dial's panel: what is judged of shares, then what is judged in other units."""
    looks, found = looks_of(panel.results.methods), []
    sides = [(method, ALPHA_1, 7.5, 2.0, -0.22), (method, EQUAL_KL, 5, 1, 0.06)]
    sides += [] if method == RANDOM else [(RANDOM, EQUAL_KL, 4, 1, 0.3)]
    for unit in dict.fromkeys(row.unit for row in panel.rows if row.judged):
        marks, scale = [], SCALES.get(unit, 1.0)
        for row in panel.rows:
            base = panel.results.read(BASE, PANEL + row.name, row.metric)
            if row.unit != unit or not row.judged or base is None:
                continue
            label = f"{row.label} {row.number(base.value)}"
            for name, at, size, width, down in sides:
                d = panel.read(name, at, row)
                if d is not None and math.isfinite(d.value):
                    mark = figures.Mark(label, looks[name], d, not d.told, size, width, down)
                    marks.append(mark)
        if marks:
            ends = [scale * x for m in marks for x in (m.line.low, m.line.high, m.line.value, 0)]
            known = [x for x in ends if math.isfinite(x)]
            air = 0.06 * (max(known) - min(known)) or 1.0
            limits = min(known) - air, max(known) + air
            name = wording.label(method)
            head = (name, unit, f"What {name} changes, in {unit}", f"panel-{method}-{unit}")
            axis = f"{unit} from the bare model"
            found.append(
                figures.rows(*head, marks, limits, axis, at=0, pitch=38, scale=scale, most=44)
            )
    return found
