"""The page of the comparisons of heads: one over a folder of runs, with one figure, and at its end
what holds of the published claims, each sentence from a result line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from trimtab.errors import TrimtabError
from trimtab.report import heads_figures, wording
from trimtab.report.blocks import Block, Figure, Page, Section, Table, Text, plain
from trimtab.report.heads_figures import IN_DOMAIN, arm_name, look
from trimtab.study.reading import read, runs_in
from trimtab.study.results import About, Difference, Measurement


@dataclass(frozen=True)
class HeadRun:
    """The result files of one comparison."""

    folder: Path
    study: About
    lines: Sequence[Measurement]
    verdicts: Sequence[Difference]
    ablation: Sequence[Measurement]
    ablated: Mapping[tuple[str, str], Difference]
    """Verdicts of the ablation by method and split."""
    costs: Mapping[str, Mapping[str, Any]]


def read_heads(folder: Path) -> HeadRun:
    """The result files of a folder. Raises TrimtabError where one is missing or damaged."""
    run = read(folder)
    apart = heads_figures.ABLATED
    return HeadRun(
        folder,
        run.about,
        [m for m in run.measurements if not m.method.startswith(apart)],
        [d for d in run.differences if not d.method.startswith(apart)],
        [m for m in run.measurements if m.method.startswith(apart)],
        {(d.method, d.split): d for d in run.differences if d.method.startswith(apart)},
        run.costs,
    )


def page(root: Path) -> Page | None:
    """The page over all comparisons below `root`, or over the one that `root` is; None where there are none.

    Same result files, same page. Raises TrimtabError where a result file is missing or malformed.
    """
    runs = [read_heads(folder) for folder in runs_in(root, "rewards", "heads")]
    runs.sort(key=lambda r: r.study.study != "rewards")
    try:
        return heads_page(runs, root.name) if runs else None
    except (KeyError, TypeError) as error:
        raise TrimtabError(f"{root}: a result file lacks {error}") from error


def heads_page(runs: Sequence[HeadRun], folder: str) -> Page:
    """The page over comparisons whose result files lie in `folder`."""
    about = Text(
        "Two kinds of head on a frozen model: a preference head ranks answers by a reward, an "
        "alignment head adds alpha times a vector to the logits ([the guide](../heads.md)). Rebuilt "
        f"from the result files in `{folder}/` by `trimtab report`. Differences are paired over items. "
        f"{wording.ADJUSTED} With fewer than five seeds a verdict holds for this run."
    )
    panels = [p for r in runs for p in heads_figures.panels(r.study, r.lines, r.ablation)]
    drawn = Figure(panels, "Heads: shares answered rightly, and curves over α", columns=2)
    blocks: list[Block] = [about, drawn]
    for run in runs:
        build = _rewards if run.study.study == "rewards" else _alignment
        parts = [Text(p) if isinstance(p, str) else p for p in (_ran(run), *build(run))]
        blocks.append(Section(plain(run.study.title), parts))
    claims = [Text(part) for part in _claims(runs)]
    blocks.append(Section("What holds of the published claims", claims))
    arms = dict.fromkeys(line.method for run in runs for line in run.lines)
    return Page("Heads", blocks, "heads", {arm_name(arm): look(arm) for arm in arms})


# ---- preference heads ---------------------------------------------------------------------------


def _rewards(run: HeadRun) -> list[str | Table]:
    study = run.study
    parts: list[str | Table] = []
    for title, key, average in (
        ("In domain: test splits of what was trained on", "in_domain", IN_DOMAIN),
        ("Held out: tasks of which nothing was trained on", "held_out", heads_figures.HELD_OUT),
    ):
        tasks = study.more[key]
        rows = []
        for arm, read_out in heads_figures.arms(run.lines):
            by = {x.split: x for x in run.lines if (x.method, x.read_out) == (arm, read_out)}
            cells = [wording.share(by[t].value) for t in tasks]
            rows.append(
                [
                    plain(arm_name(arm)),
                    read_out,
                    str(by[average].seeds),
                    *cells,
                    _share(by[average]),
                ]
            )
        parts += [
            f"**{title}.** Percent answered rightly; the average with its 95 % interval.",
            Table(["", "ranked by", "seeds", *tasks, "average"], rows, (2, None)),
        ]
    parts += ["**Differences of averages, in points.**", _differences(run.verdicts)]
    if run.ablation:
        parts += [
            "**Pooling and loss on the frozen model.** Percent, averages of the tasks, with 95 % "
            "intervals over items and seeds; verdicts against the first line.",
            _ablation(run),
        ]
    return parts


def _ablation(run: HeadRun) -> Table:
    rows: dict[str, list[str]] = {}
    for line in run.ablation:
        parts = heads_figures.parts_of(line.method)
        row = rows.setdefault(line.method, [*parts, str(line.seeds)])
        told = run.ablated.get((line.method, line.split))
        row += [_share(line), _verdict(told) if told else wording.NOTHING]
    header = ["pooling", "loss", "seeds", "in domain", "verdict", "held out", "verdict"]
    return Table(header, list(rows.values()), (2, None))


# ---- alignment heads ----------------------------------------------------------------------------


def _alignment(run: HeadRun) -> list[str | Table]:
    parts: list[str | Table] = []
    alphas = sorted({x.alpha for x in run.lines if x.alpha is not None and x.method != "base"})
    for test in run.study.splits:
        mine = [x for x in run.lines if x.split == test]
        (base,) = [x for x in mine if x.method == "base"]
        for metric, title, form in (
            ("accuracy", "Preference accuracy, percent", wording.share),
            ("kl", "KL from the bare model on its answers, nats a token", _kl),
        ):
            rows = []
            for arm in dict.fromkeys(x.method for x in mine if x.metric == metric):
                by = {x.alpha: x for x in mine if (x.method, x.metric) == (arm, metric)}
                if arm != "base":
                    cells = [_with_interval(by[a], form) for a in alphas]
                    rows.append([plain(arm_name(arm)), str(by[alphas[0]].seeds), *cells])
            about = f"The bare model has {_share(base)}." if metric == "accuracy" else ""
            parts += [
                f"**{plain(test)}: {title}.** {about}".rstrip(),
                Table(["", "seeds", *(f"α = {wording.alpha(a)}" for a in alphas)], rows, (1, None)),
            ]
    parts += ["**Differences at α = 1, in points.**", _differences(run.verdicts)]
    if rates := _rates(run):
        rows = [
            [
                plain(arm_name(arm)),
                f"{x['tokens_per_second']:.1f}",
                f"{x['of_base']:.2f} [{x['of_base_low']:.2f}–{x['of_base_high']:.2f}]",
                f"{x['of_genarm']:.2f}",
            ]
            for arm, x in rates.items()
        ]
        rounds = next(iter(rates.values()))["rounds"]
        parts += [
            f"**Decoding.** One row at a time, {rounds} rounds in turn, seconds of "
            f"{run.study.more['clock']} time: medians, in brackets the least and the largest.",
            Table(["", "tokens a second", "of the bare model's", "of GenARM's"], rows, (1, None)),
        ]
    took = _took(run)
    said = ", ".join(f"{arm_name(arm)} {seconds:,.0f} s" for arm, seconds in took.items())
    parts.append(
        f"Processor time of training: {plain(said)}; the head's states were stored in "
        f"{run.study.more['seconds_to_store']:,.0f} s. ARGS's KL is that of a draw among its "
        f"{run.study.settings['k']} likeliest tokens, which is not 0 at α = 0; its accuracy is by "
        "the mean of its own score of a token."
    )
    return parts


# ---- what holds ---------------------------------------------------------------------------------


def _claims(runs: Sequence[HeadRun]) -> list[str]:
    """The published claims, and what the results say to each."""
    parts = []
    for run in runs:
        build = _reward_claims if run.study.study == "rewards" else _alignment_claims
        lines = []
        for claim, found in build(run):
            lines += [f"- *{claim}*", *(f"  - {plain(sentence)}" for sentence in found)]
        parts += [f"**{plain(run.study.title)}**", "\n".join(lines)]
    return parts


def _reward_claims(run: HeadRun) -> list[tuple[str, list[str]]]:
    moved = run.study.more["largest_logit_change_by_a_frozen_head"]
    found = [
        (
            "A head leaves the model's output as it is.",
            [
                "Holds for the frozen head: no logit changes by a bit."
                if moved == 0
                else f"Does not hold: a logit changes by {moved:.2g}."
            ],
        )
    ]
    for against in ("sft", "dpo"):
        found.append(
            (
                f"Ranking by reward answers better than {arm_name(against)} by log-prob.",
                [_said(v) for v in run.verdicts if v.against == against and v.read_out == "reward"],
            )
        )
    both = [v for v in run.verdicts if v.method == "dph joint" == v.against]
    found.append(
        (
            "The reward ranks better than the log-probs of the very model it was trained with.",
            [_said(v) for v in both],
        )
    )
    own = [v for v in run.verdicts if v.against == "base" and v.read_out == "reward"]
    found.append(("What is learned carries over.", [_said(v) for v in own]))
    if run.ablation:
        found.append(("SwiGLU pooling is best, and the loss matters.", _ablated(run)))
    return found


def _ablated(run: HeadRun) -> list[str]:
    said = []

    def name(x: Measurement | Difference) -> str:
        return " × ".join(heads_figures.parts_of(x.method))

    for split in dict.fromkeys(x.split for x in run.ablation):
        mine = [x for x in run.ablation if x.split == split]
        best, worst = (f(mine, key=lambda x: x.value) for f in (max, min))
        told = [d for (_, where), d in run.ablated.items() if where == split and d.told]
        names = wording.join([f"{name(d)} ({d.verdict})" for d in told] or [""])
        first = name(mine[0])
        said.append(
            f"{split.capitalize()}: highest {name(best)} ({wording.share(best.value)}), lowest "
            f"{name(worst)} ({wording.share(worst.value)}); "
            + (f"told from {first}: {names}." if told else f"none can be told from {first}.")
        )
    return said


def _alignment_claims(run: HeadRun) -> list[tuple[str, list[str]]]:
    equal = run.study.more["alpha_0_is_the_bare_model"]
    zero = (
        "At α = 0 the logits are the bare model's to the last bit."
        if equal
        else "At α = 0 the logits are not the bare model's."
    )
    found = [("Its strength is set when it is used.", [zero, *_rise(run)])]
    for against in ("dpo", "genarm", "args"):
        mine = [v for v in run.verdicts if (v.method, v.against) == ("iav", against)]
        found.append(
            (
                f"It keeps up with {arm_name(against)}.",
                [_said(v) for v in mine],
            )
        )
    learned = [v for v in run.verdicts if v.against == "base"]
    found.append(("It learns the preference.", [_said(v) for v in learned]))
    rates = _rates(run)
    if {"iav", "genarm", "args"} <= rates.keys():
        iav = rates["iav"]
        found.append(
            (
                "It decodes twice as fast as GenARM.",
                [
                    f"{iav['of_genarm']:.2f} times GenARM's tokens a second beside the LM head, "
                    f"{rates['iav merged']['of_genarm']:.2f} times merged; {iav['of_base']:.2f} and "
                    f"{rates['iav merged']['of_base']:.2f} of the bare model's."
                ],
            )
        )
    took, stored = _took(run), run.study.more["seconds_to_store"]
    found.append(
        (
            "A store makes training cheap.",
            [
                f"{took['iav']:,.0f} s of processor time, and {stored:,.0f} s once for the store; "
                f"DPO of a LoRA on the same pairs took {took['dpo']:,.0f} s, GenARM's second model "
                f"{took['genarm']:,.0f} s."
            ],
        )
    )
    return found


def _rise(run: HeadRun) -> list[str]:
    said = []
    for test in run.study.splits:
        mine = {(x.method, x.alpha or 0.0, x.metric): x.value for x in run.lines if x.split == test}
        alphas = sorted({a for arm, a, _ in mine if arm == "iav"})
        steps = [mine["base", 0.0, "accuracy"], *(mine["iav", a, "accuracy"] for a in alphas)]
        kls = [mine["iav", a, "kl"] for a in alphas]
        told = ", ".join(
            f"{wording.share(v)} at {wording.alpha(a)}"
            for a, v in zip([0.0, *alphas], steps, strict=True)
        )
        up = all(b > a for a, b in pairwise(kls))
        said.append(
            f"{test}: accuracy {told}; the KL {'grows' if up else 'does not always grow'} with α, to "
            f"{_kl(kls[-1])}."
        )
    return said


def _rates(run: HeadRun) -> dict[str, Mapping[str, Any]]:
    return {arm: x for arm, x in run.costs.items() if "tokens_per_second" in x}


def _took(run: HeadRun) -> dict[str, float]:
    return {arm: x["fit_seconds"] for arm, x in run.costs.items() if "fit_seconds" in x}


def _said(v: Difference) -> str:
    """A difference as a sentence."""
    (a, b), where = _sides(v), v.split.removesuffix(" average")
    interval = f"{wording.points(v.value)} points [{_ends(v)}]"
    if not v.told:
        if math.isnan(v.mde):
            more = ""
        elif v.low * v.high > 0:
            # clear of 0 alone, not among so many comparisons
            more = f"; p = {wording.small(v.p_holm)} by Holm over its table"
        else:
            more = f"; under {wording.points(v.mde, sign=False)} could not have been seen"
        return f"{where}: {a} cannot be told from {b} ({interval}{more})."
    run = " in this run" if v.in_this_run else ""
    return f"{where}: {a} is {v.verdict} than {b}{run} ({interval})."


# ---- cells --------------------------------------------------------------------------------------


def _differences(lines: Sequence[Difference]) -> Table:
    rows = [
        [
            *(plain(side) for side in _sides(v)),
            plain(v.split),
            f"{wording.points(v.value)} [{_ends(v)}]",
            plain(wording.small(v.p_holm)),
            wording.points(v.mde, sign=False),
            _verdict(v),
        ]
        for v in lines
    ]
    header = ["", "against", "on", "difference", "p (Holm)", "could see", "verdict"]
    return Table(header, rows, (3, 6))


def _sides(v: Difference) -> tuple[str, str]:
    both = ((v.method, v.read_out), (v.against, v.against_read_out))
    one, other = (f"{arm_name(a)} by {by}" if by else arm_name(a) for a, by in both)
    return one, other


def _verdict(v: Difference) -> str:
    if not v.told:
        return str(v.verdict)
    return f"**{v.verdict}{' in this run' if v.in_this_run else ''}**"


def _share(line: Measurement) -> str:
    return _with_interval(line, wording.share)


def _with_interval(line: Measurement, form: Any) -> str:
    ends = wording.bounds(line.low, line.high, form)
    return form(line.value) + (f" [{ends}]" if ends else "")


def _kl(value: float) -> str:
    return wording.number(value, 3 if abs(value) < 1 else 2)


def _ends(v: Difference) -> str:
    return wording.bounds(v.low, v.high, wording.points, ", ")


def _ran(run: HeadRun) -> str:
    s, settings = run.study, run.study.settings
    if s.study == "rewards":
        tests = wording.join([f"{plain(t)} {n.items:,}" for t, n in s.splits.items()])
        more = f" (“more data”: {s.more['more_items']:,})" if "more_items" in s.more else ""
        data = (
            f"trained on {s.train_items:,} items, {s.train_pairs:,} pairs{more}, of the training "
            f"splits of {plain(wording.join(s.more['in_domain']))}; items judged on: {tests}"
        )
    else:
        tests = wording.join(
            [f"`{t}` {wording.count(n.items, 'item')}" for t, n in s.splits.items()]
        )
        left = s.more["train_dropped"]
        dropped = f" ({left} over-long dropped)" if left else ""
        data = (
            f"trained on `{s.train}`, {wording.count(s.train_items or 0, 'item')}, "
            f"{wording.count(s.train_pairs or 0, 'pair')}{dropped}, {settings['epochs']:g} times by DPO "
            f"and GenARM, {settings['head_epochs']:g} times by the head; judged on {tests}"
        )
    seeds = f"seeds {_listed(settings['seeds'])}, of frozen heads {_listed(settings['head_seeds'])}"
    versions = ", ".join(f"{k} {v}" for k, v in s.versions.items())
    return "\n".join(
        [
            f"- model `{s.model}`, digest `{s.model_digest[:16]}`, {s.dtype} on "
            f"{s.device}, {wording.count(s.threads or 1, 'thread')}; {seeds}",
            f"- {data}",
            f"- {versions}, commit `{s.commit}`; {s.more['cpu_seconds'] / 60:.0f} minutes of processor "
            "time",
            f"- `{s.command}`",
        ]
    )


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
