"""An ordinary PEFT LoRA folder that does what a dial does at one alpha."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from trimtab import models
from trimtab.dials import Dial, IA3Dial, RoadDial, VectorDial
from trimtab.dials.dial import members
from trimtab.dials.peft import PREFIX
from trimtab.dials.writers import residual_writer
from trimtab.errors import DialError
from trimtab.export.facts import told_on
from trimtab.export.gguf import added_steps
from trimtab.export.handing_over import base_of, save_tokenizer, write_card
from trimtab.export.heads import BASE, is_tied, save_untied


def export_peft(
    dial: Dial, model: nn.Module, tokenizer: Any, alpha: float, folder: Path
) -> list[str]:
    """Write a dial at `alpha` as a LoRA folder. Returns what is not carried over.

    Low-rank dials (LoRA, VeRA, DeLoRA, rotations, alignment heads) are written as they are; a vector
    that is added after blocks becomes the LoRA bias of the layer that writes to the residual stream
    last. A head on an LM head that is tied to the embedding gets an untied copy of the base model
    beside it, in `base/`, which the adapter's config names.

    Raises:
        DialError: what a LoRA cannot do, with the reason.
    """
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    biases: dict[str, Tensor] = {}
    for part, weight in members(dial):
        if isinstance(part, IA3Dial | RoadDial):
            raise DialError(
                f"a LoRA cannot say {part.tuner}, which multiplies a layer's outputs: its change "
                "has full rank. The dial's own folder loads in PEFT at alpha 1; "
                "for another alpha use --to merged"
            )
        if isinstance(part, VectorDial):
            for block, step in added_steps(part, model, "a LoRA bias").items():
                path = residual_writer(model, block)
                biases[path] = biases.get(path, 0.0) + weight * alpha * step
            continue
        for path, (A, B) in part.low_rank(model, weight * alpha).items():
            if path in factors:
                A, B = torch.cat([factors[path][0], A]), torch.cat([factors[path][1], B], 1)
            factors[path] = (A, B)
    head = models.head(model)
    on_head = any(model.get_submodule(path) is head for path in factors)
    untied = on_head and is_tied(model)
    paths = frozenset({*factors, *biases})
    known = told_on("peft", model, paths, head=on_head, bias=bool(biases))
    base, said = (f"./{BASE}", "") if untied else base_of(model)
    _write(model, factors, biases, folder, base)
    if untied:
        save_untied(model, tokenizer, folder / BASE)
    weight: Any = models.embed(model).weight
    if tokenizer is not None and len(tokenizer) <= len(weight):
        save_tokenizer(tokenizer, folder)  # with a larger one PEFT would resize the base
    write_card(folder, dial, alpha, "" if untied or said else base, LOAD)
    lost = [
        f"alpha: the adapter is the dial at {alpha:g} and no other",
        "alphas of their own for the rows of a batch",
        "data, seed and measured range of the dial",
    ]
    if untied:
        lost.append(
            "the tied base: the adapter is made for the untied copy in base/, which PEFT finds from "
            "within the folder alone (base_model_name_or_path is ./base)"
        )
    return [*lost, *([said] if said else []), *known]


LOAD = """\
# within this folder
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained(".")"""


def _write(
    model: nn.Module,
    factors: dict[str, tuple[Tensor, Tensor]],
    biases: dict[str, Tensor],
    folder: Path,
    base: str,
) -> None:
    from peft import LoraConfig

    rank = max([len(A) for A, _ in factors.values()] or [1])
    paths = sorted({*factors, *biases})
    tensors: dict[str, Tensor] = {}
    for path in paths:
        module: Any = model.get_submodule(path)
        if path in factors:
            A, B = factors[path]
        else:
            n_in = getattr(module, "in_features", module.weight.shape[0])
            A, B = torch.zeros(rank, n_in), torch.zeros(len(biases[path]), rank)
        # One rank for all: rows and columns of zeros add nothing.
        A, B = F.pad(A, (0, 0, 0, rank - len(A))), F.pad(B, (0, rank - B.shape[1]))
        tensors[f"{PREFIX}{path}.lora_A.weight"] = A
        tensors[f"{PREFIX}{path}.lora_B.weight"] = B
        if biases:
            tensors[f"{PREFIX}{path}.lora_B.bias"] = biases.get(path, torch.zeros(len(B)))
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=paths,
        bias="none",
        lora_bias=bool(biases),
        task_type="CAUSAL_LM",
        inference_mode=True,
        base_model_name_or_path=base,
    )
    note = {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
    folder.mkdir(parents=True)
    weights = {k: t.detach().cpu().float().contiguous().clone() for k, t in tensors.items()}
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(
        json.dumps(note, indent=2, sort_keys=True, default=str) + "\n"
    )
