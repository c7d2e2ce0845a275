"""Parts of a model, found by what they are, never by a table of architectures."""

from __future__ import annotations

import contextlib
import weakref
from typing import Any

import torch
from torch import nn

from trimtab.errors import ModelError
from trimtab.models.compiled import unwrapped


def layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers of a causal LM: the ModuleList as long as the config says. Where there are
    several (a vision tower as deep as the decoder), that which text passes through; of those the
    heaviest.

    Raises:
        ModelError: nothing in the model looks like a stack of decoder layers.
    """
    model = unwrapped(model)
    config = text_config(model)
    counts = (getattr(config, name, None) for name in _COUNTS)
    count = next((n for n in counts if isinstance(n, int)), None)
    with contextlib.suppress(KeyError, AttributeError):  # not looked for yet; not there any more
        known = model.get_submodule(_named[model])
        if isinstance(known, nn.ModuleList) and len(known) == count:
            return known
    stacks: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{other}.") for other in stacks)  # experts, say
        if isinstance(module, nn.ModuleList) and len(module) == count and not inside:
            stacks[name] = module
    if not stacks:
        name = type(model).__name__
        told = "its config names no number of layers"
        if count is not None:
            told = f"no list of {count} found"
        raise ModelError(f"{name} has no decoder layers that trimtab can tell: {told}")
    found = _passed(model, stacks) if len(stacks) > 1 else list(stacks)
    _named[model] = max(found, key=lambda n: sum(p.numel() for p in stacks[n].parameters()))
    return stacks[_named[model]]


_named: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
"""Where a model's layers were found: looking through thousands of modules takes a millisecond."""
_COUNTS = ("decoder_layers", "num_decoder_layers", "num_hidden_layers")
"""What configs call the number of decoder layers; the last may be the encoder's where they have both."""
_text: weakref.WeakKeyDictionary[nn.Module, dict[tuple[str, ...], list[str]]] = (
    weakref.WeakKeyDictionary()
)


def _passed(model: nn.Module, stacks: dict[str, nn.ModuleList]) -> list[str]:
    """Which of these stacks a pass over text alone goes through (all, if none), found once a model."""
    known, names = _text.setdefault(model, {}), tuple(stacks)
    if names not in known:
        called: set[str] = set()
        handles = [
            stack[0].register_forward_pre_hook(lambda *_, name=name: called.add(name))
            for name, stack in stacks.items()
        ]
        try:
            with torch.no_grad(), contextlib.suppress(Exception):  # as far as it comes
                device = next(embed(model).parameters()).device
                model(input_ids=torch.tensor([[3, 4, 5]], device=device), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        known[names] = sorted(called) or list(names)
    return known[names]


def trunk(model: nn.Module) -> nn.Module:
    """The stack of decoder layers, which all that wraps a model shares with it; where there is none,
    the model itself."""
    try:
        return layers(model)
    except (ModelError, AttributeError):
        return unwrapped(model)


def n_layers(model: nn.Module) -> int:
    """Number of decoder layers."""
    return len(layers(model))


def text_config(model: nn.Module) -> Any:
    """The config of the text decoder (for multimodal models the nested one)."""
    return model.config.get_text_config(decoder=True)  # type: ignore[union-attr,operator]


def context(model: nn.Module) -> int | None:
    """How many tokens the model was made for; None where its config does not say."""
    found = getattr(text_config(model), "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def head(model: nn.Module) -> nn.Module:
    """The LM head."""
    module = model.get_output_embeddings()  # type: ignore[operator]
    if module is None:
        raise ModelError(f"{type(model).__name__} has no LM head")
    return module


def embed(model: nn.Module) -> nn.Module:
    """The token embedding."""
    return model.get_input_embeddings()  # type: ignore[operator]


def final_norm(model: nn.Module) -> nn.Module:
    """The norm between the last decoder layer and the LM head: the sibling after the layer list."""
    stack = layers(model)
    for parent in model.modules():
        children = list(parent.children())
        if any(child is stack for child in children):
            after = children[[child is stack for child in children].index(True) + 1 :]
            norms = [m for m in after if "norm" in type(m).__name__.lower()]
            # OPT keeps it before the layers, where others keep norms of embeddings.
            named = [m for n, m in parent.named_children() if n.startswith("final") and "norm" in n]
            if norms or named:
                return (norms or named)[0]
    raise ModelError(f"{type(model).__name__}: no final norm found after the decoder layers")


def layer_paths(model: nn.Module) -> list[str]:
    """Module path of every decoder layer, e.g. `model.layers.0`."""
    names = {id(m): n for n, m in unwrapped(model).named_modules()}
    return [names[id(m)] for m in layers(model)]


def learned_positions(model: nn.Module) -> int | None:
    """How many positions the decoder has a learned vector for; None where it computes them."""
    model = unwrapped(model)
    stack, parents = layers(model), dict(model.named_modules())
    path = next(name for name, module in parents.items() if module is stack)
    while path:  # beside the layers, or where what holds them is held; no vision tower is there
        path = path.rpartition(".")[0]
        for name, module in parents[path].named_modules():
            if not isinstance(module, nn.Embedding) or "." in name.removeprefix("embeddings."):
                continue
            leaf = name.rpartition(".")[2]
            if "pos" in leaf or leaf == "wpe":
                before = getattr(module, "offset", None)  # rows that stand for no position
                if before is None:
                    before = 0 if module.padding_idx is None else module.padding_idx + 1
                return module.num_embeddings - before
    return None
