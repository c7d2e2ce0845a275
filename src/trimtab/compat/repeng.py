"""repeng's names: `from trimtab.compat.repeng import ControlVector, ControlModel, DatasetEntry`.

The same calls with the same meaning of strengths and layers, in our machinery: no module is replaced,
prefixes are computed once, nothing is tokenised twice. What differs is said where it does, and in
docs/migration.md.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trimtab import models
from trimtab.batching import encode_contrast
from trimtab.compat.repeng_hiddens import (
    ComputeHiddens,
    Hiddens,
    TransformHiddens,
    directions_of,
    model_layer_list,
)
from trimtab.compat.repeng_model import (
    ControlModel,
    Layer,
    batched_get_hiddens,
    key_of,
    single,
    site_of,
)
from trimtab.errors import ConfigError, DataError, DialError
from trimtab.pairs import Pair, PairSet, persona_pairs
from trimtab.rendering import USUAL, RenderedText, begin_answer, head_text, template_of
from trimtab.states import available_layers
from trimtab.store import Store
from trimtab.training.closed_form import estimate
from trimtab.training.methods import method as method_named
from trimtab.training.steering import DirectionRecipe, GradientRecipe, SteeringRecipe

__all__ = [
    "ControlModel",
    "ControlVector",
    "DatasetEntry",
    "batched_get_hiddens",
    "get_available_layers",
    "make_dataset",
    "model_layer_list",
]

get_available_layers = available_layers

_METHODS: dict[str, SteeringRecipe] = {
    "pca_diff": DirectionRecipe("pca", centred=True),
    "umap": DirectionRecipe("umap"),
    "svd_steer": DirectionRecipe(
        "pca", centred=True
    ),  # what the research branch ran under that name
}


@dataclass
class DatasetEntry:
    """Two texts that differ in what the vector is to hold; both read at their last token."""

    positive: str
    negative: str


def make_dataset(
    template: str,
    positive_personas: Sequence[str],
    negative_personas: Sequence[str],
    suffix_list: Sequence[str],
    tokenizer: Any = None,
    *,
    user_tag: str = "[INST]",
    asst_tag: str = "[/INST]",
) -> list[DatasetEntry]:
    """Every suffix said by every couple of personas, as text.

    With a tokenizer, in its chat template; without one, between the tags of repeng's notebooks. The
    suffixes are taken as they are: truncate them before, or use `trimtab.batching.make_contrast`,
    which reads every truncation in one pass.

    Raises:
        DataError: personas without their opposites, an empty suffix, no `{persona}` in the template.
    """

    def text(turns: Any) -> str:
        asked, said = (turn["content"] for turn in turns)
        if tokenizer is None:
            return f"{user_tag} {asked} {asst_tag} {said}"
        template = template_of(tokenizer, USUAL)
        head, _ = head_text(template, [{"role": "user", "content": asked}])
        return RenderedText(head, begin_answer(template, head), said)

    pairs = persona_pairs(template, positive_personas, negative_personas, suffix_list)
    return [DatasetEntry(text(pair.chosen), text(pair.rejected)) for pair in pairs]


@dataclass
class ControlVector:
    """A direction a layer, in the model's own units."""

    model_type: str
    directions: dict[Layer, np.ndarray] = field(default_factory=dict)

    @classmethod
    def train(
        cls,
        model: Any,
        tokenizer: Any,
        dataset: Sequence[DatasetEntry],
        *,
        hidden_layers: Iterable[Layer] | None = None,
        method: str = "pca_diff",
        batch_size: int | None = None,
        max_batch_size: int | None = None,
        compute_hiddens: ComputeHiddens | None = None,
        transform_hiddens: TransformHiddens | None = None,
        store: Store | None = None,
    ) -> ControlVector:
        """A direction a layer from pairs of texts.

        Args:
            hidden_layers: blocks (negatives from the end) or module paths; by default all blocks but
                the first.
            method: `pca_diff`, `pca_center`, `umap`, `svd_gradient`, `fisher_steer_cov_reg1` and the
                rest of that grid, or any of our methods that needs no training.
            batch_size: accepted and ignored: batches are cut by tokens.
            max_batch_size: the same.
            compute_hiddens: reads the states in our place (see `repeng_hiddens`).
            transform_hiddens: from states by layer to what the directions are taken of.

        The directions have length 1, also where repeng leaves them as they come (Fisher). A control
        that is set on `model` is off while states are read. Block N - 1 is read before the final norm,
        where the vector is added, not after it.

        Raises:
            ConfigError: an unknown method or layer, or one that needs training.
            DataError: the texts give no direction.
        """
        recipe = _METHODS.get(method) or method_named(method).recipe
        if not isinstance(recipe, SteeringRecipe):
            raise ConfigError(f"method {method!r} trains a dial; use trimtab.fit")
        entries = [
            Pair("", e.positive, e.negative, str(i), source=f"entry {i}")
            for i, e in enumerate(dataset, 1)
        ]
        if not entries:
            raise DataError("the dataset is empty; expected entries of two texts")
        bare: nn.Module = model.model if isinstance(model, ControlModel) else model
        count = models.n_layers(bare)
        if hidden_layers is None:
            hidden_layers = range(count - 1, 0, -1)
        sites = {key_of(layer, bare): site_of(layer, bare) for layer in hidden_layers}
        kind = str(getattr(bare.config, "model_type", ""))
        if compute_hiddens is not None or transform_hiddens is not None:
            texts = [text for e in dataset for text in (e.positive, e.negative)]
            hiddens = (compute_hiddens or batched_get_hiddens)(
                model=model,
                tokenizer=tokenizer,
                train_strs=texts,
                hidden_layers=list(sites),
                batch_size=batch_size or max_batch_size or 32,
            )
            hiddens = transform_hiddens(hiddens) if transform_hiddens is not None else hiddens
            return cls(kind, directions_of(recipe, hiddens, len(entries)))
        stops = "known" if isinstance(recipe, GradientRecipe) else "last"
        contrast = encode_contrast(
            PairSet(entries, "dataset"),
            tokenizer,
            stops=stops,
            max_length=getattr(models.text_config(bare), "max_position_embeddings", 1 << 20),
        )
        with model.paused() if isinstance(model, ControlModel) else ExitStack():
            found, *_ = estimate(recipe, bare, contrast, list(sites.values()), store=store)
        directions = {key: found[site].float().numpy() for key, site in sites.items()}
        return cls(kind, directions)

    @classmethod
    def train_with_sae(
        cls,
        model: Any,
        tokenizer: Any,
        sae: Any,
        dataset: Sequence[DatasetEntry],
        *,
        decode: bool = True,
        method: str = "pca_center",
        **kwargs: Any,
    ) -> ControlVector:
        """`train` on the features of sparse autoencoders (`sae.layers[layer].encode`, of states
        `[text, d]`), taken back to states by `.decode` unless `decode` is False."""

        def encoded(hiddens: Hiddens) -> Hiddens:
            return {k: sae.layers[k].encode(v) for k, v in hiddens.items()}

        found = cls.train(
            model, tokenizer, dataset, method=method, transform_hiddens=encoded, **kwargs
        )
        if decode:
            for k, v in found.directions.items():
                found.directions[k] = single(sae.layers[k].decode(v))
        return found

    def export_gguf(self, path: str | os.PathLike[str]) -> None:
        """Write a llama.cpp control vector. Layer 0 and module paths cannot be said there.

        Raises:
            DialError: nothing can be written, or a layer is no block from 1 up.
        """
        blocks: dict[int, Tensor] = {}
        for layer, v in self.directions.items():
            if not isinstance(layer, int) or layer < 1:
                raise DialError(
                    f"layer {layer!r}: a GGUF control vector has directions after blocks 1 and up"
                )
            blocks[layer] = torch.from_numpy(np.asarray(v, dtype=np.float32))
        from trimtab.export.gguf import write_control_vector

        write_control_vector(Path(path), blocks, self.model_type)

    @classmethod
    def import_gguf(cls, path: str | os.PathLike[str]) -> ControlVector:
        """Read a llama.cpp control vector. Raises DialError where it is none."""
        from trimtab.export.gguf import read_control_vector

        directions, hint = read_control_vector(Path(path))
        return cls(hint, {k: v.float().numpy() for k, v in directions.items()})

    # ---- arithmetic ----

    def _combine(self, other: Any, weight: float) -> ControlVector:
        if not isinstance(other, ControlVector):
            return NotImplemented
        if self.model_type != other.model_type:
            warnings.warn(
                f"vectors of {self.model_type!r} and of {other.model_type!r} do not mean the same",
                stacklevel=3,
            )
        joined = dict(self.directions)
        for layer, v in other.directions.items():
            joined[layer] = single(joined.get(layer, 0.0) + weight * v)
        return ControlVector(self.model_type, joined)

    def __add__(self, other: Any) -> ControlVector:
        return self._combine(other, 1.0)

    def __sub__(self, other: Any) -> ControlVector:
        return self._combine(other, -1.0)

    def __mul__(self, weight: float) -> ControlVector:
        scaled = {k: single(float(weight) * v) for k, v in self.directions.items()}
        return ControlVector(self.model_type, scaled)

    __rmul__ = __mul__

    def __truediv__(self, weight: float) -> ControlVector:
        return self * (1 / weight)

    def __neg__(self) -> ControlVector:
        return self * -1.0

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, ControlVector)
            and self.model_type == other.model_type
            and self.directions.keys() == other.directions.keys()
            and all(np.array_equal(v, other.directions[k]) for k, v in self.directions.items())
        )

    __hash__ = None  # type: ignore[assignment]
