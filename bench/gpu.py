"""`make bench-gpu`: DPO steps on a GPU, on random weights of two shapes, against TRL and without sharing.

Prepared for whoever has a card: nothing is downloaded, the two models are drawn on it. `--toy` runs all of it
on a tiny model, on a CPU too, to see that it runs. Before anything is timed the first losses are compared.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback

from bench import data
from bench.floor import Work, reading_per_position, training_work
from bench.results import RESULTS

SHAPES: dict[str, dict[str, int]] = {
    "1.5B": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "vocab_size": 151_936,
    },
    "4B": {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151_936,
    },
}
TOY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 49_152,
}
PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}
"""Dense bfloat16 operations a second, by a word of the card's name (NVIDIA's data sheets)."""


@dataclasses.dataclass(frozen=True)
class Set:
    """Pairs of random words: words of a prompt and of an answer, answers of an item, items of a step."""

    prompt: tuple[int, int]
    answer: tuple[int, int]
    answers: int
    items: int


SETS = {
    "short": Set((8, 16), (6, 24), 2, 256),
    "hh": Set((60, 240), (20, 90), 2, 128),
    "four": Set((20, 60), (12, 30), 4, 128),
}
"""Short pairs, lengths as in Anthropic's HH, items of four answers."""
TARGETS = {"trl_short": 3.0, "unshared_hh": 1.45, "trl_four": 2.0, "peak": 0.25}


def pairs_of(kind: Set, items: int) -> Any:
    """Pairs of a set, the first answer of an item against each other one."""
    from trimtab.pairs import Pair, PairSet

    draw = random.Random(0)
    words = ("sky", "blue", "Rome", "Paris", "four", "three", "water", "nothing", "answer", "then")

    def text(bounds: tuple[int, int]) -> str:
        return " " + " ".join(draw.choices(words, k=draw.randint(*bounds)))

    made = []
    for n in range(items):
        prompt, answers = (
            f"{n}:{text(kind.prompt)}?",
            [text(kind.answer) for _ in range(kind.answers)],
        )
        made += [Pair(prompt, answers[0], other, f"{n}") for other in answers[1:]]
    return PairSet(made, "random words")


def unshared(encoded: Any) -> Any:
    """The same rows, each answer behind a prompt of its own: packing alone, nothing computed once."""

    def row(one: Any) -> Any:
        by = len(one.prompt)
        moved = tuple(tuple(turn.moved(-by) for turn in turns) for turns in one.turns)
        whole = tuple((*one.prompt, *answer) for answer in one.answers)
        return dataclasses.replace(one, prompt=(), answers=whole, turns=moved)

    return dataclasses.replace(encoded, rows=tuple(map(row, encoded.rows)))


class Clock(TrainerCallback):
    """When each optimizer step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Once the device is done."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    @property
    def step(self) -> float:
        """Seconds of a step, the first two left out (kernels are built, memory is claimed)."""
        return median(b - a for a, b in zip(self.ends[1:], self.ends[2:], strict=False))


def arguments(folder: str, steps: int, device: torch.device) -> dict[str, Any]:
    """What both Trainers are told."""
    return {
        "output_dir": folder,
        "max_steps": steps,
        "learning_rate": 1e-6,
        "max_grad_norm": 1e9,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": device.type == "cpu",
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "log_level": "error",
    }


def model_of(shape: dict[str, int], device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A model of this shape, its weights drawn on the device."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    torch.manual_seed(0)
    config = Qwen3Config(
        **shape, max_position_embeddings=4096, tie_word_embeddings=True, eos_token_id=2
    )
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return model.eval().requires_grad_(False)


def adapter_weights(model: nn.Module) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Shapes of all linear layers, and LoRA weights for them, none of them zero."""
    from trimtab.dials.adapter import linear_modules

    shapes, draw = linear_modules(model, "all-linear"), torch.Generator().manual_seed(0)
    weights: dict[str, torch.Tensor] = {}
    for path, (n_in, n_out) in shapes.items():
        name = f"base_model.model.{path}.lora_{{}}.weight"
        weights[name.format("A")] = torch.randn(data.RANK, n_in, generator=draw) / n_in**0.5
        weights[name.format("B")] = torch.randn(n_out, data.RANK, generator=draw) * 1e-3
    return shapes, weights


@dataclasses.dataclass(frozen=True)
class Side:
    """What one side of a comparison found: a step's seconds, the first loss a pair, peak bytes, its work."""

    step: float
    loss: float
    memory: int
    work: Work | None = None


def ours(model: nn.Module, encoded: Any, steps: int) -> Side:
    """Steps of the trainer that `fit` uses, microbatches as `fit` would make them."""
    from transformers import TrainingArguments

    from trimtab import models
    from trimtab.batching import layout_of, plan_training
    from trimtab.dials import AdapterDial
    from trimtab.objectives import DPO
    from trimtab.store import Store
    from trimtab.training.plan import room
    from trimtab.training.reference import read_reference
    from trimtab.training.trainer import DialTrainer, FitModule, train

    device, clock = next(model.parameters()).device, Clock()

    class Timed(DialTrainer):
        """The trainer, with a clock."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.add_callback(clock)

    shapes, weights = adapter_weights(model)
    settings = {"rank": data.RANK, "lora_alpha": data.LORA_ALPHA, "dropout": 0.0, "rslora": False}
    dial: Any = AdapterDial.build(settings | {"modules": list(shapes)}, weights).to(device)
    layout, objective = layout_of(model, encoded), DPO(beta=data.BETA)
    needs = objective.needs(models.n_layers(model))
    budget = 2048
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        budget = room(model, torch.cuda.mem_get_info(device)[0], budget)
    plan: Any = {"pairs_per_step": encoded.n_pairs, "epochs": steps, "seed": 0, "budget": budget}
    schedule = plan_training(encoded, layout=layout, **plan)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            **arguments(folder, steps, device),
            per_device_train_batch_size=1,
            gradient_accumulation_steps=schedule.per_step,
        )
        reference = read_reference(model, encoded, needs, Store(Path(folder) / "store"))
        module = FitModule(model, dial, objective, needs, reference)
        history = train(
            module,
            encoded,
            schedule,
            args,
            layout=layout,
            checkpoint_seconds=float("inf"),
            kind=Timed,
        )
    work = training_work(model, dial, encoded, schedule, needs, layout)
    return Side(clock.step, history[0]["loss"], peak(device), work)


def theirs(model: nn.Module, tokenizer: Any, pairs: Any, steps: int, batch: int) -> Side:
    """Steps of TRL's released trainer, reference log-probs computed before."""
    import datasets
    from peft import LoraConfig
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    device, clock = next(model.parameters()).device, Clock()
    shapes, weights = adapter_weights(model)
    adapter = LoraConfig(
        r=data.RANK,
        lora_alpha=data.LORA_ALPHA,
        lora_dropout=0.0,
        target_modules=sorted({path.rpartition(".")[2] for path in shapes}),
        task_type="CAUSAL_LM",
    )
    rows = [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in pairs]
    losses: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        args = DPOConfig(
            **arguments(folder, steps, device),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=len(rows) // batch,
            bf16=device.type == "cuda",
            gradient_checkpointing=False,
            precompute_ref_log_probs=True,
            beta=data.BETA,
            max_length=data.MAX_LENGTH,
        )
        trainer = DPOTrainer(
            model=model,
            args=args,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=adapter,
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        try:
            with torch.no_grad():
                for name, p in trainer.model.named_parameters():
                    if p.requires_grad:
                        p.copy_(weights[name.replace(".default", "")])
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            trainer.train()
            losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        finally:
            trainer.model.unload()
            model.requires_grad_(False)
    return Side(clock.step, losses[0], peak(device))


def peak(device: torch.device) -> int:
    """Bytes that the device's tensors took at most; 0 where nobody counts them."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def fastest(
    model: nn.Module, tokenizer: Any, pairs: Any, steps: int, batches: Sequence[int]
) -> Side:
    """TRL at the batch size at which it is the fastest, of those that fit."""
    found: list[Side] = []
    for batch in batches:
        if len(pairs) % batch == 0:
            try:
                found.append(theirs(model, tokenizer, pairs, steps, batch))
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
    return min(found, key=lambda side: side.step)


def measured(toy: bool, steps: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every figure of every shape."""
    from trimtab import models
    from trimtab.batching import encode

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    rate = next((r for word, r in PEAK.items() if word in name), None)
    tokenizer = models.load_tokenizer(data.MODEL)
    for shape, sizes in ({"toy": TOY} if toy else SHAPES).items():
        model = model_of(sizes, device, dtype)
        for kind, what in SETS.items():
            pairs = pairs_of(what, 4 if toy else what.items)
            encoded = encode(pairs, tokenizer, max_length=data.MAX_LENGTH)
            us = ours(model, encoded, steps)
            alone = ours(model, unshared(encoded), steps)
            them = fastest(model, tokenizer, pairs, steps, (2, 4) if toy else (4, 8, 16, 32))
            off = max(abs(side.loss - us.loss) for side in (alone, them))
            if not off <= (1e-4 if dtype == torch.float32 else 2e-2):
                raise SystemExit(
                    f"{shape}, {kind}: losses differ by {off:.2g}; nothing is reported"
                )
            assert us.work is not None
            yield (
                f"{kind}_{shape}",
                {
                    "device": name,
                    "ours_s": us.step,
                    "unshared_s": alone.step,
                    "trl_s": them.step,
                    "over_trl": them.step / us.step,
                    "over_unshared": alone.step / us.step,
                    "of_peak": us.work.counted / us.step / rate if rate else None,
                    "ours_bytes": us.memory,
                    "trl_bytes": them.memory,
                    "loss": us.loss,
                    "operations": us.work.counted,
                    "reading_per_position": reading_per_position(model),
                },
            )


def main(words: list[str] | None = None) -> None:
    """Measure, print a line a figure, and keep them all beside the other results."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description="Measure on a GPU.")
    parser.add_argument("--toy", action="store_true", help="a tiny model, to see that all runs")
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps of each side (8)")
    given = parser.parse_args(words)
    if not given.toy and not torch.cuda.is_available():
        raise SystemExit("no GPU here; --toy runs all of it on a tiny model")
    found: dict[str, Any] = {}
    for name, line in measured(given.toy, max(4, given.steps)):
        found[name] = line
        share = "" if line["of_peak"] is None else f", {line['of_peak']:.0%} of peak"
        print(
            f"{name}: {line['ours_s']:.3f} s a step; TRL {line['over_trl']:.2f} times as long, "
            f"without sharing {line['over_unshared']:.2f} times{share}",
            flush=True,
        )
    if not given.toy:
        file = RESULTS / "gpu.json"
        file.write_text(json.dumps({"targets": TARGETS, "found": found}, indent=1) + "\n")
        print(f"written: {file}")


if __name__ == "__main__":
    main()
