"""A model with a control set on it, as repeng has it, and the layers that it names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from trimtab import models
from trimtab.compat.repeng_hiddens import states_of
from trimtab.dials import Dial, Edit
from trimtab.dials.attach import VECTOR
from trimtab.errors import ConfigError
from trimtab.sites import Site, block_index
from trimtab.states import find_sites

if TYPE_CHECKING:
    from trimtab.compat.repeng import ControlVector

Layer = int | str
"""A block (repeng's layer L is the output of block L), or a module path."""

Operator = Callable[[Tensor, Tensor], Tensor]
"""`(states, control) -> states`."""


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
        self.layer_ids: list[Layer] = [key_of(layer, model) for layer in layer_ids]
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
            {k: torch.from_numpy(single(v)) for k, v in control.directions.items()},
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
        wanted = self.layer_ids or [key_of(k, self.model) for k in control]
        missing = [layer for layer in wanted if layer not in control]
        if missing:
            raise ConfigError(f"the control has no layer {missing[0]!r}; it has {list(control)}")
        vectors = {site_of(layer, self.model): control[layer] for layer in wanted}
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
    sites = {key_of(layer, bare): site_of(layer, bare) for layer in hidden_layers}
    with model.paused() if isinstance(model, ControlModel) else ExitStack():
        return states_of(bare, tokenizer, train_strs, sites)


def single(v: Any) -> np.ndarray:
    """float32, whatever the weights were: numpy's own floats would make it double."""
    return np.asarray(v, dtype=np.float32)


def key_of(layer: Layer, model: nn.Module) -> Layer:
    """A layer as a control's key: blocks counted from 0."""
    return block_index(layer, models.n_layers(model)) if isinstance(layer, int) else layer


def site_of(layer: Layer, model: nn.Module) -> Site:
    """The site of a layer; a module path stands for its output."""
    if isinstance(layer, int):
        return block_index(layer, models.n_layers(model))
    if layer in models.layer_paths(model):
        return models.layer_paths(model).index(layer)
    (site,) = find_sites(model, layer if ":" in layer else f"{layer}:out")
    return site
