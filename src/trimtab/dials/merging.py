"""Whether a merged model is the hooked one: shared parameters, and a probe."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from trimtab import models
from trimtab.dials.trial import few_tokens, trying
from trimtab.errors import DialError

PROBE = (1, 16)
"""Rows and tokens of the pass in which the two are compared: some models take no second row."""
SHARE, HALF_SHARE = 1e-3, 5e-2
"""What they may differ by, of the logits' spread and of what the dial changes: in float32, and in half
precision, where merged weights are rounded."""


def refuse_shared(model: nn.Module, names: Collection[str]) -> None:
    """Raise DialError where a parameter that is to be changed is one with another that is not: a block
    of weights that runs at several depths, an LM head tied to the embedding.

    Args:
        model: whose parameters are changed.
        names: of those parameters.
    """
    # Of each module once: what a module run several times changes, it changes every time.
    every = {
        f"{path}.{name}": p
        for path, module in model.named_modules()
        for name, p in module.named_parameters(recurse=False, remove_duplicate=False)
    }
    changed = {name: every[name] for name in names if name in every}
    tied = getattr(models.embed(model), "weight", None)
    for name, p in changed.items():
        if p is tied:
            path = name.rpartition(".")[0]
            raise DialError(f"{path}: tied to the embedding, which a merge would change too")
    places: dict[tuple[Any, int], str] = {}
    for name, p in every.items():
        place = p.device, p.data_ptr()
        first = places.setdefault(place, name)
        if first != name and p.numel() and {first, name} & changed.keys():
            raise DialError(
                f"{name} and {first} are one tensor: the model runs the same weights at several "
                "depths, and one weight cannot hold a change of each; use the dial as it is, or "
                "export it --to peft"
            )


@torch.no_grad()
def verify(
    model: nn.Module, hooked: AbstractContextManager[None], merged: nn.Module, what: str
) -> None:
    """Raise DialError where a merged model gives other logits than the hooked one on a few tokens.

    Args:
        hooked: the context of the dial on the model.
        what: the dial, in words.
    """
    try:
        bare = _logits(model)
        with models.reading(model), hooked:
            on = model(**few_tokens(model, PROBE)).logits.float()
        found = _logits(merged).to(on.device)
    except Exception as error:  # of many kinds: the model does not take a few tokens
        raise DialError(
            f"{what}: merged and hooked cannot be compared, since {type(model).__name__} fails on a few "
            f"tokens ({type(error).__name__}: {error}); use the dial as it is"
        ) from error
    off, change = _size(found - on), _size(on - bare)
    half = next(p.dtype.itemsize for p in model.parameters() if p.is_floating_point()) < 4
    share = HALF_SHARE if half or models.quantisation_of(model) else SHARE
    if not off <= share * (change + on.std().item()):
        why = (
            "The base's quantised layers do more than multiply by their weights (they round their "
            "inputs, too), which plain weights do not; use the dial as it is, or merge it into the "
            "model that is not quantised"
            if models.quantisation_of(model)
            else "The model uses some of these weights in a way that a merge cannot follow; use the "
            "dial as it is"
        )
        raise DialError(
            f"merged into the weights, {what} gives other logits than hooked to the model: they differ "
            f"by {off:.2g}, where it changes them by {change:.2g}. {why}"
        )


def _logits(model: nn.Module) -> Tensor:
    with trying(model) as run:
        return run(PROBE).float()


def _size(x: Tensor) -> float:
    return x.square().mean().sqrt().item()
