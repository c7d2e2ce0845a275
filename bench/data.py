"""What is measured on: pairs of real data sets, and one set of adapter weights for both sides."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from bench.lane import OUT, ROOT

MODEL = "smollm2-135m"
RANK, LORA_ALPHA = 16, 32
BETA = 0.1
MAX_LENGTH = 1024
WEIGHTS = OUT / "adapter.safetensors"
RIGHT_ANSWERS = ("alpaca_chat", "shp_low_quality", "alpaca_high_quality", "shp_high_quality")
WRONG_ANSWERS = ("alpaca_mmlu", "truthful_alpaca")
"""GENIES distributions that the two sides of contrast pairs are taken from."""


def data_root() -> Path:
    """The folder of real data: `TRIMTAB_DATA`, else `../shared/data`."""
    root = Path(os.environ.get("TRIMTAB_DATA") or ROOT.parent / "shared" / "data")
    if not root.is_dir():
        raise SystemExit(f"{root}: no such folder; set TRIMTAB_DATA to one with genies/ in it")
    return root


def pairs_of(spec: str, items: int, whole: bool):
    """The first items of a data set: all of their pairs, or the first of each."""
    from trimtab.pairs import PairSet, read_pairs

    found = read_pairs(spec, data_root(), limit=items)
    groups = found.items().values()
    return PairSet([p for g in groups for p in (g if whole else g[:1])], found.name)


def model_folder() -> str:
    """Where the model's converted copy lies, for a process that cannot import trimtab."""
    from trimtab import models

    model, _ = models.load(MODEL)
    return str(model.config._name_or_path)


def contrast_texts(count: int, low: int = 20, high: int = 40) -> list[tuple[str, str]]:
    """Unrelated contrast pairs: a right answer out of some distributions, a wrong one out of others,
    each a whole text of `low` to `high` tokens."""
    from trimtab import models

    tokenizer = models.load_tokenizer(MODEL)
    seen: set[str] = set()

    def fitting(texts: list[str]) -> list[str]:
        new = [t for t in dict.fromkeys(map(str.strip, texts)) if t and t not in seen]
        seen.update(new)
        lengths = map(len, tokenizer(new)["input_ids"]) if new else []
        return [t for t, n in zip(new, lengths, strict=True) if low <= n <= high]

    def side(names: tuple[str, ...], chosen: bool) -> list[str]:
        found: list[str] = []
        for name in names:
            pairs = pairs_of(f"genies:{name}/train", 600, whole=True)
            found += fitting([str(p.chosen if chosen else p.rejected) for p in pairs])
            if len(found) >= count:
                return found[:count]
        raise SystemExit(f"only {len(found)} texts of {low} to {high} tokens in {names}")

    return list(zip(side(RIGHT_ANSWERS, True), side(WRONG_ANSWERS, False), strict=True))


def upper_half(count: int) -> range:
    """The blocks from the middle on."""
    return range(count // 2, count)


def adapter_weights(paths: Iterable[str] | None = None) -> dict[str, torch.Tensor]:
    """LoRA weights under PEFT's names, none zero, drawn once and read by both sides; of these modules
    alone, if named."""
    if WEIGHTS.is_file():
        found = load_file(WEIGHTS)
        names = None if paths is None else {f"base_model.model.{path}" for path in paths}
        return {k: v for k, v in found.items() if names is None or k.rsplit(".", 2)[0] in names}
    from trimtab import models
    from trimtab.dials.adapter import linear_modules

    model, _ = models.load(MODEL)
    draw = torch.Generator().manual_seed(0)
    weights = {}
    for path, (n_in, n_out) in linear_modules(model).items():
        name = f"base_model.model.{path}"
        weights[f"{name}.lora_A.weight"] = (torch.rand(RANK, n_in, generator=draw) * 2 - 1) * (
            n_in**-0.5
        )
        weights[f"{name}.lora_B.weight"] = torch.randn(n_out, RANK, generator=draw) * 0.01
    WEIGHTS.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, WEIGHTS)
    return weights
