"""repeng's names: `from trimtab.compat.repeng import ControlVector, ControlModel, DatasetEntry`.

The same calls with the same meaning of strengths and layers, in our machinery: no module is replaced,
prefixes are computed once, nothing is tokenised twice. What differs is said where it does, and in
docs/migration.md.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
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
    states_of,
)
from trimtab.dials import Dial, Edit
from trimtab.dials.attach import VECTOR
from trimtab.errors import ConfigError, DataError, DialError
from trimtab.pairs import Pair, PairSet, persona_pairs
from trimtab.rendering import USUAL, RenderedText, begin_answer, head_text, template_of
from trimtab.sites import Site, block_index
from trimtab.states import available_layers, find_sites
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

Layer = int | str
"""A block (repeng's layer L is the output of block L), or a module path."""

Operator = Callable[[Tensor, Tensor], Tensor]
"""`(states, control) -> states`."""

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
        sites = {_key(layer, bare): _site(layer, bare) for layer in hidden_layers}
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
            found, _ = estimate(recipe, bare, contrast, list(sites.values()), store=store)
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
                found.directions[k] = _single(sae.layers[k].decode(v))
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
            joined[layer] = _single(joined.get(layer, 0.0) + weight * v)
        return ControlVector(self.model_type, joined)

    def __add__(self, other: Any) -> ControlVector:
        return self._combine(other, 1.0)

    def __sub__(self, other: Any) -> ControlVector:
        return self._combine(other, -1.0)

    def __mul__(self, weight: float) -> ControlVector:
        scaled = {k: _single(float(weight) * v) for k, v in self.directions.items()}
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


class ControlModel(nn.Module):
    """A model and the control that is set on it. The model itself is never changed: hooks come with a
    control and go with it."""

    def __init__(self, model: Any, layer_ids: Iterable[Layer] = ()):
        """
        Args:
            model: a causal language model.
            layer_ids: the layers that a control acts at (negatives from the end); none given, every
                layer that it has.

        Raises:
            ConfigError: a layer that the model does not have.
        """
        super().__init__()
        self.model = model
        self.layer_ids: list[Layer] = [_key(layer, model) for layer in layer_ids]
        self._hooks = ExitStack()
        self._set: tuple[_Control, float] | None = None

    @property
    def config(self) -> Any:
        """The model's config."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return next(self.model.parameters()).device

    def set_control(self, control: ControlVector, coeff: float = 1.0, **kwargs: Any) -> None:
        """Add coeff times the vector after each layer, until another is set or `reset`. At 0 the
        model is bare.

        Args:
            normalize: bring every state back to its length before.
            operator: `(states, control) -> states` instead of the sum.

        Raises:
            ConfigError: the vector lacks a layer, or has another width; coeff is not finite.
        """
        self._attach(
            {k: torch.from_numpy(_single(v)) for k, v in control.directions.items()},
            coeff,
            **kwargs,
        )

    def set_raw_control(self, control: Mapping[Layer, Tensor] | None, **kwargs: Any) -> None:
        """As `set_control`, of a tensor a layer; None resets."""
        if control is None:
            self.reset()
        else:
            self._attach(control, 1.0, **kwargs)

    def reset(self) -> None:
        """Back to the bare model."""
        self._hooks.close()
        self._set = None

    def unwrap(self) -> Any:
        """The bare model."""
        self.reset()
        return self.model

    def paused(self) -> ExitStack:
        """A context in which no control acts; afterwards the one that was set acts again."""
        stack = ExitStack()
        if self._set is not None:
            self._hooks.close()
            stack.callback(self._enter, *self._set)
        return stack

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward."""
        return self.model(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The model's generate."""
        return self.model.generate(*args, **kwargs)

    def _attach(
        self,
        control: Mapping[Layer, Tensor],
        coeff: float,
        *,
        normalize: bool = False,
        operator: Operator | None = None,
    ) -> None:
        wanted = self.layer_ids or [_key(k, self.model) for k in control]
        missing = [layer for layer in wanted if layer not in control]
        if missing:
            raise ConfigError(f"the control has no layer {missing[0]!r}; it has {list(control)}")
        vectors = {_site(layer, self.model): control[layer] for layer in wanted}
        self.reset()
        self._enter(_Control(vectors, normalize, operator), coeff)

    def _enter(self, dial: _Control, coeff: float) -> None:
        self._hooks.enter_context(dial(self.model, float(coeff), force=True))
        self._set = dial, coeff


class _Control(Dial):
    """What a control does to states, as a dial."""

    kind = "control"

    def __init__(self, vectors: dict[Site, Tensor], normalize: bool, operator: Operator | None):
        super().__init__()
        self.vectors, self.normalize, self.operator = vectors, normalize, operator

    def edits(self, model: nn.Module) -> list[Edit]:
        """One edit a layer."""
        return [Edit(s, VECTOR, partial(self._edit, s, v)) for s, v in self.vectors.items()]

    def _edit(self, site: Site, v: Tensor, _: Tensor, y: Tensor, alpha: float | Tensor) -> Tensor:
        if v.shape != y.shape[-1:] and v.ndim == 1:
            raise ConfigError(
                f"layer {site!r}: the control has {len(v)} entries, the states {y.shape[-1]}"
            )
        control = (alpha * v.to(y.device)).to(y.dtype)
        new = y + control if self.operator is None else self.operator(y, control)
        if self.normalize:
            new = new / new.norm(dim=-1, keepdim=True) * y.norm(dim=-1, keepdim=True)
        return new


def batched_get_hiddens(
    model: Any,
    tokenizer: Any,
    train_strs: Sequence[str],
    hidden_layers: Iterable[Layer],
    batch_size: int = 32,
) -> dict[Layer, np.ndarray]:
    """States at the last token of each text by layer, `[text, d]`; a control that is set is off
    meanwhile. Batches are cut by tokens, whatever `batch_size` says. Block N - 1 is read before the
    final norm."""
    bare: nn.Module = model.model if isinstance(model, ControlModel) else model
    sites = {_key(layer, bare): _site(layer, bare) for layer in hidden_layers}
    with model.paused() if isinstance(model, ControlModel) else ExitStack():
        return states_of(bare, tokenizer, train_strs, sites)


def _single(v: Any) -> np.ndarray:
    """float32, whatever the weights were: numpy's own floats would make it double."""
    return np.asarray(v, dtype=np.float32)


def _key(layer: Layer, model: nn.Module) -> Layer:
    """A layer as a control's key: blocks counted from 0."""
    return block_index(layer, models.n_layers(model)) if isinstance(layer, int) else layer


def _site(layer: Layer, model: nn.Module) -> Site:
    """The site of a layer; a module path stands for its output."""
    if isinstance(layer, int):
        return block_index(layer, models.n_layers(model))
    if layer in models.layer_paths(model):
        return models.layer_paths(model).index(layer)
    (site,) = find_sites(model, layer if ":" in layer else f"{layer}:out")
    return site
