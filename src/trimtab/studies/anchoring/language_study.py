"""An experiment with a language model: a control and an anchored model a seed, what is kept and shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from trimtab import models
from trimtab.dials import ConceptDial
from trimtab.files import write_lines
from trimtab.studies.anchoring.experiment import Experiment
from trimtab.studies.anchoring.language import ALPHAS, Setup
from trimtab.study.cells import Cell

Cells = Sequence[Mapping[str, Any]]
SPREAD = "Medians over seeds, least and largest in brackets."


class Language(Experiment):
    """A control and an anchored model on every seed; of the first seed the anchored one is saved with its
    tokenizer, a dial a concept, and pairs to evaluate them on."""

    setup: ClassVar[Setup]
    disk = 4e6
    tokenizer: Any

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.length = self.steps or self.setup.steps
        self.common |= {"setup": vars(self.setup), "length": self.length, "alphas": ALPHAS}

    def plan(self) -> Iterable[Sequence[Cell]]:
        """A cell a seed."""
        yield [self.cell(f"seed-{seed}", {"seed": seed}, seed=seed) for seed in self.seeds]

    def measure(self, folder: Path, seed: int) -> dict[str, Any]:
        """Train both, and measure."""
        if kept := self.older(seed):
            return kept
        control, learned = self.trained(False, seed, self.length)
        anchored, logged = self.trained(True, seed, self.length)
        found = self.read(control, anchored, seed)
        if seed == self.seeds[0]:
            save(self.setup, self.out, anchored, self.tokenizer, self.pairs())
        return found | {"history": logged, "control_history": learned}

    def older(self, seed: int) -> dict[str, Any] | None:
        """What an earlier version of trimtab has found, whose cells were files."""
        file = self.out / "cells" / f"{seed}-{self.length}.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

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
        raise NotImplementedError

    def read(self, control: Any, anchored: Any, seed: int) -> dict[str, Any]:
        """Everything about one seed, as JSON values."""
        raise NotImplementedError

    def pairs(self) -> list[dict[str, Any]]:
        """Preference pairs about the concepts."""
        raise NotImplementedError

    def tables(self, cells: Cells) -> list[dict[str, Any]]:
        """Ready to be shown."""
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


def surprisals(found: Cells, columns: Sequence[str], what: str) -> dict[str, Any]:
    """The table of bits, without every alpha."""
    rows = [r for r in found[0]["bits"] if " at " not in r or r.endswith((" at 0.5", " at 1"))]
    return {
        "title": "Surprisal",
        "caption": f"{what} {SPREAD}",
        "header": ["model", *columns],
        "rows": [[row, *(spread(more(found, row, c)) for c in columns)] for row in rows],
    }


def monitored(found: Cells, what: str) -> dict[str, Any]:
    """The table of AUROCs."""
    told = found[0]["auroc"]
    names = list(next(iter(told.values())))
    return {
        "title": "Monitoring",
        "caption": f"{what} {SPREAD}",
        "header": ["", *names],
        "rows": [
            [key, *(spread([c["auroc"][key][n] for c in found]) for n in names)] for key in told
        ],
    }


def coming_back(found: Cells, names: Mapping[str, str], what: str) -> dict[str, Any]:
    """The table of relearning, every tenth step."""
    count = min(len(c["relearned"]) for c in found)
    return {
        "title": "Coming back",
        "caption": f"{what} {SPREAD}",
        "header": ["after", *names.values()],
        "rows": [
            [f"{5 * i} steps", *(spread([c["relearned"][i][k] for c in found]) for k in names)]
            for i in range(0, count, 2)
        ],
    }


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
