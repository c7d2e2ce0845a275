"""What comparisons on several shifts say of a claim: "this method generalises further than the
baseline". Judged from verdicts alone, in words that follow from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trimtab.report import wording
from trimtab.report.results import ALPHA_1, Difference, Results
from trimtab.study import lines

OOS, TEST = "oos", "test"
CONTROLS = ("random", "instruction")

Table = dict[tuple[str, str], Difference]
"""Comparisons by suite and method: one printed table."""


def judged(
    studies: Sequence[Results], split: str, at: str = ALPHA_1, *, bare: bool = False
) -> Table:
    """One split of every study as one table: p-values adjusted by Holm over all of it.

    Args:
        bare: against the bare model instead of the baseline.
    """
    found: Table = {}
    for r in studies:
        for c in r.gains if bare else r.comparisons:
            if c.split == split and c.at == at and math.isfinite(c.value):
                found[r.study.suite, c.method] = c
    return dict(zip(found, lines.judged(list(found.values())), strict=True))


@dataclass(frozen=True)
class Finding:
    """A method on all shifts, by suite.

    Attributes:
        further: better than the baseline out of distribution, having learned: better than the bare
            model in distribution.
        kept: better than the baseline out of distribution without having learned.
        less: worse than the baseline out of distribution.
        open: one cannot tell.
    """

    method: str
    further: tuple[Difference, ...]
    kept: tuple[Difference, ...]
    less: tuple[Difference, ...]
    open: tuple[Difference, ...]
    suites: dict[int, str]
    """Of each comparison, by id."""

    @property
    def word(self) -> str:
        """`holds`, `does not hold`, `holds in part`, or `cannot tell`."""
        if self.further and self.less:
            return "holds in part"
        if self.less:
            return "does not hold"
        return "holds" if self.further else "cannot tell"

    def sentence(self, baseline: str) -> str:
        """The word, then where it generalised further, less far, and where one cannot tell."""
        said = []
        for name, text in (
            ("further", f"further than {baseline} on {{}}"),
            ("less", f"less far than {baseline} on {{}}"),
            (
                "kept",
                f"ahead of {baseline} on {{}}, but without having learned: in distribution it cannot "
                "be told from the bare model, or is worse",
            ),
        ):
            mine: tuple[Difference, ...] = getattr(self, name)
            if mine:
                said.append(
                    text.format(wording.join([f"{self.suites[id(c)]} ({points(c)})" for c in mine]))
                )
        if self.open:
            sizes = [100 * c.mde for c in self.open if math.isfinite(c.mde)]
            told = f"be told from {baseline}"
            if said:
                on = wording.join([self.suites[id(c)] for c in self.open])
                said.append(f"on {on} it cannot {told}{_blind(sizes)}")
            else:
                said.append(f"cannot {told} anywhere{_blind(sizes)}")
        return "; ".join([*([] if self.word == "cannot tell" else [self.word]), *said])


def findings(oos: Table, learned: Table, methods: Iterable[str]) -> list[Finding]:
    """What each method's comparisons say.

    Args:
        oos: against the baseline, out of distribution.
        learned: against the bare model, in distribution.
    """
    made = []
    for method in methods:
        mine = {suite: c for (suite, name), c in oos.items() if name == method}
        if not mine:
            continue
        parts: dict[str, list[Difference]] = {n: [] for n in ("further", "kept", "less", "open")}
        for suite, c in mine.items():
            gain = learned.get((suite, method))
            did = gain is not None and gain.verdict == "better"
            where = {"better": "further" if did else "kept", "worse": "less"}
            parts[where.get(c.verdict, "open")].append(c)
        suites = {id(c): suite for suite, c in mine.items()}
        made.append(Finding(method, **{k: tuple(v) for k, v in parts.items()}, suites=suites))
    return made


def answer(found: Sequence[Finding], baseline: str) -> str:
    """The claim as a whole, in a sentence or two."""
    rows = [c for f in found for c in (*f.further, *f.kept, *f.less, *f.open)]
    if not rows:
        return "No method was compared out of distribution: nothing can be said of the claim."
    run = " in this run" if any(c.in_this_run for c in rows) else ""
    by = {word: [wording.label(f.method) for f in found if f.word == word] for word in WORDS}
    if len(by["holds"]) == len(found):
        opening = f"The claim holds{run}."
    elif by["holds"] or by["holds in part"]:
        opening = f"The claim holds in part{run}."
    elif len(by["does not hold"]) == len(found):
        opening = f"The claim does not hold{run}."
    elif by["does not hold"]:
        opening = f"Where one can tell, the claim does not hold{run}."
    else:
        opening = f"Whether the claim holds cannot be told{run}."
    said = [f"{text} {wording.join(by[w])}" for w, text in WORDS.items() if by[w]]
    best = max(rows, key=lambda c: c.value)
    high = [100 * c.high for c in rows if math.isfinite(c.high)]
    reach = (
        f" The largest gain over {baseline} out of distribution was {points(best)}; no interval "
        f"reaches beyond {wording.number(max(high), 0, sign=True)} points."
        if high
        else ""
    )
    return f"{opening} It {'; it '.join(said)}.{reach}"


WORDS = {
    "holds": "holds for",
    "holds in part": "holds on some shifts and fails on others for",
    "does not hold": "does not hold for",
    "cannot tell": "can neither be confirmed nor refuted for",
}


def points(c: Difference) -> str:
    """`+8.1 points, 95 % +2.0 to +14.2`."""
    interval = wording.bounds(c, wording.points, " to ")
    return f"{wording.points(c.value)} points" + (f", 95 % {interval}" if interval else "")


def _blind(sizes: Sequence[float]) -> str:
    """What could not have been seen, in points."""
    if not sizes:
        return ""
    low, high = (wording.number(x, 0) for x in (min(sizes), max(sizes)))
    size = low if low == high else f"{low} to {high}"
    return f" (differences under {size} points could not have been seen)"
