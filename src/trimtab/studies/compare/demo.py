"""The demo: four dials on the embedded model and the embedded data, in minutes."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from trimtab.progress import SILENT, Progress
from trimtab.studies.compare.cell import Measuring
from trimtab.studies.compare.comparison import compare
from trimtab.studies.compare.grid import Comparison
from trimtab.training import METHODS, Method
from trimtab.training.recipes import TrainingRecipe

FULL = Comparison(
    suite="facts",
    controls=(),
    limit=80,
    train_limit=160,
    measuring=Measuring(dose_items=60, train_items=60, passages=5, prompts=3, new_tokens=32),
)
QUICK = Comparison(
    suite="facts",
    methods=("dpo", "mean"),
    controls=(),
    limit=24,
    train_limit=24,
    measuring=Measuring(
        alphas=(-1.0, 0.0, 1.0), dose_items=12, train_items=12, passages=2, prompts=1, new_tokens=12
    ),
)


def demo(
    out: str | Path, *, quick: bool = False, command: str = "", progress: Progress = SILENT
) -> Path:
    """Compare DPO, innerDPO, mean and PCA on `smollm2-135m` and `facts`, one seed.

    `quick` is the same path cut short (two methods, two dozen items), for tests.
    """
    comparison = QUICK if quick else FULL
    methods = [_shortened(METHODS[name], 1 if quick else 2) for name in comparison.methods]
    notes = ["One seed and a small model: read this page as a tour, not as evidence."]
    return compare(
        replace(comparison, threads=os.cpu_count() or 1),
        out,
        methods=methods,
        command=command,
        title="A first look: four dials on a small model"
        if not quick
        else "A first look, cut short",
        notes=notes,
        progress=progress,
    )


def _shortened(method: Method, epochs: float) -> Method:
    if not isinstance(method.recipe, TrainingRecipe):
        return method
    train = replace(method.recipe.train, epochs=epochs)
    return replace(method, recipe=replace(method.recipe, train=train))
