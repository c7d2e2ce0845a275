"""What several suites say together: mean margins beside accuracies, both pooled over suites, what could be
seen, and what holds of a claim. Lines are the result files'; pooling is `statistics.pooled`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from trimtab import statistics
from trimtab.report import claim, wording
from trimtab.report.blocks import Block, Section, Table, Text, plain
from trimtab.report.results import ALPHA_1, BASE, EQUAL_KL, Difference, Results
from trimtab.report.tables import by_method
from trimtab.study import lines

ACCURACY, MARGIN = "accuracy", "margin"
Pools = dict[tuple[str, str], dict[str, Difference]]
"""By metric and place, then by method."""


def a_nat(r: Results, split: str) -> float:
    """What a nat of margin is as a share of accuracy on a split; NaN where the bare model's figures do not
    say."""
    accuracy, margin = (r.read(BASE, split, metric) for metric in (ACCURACY, MARGIN))
    if accuracy is None or margin is None or not 0 < accuracy.value < 1 or not margin.items:
        return math.nan
    spread = statistics.standard_error(margin.low, margin.high) * math.sqrt(margin.items)
    return statistics.share_a_nat(accuracy.value, spread) if spread > 0 else math.nan


def margins(studies: Sequence[Results], split: str, at: str = ALPHA_1) -> claim.Table:
    """Mean margins less the baseline's on one split of every study, as shares of accuracy: one table."""
    found: claim.Table = {}
    for r in studies:
        share = a_nat(r, split)
        for d in r.margins:
            if (
                d.against != BASE
                and (d.split, d.at) == (split, at)
                and math.isfinite(share * d.value)
            ):
                ends = {k: share * getattr(d, k) for k in ("value", "low", "high", "mde")}
                found[r.study.suite, d.method] = replace(d, **ends)
    return dict(zip(found, lines.judged(list(found.values())), strict=True))


def over_suites(table: claim.Table) -> dict[str, Difference]:
    """Every method that was compared on at least two suites, over these: one table."""
    found = {}
    for method in dict.fromkeys(method for _, method in table):
        mine = [d for (_, name), d in table.items() if name == method and d.high > d.low]
        if len(mine) > 1:
            se = [statistics.standard_error(d.low, d.high) for d in mine]
            p = statistics.pooled([d.value for d in mine], se)
            ends = {k: float(getattr(p, k)) for k in ("value", "low", "high", "p", "mde")}
            seeds = min(d.seeds for d in mine)
            found[method] = replace(mine[0], suite="", items=None, seeds=seeds, **ends)
    return dict(zip(found, lines.judged(list(found.values())), strict=True))


def sections(
    studies: Sequence[Results],
    tables: Mapping[str, claim.Table],
    methods: Sequence[str],
    split: str,
) -> tuple[list[Block], Pools]:
    """The parts of a page, and what is pooled.

    Args:
        tables: accuracies less the baseline's on the split, by place.
    """
    baseline = wording.label(studies[0].baseline or "")
    suites = [r.study.suite for r in studies]
    by: dict[tuple[str, str], claim.Table] = {(ACCURACY, at): tables[at] for at in tables}
    by |= {(MARGIN, at): margins(studies, split, at) for at in tables}
    by = {key: table for key, table in by.items() if table}
    names = {key: _where(key, baseline) for key in by}
    pools = {key: over_suites(table) for key, table in by.items()}

    def cell(pool: Mapping[str, Difference], method: str) -> str:
        return wording.difference(pool.get(method))

    made: list[Block] = []
    for at in (ALPHA_1, EQUAL_KL):
        if table := by.get((MARGIN, at)):
            shown = [m for m in methods if any((s, m) in table for s in suites)]
            rows = by_method(shown, suites, lambda m, s, t=table: wording.difference(t.get((s, m))))
            made.append(Section(f"Out of distribution, by the {names[MARGIN, at]}", [rows]))
    if made:
        nats = [f"{wording.number(100 * a_nat(r, split), 0)} on {r.study.suite}" for r in studies]
        made.insert(
            0,
            Text(
                "The mean margin of an item (log-prob a token of the better answer less that of the worse) "
                "is continuous and decides more than right or wrong does. It is shown in points: what a "
                "shift of every margin by so much changes of the accuracy, were margins normal and spread as "
                f"the bare model's. A nat a token is so many points: {plain(wording.join(nats))}. At α = 1 "
                f"it grows with a dial's strength; at {baseline}'s KL that is made equal."
            ),
        )
    else:
        made.append(
            Text(
                "The files of these runs hold no differences of the mean margin; those of runs that are made "
                "with this version or a later one do."
            )
        )
    shown = [m for m in methods if any(m in pool for pool in pools.values())]
    if shown:
        header = [names[key] for key in pools]
        rows = [
            [plain(wording.label(m)), *(cell(pool, m) for pool in pools.values())] for m in shown
        ]
        about = (
            f"The mean of what such suites have, of which these {len(suites)} are a sample: random effects "
            "over suites (between-suite variance by Paule and Mandel, interval by Hartung and Knapp with a t "
            "of one degree of freedom less than suites; "
            "[how often it covers](../comparing.md#several-suites)). Points [95 % interval, not adjusted]; "
            "bold where it is a verdict (Holm over the column)."
        )
        made.append(Section("Pooled over suites", [Text(about), Table(["method", *header], rows)]))
    header = ["suite", *names.values()]
    seen = [
        [plain(s), *(_seen(d for (suite, _), d in t.items() if suite == s) for t in by.values())]
        for s in suites
    ]
    if shown:
        seen.append(["pooled", *(_seen(pool.values()) for pool in pools.values())])
    about = (
        f"The smallest difference from {baseline} out of distribution that is found with 80 % power, in "
        "points, unadjusted; from the method of which one can tell most to that of which least."
    )
    return [*made, Section("What could be seen", [Text(about), Table(header, seen)])], pools


def closing(pools: Pools, tried: Sequence[str], baseline: str, suites: int) -> list[str]:
    """What holds of the claim over all suites, in paragraphs."""
    said, better, worse, runs = [], {}, {}, False
    for key, pool in pools.items():
        mine = {m: d for m, d in pool.items() if m in tried}
        if not mine:
            continue
        told = {
            word: [
                f"{wording.label(m)} ({claim.points(d)})"
                for m, d in mine.items()
                if d.verdict == word
            ]
            for word in ("better", "worse")
        }
        better |= {m: d for m, d in mine.items() if d.verdict == "better"}
        worse |= {m: d for m, d in mine.items() if d.verdict == "worse"}
        runs |= any(d.in_this_run for d in mine.values())
        parts = [f"{word} than {baseline}: {wording.join(of)}" for word, of in told.items() if of]
        left = sum(not d.told for d in mine.values())
        if left:
            size = _seen(d for d in mine.values() if not d.told)
            which = "none" if left == len(mine) and left > 1 else f"{left} of {len(mine)}"
            tail = "can be told from" if which == "none" else "cannot be told from"
            parts.append(
                f"{which} {tail} {baseline} (a difference of {size} points would have been seen)"
            )
        said.append(f"- By {_where(key, baseline)}: {'; '.join(parts)}.")
    if not said:
        return []
    run = " in this run" if runs else ""
    if better and not worse:
        sum_up = f"Over such suites the claim holds{run} for {_names(better)}, and fails for none."
    elif better:
        sum_up = f"Over such suites the claim holds{run} for {_names(better)} and fails for {_names(worse)}."
    elif worse:
        sum_up = f"Over such suites the claim does not hold{run} for {_names(worse)}; for no method it does."
    else:
        sum_up = (
            "Nothing of the claim holds that these runs can see, and nothing refutes it: whether aligning "
            "hidden states generalises further stays open."
        )
    return [
        f"Pooled over {suites} suites (random effects), out of distribution:\n\n"
        + "\n".join(map(plain, said)),
        f"**What holds of the claim.** {plain(sum_up)}",
    ]


def _names(found: Mapping[str, Difference]) -> str:
    return wording.join([wording.label(m) for m in found])


def _where(key: tuple[str, str], baseline: str) -> str:
    metric, at = key
    place = "α = 1" if at == ALPHA_1 else f"{baseline}'s KL"
    return f"{'mean margin' if metric == MARGIN else metric}, {place}"


def _seen(found: Iterable[Difference]) -> str:
    """From the smallest to the largest, in points."""
    sizes = [100 * d.mde for d in found if math.isfinite(d.mde)]
    if not sizes:
        return wording.NOTHING
    low, high = (wording.number(x, 1) for x in (min(sizes), max(sizes)))
    return low if low == high else f"{low} to {high}"
