"""Fitting a vector in closed form: read the pairs' states once, estimate a direction a site."""

from __future__ import annotations

import torch
from torch import nn

from trimtab import models
from trimtab.batching import Encoded
from trimtab.cache import Store, reference
from trimtab.dials.vector import STRENGTH, VectorDial
from trimtab.directions import mean_difference, principal_direction
from trimtab.errors import DataError
from trimtab.fit.recipes import DirectionRecipe
from trimtab.progress import SILENT, Progress
from trimtab.sites import parse_sites


def fit_direction(
    recipe: DirectionRecipe,
    model: nn.Module,
    encoded: Encoded,
    *,
    seed: int = 0,
    store: Store | None = None,
    budget: int = 2048,
    progress: Progress = SILENT,
) -> VectorDial:
    """A vector dial from the differences of chosen and rejected states.

    Args:
        seed: of a random direction; the others have none.

    Raises:
        DataError: the differences at a site are all zero.
    """
    sites = parse_sites(recipe.sites, models.n_layers(model))
    with progress.bar("reading states", encoded.n_answers, "answers") as update:
        found = reference(
            model,
            encoded,
            sites=sites,
            pool=recipe.pool,
            store=store,
            budget=budget,
            progress=update,
        )
        lengths = found.norms
        if recipe.pool != "completion":  # the scale is defined on all answer tokens
            lengths = reference(
                model, encoded, sites=sites, store=store, budget=budget, progress=update
            ).norms
    chosen, rejected = pair_answers(encoded)
    directions, scales = {}, {}
    generator = torch.Generator().manual_seed(seed)
    for site in sites:
        h = found.states[site]
        differences = h[chosen] - h[rejected]
        try:
            if recipe.estimator == "random":
                v = torch.randn(h.shape[-1], generator=generator)
                directions[site] = (v / v.norm()).to(h.device)
            elif recipe.estimator == "mean":
                directions[site] = mean_difference(differences)
            else:
                directions[site] = principal_direction(differences, centred=recipe.centred)
        except ValueError as error:
            raise DataError(f"{encoded.name}: at site {site!r}, {error}") from error
        scales[site] = STRENGTH * lengths[site].mean().item()
    return VectorDial(directions, scales)


def pair_answers(encoded: Encoded) -> tuple[torch.Tensor, torch.Tensor]:
    """For every pair of an encoded set, in row order, the index of its chosen and rejected
    answer."""
    chosen, rejected = [], []
    for offset, row in zip(encoded.answer_offsets, encoded.rows, strict=False):
        chosen += [offset + c for c, _ in row.pairs]
        rejected += [offset + r for _, r in row.pairs]
    return torch.tensor(chosen), torch.tensor(rejected)
