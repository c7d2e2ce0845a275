"""What the tests of training share: random pairs, small recipes, gradients of a step, folders
compared, and jobs that other processes run (`helpers_zygote.py`, `helpers_worker.py`)."""

from __future__ import annotations

import dataclasses
import io
import os
import random
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from conftest import _tokenizer, build
from trimtab import models
from trimtab.batching import Encoded, collate, layout_of, plan_batches
from trimtab.dials import AdapterDial, Dial
from trimtab.dials.adapter import linear_modules
from trimtab.objectives import DPO, Objective
from trimtab.pairs import Pair, PairSet
from trimtab.store import Store
from trimtab.training.methods import METHODS
from trimtab.training.recipes import AdapterSettings, DPORecipe, TrainSettings
from trimtab.training.reference import read_reference
from trimtab.training.run import fit
from trimtab.training.trainer import FitModule

WORDS = [
    "sky",
    "blue",
    "Rome",
    "Paris",
    "four",
    "three",
    "water",
    "nothing",
    "answer",
    "the",
    "is",
    "there",
    "then",
    "France",
]


def random_pairs(n: int = 16, seed: int = 0, *, items: int | None = None) -> PairSet:
    """Pairs of random words, of many lengths; pairs of one item share their prompt and chosen answer."""
    rng = random.Random(seed)
    items = items or n

    def words(low: int, high: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))

    heads = [(words(2, 9) + "?", " " + words(1, 5)) for _ in range(items)]
    pairs = []
    for i in range(n):
        prompt, chosen = heads[i % items]
        pairs.append(Pair(prompt, chosen, f" {words(1, 6)} {i}", f"item{i % items}"))
    return PairSet(pairs, "random")


def recipe(objective: Objective | None = None, *, dropout: float = 0.0, **train: Any) -> DPORecipe:
    """DPO of a small adapter, in few fast steps."""
    settings: dict[str, Any] = {"pairs_per_step": 4, "epochs": 2.0, "learning_rate": 1e-2}
    return DPORecipe(
        objective=objective or DPO(),  # type: ignore[arg-type]
        dial=AdapterSettings(rank=2, lora_alpha=4, dropout=dropout),
        train=TrainSettings(**(settings | train)),
    )


def adapter(
    model: nn.Module, *, zero: bool = False, seed: int = 0, std: float = 0.1
) -> AdapterDial:
    """A LoRA on all linear layers, B drawn too unless `zero`, in the model's dtype."""
    generator = torch.Generator().manual_seed(seed)
    dial = AdapterDial(linear_modules(model), rank=2, lora_alpha=4, generator=generator)
    if not zero:
        for B in dial.B:
            B.data = std * torch.randn(B.shape, generator=generator)
    return dial.to(next(model.parameters()).dtype)


def fit_module(
    model: nn.Module, dial: Dial, objective: Objective, encoded: Encoded, store: Store
) -> FitModule:
    """What the trainer trains."""
    needs = objective.needs(models.n_layers(model))
    return FitModule(model, dial, objective, needs, read_reference(model, encoded, needs, store))


def gradients(
    module: FitModule, encoded: Encoded, microbatches: Sequence[Sequence[int]] | None = None
) -> tuple[float, list[torch.Tensor]]:
    """Sum of the pairs' losses and its gradient, over microbatches of rows."""
    layout = layout_of(module.model, encoded)
    module.zero_grad()
    total = 0.0
    with module.dial(module.model, 1.0, training=True):
        for rows in microbatches or plan_batches(encoded, 4096, layout):
            loss, _ = module(collate(encoded, rows, layout))
            loss.sum().backward()
            total += loss.sum().item()
    return total, [p.grad.clone() for p in module.dial.parameters() if p.grad is not None]


def relative(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> float:
    """Norm of the difference over the norm of what is wanted, all tensors together."""
    assert len(found) == len(wanted)
    difference = sum(
        (a.double() - b.double()).square().sum() for a, b in zip(found, wanted, strict=True)
    )
    return float((difference / sum(b.double().square().sum() for b in wanted)) ** 0.5)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by relative path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def parameters(folder: Path) -> list[torch.Tensor]:
    """The weights of a saved dial."""
    return list(Dial.from_pretrained(folder).state_dict().values())


# ---- jobs that other processes run --------------------------------------------------------------


def job(
    out: str,
    cache: str,
    *,
    model: str = "llama",
    seed: int = 0,
    dropout: float = 0.1,
    pairs: int = 16,
    slow: float = 0.0,
    slow_dial: float = 0.0,
    file_limit: int | None = None,
    train: dict[str, Any] | None = None,
    method: str | None = None,
) -> None:
    """One `fit` of a tiny model, with a checkpoint at every step.

    Args:
        method: of that name, at its defaults but for `train`, instead of DPO of a small adapter.
        slow: writing a checkpoint waits so many seconds within and after each file.
        slow_dial: so does saving the dial.
        file_limit: no file may grow beyond so many bytes (a full disk, to those who write).
    """
    torch.set_num_threads(1)
    os.environ["TRIMTAB_CACHE"] = cache
    _write_slowly(slow, slow_dial)
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, resource.RLIM_INFINITY))
    settings = {"checkpoint_seconds": 0.0, "epochs": 4.0, **(train or {})}
    chosen: Any = recipe(dropout=dropout, **settings)
    if method is not None:
        chosen = dataclasses.replace(METHODS[method].recipe, train=chosen.train)
    fit(
        chosen,
        build(model),
        _tokenizer(),
        random_pairs(pairs),
        out=out,
        seed=seed,
    )


def _write_slowly(checkpoint: float, dial: float) -> None:
    """Files come in two halves with a pause between, and one after."""
    import safetensors.torch

    import trimtab.dials.saved
    import trimtab.training.trainer

    pickled = torch.save

    def in_halves(data: bytes, file: Any, seconds: float) -> None:
        with open(file, "wb") as stream:
            stream.write(data[: len(data) // 2])
            stream.flush()
            time.sleep(seconds)
            stream.write(data[len(data) // 2 :])
        time.sleep(seconds)

    def save_file(seconds: float) -> Any:
        def run(weights: Any, file: Any, metadata: Any = None) -> None:
            in_halves(safetensors.torch.save(weights, metadata), file, seconds)

        return run

    def save(what: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        stream = io.BytesIO()
        pickled(what, stream, *args, **kwargs)
        in_halves(stream.getvalue(), file, checkpoint)

    if checkpoint:
        trimtab.training.trainer.save_file = save_file(checkpoint)
        torch.save = save
    if dial:
        trimtab.dials.saved.save_file = save_file(dial)
