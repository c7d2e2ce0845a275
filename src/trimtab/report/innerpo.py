"""The page `innerpo.md`: the four tables of InnerPO's README made again, with intervals, and what
they say of its claim that aligning hidden states generalises further than aligning outputs (DPO).

    innerpo/SUITE/study.json, …    a comparison a suite, with splits test, oos and rnd
    innerpo/…/study.json           one without oos: the choice among innerDPO's scores
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from trimtab.report import claim, figures, pooled, wording
from trimtab.report.blocks import Block, Figure, Page, Section, Table, Text, fenced, listed, plain
from trimtab.report.claim import CONTROLS, OOS, TEST, answer, findings, judged
from trimtab.report.results import ALPHA_1, BASE, EQUAL_KL, Results, read_results
from trimtab.report.tables import by_method, looks, splits_of, what_ran

ORDER = ("truthful-qa", "math-difficulty", "alpaca-quality", "math-to-persuasion")
"""The README's."""


def page(folder: Path) -> Page | None:
    """The page over the comparisons in `folder`; None where none with DPO and a split `oos` is finished.

    Raises:
        TrimtabError: a result file is malformed.
    """
    runs = [read_results(file.parent) for file in sorted(folder.glob("*/study.json"))]
    studies = [r for r in runs if OOS in r.splits and r.baseline]
    rank = {name: i for i, name in enumerate(ORDER)}
    studies.sort(key=lambda r: (rank.get(r.study.suite, len(ORDER)), r.study.suite))
    screened = [r for r in runs if OOS not in r.splits]
    return innerpo_page(studies, screened) if studies else None


def _only(results: Results, tables: dict[str, claim.Table]) -> Results:
    """A run with the comparisons of these tables alone, as they are judged there."""
    own = [
        c for t in tables.values() for (suite, _), c in t.items() if suite == results.study.suite
    ]
    return replace(results, comparisons=tuple(own))


def innerpo_page(studies: Sequence[Results], screened: Sequence[Results]) -> Page:
    """The page."""
    tables = {at: judged(studies, OOS, at) for at in (ALPHA_1, EQUAL_KL)}
    baseline = wording.label(studies[0].baseline or "")
    methods = list(dict.fromkeys(m for r in studies for m in r.methods))
    tried = [m for m in methods if m not in CONTROLS and not m.startswith("dpo")]
    learned = judged(studies, TEST, bare=True)
    said = plain(answer(findings(tables[ALPHA_1], learned, tried), baseline))
    panels = figures.gain(
        *(_only(r, tables) for r in studies),
        named=lambda r, split: wording.shift(r.study.suite, split),
    )
    drawn = Figure(
        panels,
        f"Gain over {baseline} out of distribution with 95 % intervals",
        f"Points of accuracy above {baseline} out of distribution, on the same items; thick: dials at "
        f"α = 1, thin: at the α where KL equals {baseline}'s. A filled marker is a verdict, a hollow "
        "one “cannot tell”; the grey bar spans what could not have been seen.",
        2,
    )
    about = Text(
        "Accuracy in percent with 95 % intervals, dials at α = 1; beside it, where the README of "
        "wassname/repr-preference-optimization has the table, what it says: one unseeded run each on "
        "another model (llama-3-2-1b-sft), by another score, so not to be compared number by number."
    )
    each = [Section(plain(r.study.suite), [_accuracies(r)], level=3) for r in studies]
    blocks: list[Block] = [
        Text(said, lead=True),
        drawn,
        Section("The tables", [about, *each]),
    ]
    adjusted = Text(
        "Points of accuracy [95 % interval, not adjusted]; bold where it is a verdict (p-values "
        "adjusted by Holm over the table)."
    )
    for title, table in (
        (f"Out of distribution, against {baseline}", tables[ALPHA_1]),
        (f"The same where each dial's KL equals {baseline}'s", tables[EQUAL_KL]),
        (f"In distribution, against {baseline}", judged(studies, TEST)),
        ("Out of distribution, against the bare model", judged(studies, OOS, bare=True)),
        ("In distribution, against the bare model", learned),
    ):
        if table:
            blocks.append(Section(title, [adjusted, _gains(table, studies, methods)]))
    parts, pools = pooled.sections(studies, tables, methods, OOS)
    blocks += parts
    blocks += [Section("Which of innerDPO's scores", _screening(r)) for r in screened]
    ran = [
        Text(f"**{plain(r.study.suite)}**\n\n{what_ran(r)}\n\n{fenced(r.study.command)}")
        for r in studies
    ]
    return Page(
        "Does aligning hidden states generalise further than aligning outputs?",
        [
            *blocks,
            Section("What was run", [*ran, Text(_tuning(studies))]),
            Section("Caveats", [listed([plain(c) for c in _caveats(studies)])]),
            Section(
                "What this says about the claim",
                [
                    Text(part)
                    for part in (
                        *_claim(studies, tables, learned, said, tried),
                        *pooled.closing(pools, tried, baseline, len(studies)),
                    )
                ],
            ),
        ],
        "InnerPO",
        looks(methods),
    )


def _caveats(studies: Sequence[Results]) -> Iterator[str]:
    """What the figures do not say: of all studies, then of single ones."""
    suites: dict[str, list[str]] = {}
    for r in studies:
        for caveat in wording.caveats(r):
            if "Holm" not in caveat:  # said above the tables
                suites.setdefault(caveat, []).append(r.study.suite)
    for caveat, of in sorted(suites.items(), key=lambda found: len(found[1]) < len(studies)):
        yield caveat if len(of) == len(studies) else f"{wording.join(of)}: {caveat}"


def _accuracies(results: Results) -> Table:
    """A row a method: ours by split, then the README's in one column."""
    splits, same = splits_of(results), results.study.equivalent
    published = results.study.published.rows if results.study.published else {}
    mine = [
        name
        for m in results.methods
        for name in (m, *(n for n, other in same.items() if other == m and n in published))
    ]

    def row(name: str) -> list[str]:
        ours, shares = same.get(name, name), published.get(name, {})
        known = "" if ours == name else f" (provably {plain(ours)})"
        theirs = " / ".join(wording.share(shares.get(s)) for s in splits) if shares else ""
        cells = [wording.figure(results.read(ours, s)) for s in splits]
        return [plain(wording.label(name)) + known, *cells, *([theirs] if published else [])]

    readme = [f"README: {' / '.join(splits)}"] if published else []
    rows = [row(name) for name in dict.fromkeys([BASE, *mine, *published])]
    return Table(["method", *splits, *readme], rows)


def _gains(table: claim.Table, studies: Sequence[Results], methods: Sequence[str]) -> Table:
    """A row a method, a column a shift."""
    suites = [r.study.suite for r in studies]
    shown = [m for m in methods if any((s, m) in table for s in suites)]
    return by_method(shown, suites, lambda m, s: wording.difference(table.get((s, m))))


def _screening(results: Results) -> list[Block]:
    """Accuracy and margin on held-out items of the training distribution."""
    split = results.splits[0]
    seeds = wording.count(len(results.study.seeds), "seed")
    about = (
        f"Trained on `{results.study.train}`, judged on `{results.study.splits[split].spec}`, "
        f"{seeds}: accuracy in percent and margin in nats a token, with 95 % intervals."
    )
    forms = {"accuracy": wording.share, "margin": wording.number}
    table = by_method(
        results.methods,
        list(forms),
        lambda m, metric: wording.figure(results.read(m, split, metric), forms[metric]),
    )
    return [Text(about), table, Text(fenced(results.study.command))]


def _tuning(studies: Sequence[Results]) -> str:
    """Who had how many trials to find their settings."""
    trials = {m: n for r in studies for m, n in r.study.trials.items()}
    if not trials or not any(trials.values()):
        return (
            "No method's settings were tuned, DPO's no more than the others': unless its name says "
            "otherwise, each has the package's defaults of training, with one learning rate for all "
            "that was chosen once, looking at DPO and innerDPO on 80 items of each split of `facts` "
            "([log](../LOG.md))."
        )
    if len(set(trials.values())) == 1:
        return (
            f"Every trained method had {next(iter(trials.values()))} trials to find its settings."
        )
    said = ", ".join(f"{plain(m)} {n}" for m, n in trials.items())
    return f"Settings were not chosen with the same number of trials: {said}."


def _claim(
    studies: Sequence[Results],
    tables: dict[str, claim.Table],
    learned: claim.Table,
    said: str,
    tried: Sequence[str],
) -> list[str]:
    """The last section."""
    baseline = wording.label(studies[0].baseline or "")
    parts = [
        "The claim: optimising internal representations generalises further to new tasks than "
        f"optimising outputs ({baseline}), and beats it, especially out of distribution.",
        "A method *generalises further* on a shift where its accuracy out of distribution is better "
        f"than {baseline}'s, and in distribution better than the bare model's: whoever learns nothing "
        f"also loses nothing. It *holds* for a method that goes further somewhere and less far "
        "nowhere.",
        f"**{said}**",
    ]
    for at, place in ((ALPHA_1, "At α = 1"), (EQUAL_KL, f"At {baseline}'s KL")):
        found = findings(tables[at], learned, tried)
        if found:
            lines = [
                f"- {plain(wording.label(f.method))}: {plain(f.sentence(baseline))}." for f in found
            ]
            parts.append(f"{place}:\n\n" + "\n".join(lines))
    parts += filter(None, (_indoors(studies, tried), _controls(tables[ALPHA_1]), _readme(studies)))
    return parts


def _indoors(studies: Sequence[Results], tried: Sequence[str]) -> str:
    """The claim's other half: in distribution."""
    rows = [c for (_, m), c in judged(studies, TEST).items() if m in tried]
    counts = {w: sum(c.verdict == w for c in rows) for w in ("better", "worse", "cannot tell")}
    baseline = wording.label(studies[0].baseline or "")
    return (
        f"In distribution, of {wording.count(len(rows), 'comparison')} with {baseline} "
        f"{counts['better']} came out better, {counts['worse']} worse; for {counts['cannot tell']} one "
        "cannot tell."
    )


def _controls(oos: claim.Table) -> str:
    """What is ahead of the baseline without aligning any hidden state."""
    ahead = [
        f"{wording.label(m)} on {suite}"
        for (suite, m), c in oos.items()
        if (m in CONTROLS or m.startswith("dpo")) and c.verdict == "better"
    ]
    if not ahead:
        return ""
    return plain(
        f"Better than DPO out of distribution, too: {wording.join(ahead)}. There it takes no alignment "
        "of hidden states to be ahead."
    )


def _readme(studies: Sequence[Results]) -> str:
    """What the README's own figures say."""
    gains = []
    for r in studies:
        rows = r.study.published.rows if r.study.published else {}
        inner = [row[OOS] for name, row in rows.items() if name.startswith("hs-") and OOS in row]
        dpo = rows.get("dpo", {}).get(OOS, math.nan)
        if inner and math.isfinite(dpo):
            gains.append(f"{wording.points(max(inner) - dpo)} on {r.study.suite}")
    if not gains:
        return ""
    return plain(
        "The README's own figures, the best of its methods on hidden states less DPO out of "
        f"distribution, in points: {wording.join(gains)}."
    )
