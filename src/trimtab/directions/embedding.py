"""A direction from a one-dimensional UMAP embedding: an optional extra, for comparison."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.directions.difference import signed, unit
from trimtab.errors import ConfigError


def umap_direction(
    chosen: Float[Tensor, "pair d"], rejected: Float[Tensor, "pair d"]
) -> Float[Tensor, "d"]:
    """States weighted by their place on a line that UMAP finds (repeng's `umap`), signed by the
    pairs: the sum of e_i h_i over the sum of e_i, as a unit vector. Seeded.

    Raises:
        ConfigError: umap-learn is not installed.
        ValueError: the weighted sum is zero.
    """
    try:
        umap: Any = importlib.import_module("umap")
    except ImportError:
        raise ConfigError("estimator umap: install it (pip install 'trimtab[umap]')") from None
    states = torch.stack([chosen, rejected], 1).reshape(-1, chosen.shape[1]).double()  # 2 pair, d
    fitted = umap.UMAP(n_components=1, random_state=0).fit_transform(states.cpu().numpy())
    places = torch.as_tensor(fitted, dtype=states.dtype).to(states.device)[:, 0]
    v = unit(places @ states / places.sum())
    return signed(v, (chosen - rejected).double()).to(chosen.dtype)
