"""TRL's side, in a lane: the released `DPOTrainer`, unmodified, through `train()`."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import datasets
import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from bench import data
from bench.floor import block_weights, peer_work, reading_per_position
from bench.gate import Gate, total
from bench.lane import Channel
from trimtab import models
from trimtab.dials.adapter import linear_modules


def training(spec: dict[str, Any], channel: Channel) -> None:
    """An optimizer step a turn, on the same pairs each time, from the same adapter weights."""
    model, tokenizer = models.load(
        data.MODEL, dtype=spec.get("load", "float32"), attention=spec.get("attention", "sdpa")
    )
    weights_of_model = reading_per_position(model) / 2  # before it is wrapped
    layers = list(data.upper_half(models.n_layers(model))) if spec.get("upper") else None
    below = block_weights(model, layers[0]) if layers else 0
    leaves = sorted({path.rpartition(".")[2] for path in linear_modules(model)})
    pairs = data.pairs_of(spec["pairs"], spec["items"], spec["whole"])
    rows = [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in pairs]
    lengths = [  # what `group_by_length` sorts by
        max(len(tokenizer(f"{p.prompt}{a}")["input_ids"]) for a in (p.chosen, p.rejected))
        for p in pairs
    ]
    batch = spec["batch"]
    assert len(rows) % batch == 0, "a step is made of whole batches"
    settings: dict[str, Any] = {}
    if not spec.get("defaults"):
        settings = {
            "bf16": spec["dtype"] == "bfloat16",
            "gradient_checkpointing": False,
            "precompute_ref_log_probs": True,
            "train_sampling_strategy": spec["sampling"],
            "remove_unused_columns": False,  # keeps the lengths; the collator takes what it needs
        }
    adapter = LoraConfig(
        r=data.RANK,
        lora_alpha=data.LORA_ALPHA,
        lora_dropout=0.0,
        target_modules=leaves if layers else "all-linear",  # no words beside layers
        layers_to_transform=layers,
        task_type="CAUSAL_LM",
    )
    if vector := spec.get("vector"):
        adapter = None
        below = block_weights(model, vector["site"] + 1)
        add_vector(model, vector["site"], vector["s"])
    with tempfile.TemporaryDirectory() as scratch:
        args = DPOConfig(
            output_dir=scratch,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=len(rows) // batch,
            max_steps=1000,
            beta=data.BETA,
            max_length=data.MAX_LENGTH,
            learning_rate=1e-6,
            max_grad_norm=1e9,  # clipping is run but does nothing, so that gradients compare
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            log_level="error",
            **settings,
        )
        trainer = DPOTrainer(
            model=model,
            args=args,
            train_dataset=datasets.Dataset.from_list(rows).add_column("length", lengths),
            processing_class=tokenizer,
            peft_config=adapter,
        )
        assert trainer.model is not None
        named = {
            name.replace(".default", ""): p
            for name, p in trainer.model.named_parameters()
            if p.requires_grad
        }
        weights = {"w": torch.zeros_like(named["w"])} if vector else data.adapter_weights()
        if layers:
            weights = {k: v for k, v in weights.items() if k in named}
        assert named.keys() == weights.keys(), "the two adapters sit on different layers"
        with torch.no_grad():
            for name, p in named.items():
                p.copy_(weights[name])

        losses: list[Tensor] = []
        shapes: list[tuple[int, int]] = []
        dtypes: set[str] = set()
        step = trainer.training_step

        def noting(*args: Any, **kwargs: Any) -> Tensor:
            shapes.append(tuple(args[1]["input_ids"].shape))
            losses.append(step(*args, **kwargs))
            return losses[-1]

        trainer.training_step = noting  # watched through the first step only
        down = next(m for n, m in trainer.model.named_modules() if n.endswith("0.mlp.down_proj"))
        watching = down.register_forward_hook(lambda _, __, out: dtypes.add(str(out.dtype)))

        def first() -> dict[str, Any]:
            watching.remove()
            trainer.__dict__.pop("training_step")
            expected = "torch.bfloat16" if args.bf16 else "torch.float32"
            assert dtypes == {expected}, f"the layers run in {dtypes}, not {expected}"
            if spec.get("gradients"):
                grads = {k: p.grad.contiguous() for k, p in named.items() if p.grad is not None}
                save_file(grads, spec["gradients"])
            positions = sum(a * b for a, b in shapes)
            adapter = sum(p.numel() for p in named.values())
            return {
                "loss": total(losses),
                "pairs": len(rows),
                "positions": positions,
                "operations": peer_work(
                    weights_of_model, adapter, positions, bool(spec.get("defaults")), below
                ),
                "layers": expected,
            }

        with Gate(channel, first):
            trainer.train()


def add_vector(model: Any, site: int, scale: float) -> None:
    """Make `scale * w` after a block, added at every position, all that is trained of a model."""
    model.requires_grad_(False)
    model.w = torch.nn.Parameter(torch.zeros(model.config.hidden_size))

    def add(_: Any, __: Any, out: Any) -> Any:
        return out + scale * model.w

    models.layers(model)[site].register_forward_hook(add)


if __name__ == "__main__":
    training(json.loads(sys.argv[1]), Channel())
