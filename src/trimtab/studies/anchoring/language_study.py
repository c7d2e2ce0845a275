"""An experiment with a language model: a control and an anchored model a seed, what is kept and shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from trimtab import models
from trimtab.anchoring.callback import Concepts
from trimtab.dials import ConceptDial
from trimtab.files import write_lines
from trimtab.studies.anchoring.experiment import Experiment
from trimtab.studies.anchoring.language import ALPHAS, Batch, Setup, train
from trimtab.study.cells import Cell
from trimtab.study.records import read_json

Cells = Sequence[Mapping[str, Any]]


Texts = Callable[[int], tuple[Batch, Concepts]]
"""Of a step, and their labels."""
Watch = Callable[[Any], dict[str, float]]
"""What is read of a model on the way."""


class Language(Experiment):
    """A control and an anchored model on every seed; of the first seed the anchored one is saved with its
    tokenizer, a dial a concept, and pairs to evaluate them on."""

    setup: ClassVar[Setup]
    disk = 4e6
    tokenizer: Any
    monitors: Sequence[Mapping[str, Any]] = ()
    """Of an anchored model (see `language.train`)."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.length = self.steps or self.setup.steps
        self.common |= {"setup": vars(self.setup), "length": self.length, "alphas": ALPHAS}

    def plan(self) -> Iterable[Sequence[Cell]]:
        """A cell a seed."""
        yield [self.cell(f"seed-{seed}", {"seed": seed}, seed=seed) for seed in self.seeds]

    def measure(self, folder: Path, seed: int) -> dict[str, Any]:
        """Train both, and measure, where no earlier version of trimtab did, whose cells were files."""
        older = self.out / "cells" / "-".join([f"{seed}", f"{self.length}", *self.named])
        if (file := older.with_name(f"{older.name}.json")).is_file():
            return read_json(file)
        control, learned = self.trained(False, seed, self.length)
        anchored, logged = self.trained(True, seed, self.length)
        found = self.read(control, anchored, seed)
        if seed == self.seeds[0]:
            save(self.setup, self.out, anchored, self.tokenizer, self.pairs())
        return found | {"history": logged, "control_history": learned}

    @property
    def named(self) -> Sequence[str]:
        """What the names of such files said besides."""
        return ()

    def work(self, cell: Cell) -> tuple[int, Any, Callable[[int], Any]]:
        """Steps of both models."""
        return 2 * self.length, "", partial(self.trained, True, 0)

    def gathered(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """All cells, tables, metrics."""
        cells = [self.cells[f"seed-{seed}"].read() for seed in self.seeds]
        found = {"cells": cells, "alphas": ALPHAS, "tables": self.tables(cells)}
        return found | {"metrics": self.metrics(cells)}, {}

    def trained(self, anchored: bool, seed: int, steps: int) -> tuple[Any, list[dict[str, float]]]:
        """A model, and what was measured on the way."""
        data, watch = self.lessons(anchored, seed, steps)
        monitors = self.monitors if anchored else ()
        given = (self.setup, self.tokenizer, seed, steps, data, watch)
        return train(*given, anchored=anchored, monitors=monitors, progress=self.progress)

    def tables(self, cells: Cells) -> list[dict[str, Any]]:
        """Surprisal, without every alpha; monitoring; relearning, every tenth step."""
        columns, told = list(cells[0]["bits"]["control"]), cells[0]["auroc"]
        shown = [r for r in cells[0]["bits"] if " at " not in r or r.endswith((" at 0.5", " at 1"))]
        bits = [[row, *(spread(more(cells, row, c)) for c in columns)] for row in shown]
        names = list(next(iter(told.values())))
        areas = [[k, *(spread([c["auroc"][k][n] for c in cells]) for n in names)] for k in told]
        learned = list(cells[0]["relearned"][0])
        back = [
            [f"{5 * i} steps", *(spread([c["relearned"][i][k] for c in cells]) for k in learned)]
            for i in range(0, min(len(c["relearned"]) for c in cells), 2)
        ]
        return [
            self.entry.table("Surprisal", bits, "model", *columns),
            self.entry.table("Monitoring", areas, "", *names),
            self.entry.table("Coming back", back, "after", *self.learned_again(learned)),
        ]

    def learned_again(self, names: Sequence[str]) -> Sequence[str]:
        """How what comes back is headed."""
        return names

    def lessons(self, anchored: bool, seed: int, steps: int) -> tuple[Texts, Watch]:
        """What a model learns from, and what is measured on the way."""
        raise NotImplementedError

    def read(self, control: Any, anchored: Any, seed: int) -> dict[str, Any]:
        """Everything about one seed, as JSON values."""
        raise NotImplementedError

    def pairs(self) -> list[dict[str, Any]]:
        """Preference pairs about the concepts."""
        raise NotImplementedError

    def metrics(self, cells: Cells) -> dict[str, list[float]]:
        """What the gates read, a value a seed."""
        raise NotImplementedError


# ---- files and tables ---------------------------------------------------------------------------


def save(
    setup: Setup, out: Path, model: Any, tokenizer: Any, pairs: Sequence[Mapping[str, Any]]
) -> None:
    """The model as transformers saves it, a dial a concept, and preference pairs to evaluate on."""
    folder = out / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    digest = models.digest_of(str(folder))
    for axis, concept in enumerate(setup.concepts):
        dial = ConceptDial.at_axis(axis, setup.width, setup.sites)
        dial.info.method, dial.info.base_model = f"anchored {concept}", str(folder)
        dial.info.base_digest = digest
        dial.save_pretrained(out / f"dial-{concept}")
    write_lines(out / "pairs.jsonl", pairs)


def more(found: Cells, row: str, what: str, less: str | None = None) -> list[float]:
    """Bits of a row, less those of another, a value a seed."""
    return [c["bits"][row][what] - (c["bits"][less][what] if less else 0.0) for c in found]


def perplexity(found: Sequence[float]) -> list[float]:
    """Bits a token more as a share of perplexity more."""
    return [2**b - 1 for b in found]


def spread(values: Sequence[float]) -> float | str:
    """The median over seeds, and the range where they differ."""
    if min(values) == max(values):
        return float(values[0])
    low, high = min(values), max(values)
    return f"{np.median(values):.3g} ({low:.3g} to {high:.3g})".replace("-", "−")


def beyond(found: Cells, concept: str, what: str, others: str) -> list[float]:
    """Bits on `what` that projection takes beyond the best that the difference of means takes in the
    control at an alpha that costs `others` no more (or .01 bit)."""
    values = []
    for cell in found:
        rows, base, start = cell["bits"], cell["bits"]["anchored"], cell["bits"]["control"]
        mine = rows[f"{concept} projected at 1"]
        most = max(mine[others] - base[others], 0.01)
        found_later = [rows[f"{concept}, difference of means at {a:g}"] for a in ALPHAS]
        best = max(
            (r[what] - start[what] for r in found_later if r[others] - start[others] <= most),
            default=0.0,
        )
        values.append(mine[what] - base[what] - best)
    return values
