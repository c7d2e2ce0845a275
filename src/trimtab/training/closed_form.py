"""Fitting a vector in closed form: read the pairs' states or gradients once, estimate a direction a
site."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from trimtab import models
from trimtab.batching import Contrast, Encoded
from trimtab.dials.trial import width_at
from trimtab.dials.vector import STRENGTH, VectorDial
from trimtab.directions import (
    check_apart,
    fisher_direction,
    gradient_mean,
    gradient_svd,
    logistic_direction,
    mean_difference,
    principal_direction,
    umap_direction,
)
from trimtab.errors import ConfigError, DataError
from trimtab.objectives import ReprPOMargin
from trimtab.progress import SILENT, Progress
from trimtab.readings import collect, reference
from trimtab.sites import Site
from trimtab.store import Store
from trimtab.training.gradients import Gradients, read_gradients
from trimtab.training.screens import disagreement, items_of, sites_for
from trimtab.training.steering import DirectionRecipe, GradientRecipe, SteeringRecipe

PUBLISHED_SCALE = 2 / 16
"""Published losses are means over the 8 pairs of a batch of 16, and absolute damping counts on it."""

STORED_BYTES = 1 << 28
"""States up to this size are kept for the next method; more are read anew."""


def fit_direction(
    recipe: SteeringRecipe,
    model: nn.Module,
    encoded: Encoded | Contrast,
    *,
    seed: int = 0,
    store: Store | None = None,
    budget: int = 2048,
    progress: Progress = SILENT,
) -> VectorDial:
    """A vector dial from the states of chosen and rejected answers, or from a loss's gradients there.

    Args:
        seed: of a random direction; the others have none.

    Raises:
        DataError: the differences (gradients) at a site are all zero.
        ConfigError: a site that the model does not have, or that no gradient reaches.
        DialError: a site where states lie in several residual streams.
    """
    pool = getattr(recipe, "pool", "completion")
    sites = sites_for(recipe.sites, model, encoded, pool=pool, store=store, progress=progress)
    try:
        found, norms, raw = estimate(
            recipe, model, encoded, sites, seed=seed, store=store, budget=budget, progress=progress
        )
    except ConfigError:
        for site in sites:
            width_at(model, site, "a direction")  # says what there is instead of a state a token
        raise
    dial = VectorDial(found, {site: STRENGTH * norm for site, norm in norms.items()})
    dial.info.dose = {"relative": [STRENGTH] * len(sites)}
    if raw:
        dial.info.dose["raw_norm"] = [raw[site] for site in sites]
    return dial


def estimate(
    recipe: SteeringRecipe,
    model: nn.Module,
    encoded: Encoded | Contrast,
    sites: Sequence[Site],
    *,
    seed: int = 0,
    store: Store | None = None,
    budget: int = 2048,
    progress: Progress = SILENT,
) -> tuple[dict[Site, Tensor], dict[Site, float], dict[Site, float]]:
    """A unit direction a site, the mean norm of the states there, and that of the mean difference where
    states are what it is estimated from. Raises as `fit_direction`."""
    dtype = next(model.parameters()).dtype
    if isinstance(recipe, DirectionRecipe) and "pca" in recipe.estimator and dtype.itemsize < 4:
        progress.say(
            f"states are read in {str(dtype).removeprefix('torch.')}: where leading directions are "
            "nearly equally strong, rounding chooses among them; --dtype float32 does not"
        )
    pool = getattr(recipe, "pool", "completion") if isinstance(encoded, Encoded) else "completion"
    size = 4 * len(sites) * encoded.n_answers * models.text_config(model).hidden_size
    read = partial(reference, store=store) if size <= STORED_BYTES else collect
    with progress.bar("reading states", encoded.n_answers, "answers") as update:
        found = read(model, encoded, sites=sites, pool=pool, budget=budget, progress=update)
        norms = found.norms
        if pool != "completion":  # the scale is defined on all answer tokens
            norms = read(model, encoded, sites=sites, budget=budget, progress=update).norms
    raw: dict[Site, float] = {}
    if isinstance(recipe, GradientRecipe):
        gradients, lengths = _gradients(recipe, model, encoded, sites, budget, progress)

        def direction(site: Site) -> Tensor:
            return from_gradients(recipe, gradients.chosen[site], gradients.rejected[site], lengths)
    else:
        chosen, rejected = encoded.pair_answers()
        generator = torch.Generator().manual_seed(seed)

        def direction(site: Site) -> Tensor:
            h = found.states[site]
            note = disagreement(h[chosen] - h[rejected], items_of(encoded))
            if note and recipe.estimator != "random":
                progress.say(f"{encoded.name}: at site {site!r} {note}")
            if recipe.estimator == "random":
                v = torch.randn(h.shape[-1], generator=generator)
                return (v / v.norm()).to(h.device)
            raw[site] = (h[chosen] - h[rejected]).mean(0).norm().item()
            return from_states(recipe, h[chosen], h[rejected])

    directions = {}
    for site in sites:
        try:
            directions[site] = direction(site)
        except ValueError as error:
            raise DataError(f"{encoded.name}: at site {site!r}, {error}") from error
    return directions, {site: norms[site].mean().item() for site in sites}, raw


def from_states(recipe: DirectionRecipe, chosen: Tensor, rejected: Tensor) -> Tensor:
    """The direction of states [pair, d]. Raises ValueError where they are the same within rounding."""
    check_apart(chosen, rejected)
    differences = chosen - rejected
    match recipe.estimator:
        case "mean":
            return mean_difference(differences)
        case "logistic":
            return logistic_direction(differences, scaled=recipe.variant == "sound")
        case "umap":
            return umap_direction(chosen, rejected)
        case _:  # pca_center: less the pair's mean, the poles are +-difference / 2, as uncentred
            return principal_direction(differences, centred=recipe.centred)


def from_gradients(
    recipe: GradientRecipe, chosen: Tensor, rejected: Tensor, lengths: Tensor | None = None
) -> Tensor:
    """The direction of gradients [pair, d]; `lengths` [2, pair] are theirs at the loss's layer."""
    published, separating = recipe.variant == "published", recipe.separating
    if recipe.estimator == "gradient_mean":
        return gradient_mean(chosen, rejected, separating=separating)
    if recipe.estimator == "gradient_svd":
        return gradient_svd(chosen, rejected, separating=separating, published=published)
    return fisher_direction(
        chosen,
        rejected,
        separating=separating,
        fisher=recipe.fisher,
        damping=recipe.damping,
        relative=recipe.relative,
        poles=recipe.poles,
        lengths=lengths,
        published=published,
    )


def _gradients(
    recipe: GradientRecipe,
    model: nn.Module,
    encoded: Encoded | Contrast,
    sites: Sequence[Site],
    budget: int,
    progress: Progress,
) -> tuple[Gradients, Tensor | None]:
    """Gradients at the sites, and their lengths where the scaled Fisher matrix asks for them."""
    published, scaled = recipe.variant == "published", recipe.fisher == "scaled"
    (loss_site,) = ReprPOMargin().needs(models.n_layers(model)).sites
    with progress.bar("taking gradients", encoded.n_pairs, "pairs") as update:
        found = read_gradients(
            model,
            encoded,
            recipe.objective,
            tuple(dict.fromkeys((*sites, loss_site) if scaled else sites)),
            whole=published and isinstance(encoded, Contrast),
            budget=budget,
            progress=update,
        )
    if published:
        for part in (found.chosen, found.rejected):
            for site in part:
                part[site] = PUBLISHED_SCALE * part[site]
    if not scaled:
        return found, None
    return found, torch.stack([g[loss_site].norm(dim=1) for g in (found.chosen, found.rejected)])
