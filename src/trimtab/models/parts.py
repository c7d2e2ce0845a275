"""Parts of a model, found by what they are, never by a table of architectures."""

from __future__ import annotations

from typing import Any

from torch import nn

from trimtab.errors import ModelError
from trimtab.models.compiled import unwrapped


def layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers of a causal LM: the heaviest ModuleList as long as the config says.

    Raises:
        ModelError: nothing in the model looks like a stack of decoder layers.
    """
    count = text_config(model).num_hidden_layers
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not stacks:
        raise ModelError(f"{type(model).__name__}: no list of {count} decoder layers found")
    return max(stacks, key=lambda stack: sum(p.numel() for p in stack.parameters()))


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
    """How many positions the model has a learned vector for; None where it computes them."""
    for name, module in model.named_modules():
        leaf = name.rpartition(".")[2]
        if isinstance(module, nn.Embedding) and ("pos" in leaf or leaf == "wpe"):
            before = getattr(module, "offset", None)  # rows that stand for no position
            if before is None:
                before = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - before
    return None
