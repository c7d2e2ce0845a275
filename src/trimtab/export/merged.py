"""A plain checkpoint with a dial at one alpha in its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from trimtab import models
from trimtab.dials import Dial
from trimtab.errors import DialError
from trimtab.export.facts import told_on
from trimtab.export.handing_over import for_older, save_tokenizer, write_card


def export_merged(
    dial: Dial, model: nn.Module, tokenizer: Any, alpha: float, folder: Path
) -> list[str]:
    """Save the model with the dial at `alpha` in its weights. Returns what is not carried over.

    Raises:
        DialError: the weights, or the architecture's config, cannot express it.
    """
    result: Any = dial.merged(model, alpha, force=True)
    _declare_biases(model, result)
    result.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    for_older(folder)
    load = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained(".")\n'
        'tokenizer = AutoTokenizer.from_pretrained(".")'
    )
    write_card(folder, dial, alpha, "", load)
    changed = not torch.equal(models.head_weight(model), models.head_weight(result))
    return [
        f"alpha: the checkpoint is the dial at {alpha:g} and cannot be turned back",
        "alphas of their own for the rows of a batch",
        "data, seed and measured range of the dial",
        *told_on("merged", model, frozenset(), head=changed, bias=False),
    ]


def _declare_biases(before: nn.Module, after: Any) -> None:
    """See to it that the config tells of biases that the dial has added.

    Raises:
        DialError: the architecture's config has no word for them.
    """
    had = {path for path, m in before.named_modules() if getattr(m, "bias", None) is not None}
    paths = [n.removesuffix(".bias") for n, _ in after.named_parameters() if n.endswith(".bias")]
    added = [f"{path}.bias" for path in paths if path not in had]
    if not added:
        return
    if not hasattr(models.text_config(after), "mlp_bias"):
        raise DialError(
            f"{type(after).__name__} has no bias at {added[0].rpartition('.')[0]}, and no setting "
            "that would give it one: no plain checkpoint can hold the vector; use --to peft"
        )
    models.text_config(after).mlp_bias = True
    feedforwards = {name.rpartition(".")[0].rpartition(".")[0].rpartition(".")[2] for name in added}
    for layer in models.layers(after):
        for name in feedforwards:
            for module in layer.get_submodule(name).modules():
                if isinstance(module, nn.Linear) and module.bias is None:
                    zero = torch.zeros(module.out_features).to(module.weight)
                    module.bias = nn.Parameter(zero, requires_grad=False)
