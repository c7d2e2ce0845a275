"""repeng's hidden states: texts read at their last token, and directions of states from anywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from trimtab import models
from trimtab.batching import Encoded, Row
from trimtab.errors import ConfigError, DataError
from trimtab.readings import collect
from trimtab.rendering import prompt_ids
from trimtab.sites import Site
from trimtab.training.closed_form import from_states
from trimtab.training.steering import DirectionRecipe

Hiddens = Mapping[Any, np.ndarray]
"""States by layer, `[text, d]`; texts come as positive, negative, positive, …"""

ComputeHiddens = Callable[..., Hiddens]
"""Called as `(model=, tokenizer=, train_strs=, hidden_layers=, batch_size=)`."""
TransformHiddens = Callable[[Hiddens], Hiddens]


def states_of(
    model: nn.Module, tokenizer: Any, texts: Sequence[str], sites: Mapping[Any, Site]
) -> dict[Any, np.ndarray]:
    """States at the last token of each text, by layer: `[text, d]`, float32."""
    rows = [
        Row(f"text {i}", (), (prompt_ids(text, tokenizer, "plain"),), (), ())
        for i, text in enumerate(texts, 1)
    ]
    found = collect(
        model, Encoded(tuple(rows), 0, None, "texts"), sites=[*sites.values()], pool="last"
    )
    return {layer: found.states[site].float().cpu().numpy() for layer, site in sites.items()}


def directions_of(recipe: Any, hiddens: Hiddens, entries: int) -> dict[Any, np.ndarray]:
    """A unit direction a layer from states of positive and negative texts in turn.

    Raises:
        ConfigError: a method that needs more than states.
        DataError: states of another number of texts, or none that differ.
    """
    if not isinstance(recipe, DirectionRecipe):
        raise ConfigError("compute_hiddens and transform_hiddens go with methods on states alone")
    found = {}
    for layer, given in hiddens.items():
        h = torch.from_numpy(np.array(given, dtype=np.float32))
        if h.ndim != 2 or len(h) != 2 * entries or not torch.isfinite(h).all():
            raise DataError(
                f"layer {layer!r}: expected finite states [{2 * entries}, d], a row a text, given "
                f"{list(h.shape)}"
            )
        try:
            found[layer] = from_states(recipe, h[::2], h[1::2]).numpy()
        except ValueError as error:
            raise DataError(f"layer {layer!r}: {error}") from error
    return found


def model_layer_list(model: Any) -> nn.ModuleList:
    """A model's decoder layers, found by structure; of a ControlModel those of the model within."""
    bare = getattr(model, "model", model) if type(model).__name__ == "ControlModel" else model
    return models.layers(bare)
