"""What comparisons on several shifts say of a claim: "this method generalises further than the
baseline". Judged from verdicts alone, in words that follow from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
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


FURTHER, KEPT, LESS, OPEN = "further", "kept", "less", "open"
SAID = {
    FURTHER: "further than {baseline} on {suites}",
    LESS: "less far than {baseline} on {suites}",
    KEPT: "ahead of {baseline} on {suites}, but without having learned: in distribution it cannot "
    "be told from the bare model, or is worse",
}


@dataclass(frozen=True)
class Finding:
    """A method on all shifts."""

    method: str
    parts: Mapping[str, Mapping[str, Difference]]
    """Comparisons by suite: FURTHER, better than the baseline out of distribution, having learned (better
    than the bare model in distribution); KEPT, the same without having learned; LESS, worse than the
    baseline out of distribution; OPEN, one cannot tell."""

    @property
    def word(self) -> str:
        """`holds`, `does not hold`, `holds in part`, or `cannot tell`."""
        if self.parts[LESS]:
            return "holds in part" if self.parts[FURTHER] else "does not hold"
        return "holds" if self.parts[FURTHER] else "cannot tell"

    def sentence(self, baseline: str) -> str:
        """The word, then where it generalised further, less far, and where one cannot tell."""
        said = []
        for part, text in SAID.items():
            if mine := self.parts[part]:
                suites = wording.join([f"{suite} ({points(c)})" for suite, c in mine.items()])
                said.append(text.format(baseline=baseline, suites=suites))
        if unclear := self.parts[OPEN]:
            told = f"be told from {baseline}"
            on = f"on {wording.join([*unclear])} it cannot {told}"
            blind = _blind([100 * c.mde for c in unclear.values() if math.isfinite(c.mde)])
            said.append((on if said else f"cannot {told} anywhere") + blind)
        return "; ".join([*([] if self.word == "cannot tell" else [self.word]), *said])


def findings(oos: Table, learned: Table, methods: Iterable[str]) -> list[Finding]:
    """What each method's comparisons say.

    Args:
        oos: against the baseline, out of distribution.
        learned: against the bare model, in distribution.
    """
    made = []
    for method in methods:
        parts: dict[str, dict[str, Difference]] = {part: {} for part in (FURTHER, KEPT, LESS, OPEN)}
        for suite, c in ((suite, c) for (suite, name), c in oos.items() if name == method):
            gain = learned.get((suite, method))
            did = gain is not None and gain.verdict == "better"
            where = {"better": FURTHER if did else KEPT, "worse": LESS}
            parts[where.get(c.verdict, OPEN)][suite] = c
        if any(parts.values()):
            made.append(Finding(method, parts))
    return made


def answer(found: Sequence[Finding], baseline: str) -> str:
    """The claim as a whole, in a sentence or two."""
    rows = [c for f in found for part in f.parts.values() for c in part.values()]
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
