"""What `fit` would take, without fitting: steps, time, memory and disk, from counted operations."""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from trimtab import models
from trimtab.batching import Contrast, Encoded, layout_of
from trimtab.progress import SILENT, Progress
from trimtab.readout import Needs
from trimtab.states import depth, find_sites
from trimtab.training.adapters import plan
from trimtab.training.estimate import EFFICIENCY, Estimate, estimate, operations
from trimtab.training.plan import Run
from trimtab.training.recipes import Method, Recipe
from trimtab.training.steering import GradientRecipe

KEPT = 2 * 3 * 4
"""Bytes a trained parameter in checkpoints: two of them, weights and Adam's two moments in float32."""


@dataclass(frozen=True)
class Forecast:
    """What a run will take on this machine."""

    method: str
    steps: int
    """Optimizer steps; 0 where nothing is trained."""
    pairs: int
    parameters: int
    """Of the dial; 0 where that is known only afterwards."""
    expected: Estimate
    disk: float
    """Bytes at most, beside the model's: the dial, checkpoints, stored states."""

    def __str__(self) -> str:
        seconds, memory = self.expected.seconds, self.expected.bytes
        steps = f"{self.steps:,} steps" if self.steps else "no training steps, one pass"
        what = f"{self.parameters:,} parameters" if self.parameters else "a head"
        return (
            f"{self.method}: {steps} over {self.pairs:,} pairs, {what}\n"
            f"  minutes  about {seconds / 60:.2g} (counted operations at {EFFICIENCY:.0%} of the rate "
            "of a matrix product measured just now)\n"
            f"  memory   about {memory / 2**30:.2g} GiB at the peak, the model among them\n"
            f"  disk     at most {self.disk / 2**20:.3g} MiB while it runs"
        )


def forecast(
    named: Method,
    model: nn.Module,
    encoded: Encoded | Contrast,
    *,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Forecast:
    """What fitting a method on encoded pairs would take. Raises as `fit` does where it would refuse
    the method on this model before the first step."""
    recipe = named.recipe
    width = models.text_config(model).hidden_size
    if not isinstance(recipe, Recipe):
        sites = find_sites(model, recipe.sites)
        gradients = isinstance(recipe, GradientRecipe)
        needs = Needs(sites=sites, logps=gradients)
        found = passes(model, encoded, needs, backward=gradients)
        return Forecast(
            named.name, 0, encoded.n_pairs, len(sites) * width, found, 4 * len(sites) * width
        )
    assert isinstance(encoded, Encoded)
    with tempfile.TemporaryDirectory() as work:
        run = Run(named, model, encoded, seed, Path(work), progress=progress)
        if recipe.head:
            return _of_head(run)
        made = plan(run)
    expected = made.expected
    if made.needs.reference_logps or made.needs.reference_states:
        once = passes(model, encoded, made.needs, backward=False)
        expected = dataclasses.replace(expected, seconds=expected.seconds + once.seconds)
    count = sum(p.numel() for p in made.dial.parameters())
    return Forecast(
        named.name, made.schedule.steps, encoded.n_pairs, count, expected, (KEPT + 4) * count
    )


def _of_head(run: Run) -> Forecast:
    """States of all tokens are stored by one pass; the steps on them are cheap beside it."""
    model, encoded, name = run.model, run.encoded, run.named.name
    schedule = run.schedule(layout_of(model, encoded), run.arguments())
    live = run.recipe.dial.features == "live"
    times = schedule.steps * schedule.pairs_per_step / max(encoded.n_pairs, 1) if live else 1
    found = passes(model, encoded, Needs(logps=True), backward=False)
    found = dataclasses.replace(found, seconds=found.seconds * times)
    width = models.text_config(model).hidden_size
    disk = 0 if live else 2 * width * sum(len(a) for row in encoded.rows for a in row.answers)
    return Forecast(name, schedule.steps, encoded.n_pairs, 0, found, disk)


def passes(
    model: nn.Module, encoded: Encoded | Contrast, needs: Needs, *, backward: bool
) -> Estimate:
    """One pass over everything."""
    if isinstance(encoded, Contrast):
        positions = sum(map(len, encoded.sequences))
        scored = len(encoded.poles)
    else:
        positions = sum(row.packed_length for row in encoded.rows)
        scored = sum(len(a) for row in encoded.rows for a in row.answers)
    total = operations(model, needs, positions, scored, backward=backward)
    width = models.text_config(model).hidden_size
    deep = 1 + max((depth(model, site) for site in needs.sites), default=0)
    size = next(model.parameters()).element_size()
    kept = 2048 * width * size * (14 * deep if backward else 4)
    return estimate(model, total, kept, positions)
