"""Numbers and verdicts in plain words: the same ones on the page, in Markdown, on the console."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import PurePath

from trimtab.report.results import (
    ALPHA_1,
    BASE,
    DOSE,
    EQUAL_KL,
    NEUTRAL,
    TRAIN,
    Difference,
    Measurement,
    Results,
)

Form = Callable[[float], str]

NOTHING = "–"
"""Stands where a figure is not known."""

ADJUSTED = (
    "Intervals are 95\u00a0%, each for itself. p-values and verdicts are adjusted (Holm) over all rows of "
    "the table, so that an interval may leave out 0 beside “cannot tell”."
)
"""What stands at every table of verdicts."""

METRICS = {
    "accuracy": "accuracy",
    "accuracy_sum": "accuracy, summed log-probs",
    "accuracy_choice": "choice accuracy",
    "margin": "margin",
    "elicitation": "elicitation",
    "capability": "tuned capability",
}
"""Metrics read at alpha 1 on every split, with their names for people."""


NAMES = {
    BASE: "bare model",
    "dpo": "DPO",
    "random": "random direction",
    "instruction": "instruction only",
    "persona": "persona prompt",
    "sft": "SFT",
    "iav": "IAV",
    "iav merged": "IAV merged",
    "genarm": "GenARM",
    "args": "ARGS",
    "dph joint": "DPH joint",
    "dph frozen": "DPH frozen",
    "dph frozen, more data": "DPH frozen, more data",
}
"""Methods and arms that have another name for people."""


def label(method: str) -> str:
    """A method's name for people."""
    return NAMES.get(method, method)


def model(name: str) -> str:
    """A model's name without the folders or the owner before it."""
    return PurePath(name).name


def shift(suite: str, split: str) -> str:
    """A split of a suite, in short: `math-difficulty: oos`, `alpaca_mmlu → truthful_qa`."""
    source, arrow, _ = suite.removeprefix("genies:").partition("->")
    if not arrow:
        return f"{suite}: {split}"
    return f"{source}: {split}" if split == "test" else f"{source} → {split}"


def number(value: float | None, digits: int = 2, *, sign: bool = False) -> str:
    """A number with a true minus sign, or a dash where it is not known."""
    if value is None or math.isnan(value):
        return NOTHING
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    if float(text) == 0:
        text = f"{0:.{digits}f}"
    return text.replace("-", "−").replace("inf", "∞")


def share(value: float | None, digits: int = 1) -> str:
    """A share of 1 as percent, without the sign."""
    return NOTHING if value is None else number(100 * value, digits)


def points(value: float, *, sign: bool = True) -> str:
    """A difference of two shares in points, one digit after the point."""
    return number(100 * value, 1, sign=sign)


def alpha(value: float | None) -> str:
    """A dial's alpha as short as it goes: 1, 0.5, −2."""
    return NOTHING if value is None else f"{value:.3g}".replace("-", "−")


def small(value: float) -> str:
    """A p-value with three digits; below 0.001 only that is said."""
    return "< 0.001" if value < 0.001 else number(value, 3)


def signed(value: float | None) -> str:
    """A number with its sign."""
    return number(value, sign=True)


def bounds(line: Measurement | Difference, form: Form = share, to: str = "–") -> str:
    """An interval's ends, or nothing where they are not known."""
    known = not math.isnan(line.low) and not math.isnan(line.high)
    return f"{form(line.low)}{to}{form(line.high)}" if known else ""


def figure(
    line: Measurement | Difference | None,
    form: Form = share,
    to: str = "–",
    *,
    value: Form | None = None,
    strong: bool = False,
) -> str:
    """A figure with its interval, `81.2 [70.0–90.0]`, or a dash where there is none.

    Args:
        value: how the figure itself is written, where not as the ends are.
        strong: it is bold.
    """
    if line is None:
        return NOTHING
    said = (value or form)(line.value)
    ends = bounds(line, form, to)
    return (f"**{said}**" if strong else said) + (f" [{ends}]" if ends else "")


def difference(line: Difference | None, *, strong: bool | None = None) -> str:
    """A difference in points with its interval; bold where it is a verdict."""
    told = line is not None and line.told
    return figure(line, points, ", ", strong=told if strong is None else strong)


def verdict(line: Difference) -> str:
    """Its word; bold where one can tell."""
    run = " in this run" if line.in_this_run else ""
    return f"**{line.verdict}{run}**" if line.told else line.verdict


def join(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def count(n: int, one: str, many: str | None = None) -> str:
    """`1 item`, `60 items`, `1,200 items`."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def headline(*runs: Results) -> str:
    """A run, or several models and suites, in a sentence or two."""
    rows = [c for r in runs for c in r.told if not math.isnan(c.value)]
    if not rows and any(r.over_base for r in runs):
        return "No dial was measured at α\u00a0=\u00a01; a table has verdicts at other strengths."
    if not rows:
        return "This run compares no method with a baseline: accuracies, and no verdicts."
    baseline, opening = _rival(rows), _opening(rows)
    told = [c for c in rows if c.told]
    rest = len(rows) - len(told)
    if not told:
        every = f"in any of {count(len(rows), 'comparison')}" if len(runs) > 1 else "on any split"
        return f"{opening}no dial can be told from {baseline} {every} at α\u00a0=\u00a01."
    if len(runs) > 1 or len({c.method for c in told}) > 4:
        return f"{opening}{_many(told, rest, baseline)}"
    clauses = []
    first = sorted(told, key=lambda c: c.verdict)  # what was better before what was worse
    for method in dict.fromkeys(c.method for c in first):
        parts = [
            f"{word} than {baseline} on {join([c.split for c in mine])}"
            for word in ("better", "worse")
            if (mine := [c for c in told if c.method == method and c.verdict == word])
        ]
        clauses.append(f"{label(method)} was {join(parts)}")
    others = "the other comparison" if rest == 1 else f"the other {rest} comparisons"
    return f"{opening}{'; '.join(clauses)}.{f' For {others} one cannot tell.' if rest else ''}"


def _many(told: list[Difference], rest: int, baseline: str) -> str:
    """A headline for more methods than a sentence holds; `answers` has each."""
    parts = []
    for word in ("better", "worse"):
        mine = [c for c in told if c.verdict == word]
        names = list(dict.fromkeys(label(c.method) for c in mine))
        if mine:
            who = f" ({join(names)})" if len(names) <= 4 else f" ({len(names)} methods)"
            parts.append(f"{len(mine)} came out {word} than {baseline}{who}")
    return (
        f"of {len(told) + rest} comparisons {join(parts)}"
        f"{f'; for the other {rest} one cannot tell' if rest else ''}."
    )


def answers(results: Results, at: str = ALPHA_1) -> list[tuple[str, str]]:
    """One sentence a method: where it beat the baseline, where it lost, where one cannot tell.

    Returns:
        each method with what follows its name, so that a page can set the name apart.
    """
    found = results.told if at == ALPHA_1 else results.at(at)
    rows = [c for c in found if not math.isnan(c.value)]
    sentences = []
    for method in dict.fromkeys(c.method for c in results.comparisons or rows):
        mine = [c for c in rows if c.method == method]
        if mine:
            sentences.append((method, _answer(mine)))
        elif at == EQUAL_KL:
            baseline = label(results.baseline or "")
            said = f" has no α in the measured range whose KL equals {baseline}’s."
            sentences.append((method, said))
    return sentences


def _answer(rows: list[Difference]) -> str:
    baseline = _rival(rows)
    parts = []
    for word in ("better", "worse"):
        mine = [c for c in rows if c.verdict == word]
        if mine:
            places = [f"on {c.split} by {_by(c)}" for c in mine]
            parts.append(f"was {word} than {baseline} {join(places)}")
    text = f" {' and '.join(parts)}" if parts else ""
    unclear = [c for c in rows if not c.told]
    if unclear:
        on = join([c.split for c in unclear])
        blind = _blind(unclear)
        clause = f"on {on} one cannot tell{blind}"
        text = f"{text}; {clause}" if text else f": {clause}"
    return f"{text}."


def _rival(rows: Sequence[Difference]) -> str:
    """What methods are compared with, within a sentence."""
    return ("the " if rows[0].against == BASE else "") + label(rows[0].against)


def _by(c: Difference) -> str:
    size = _points(_whole(abs(c.value)))
    if math.isnan(c.low) or math.isnan(c.high):
        return size
    low, high = sorted((c.low, c.high) if c.value >= 0 else (-c.low, -c.high))
    return f"{size} (95\u00a0% {_whole(low)} to {_whole(high)})"


def _blind(rows: list[Difference]) -> str:
    """What an undecided comparison could not have seen."""
    sizes = [_whole(c.mde) for c in rows if not math.isnan(c.mde)]
    tied = [c.split for c in rows if math.isnan(c.mde)]
    said = []
    if sizes:
        size = _points(sizes[0]) if len(set(sizes)) == 1 else f"{join(sizes)} points"
        what = "a difference" if len(sizes) == 1 else "differences"
        said.append(f"{what} under {size} could not have been seen")
    if tied:
        said.append(f"no two items came out differently on {join(tied)}")
    return f": {', and '.join(said)}" if said else ""


def _whole(value: float) -> str:
    """Points for a sentence: whole, but a digit more below 1 so that 0.4 is not 0."""
    size = 100 * value
    return number(size, 0 if abs(size) >= 0.95 or size == 0 else 1)


def _points(size: str) -> str:
    return f"{size} point" if size == "1" else f"{size} points"


def _opening(rows: list[Difference]) -> str:
    items = sorted({c.items for c in rows if c.items is not None})
    on = f"on {_spread(items)} items" if items else ""
    if any(c.in_this_run for c in rows):
        return f"In this run, {on + ', ' if on else ''}"
    seeds = sorted({c.seeds for c in rows})
    return f"Over {_spread(seeds)} seeds{' and' + on[2:] if on else ''}, "


def _spread(values: list[int]) -> str:
    return f"{values[0]:,}" if len(values) == 1 else f"{values[0]:,} to {values[-1]:,}"


def trained(results: Results) -> str | None:
    """Whether training took: accuracy on the training items before and after."""
    before = results.read(BASE, TRAIN)
    after = [(m, row) for m in results.methods if (row := results.read(m, TRAIN)) is not None]
    if before is None or not after:
        return None
    if len(after) <= 6:
        moved = join([f"{share(row.value, 0)}\u00a0% with {label(m)}" for m, row in after])
    else:
        after = sorted(after, key=lambda pair: pair[1].value)
        ends = [f"{share(row.value, 0)}\u00a0% ({label(m)})" for m, row in (after[0], after[-1])]
        moved = f"between {join(ends)}"
    start = f"{share(before.value, 0)}\u00a0% with the bare model"
    return f"On the training items themselves, accuracy went from {start} to {moved}."


def caveats(results: Results) -> list[str]:
    """What the figures do not say, from what was run; the study's own notes come last."""
    study, rows = results.study, results.comparisons or results.over_base
    found = []
    if not study.seeds:
        found.append(
            "Dials as they were saved, one each: nothing here says how another seed would come out."
        )
    elif len(study.seeds) == 1:
        found.append(
            "1 seed only: “better” and “worse” hold for this run. Another initialisation or order "
            "of the data may come out otherwise, which no interval here knows of; five seeds are "
            "needed for a claim about the method."
        )
    elif len(study.seeds) < 5:
        found.append(
            f"{len(study.seeds)} seeds only: “better” and “worse” hold for this run. Resampling "
            "items and seeds alone would call up to 24\u00a0% of simulated ties at 2 seeds and "
            "14\u00a0% at 3, "
            "so the intervals here take the few seeds into account (a t interval; at most "
            "7 % in simulation) and are wide; five seeds are needed for a claim about the "
            "method."
        )
    weak = sum(c.underpowered for c in rows)
    if weak:
        found.append(
            f"{weak} of {count(len(rows), 'comparison')} "
            f"{'is' if weak == 1 else 'are'} underpowered: with this many items, a true difference "
            "of 5 points would probably have been missed."
        )
    if rows:
        found.append(
            "p-values are adjusted (Holm) over all rows of one table of verdicts. The intervals "
            "are not: of twenty of them, one may miss its true value."
        )
    if study.limit is not None:
        found.append(f"Limited to the first {count(study.limit, 'item')} of every split.")
    dropped = [f"{s.dropped} of {name}" for name, s in study.splits.items() if s.dropped]
    if dropped:
        found.append(f"Over-long pairs were left out: {join(dropped)}.")
    if _flat(results):
        found.append(
            "An interval without width means that every item scored the same, or the same with "
            "both methods; it is not a proof of certainty."
        )
    return [*found, *study.notes]


def _flat(results: Results) -> bool:
    rows = [results.read(m, s) for m in (BASE, *results.methods) for s in results.splits]
    return any(
        row and row.low == row.high for row in (*rows, *(results.comparisons or results.over_base))
    )


def has_dose(results: Results) -> bool:
    """Whether the run measured anything over alphas."""
    return any(m.split in (DOSE, NEUTRAL) for m in results.measurements)


def shown_metrics(results: Results) -> list[str]:
    """Metrics at alpha 1 that this run measured on its evaluation splits, accuracy first."""
    seen = {m.metric for m in results.measurements if m.split in results.splits}
    return [metric for metric in METRICS if metric in seen]
