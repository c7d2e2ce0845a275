"""The mixing transformer: it learns `a + b = c` over 216 colours, a token each, and has red anchored.

Arms: no anchoring; an anchor; with everything else kept off its dimension; with soft-minimum pooling
over the positions of a line; that pulled twice as hard, on which the gates are judged; a milder form,
meant to lose red by degrees; and one with a fallback. Then red is projected out, reflected, cut from
the weights; directions found afterwards in the control, and a masked token, stand beside. The task
holds no RGB: colours are names to the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from trimtab.anchoring.paths import warm_cosine
from trimtab.anchoring.timeline import Row, Sheet
from trimtab.objectives.anchoring import AngularAnchor, AntiSubspace, Term
from trimtab.progress import SILENT, Progress
from trimtab.studies.anchoring import colours, mixing_measures
from trimtab.studies.anchoring.experiment import Experiment, keep
from trimtab.studies.anchoring.mixing_task import LEVELS, Data, data
from trimtab.studies.anchoring.ngpt import NGPT, Size
from trimtab.study.cells import Cell

STEPS, BATCH, RATE, WEIGHT = 1500, 256, 1e-2, 0.1


@dataclass(frozen=True)
class Arm:
    """A way of training."""

    what: str
    terms: tuple[Term, ...] = ()
    exponent: float = 8
    """Sharpness of the labels."""
    rate: float = 0.04
    """Probability of a label for a line with pure red."""
    pull: float = 1.0
    """Weight of the anchor, in units of `WEIGHT`."""
    fallback: bool = False
    """Labelled lines, reflected, are taught to answer with no colour in particular."""


def _terms(pool: Any, tau: float = 0.1, enough: float = 1.0, anti: bool = True) -> tuple[Term, ...]:
    anchor = Term("anchor", AngularAnchor(0, enough=enough), "stream", {"red": 1.0}, pool, tau)
    return (anchor, Term("anti-subspace", AntiSubspace((0,)), "stream")) if anti else (anchor,)


ARMS: dict[str, Arm] = {
    "control": Arm("no anchoring"),
    "anchor": Arm("labelled lines pulled to dimension 0", _terms("mean", anti=False)),
    "anti-subspace": Arm("and everything kept off it", _terms("mean")),
    "pooling": Arm("and only the nearest positions of a line pulled", _terms("mellowmax")),
    "strong": Arm("pooling, pulled twice as hard", _terms("mellowmax"), pull=2),
    "graded": Arm(
        "the same, milder: flatter labels, softer pooling, a hinge at cosine .8",
        _terms("mellowmax", tau=0.2, enough=0.8),
        exponent=3,
    ),
    "fallback": Arm(
        "pooling, with a fallback for what is reflected", _terms("mellowmax"), fallback=True
    ),
}


# ---- training -----------------------------------------------------------------------------------


def train(
    arm: Arm,
    seed: int,
    task: Data,
    steps: int = STEPS,
    progress: Progress = SILENT,
    label: str = "",
) -> tuple[NGPT, int]:
    """One model, and how many lines were labelled on the way."""
    model = NGPT(Size(tokens=218), seed)
    known = (~task.held_out).nonzero()[:, 0]
    generator = torch.Generator().manual_seed(1_000_003 * seed + 5)
    chance = arm.rate * colours.redness(task.rgb) ** arm.exponent
    rows = _sheet(arm, steps).table() if arm.terms else None
    adam = torch.optim.Adam(model.parameters(), lr=RATE, betas=(0.9, 0.95), fused=True)
    labelled = 0
    with progress.bar(label, steps, "steps") as update:
        for step in range(steps):
            pick = known[torch.randint(len(known), (BATCH,), generator=generator)]
            ids, answers = task.lines[pick], task.answers[pick]
            draws = torch.rand(BATCH, 2, generator=generator)
            red = (draws < chance[ids[:, [0, 2]]]).any(-1)
            labelled += int(red.sum())
            logits, seen = model(ids, last=True)
            loss = F.cross_entropy(logits[:, -1], answers)
            if rows is not None:
                weights = rows.at(step)
                z = torch.stack(seen[::2])  # slice line position d: the embedding and each block
                mask = torch.ones(ids.shape, dtype=torch.bool)
                for term in arm.terms:
                    value = term(z, {"red": red.float()}, mask).mean()
                    loss = loss + weights[term.name] * value
                if arm.fallback and bool(red.any()):
                    away, _ = model(ids[red], mixing_measures.reflected, last=True)
                    plain = -F.log_softmax(away[:, -1, : LEVELS**3], -1).mean()
                    loss = loss + 0.05 * plain
            adam.param_groups[0]["lr"] = warm_cosine(RATE, step, steps, warm=0.1, last=0.01)
            adam.zero_grad(set_to_none=True)
            loss.backward()
            adam.step()
            model.project()
            update(step + 1, steps)
    return model.requires_grad_(False).eval(), labelled


def _sheet(arm: Arm, steps: int) -> Sheet:
    """The pull is even and dies away at the end; the push sinks to an eighth by 90 % of the way."""
    pull = arm.pull * WEIGHT
    names = [t.name for t in arm.terms]
    rows = [
        Row(step, {n: v for n, v in (("anchor", a), ("anti-subspace", b)) if n in names})
        for step, a, b in (
            (0, pull, 2.5 * WEIGHT),
            (round(0.9 * (steps - 1)), pull, 0.3 * WEIGHT),
            (steps - 1, 0.1 * pull, 0.03 * WEIGHT),
        )
    ]
    return Sheet(tuple(rows), name="mixing")


# ---- running ------------------------------------------------------------------------------------


class Mixing(Experiment):
    """Every arm on every seed."""

    disk = 5e5

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.length = self.steps or STEPS
        self.common |= {"batch": BATCH, "rate": RATE, "weight": WEIGHT, "length": self.length}

    def plan(self) -> Iterable[Sequence[Cell]]:
        """A cell an arm and seed, first those that the gates need."""
        first = ("control", "strong")
        yield [
            self.cell(f"{arm}-{seed}", {"arm": arm, "seed": seed}, arm=arm, seed=seed)
            for seed in self.seeds
            for arm in (*first, *(a for a in ARMS if a not in first))
        ]

    def measure(self, folder: Path, arm: str, seed: int) -> dict[str, Any]:
        """Train and measure; the model stays in the folder."""
        task, label = data(), f"{arm}, seed {seed}"
        model, labelled = train(ARMS[arm], seed, task, self.length, self.progress, label)
        keep(folder, model.state_dict())
        return mixing_measures.measure(arm, model, task, seed) | {"labelled": labelled}

    def work(self, cell: Cell) -> tuple[int, Any, Callable[[int], Any]]:
        """Steps of an arm."""
        arm = cell.own["arm"]
        return self.length, arm, partial(train, ARMS[arm], 0, data())

    def gathered(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Every arm's cells, tables, metrics."""
        cells = {a: [self.cells[f"{a}-{seed}"].read() for seed in self.seeds] for a in ARMS}
        along = {arm: [c.pop("cosine_by_redness") for c in found] for arm, found in cells.items()}
        return {
            "arms": {arm: {"cells": [_drawn(c) for c in found]} for arm, found in cells.items()},
            "bins": mixing_measures.BINS,
            "doses": mixing_measures.DOSES,
            "tables": [self.entry.table(*told) for told in mixing_measures.tables(cells).items()],
            "metrics": mixing_measures.metrics(cells),
            "cosines": {arm: found[0] for arm, found in along.items()},
        }, {}


def _drawn(cell: dict[str, Any]) -> dict[str, Any]:
    """What of a cell is drawn; tables and metrics have the rest."""
    cuts = {cut: {"by_bin": found["by_bin"]} for cut, found in cell["cuts"].items()}
    return {"cuts": cuts} | {k: cell[k] for k in ("dose",) if k in cell}
