"""`python -m bench.quantised [KIND ...]`: every kind of quantised base on the real model, on the CPU.

Fits a mean direction and a few steps of DPO, evaluates and exports both on SmolLM2-135M in float32 and
quantised by each library, and writes `bench/results/quantised.json` (kinds that are not named keep
what was found before) and the table of `docs/quantised.md`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

import trimtab
from trimtab import models
from trimtab.errors import TrimtabError
from trimtab.export import export
from trimtab.study import evaluate
from trimtab.training.methods import method
from trimtab.training.settings import TrainSettings

RESULTS = Path(__file__).parent / "results" / "quantised.json"
PAGE = Path(__file__).parents[1] / "docs" / "quantised.md"
TRAIN, TEST, ITEMS = "facts:train", "facts:test", 64
STEPS = 6


def torchao(name: str) -> Callable[[], Any]:
    def load() -> Any:
        import torchao.quantization
        from transformers import TorchAoConfig

        config = TorchAoConfig(getattr(torchao.quantization, name)())
        return models.load(dtype="float32", quantization_config=config)

    return load


def quanto() -> Any:
    from transformers import QuantoConfig

    return models.load(dtype="float32", quantization_config=QuantoConfig(weights="int8"))


def hqq() -> Any:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    model, tokenizer = models.load(dtype="float32")
    settings = BaseQuantizeConfig(nbits=4, group_size=64)
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and "layers." in path:
            owner, _, name = path.rpartition(".")
            layer = HQQLinear(module, settings, compute_dtype=torch.float32, device="cpu")
            setattr(model.get_submodule(owner), name, layer)
    return model, tokenizer


KINDS: dict[str, tuple[str, Callable[[], Any]]] = {
    "float32": ("GGUF Q4_1, dequantised to float32", lambda: models.load(dtype="float32")),
    "bnb-4bit": (
        "bitsandbytes NF4 (`--load-in 4bit`)",
        lambda: models.load(dtype="float32", load_in="4bit"),
    ),
    "bnb-8bit": (
        "bitsandbytes int8 (`--load-in 8bit`)",
        lambda: models.load(dtype="float32", load_in="8bit"),
    ),
    "torchao-int8": ("torchao int8, weights only", torchao("Int8WeightOnlyConfig")),
    "torchao-dynamic": (
        "torchao int8, activations too",
        torchao("Int8DynamicActivationInt8WeightConfig"),
    ),
    "hqq": ("HQQ 4 bits, groups of 64", hqq),
    "quanto-int8": ("quanto int8", quanto),
}
PACKAGES = ("torch", "transformers", "bitsandbytes", "torchao", "hqq", "optimum-quanto")


def measured(load: Callable[[], Any]) -> dict[str, Any]:
    """What one kind of base gives."""
    began = time.process_time()
    model, tokenizer = load()
    found: dict[str, Any] = {"quantisation": models.quantisation_name(model)}
    recipe = replace(
        method("dpo").recipe,
        train=TrainSettings(pairs_per_step=8, max_steps=STEPS, learning_rate=1e-3),
    )
    dials: dict[str, Any] = {}
    for name, what in (("mean", "mean"), ("dpo", recipe)):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / name
            try:
                dials[name] = trimtab.fit(what, model, tokenizer, TRAIN, limit=ITEMS, out=out)
            except TrimtabError as error:
                found[name] = {"refused": str(error)}
                continue
            found[name] = {}
            if name == "dpo":
                history = (out / "training.jsonl").read_text().splitlines()
                found[name]["losses"] = [json.loads(line)["loss"] for line in history]
    found["directions"] = {
        str(site): dials["mean"].direction(site).tolist() for site in dials["mean"].sites
    }
    lines = evaluate(model, tokenizer, dials, {"test": TEST}, limit=ITEMS)
    for row in lines:
        if row["split"] in ("test", "neutral") and row["metric"] in ("accuracy", "margin", "kl"):
            name = "bare" if row["method"] == "base" else row["method"]
            found.setdefault(name, {})[row["metric"]] = row["value"]
    for name, to in (("mean", "gguf"), ("dpo", "peft"), ("dpo", "merged")):
        if name in dials:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    receipt = export(dials[name], model, tokenizer, to, Path(folder) / "out")
                except TrimtabError as error:
                    found[name][to] = {"refused": str(error)}
                    continue
            keys = ("largest_logit_difference", "largest_logit_change_by_the_dial")
            far = "largest_logit_difference_to_the_quantised_base"
            found[name][to] = {k: receipt[k] for k in (*keys, far) if k in receipt}
    found["processor_seconds"] = round(time.process_time() - began, 1)
    return found


def main(names: list[str]) -> None:
    """Measure the kinds that are named (all), write the results and the page's table."""
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    results["versions"] = {name: version(name) for name in PACKAGES}
    torch.set_num_threads(1)
    floats = results.get("kinds", {}).get("float32", {}).get("directions")
    for name in names or list(KINDS):
        print(f"{name} …", file=sys.stderr, flush=True)
        found = measured(KINDS[name][1])
        directions = {s: torch.tensor(v) for s, v in found.pop("directions").items()}
        if name == "float32":
            floats = {s: [round(x, 6) for x in v.tolist()] for s, v in directions.items()}
            found["directions"] = floats
        assert floats is not None, "measure float32 first"
        cosines = [
            float(torch.cosine_similarity(v, torch.tensor(floats[s]), 0))
            for s, v in directions.items()
        ]
        found["mean"]["cosine_with_float32"] = min(cosines)
        results.setdefault("kinds", {})[name] = found
        RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    render(results)


def table(results: dict[str, Any]) -> str:
    """The kinds side by side, as Markdown."""
    head = (
        "| base | bare: accuracy, margin | `mean`: accuracy, KL | cosine | "
        "`dpo`: accuracy, margin, KL | loss, first and last step | exports (logits apart) |"
    )
    lines = [head, "|---|---|---|---|---|---|---|"]
    for name, (what, _) in KINDS.items():
        if (found := results["kinds"].get(name)) is None:
            continue
        bare, mean, dpo = found["bare"], found["mean"], found["dpo"]
        trained = steps = "refused"
        if "losses" in dpo:
            trained = f"{100 * dpo['accuracy']:.1f} %, {dpo['margin']:.3f}, {dpo['kl']:.4f}"
            steps = f"{dpo['losses'][0]:.4f}, {dpo['losses'][-1]:.4f}"
        exports = [
            f"{to} {part[to]['largest_logit_difference']:.1g}"
            for part in (mean, dpo)
            for to in ("gguf", "peft", "merged")
            if "largest_logit_difference" in part.get(to, {})
        ]
        lines.append(
            f"| {what} | {100 * bare['accuracy']:.1f} %, {bare['margin']:.3f} | "
            f"{100 * mean['accuracy']:.1f} %, {mean['kl']:.4f} | "
            f"{mean['cosine_with_float32']:.3f} | {trained} | {steps} | {', '.join(exports)} |"
        )
    return "\n".join(lines)


def render(results: dict[str, Any]) -> None:
    """Write the table into the page, between its marks."""
    text = PAGE.read_text()
    before, mark, rest = text.partition("<!-- table -->\n")
    _, end, after = rest.partition("<!-- end of table -->")
    PAGE.write_text(f"{before}{mark}{table(results)}\n{end}{after}")


if __name__ == "__main__":
    main(sys.argv[1:])
