"""The page of `screens`: slopes and screens a concept, and whether the one tells of the other."""

from __future__ import annotations

from pathlib import Path

from trimtab.report import wording
from trimtab.report.blocks import Page, Table, Text, plain
from trimtab.study.reading import read
from trimtab.study.results import Measurement

ABOUT = (
    "Slopes: steerability of the mean vector on held-out items, nats of log p(better answer) − log p(worse "
    "answer) for one unit of α, both letter orders averaged; beside it a random vector as long. Screens are "
    "read from the training items alone. Rank correlation: Spearman's, over concepts, of a screen at the "
    "middle block with the slope there, interval by bootstrap over concepts."
)


def page(folder: Path) -> Page:
    """Tables from the result files."""
    run = read(folder)
    found = {(m.split, m.method, m.metric): m for m in run.measurements}
    splits = [s for s in dict.fromkeys(m.split for m in run.measurements) if s in run.about.splits]
    methods = dict.fromkeys(m.method for m in run.measurements if m.split in run.about.splits)

    def cell(split: str, method: str, metric: str = "steerability") -> str:
        return wording.figure(found.get((split, method, metric)), wording.number, ", ")

    slopes = [[plain(s), *(cell(s, m) for m in methods)] for s in splits]
    screens = [
        [plain(s), metric, *(cell(s, m, metric) for m in methods if m != "random")]
        for s in splits
        for metric in ("agreement", "separation", "lens")
    ]
    over: list[Measurement] = [m for m in run.measurements if m.metric == "rank_correlation"]
    ranks = [[m.method, wording.figure(m, wording.number, ", "), str(m.items)] for m in over]
    told = [
        [d.method, wording.figure(d, wording.number, ", "), wording.verdict(d)]
        for d in run.differences
    ]
    names = [m for m in methods if m != "random"]
    blocks = [
        Text(ABOUT),
        Table(["screen", "rank correlation with the slope", "concepts"], ranks),
        Table(["block", "slope − slope at the middle block", "verdict"], told, (1, 2)),
        Table(["concept", *methods], slopes),
        Table(["concept", "screen", *names], screens, (2, None), grouped=True),
    ]
    return Page(plain(run.about.title), blocks, "screens")
