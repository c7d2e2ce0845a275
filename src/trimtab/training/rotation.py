"""Training a dial in both directions at once: rotations of singular vectors, and adapters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trimtab import models
from trimtab.batching import Batch, Encoded, Layout, collate
from trimtab.dials import Alpha, Dial, RotationDial
from trimtab.dials.rotation import singular_basis
from trimtab.dials.targets import linear_modules
from trimtab.errors import ConfigError, DataError
from trimtab.objectives.contrastive import ContrastiveSteering, scaled_direction
from trimtab.objectives.output import preference
from trimtab.progress import SILENT, Progress
from trimtab.readings import collect
from trimtab.readout import Needs, Readout
from trimtab.sites import Site, parse_sites
from trimtab.states import Readings, depth, pair_up, read
from trimtab.training import recipes
from trimtab.training.fit_module import FitModule
from trimtab.training.poles import twice
from trimtab.training.reference import Reference
from trimtab.training.settings import RotationSettings

RotationRecipe = recipes.RotationRecipe
ContrastiveRecipe: Any = recipes.ContrastiveRecipe  # as it was called

QUICK_PAIRS = 64
"""A quick try sees so many pairs, most of them once."""
SIGN_ROWS = 32
"""Rows of the training data on which the sign is settled."""


def new_rotation(
    settings: RotationSettings,
    model: nn.Module,
    encoded: Encoded,
    needs: Needs,
    seed: int,
    progress: Progress = SILENT,
    *,
    spread: float = 2e-3,
) -> RotationDial:
    """A rotation of a model's layers that has not been trained yet.

    Args:
        spread: of its parameters; at 0 it is the identity, for objectives of one end alone.

    Raises:
        DialError: no layer matches.
        ConfigError: no block is left below the objective's deepest site.
    """
    deepest = max((depth(model, s) for s in needs.sites), default=models.n_layers(model))
    blocks = [k for k in parse_sites(settings.blocks, models.n_layers(model)) if isinstance(k, int)]
    below = [k for k in blocks if k <= deepest]
    if not below:
        raise ConfigError(
            f"dial.blocks {settings.blocks}: all above the objective's deepest site {deepest}, "
            "where nothing that they do is seen"
        )
    shapes = linear_modules(model, settings.targets, range(min(below), max(below) + 1))
    differences: dict[Site, Tensor] = {}
    if settings.select == "data":
        sites = [f"{path}:in" for path in shapes]
        with progress.bar("reading the layers' inputs", encoded.n_answers, "answers") as update:
            found = collect(model, encoded, sites=sites, pool=needs.pool, progress=update)
        chosen, rejected = encoded.pair_answers()
        differences = {s: h[chosen] - h[rejected] for s, h in found.states.items()}
    bases = {}
    with progress.bar("singular vectors", len(shapes), "layers") as update:
        for count, path in enumerate(shapes, 1):
            given = differences.get(f"{path}:in")
            bases[path] = singular_basis(model.get_submodule(path), settings.rank, given)
            update(count, len(shapes))
    return RotationDial(
        bases,
        scaling=settings.scaling,
        max_angle=settings.max_angle * torch.pi / 180,
        spread=spread,
        generator=torch.Generator().manual_seed(seed),
    )


class ContrastiveModule(FitModule):
    """The model with the dial at +1 in the first half of each batch, at -1 in the second."""

    alpha: Alpha = (1.0, -1.0)

    def __init__(
        self,
        model: nn.Module,
        dial: Dial,
        objective: ContrastiveSteering,
        needs: Needs,
        reference: Reference,
        encoded: Encoded,
    ):
        super().__init__(model, dial, objective, needs, reference)  # type: ignore[arg-type]
        chosen, rejected = encoded.pair_answers()
        try:
            self.directions = {
                site: scaled_direction(h[chosen] - h[rejected])
                for site, h in reference.readings.states.items()
            }
        except ValueError as error:
            raise DataError(f"{encoded.name}: {error}") from error

    def forward(self, batch: Batch, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each pair of a batch, and metrics."""
        plus, minus = self._ends(batch)
        device = batch.input_ids.device
        directions = {s: v.to(device) for s, v in self.directions.items()}
        before = pair_up(self._stored(batch), batch)
        return self.objective(plus, minus, before, directions)  # type: ignore[call-arg,arg-type]

    def _ends(self, batch: Batch, *, logps: bool | None = None) -> tuple[Readout, Readout]:
        """Readouts at alpha = +1 and -1, of one pass."""
        needs = self.needs if logps is None else Needs(logps=logps)
        found = read(self.model, twice(batch), **needs.asked())
        n = batch.n_answers
        halves = [
            Readings(
                logps=None if found.logps is None else found.logps[part],
                tokens=None if found.tokens is None else found.tokens[part],
                states={s: h[part] for s, h in found.states.items()},
            )
            for part in (slice(n), slice(n, None))
        ]
        return pair_up(halves[0], batch), pair_up(halves[1], batch)

    @torch.no_grad()
    def settle_sign(self, encoded: Encoded, layout: Layout) -> float:
        """Turn the dial round if log p(chosen) - log p(rejected) is higher at -1 than at +1.

        Measured on training pairs alone: nothing held out decides a sign.

        Returns:
            The mean difference of the gap, in nats a token, after turning.
        """
        device = next(self.model.parameters()).device
        total, pairs = 0.0, 0
        with self.dial(self.model, self.alpha, force=True):
            for row in range(min(SIGN_ROWS, len(encoded.rows))):
                plus, minus = self._ends(collate(encoded, [row], layout).to(device), logps=True)
                gap = preference(plus, mean=True) - preference(minus, mean=True)
                total, pairs = total + gap.sum().item(), pairs + len(gap)
        if total < 0:
            self.dial.flip()  # type: ignore[operator]
        return abs(total) / pairs
