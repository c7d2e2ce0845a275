"""Our side, in a lane: a training run through the trainer that `fit` uses, or directions."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from bench import data
from bench.floor import Work, counted, matmul_rate, reading_per_position, training_work
from bench.gate import Gate, total
from bench.lane import Channel
from bench.steering import PERSONAS, TEMPLATE
from trimtab import models
from trimtab.batching import encode, layout_of, make_contrast, plan_batches, plan_training
from trimtab.batching.contrast import batches_of
from trimtab.dials.adapter import AdapterDial, linear_modules
from trimtab.directions import mean_difference, principal_direction
from trimtab.models.places import before
from trimtab.objectives import DPO
from trimtab.pairs import Pair, PairSet
from trimtab.readings import collect
from trimtab.sites import Site
from trimtab.states import depth
from trimtab.store import Store
from trimtab.training import METHODS
from trimtab.training.microbatches import fitting
from trimtab.training.plan import Run
from trimtab.training.reference import read_reference
from trimtab.training.trainer import FitModule, train
from trimtab.training.vectors import LearnedVector
from trimtab.trunk import trunk_of

STEPS = 1000
"""More than any lane is asked for: the parent ends it."""


def training(spec: dict[str, Any], channel: Channel) -> None:
    """An optimizer step a turn, on the same pairs each time, from the same adapter weights."""
    from transformers import TrainingArguments

    model, tokenizer = models.load(
        data.MODEL, dtype=spec["dtype"], attention=spec.get("attention", "auto")
    )
    encoded = encode(
        data.pairs_of(spec["pairs"], spec["items"], spec["whole"]),
        tokenizer,
        max_length=data.MAX_LENGTH,
    )
    assert not encoded.dropped_pairs, "the other side would cut these pairs"
    objective = objective_of(spec)
    needs = objective.needs(models.n_layers(model))
    blocks = None if needs.logps else range(1 + max(depth(model, s) for s in needs.sites))
    if spec.get("upper"):
        blocks = data.upper_half(models.n_layers(model))
    shapes = linear_modules(model, "all-linear", blocks)
    adapter = {"rank": data.RANK, "lora_alpha": data.LORA_ALPHA, "dropout": 0.0, "rslora": False}
    dial: Any
    if vector := spec.get("vector"):
        dial = LearnedVector(
            {vector["site"]: model.config.hidden_size}, {vector["site"]: vector["s"]}
        )
    else:
        dial = AdapterDial.build(adapter | {"modules": list(shapes)}, data.adapter_weights(shapes))
    layout = layout_of(model)
    with tempfile.TemporaryDirectory() as scratch:
        budget = spec.get("microbatch", 2048)
        if memory := spec.get("memory"):
            dpo = METHODS["dpo"]
            sized = replace(dpo.recipe, train=replace(dpo.recipe.train, memory=memory))
            run = Run(replace(dpo, recipe=sized), model, encoded, 0, Path(scratch))
            budget = fitting(run, dial, needs, layout)
        schedule = plan_training(
            encoded,
            pairs_per_step=encoded.n_pairs,
            epochs=STEPS,
            seed=0,
            budget=budget,
            layout=layout,
        )
        args = TrainingArguments(
            output_dir=scratch,
            per_device_train_batch_size=1,
            max_steps=schedule.steps,
            gradient_accumulation_steps=schedule.per_step,
            learning_rate=1e-6,
            max_grad_norm=1e9,  # clipping is run but does nothing, so that gradients compare
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            log_level="error",
        )
        store = Store(Path(scratch) / "store", trunk=bool(spec.get("upper") or vector))
        block = before(model, dial.places())
        reference = read_reference(model, encoded, needs, store, block=block)
        trunk = trunk_of(model, encoded, store, block=block)
        assert bool(trunk) == store.trunk, "the trunk was left out"
        spares = bool(spec.get("memory"))
        module = FitModule(model, dial, objective, needs, reference, trunk=trunk, spares=spares)
        losses: list[Tensor] = []
        watching = module.register_forward_hook(lambda _, __, out: losses.append(out[0].detach()))
        first_block = trunk.block + 1 if trunk else 0
        work = training_work(model, dial, encoded, schedule, needs, layout, first_block)

        def first() -> dict[str, Any]:
            watching.remove()
            if spec.get("gradients"):
                named = {"w": dial.w[0]} if vector else dial.tensors()
                grads = {
                    name: p.grad
                    for name, p in named.items()
                    if p.grad is not None and p.requires_grad
                }
                save_file({k: g.contiguous() for k, g in grads.items()}, spec["gradients"])
            return {
                "loss": total(losses) / encoded.n_pairs,
                "pairs": encoded.n_pairs,
                "microbatches": schedule.per_step,
                "work": work.__dict__,
            }

        with Gate(channel, first):
            train(
                module,
                encoded,
                schedule,
                args,
                layout=layout,
                checkpoint_seconds=float("inf"),
            )


def objective_of(spec: dict[str, Any]) -> Any:
    """A method's objective, with other settings where the lane is told some."""
    settings = {
        k: tuple(v) if isinstance(v, list) else v for k, v in spec.get("settings", {}).items()
    }
    if spec["objective"] == "dpo":
        return DPO(beta=data.BETA)
    recipe: Any = METHODS[spec["objective"]].recipe
    return replace(recipe.objective, **settings)


def directions(spec: dict[str, Any], channel: Channel) -> None:
    """All directions of a set of contrast pairs a turn: tokenising, one pass, the estimator."""
    model, tokenizer = models.load(data.MODEL)
    layout_of(model)  # the proof, once a model
    texts = json.loads(Path(spec["texts"]).read_text())
    pairs = PairSet([Pair("", a, b, f"{i}") for i, (a, b) in enumerate(texts)], "contrast")
    count = models.n_layers(model)
    # What repeng reads by default: all blocks but the first, the last one after the final norm.
    sites: tuple[Site, ...] = (*range(1, count - 1), "final")

    def once() -> dict[str, Any]:
        found: dict[str, Tensor] = {}
        encoded = encode(pairs, tokenizer)
        states = collect(model, encoded, sites=sites, pool="last").states
        read = time.perf_counter()
        chosen, rejected = encoded.pair_answers()
        for site in sites:
            differences = states[site][chosen] - states[site][rejected]
            if spec["estimator"] == "mean":
                v = mean_difference(differences)
            else:
                v = principal_direction(differences, centred=True)
            found[str(count - 1 if site == "final" else site)] = v
        estimate = time.perf_counter() - read
        save_file(found, spec["out"])
        return {"estimating": estimate}

    once()  # warm-up
    encoded = encode(pairs, tokenizer)
    layout = layout_of(model)
    sizes = [counted(encoded, rows, layout) for rows in plan_batches(encoded, layout=layout)]
    work = Work.reading(model, sum(s[1] for s in sizes), sum(s[0] for s in sizes))
    channel.serve(once, {"work": work.__dict__, "per_position": reading_per_position(model)})


def contrast(spec: dict[str, Any], channel: Channel) -> None:
    """All directions of personas in contrast a turn: tokenising, one pass over the token tree, the
    estimator."""
    model, tokenizer = models.load(data.MODEL)
    layout_of(model)
    given = json.loads(Path(spec["contrast"]).read_text())
    count = models.n_layers(model)
    sites: tuple[Site, ...] = tuple(range(count))
    if spec["peer"] == "repeng":  # all blocks but the first, the last one after the final norm
        sites = (*range(1, count - 1), "final")

    def once() -> dict[str, Any]:
        made = make_contrast(
            TEMPLATE, PERSONAS[:1], PERSONAS[1:], given["suffixes"], tokenizer, stops=given["stops"]
        )
        states = collect(model, made, sites=sites).states
        chosen, rejected = made.pair_answers()
        found: dict[str, Tensor] = {}
        for site in sites:
            differences = states[site][chosen] - states[site][rejected]
            if spec["estimator"] == "mean":
                v = mean_difference(differences)
            else:
                v = principal_direction(differences, centred=True)
            found[str(count - 1 if site == "final" else site)] = v
        save_file(found, spec["out"])
        return {}

    once()  # warm-up
    made = make_contrast(
        TEMPLATE, PERSONAS[:1], PERSONAS[1:], given["suffixes"], tokenizer, stops=given["stops"]
    )
    positions = sum(b.input_ids.numel() for b in batches_of(made, 2048, layout_of(model)))
    # What separate sequences would share is computed once: the nodes of their token tree.
    distinct = len({ids[:n] for ids in made.sequences for n in range(1, len(ids) + 1)})
    work = Work.reading(model, distinct, positions)
    channel.serve(once, {"work": work.__dict__, "per_position": reading_per_position(model)})


def rate(spec: dict[str, Any], channel: Channel) -> None:
    """The matmul rate a turn."""
    model, _ = models.load(data.MODEL, dtype=spec["dtype"])
    channel.serve(lambda: {"rate": matmul_rate(model)}, {})


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    torch.manual_seed(0)
    modes = {"training": training, "directions": directions, "contrast": contrast, "rate": rate}
    modes[given["mode"]](given, Channel())
