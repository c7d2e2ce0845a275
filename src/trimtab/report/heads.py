"""The page of the comparisons of heads: one over a folder of runs, with one figure, and at its end
what holds of the published claims, each sentence from a result line."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from trimtab.errors import TrimtabError
from trimtab.report import heads_figures, tables, wording
from trimtab.report.blocks import Block, Figure, Page, Section, Table, Text, listed, plain
from trimtab.report.heads_figures import IN_DOMAIN, look
from trimtab.report.wording import label
from trimtab.study.reading import read, runs_in
from trimtab.study.results import Difference, Measurement


class HeadRun:
    """The result files of one comparison; those of the ablation apart."""

    def __init__(self, folder: Path):
        run, apart = read(folder), heads_figures.ABLATED
        self.study, self.costs = run.about, run.costs
        self.lines = [m for m in run.measurements if not m.method.startswith(apart)]
        self.verdicts = [d for d in run.differences if not d.method.startswith(apart)]
        self.ablation = [m for m in run.measurements if m.method.startswith(apart)]
        differences = [d for d in run.differences if d.method.startswith(apart)]
        self.ablated = {(d.method, d.split): d for d in differences}
        self.rates = {arm: x for arm, x in run.costs.items() if "tokens_per_second" in x}
        self.took = {arm: x["fit_seconds"] for arm, x in run.costs.items() if "fit_seconds" in x}


def page(root: Path) -> Page | None:
    """The page over all comparisons below `root`, or over the one that it is; None where there are none.

    Raises:
        TrimtabError: a result file is missing or malformed.
    """
    runs = [HeadRun(folder) for folder in runs_in(root, "rewards", "heads")]
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
    return Page("Heads", blocks, "heads", {label(arm): look(arm) for arm in arms})


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
            row = [plain(label(arm)), read_out, str(by[average].seeds)]
            cells = [wording.share(by[t].value) for t in tasks]
            rows.append([*row, *cells, wording.figure(by[average])])
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
        row += [wording.figure(line), wording.verdict(told) if told else wording.NOTHING]
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
                    cells = [wording.figure(by[a], form) for a in alphas]
                    rows.append([plain(label(arm)), str(by[alphas[0]].seeds), *cells])
            about = f"The bare model has {wording.figure(base)}." if metric == "accuracy" else ""
            parts += [
                f"**{plain(test)}: {title}.** {about}".rstrip(),
                Table(["", "seeds", *(f"α = {wording.alpha(a)}" for a in alphas)], rows, (1, None)),
            ]
    parts += ["**Differences at α = 1, in points.**", _differences(run.verdicts)]
    if rates := run.rates:
        rows = [
            [
                plain(label(arm)),
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
    said = ", ".join(f"{label(arm)} {seconds:,.0f} s" for arm, seconds in run.took.items())
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


def _reward_claims(run: HeadRun) -> Iterator[tuple[str, list[str]]]:
    moved, told = run.study.more["largest_logit_change_by_a_frozen_head"], run.verdicts
    kept = "Holds for the frozen head: no logit changes by a bit."
    changed = f"Does not hold: a logit changes by {moved:.2g}."
    yield "A head leaves the model's output as it is.", [changed if moved else kept]
    rewards = [v for v in told if v.read_out == "reward"]
    for against in ("sft", "dpo"):
        claim = f"Ranking by reward answers better than {label(against)} by log-prob."
        yield claim, [_said(v) for v in rewards if v.against == against]
    claim = "The reward ranks better than the log-probs of the very model it was trained with."
    yield claim, [_said(v) for v in told if v.method == "dph joint" == v.against]
    yield "What is learned carries over.", [_said(v) for v in rewards if v.against == "base"]
    if run.ablation:
        yield "SwiGLU pooling is best, and the loss matters.", _ablated(run)


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


def _alignment_claims(run: HeadRun) -> Iterator[tuple[str, list[str]]]:
    are = "are" if run.study.more["alpha_0_is_the_bare_model"] else "are not"
    to = " to the last bit" if are == "are" else ""
    zero = f"At α = 0 the logits {are} the bare model's{to}."
    yield "Its strength is set when it is used.", [zero, *_rise(run)]
    for against in ("dpo", "genarm", "args"):
        mine = [v for v in run.verdicts if (v.method, v.against) == ("iav", against)]
        yield f"It keeps up with {label(against)}.", [_said(v) for v in mine]
    learned = [_said(v) for v in run.verdicts if v.against == "base"]
    yield "It learns the preference.", learned
    if {"iav", "genarm", "args"} <= run.rates.keys():
        iav, merged = run.rates["iav"], run.rates["iav merged"]
        said = (
            f"{iav['of_genarm']:.2f} times GenARM's tokens a second beside the LM head, "
            f"{merged['of_genarm']:.2f} times merged; {iav['of_base']:.2f} and "
            f"{merged['of_base']:.2f} of the bare model's."
        )
        yield "It decodes twice as fast as GenARM.", [said]
    took, stored = run.took, run.study.more["seconds_to_store"]
    said = (
        f"{took['iav']:,.0f} s of processor time, and {stored:,.0f} s once for the store; "
        f"DPO of a LoRA on the same pairs took {took['dpo']:,.0f} s, GenARM's second model "
        f"{took['genarm']:,.0f} s."
    )
    yield "A store makes training cheap.", [said]


def _rise(run: HeadRun) -> Iterator[str]:
    for test in run.study.splits:
        mine = {(x.method, x.alpha or 0.0, x.metric): x.value for x in run.lines if x.split == test}
        alphas = sorted({a for arm, a, _ in mine if arm == "iav"})
        shares = {0.0: mine["base", 0.0, "accuracy"]}
        shares |= {a: mine["iav", a, "accuracy"] for a in alphas}
        told = [f"{wording.share(v)} at {wording.alpha(a)}" for a, v in shares.items()]
        kls = [mine["iav", a, "kl"] for a in alphas]
        grows = "grows" if all(b > a for a, b in pairwise(kls)) else "does not always grow"
        yield f"{test}: accuracy {', '.join(told)}; the KL {grows} with α, to {_kl(kls[-1])}."


def _said(v: Difference) -> str:
    """A difference as a sentence."""
    (a, b), where = _sides(v), v.split.removesuffix(" average")
    interval = f"{wording.points(v.value)} points [{wording.bounds(v, wording.points, ', ')}]"
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
    header = ["", "against", "on"]
    return tables.judged(lines, header, lambda v: [*_sides(v), v.split])


def _sides(v: Difference) -> tuple[str, str]:
    both = ((v.method, v.read_out), (v.against, v.against_read_out))
    one, other = (f"{label(a)} by {by}" if by else label(a) for a, by in both)
    return one, other


def _kl(value: float) -> str:
    return wording.number(value, 3 if abs(value) < 1 else 2)


def _ran(run: HeadRun) -> str:
    s, settings, count = run.study, run.study.settings, wording.count
    if s.study == "rewards":
        tests = wording.join([f"{plain(t)} {n.items:,}" for t, n in s.splits.items()])
        more = f" (“more data”: {s.more['more_items']:,})" if "more_items" in s.more else ""
        data = (
            f"trained on {s.train_items:,} items, {s.train_pairs:,} pairs{more}, of the training "
            f"splits of {plain(wording.join(s.more['in_domain']))}; items judged on: {tests}"
        )
    else:
        tests = wording.join([f"`{t}` {count(n.items, 'item')}" for t, n in s.splits.items()])
        left = s.more["train_dropped"]
        dropped = f" ({left} over-long dropped)" if left else ""
        data = (
            f"trained on `{s.train}`, {count(s.train_items or 0, 'item')}, "
            f"{count(s.train_pairs or 0, 'pair')}{dropped}, {settings['epochs']:g} times by DPO "
            f"and GenARM, {settings['head_epochs']:g} times by the head; judged on {tests}"
        )
    seeds, frozen = (", ".join(map(str, settings[key])) for key in ("seeds", "head_seeds"))
    lines = [
        f"model `{s.model}`, digest `{s.model_digest[:16]}`, {s.dtype} on {s.device}, "
        f"{count(s.threads or 1, 'thread')}; seeds {seeds}, of frozen heads {frozen}",
        data,
        f"{tables.versions(s)}, commit `{s.commit}`; "
        f"{s.more['cpu_seconds'] / 60:.0f} minutes of processor time",
        f"`{s.command}`",
    ]
    return listed(lines).words
