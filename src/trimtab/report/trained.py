"""The page `trained.md`: dials trained by preference, objectives x places, on sets of behaviours.

trained/GROUP/STUDY/study.json, …    a comparison a model and set of behaviours, with steerability
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from trimtab.report import figures, tables, wording
from trimtab.report.blocks import Block, Figure, Page, Section, Table, Text, fenced, listed, plain
from trimtab.report.figures import Mark
from trimtab.report.looks import looks_of
from trimtab.report.results import ALPHA_1, EQUAL_KL, Results, read_results
from trimtab.report.svg import limits

ABOUT = (
    "Steerability: the slope over α of log p(better answer) − log p(worse answer), sums in nats, of every "
    "held-out item (the mean over both orders of a lettered question), with 95 % intervals; wrong way: the "
    "share of items whose slope is below 0. α = 1 is the strength that was trained, of a vector in closed "
    "form a tenth of the states’ length; so slopes are set against damage, too: per root nat is the slope "
    "over the root of mean KL on neutral text at α = 1. Learning rates are the methods’ own, none was tuned."
)
UPPER = "Adapters on the upper half and on all layers"
GROUPS = {
    "cross": "Objectives and places",
    "more": "Ten further sets",
    "second": "On the second model",
    "upper": UPPER,
}
"""Folders of the page, with what they are called there."""


def page(folder: Path) -> Page | None:
    """The page over the comparisons in `folder`; None where none is finished.

    Raises:
        TrimtabError: a result file is malformed.
    """
    parts = {
        title: [read_results(file.parent) for file in sorted(folder.glob(f"{name}/*/study.json"))]
        for name, title in GROUPS.items()
    }
    parts = {title: runs for title, runs in parts.items() if runs}
    if not parts:
        return None
    every = [r for runs in parts.values() for r in runs]
    blocks: list[Block] = [Text(" ".join(_answer(parts)), lead=True), Text(ABOUT)]
    for title, runs in parts.items():
        made = _halves(runs) if title == UPPER else _group(runs)
        blocks.append(Section(plain(title), list(made)))
    ran = [
        f"{plain(_named(r))}: {plain(r.study.train)}, {wording.count(r.study.train_items or 0, 'item')}"
        f"; seeds {wording.join([str(s) for s in r.study.seeds])}"
        for r in every
    ]
    commands = dict.fromkeys(r.study.command for r in every)
    lines = [
        listed(ran),
        *(Text(fenced(c)) for c in commands),
        Text(tables.versions(every[0].study)),
    ]
    methods = dict.fromkeys(m for r in every for m in r.methods)
    blocks += [
        Section("Methods", [listed([f"{plain(m)}: {plain(_what(every, m))}" for m in methods])]),
        Section("What was run", lines),
    ]
    title = "Dials trained by preference, wherever they sit"
    return Page(title, blocks, "trained", tables.looks(list(methods)))


def _named(r: Results) -> str:
    return wording.shift(r.study.suite, wording.model(r.study.model))


def _what(runs: Sequence[Results], method: str) -> str:
    return next((r.study.methods[method] for r in runs if method in r.study.methods), "")


def _group(runs: Sequence[Results]) -> Iterator[Block]:
    methods = list(dict.fromkeys(m for r in runs for m in r.methods))

    def table(cell: Callable[[Results, str], str]) -> Table:
        names = [r.study.suite for r in runs]
        by = dict(zip(names, runs, strict=True))
        return tables.by_method(methods, names, lambda m, name: cell(by[name], m))

    def figure(metric: str) -> Callable[[Results, str], str]:
        how = {"form": wording.number, "value": wording.signed} if metric == "steerability" else {}
        return lambda r, m: wording.figure(r.summary(m, metric), to=", ", **how)

    yield Figure(
        [_panel(r) for r in runs],
        "Steerability with 95 % intervals",
        "Slope over α of the log-ratio of better and worse answers on held-out items, nats.",
        2,
    )
    yield Section("Steerability", [table(figure("steerability"))], level=3)
    yield Section("Wrong way, % of items", [table(figure("wrong_way"))], level=3)
    yield Section("Steerability per root nat of damage", [table(_per_root_nat)], level=3)
    for against in dict.fromkeys(d.against for r in runs for d in r.steered):
        said = (
            "Difference of slopes [95 % interval, not adjusted]; bold where it is a verdict (p-values "
            "adjusted by Holm over the differences of a set)."
        )
        title = f"Steerability against {plain(wording.label(against))}"
        told = table(lambda r, m, against=against: _told(r, m, against))
        yield Section(title, [Text(said), told], level=3)
    seconds = "Of processor time on one thread, the mean over seeds; what others left in the cache counts."
    yield Section("Seconds to fit", [Text(seconds), table(_seconds)], level=3)


def _halves(runs: Sequence[Results]) -> Iterator[Block]:
    """Accuracy of an adapter on the upper half less that of one on all layers."""
    yield Text(
        "Accuracy of DPO with a LoRA on the blocks from the middle up, less that with one on all of them, "
        f"on the same items. {wording.ADJUSTED}"
    )
    for r in runs:
        for at, said in ((ALPHA_1, "at α = 1"), (EQUAL_KL, "at equal KL")):
            if told := [d for d in r.at(at) if d.method != "random"]:
                title = f"{plain(r.study.suite)}, {said}"
                yield Section(title, [tables.verdicts(told)], level=3)


def _panel(r: Results) -> figures.Panel:
    looks = looks_of(r.methods)
    found = [(m, line) for m in r.methods if (line := r.summary(m, "steerability"))]
    marks = [Mark(wording.label(m), looks[m], line) for m, line in found]
    ends = limits([x for _, c in found for x in (c.low, c.high, c.value, 0.0)], 0.5)
    named = (_named(r), "", f"Steerability on {r.study.suite}", f"steered-{_named(r)}")
    return figures.rows(*named, marks, ends, "slope, nats", at=0, scale=1, width=440)


def _per_root_nat(r: Results, method: str) -> str:
    slope, kl = r.summary(method, "steerability"), r.damage(method, "kl")
    if slope is None or not kl or not math.isfinite(kl):
        return wording.NOTHING
    return wording.signed(slope.value / math.sqrt(kl))


def _told(r: Results, method: str, against: str) -> str:
    found = next((d for d in r.steered if (d.method, d.against) == (method, against)), None)
    if found is None:
        return wording.NOTHING
    said = wording.figure(found, wording.number, ", ", value=wording.signed)
    return f"**{said}**" if found.told else said


def _seconds(r: Results, method: str) -> str:
    return wording.number(r.costs.get(method, {}).get("fit_cpu_seconds"), 0)


def _answer(parts: dict[str, list[Results]]) -> Iterator[str]:
    """How often trained vectors steer further than those that are read off, a sentence a group."""
    for title, runs in parts.items():
        told = [
            d for r in runs for d in r.steered if d.against == "mean" and d.method in r.study.trials
        ]
        if told and title != UPPER:
            better, worse = (sum(d.verdict == v for d in told) for v in ("better", "worse"))
            names = list(dict.fromkeys(plain(wording.label(d.method)) for d in told))
            does = "steers" if len(names) == 1 else "steer"
            yield (
                f"{plain(title)}: against the mean difference at α = 1, {wording.join(names)} {does} "
                f"further in {better} of {wording.count(len(told), 'comparison')}, less far in {worse}."
            )
