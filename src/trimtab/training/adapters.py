"""Training a dial: the plan, the reference, the spaces and the Trainer put together."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Set
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save
from torch import nn

from trimtab import models
from trimtab.batching import Encoded, Layout, Schedule, layout_of, plan_training, unshared
from trimtab.cache import Store
from trimtab.dials import AdapterDial, DeloraDial, Dial, IA3Dial, RoadDial, VeraDial
from trimtab.dials.experts import stacked
from trimtab.dials.low_rank import column_norms
from trimtab.dials.targets import ALL, EXPERTS, left_out, linear_modules
from trimtab.dials.trial import width_at
from trimtab.errors import ConfigError
from trimtab.progress import Progress
from trimtab.readout import Needs
from trimtab.states import depth, expand_sites
from trimtab.training.estimate import Estimate, estimate_training
from trimtab.training.probe import check_gradients
from trimtab.training.recipes import (
    InnerRecipe,
    Method,
    ProjectionRecipe,
    Recipe,
    RotationRecipe,
)
from trimtab.training.reference import read_reference
from trimtab.training.rotation import ContrastiveModule, new_rotation
from trimtab.training.settings import (
    AdapterSettings,
    RotationSettings,
    TrainSettings,
    no_effect,
)
from trimtab.training.spaces import Spaces, build_spaces

if TYPE_CHECKING:
    from transformers import TrainingArguments

HISTORY, SPACE = "training.jsonl", "space.safetensors"
"""Files of a trained run beside its dial: the training curve, and the spaces it was trained in."""


def fit_adapter(
    named: Method,
    model: nn.Module,
    encoded: Encoded,
    seed: int,
    work: Path,
    out: Path | None,
    store: Store | None,
    progress: Progress,
) -> tuple[Dial, dict[str, str | bytes]]:
    """The trained dial, and the files that are saved beside it.

    Args:
        work: where checkpoints lie while it is trained.
        out: where it will be saved, for names alone.
    """
    if models.rows_depend(model):  # what is stored was read with inputs rounded, training's are not
        store = None
    check_gradients(model)
    with models.differentiable(model):
        return _trained(named, model, encoded, seed, work, out, store, progress)


@dataclass
class Plan:
    """All that is decided before the first pass over the pairs."""

    recipe: Recipe
    needs: Needs
    args: TrainingArguments
    layout: Layout
    schedule: Schedule
    dial: Dial
    expected: Estimate


def plan(
    named: Method,
    model: nn.Module,
    encoded: Encoded,
    seed: int,
    work: Path,
    name: str,
    progress: Progress,
) -> Plan:
    """Steps, layout, a fresh dial and what the run will take. Raises where `named` does not fit."""
    recipe = named.recipe
    assert isinstance(recipe, Recipe)
    if isinstance(recipe, RotationRecipe):
        recipe = recipe.settled()
    settings = recipe.train
    count = models.n_layers(model)
    needs = recipe.objective.needs(count)
    needs = dataclasses.replace(needs, sites=expand_sites(model, needs.sites))
    for site in needs.sites:
        width_at(model, site, named.name)  # refuses what holds no one state a token
    args = arguments(settings, model, seed, work, name)
    layout = layout_of(model, encoded)
    both_ends = recipe.both_ends
    if settings.activation_checkpointing or both_ends:
        # Layers that run again would add to the prefix's keys and values again; rows at alphas of
        # their own have to be lines of their own.
        layout = unshared(layout)
    schedule = planned(settings, encoded, seed, layout, args)
    blocks = None if needs.logps else range(1 + max(depth(model, s) for s in needs.sites))
    if blocks is not None and len(blocks) < count:
        progress.say(
            f"the objective reads no deeper than block {blocks[-1]}: the adapter stops there"
        )
    dial = _new_dial(recipe.dial, model, encoded, needs, blocks, seed, progress).to(args.device)
    expected = estimate_training(model, needs, encoded, schedule, layout)
    if both_ends:  # every row is run at +1 and at -1
        expected = dataclasses.replace(
            expected,
            seconds=2 * expected.seconds,
            positions=2 * expected.positions,
            operations=2 * expected.operations,
        )
    return Plan(recipe, needs, args, layout, schedule, dial, expected)


def _trained(
    named: Method,
    model: nn.Module,
    encoded: Encoded,
    seed: int,
    work: Path,
    out: Path | None,
    store: Store | None,
    progress: Progress,
) -> tuple[Dial, dict[str, str | bytes]]:
    from trimtab.training.projection import Projection, step_differences
    from trimtab.training.trainer import FitModule, recomputing, train

    made = plan(named, model, encoded, seed, work, out.name if out else named.name, progress)
    recipe, needs, args, layout = made.recipe, made.needs, made.args, made.layout
    schedule, dial, settings = made.schedule, made.dial, made.recipe.train
    progress.say(
        f"{named.name}: {encoded.n_pairs} pairs of {encoded.n_items} items, {schedule.steps} steps "
        f"of {schedule.pairs_per_step} pairs, "
        f"{sum(p.numel() for p in dial.parameters()):,} parameters; "
        f"{made.expected}"
    )
    with args.main_process_first(local=False, desc="reading the reference"):
        spaces = _spaces(recipe, model, encoded, needs, seed, store, progress)
        before = read_reference(
            model, encoded, needs, store, progress, spaces=spaces, schedule=schedule
        )
    projection = None
    if isinstance(recipe, ProjectionRecipe):
        if not isinstance(dial, AdapterDial) or dial.nests:
            raise ConfigError(
                f"dial.tuner={recipe.dial.tuner}, targets {recipe.dial.targets}: a projection keeps "
                "gradients to an output, and only LoRA on linear layers has weights of its own for it; "
                "expected lora, all-linear"
            )
        differences = step_differences(
            model, encoded, schedule, dial.paths, layout, progress=progress
        )
        projection = Projection(recipe.projection, dial, differences)
    module = (
        ContrastiveModule(model, dial, recipe.objective, needs, before, encoded)
        if recipe.both_ends
        else FitModule(model, dial, recipe.objective, needs, before, spaces)
    )
    with recomputing(model) if settings.activation_checkpointing else nullcontext():
        history = train(
            module,
            encoded,
            schedule,
            args,
            layout=layout,
            checkpoint_seconds=settings.checkpoint_seconds,
            progress=progress,
            label=f"training {named.name}",
            board=out.parent / "tensorboard" / out.name if out else None,
            projection=projection,
        )
    if isinstance(module, ContrastiveModule):
        dial.eval()
        change = module.settle_sign(encoded, layout)
        progress.say(f"from -1 to +1 the log-prob gap rises by {change:.3g} nats a token")
    extra: dict[str, str | bytes] = {
        HISTORY: "".join(json.dumps(record) + "\n" for record in history)
    }
    if spaces is not None and (weights := spaces.state_dict()):
        extra[SPACE] = save({k: v.detach().cpu().contiguous() for k, v in weights.items()})
    return dial, extra


def arguments(
    settings: TrainSettings, model: nn.Module, seed: int, work: Path, name: str
) -> TrainingArguments:
    """The Trainer's arguments; the model goes to the run's device."""
    from transformers import TrainingArguments

    args = TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=1,
        max_steps=1,  # set below, once the number of processes is known
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.scheduler,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        logging_steps=1,
        save_strategy="steps",
        save_steps=10**9,  # by the clock instead, see Watch
        save_total_limit=2,
        report_to=settings.report_to,
        run_name=name,
        seed=seed,
        remove_unused_columns=False,
        use_cpu=next(model.parameters()).device.type == "cpu",
        dataloader_pin_memory=False,
        disable_tqdm=True,
        log_level="error",
    )
    args._n_gpu = min(args.n_gpu, 1)  # several GPUs take several processes, never DataParallel
    model.to(args.device)
    return args


def planned(
    settings: TrainSettings, encoded: Encoded, seed: int, layout: Layout, args: TrainingArguments
) -> Schedule:
    """The microbatches of a run, and what the Trainer is to know of them."""
    schedule = plan_training(
        encoded,
        pairs_per_step=settings.pairs_per_step,
        epochs=settings.epochs,
        seed=seed,
        budget=settings.microbatch_tokens,
        layout=layout,
        multiple_of=args.world_size,
        max_steps=settings.max_steps,
    )
    args.max_steps = schedule.steps
    args.gradient_accumulation_steps = schedule.per_step // args.world_size
    args.warmup_steps = round(settings.warmup * schedule.steps)
    return schedule


def _spaces(
    recipe: Recipe,
    model: nn.Module,
    encoded: Encoded,
    needs: Needs,
    seed: int,
    store: Store | None,
    progress: Progress,
) -> Spaces | None:
    """The spaces of a run; None where there are none, or where they could change nothing."""
    if not isinstance(recipe, InnerRecipe) or recipe.space.kind == "none":
        return None
    if reason := no_effect(recipe.space.kind, recipe.objective):
        progress.say(reason)
        return None
    return build_spaces(
        recipe.space, model, encoded, needs, seed=seed, store=store, progress=progress
    )


def _new_dial(
    settings: AdapterSettings | RotationSettings,
    model: nn.Module,
    encoded: Encoded,
    needs: Needs,
    blocks: range | None,
    seed: int,
    progress: Progress,
) -> Dial:
    """What a training recipe trains, drawn from a seed."""
    if isinstance(settings, RotationSettings):
        return new_rotation(settings, model, encoded, needs, seed, progress)
    generator = torch.Generator().manual_seed(seed)
    rank, dropout = settings.rank, settings.dropout
    if settings.tuner == "lora":
        dial = new_lora(settings, model, blocks, generator)
        if blocks is None:
            say_left_out(settings, model, {*dial.paths, *dial.parameters_of}, progress)
        return dial
    shapes = linear_modules(model, settings.targets, blocks)
    if blocks is None:
        say_left_out(settings, model, shapes.keys(), progress)
    match settings.tuner:
        case "ia3":
            return IA3Dial(shapes)
        case "road":
            return RoadDial(shapes)
        case "vera":
            return VeraDial(shapes, rank=rank, dropout=dropout, generator=generator)
        case "delora":
            norms = column_norms(model, shapes)
            return DeloraDial(shapes, rank=rank, dropout=dropout, norms=norms, generator=generator)
    raise ConfigError(f"dial.tuner {settings.tuner!r}: expected lora, ia3, road, vera or delora")


def new_lora(
    settings: AdapterSettings,
    model: nn.Module,
    blocks: range | None,
    generator: torch.Generator,
) -> AdapterDial:
    """A LoRA by its settings, not yet trained."""
    return AdapterDial.for_model(
        model,
        settings.targets,
        blocks,
        rank=settings.rank,
        lora_alpha=settings.lora_alpha,
        dropout=settings.dropout,
        rslora=settings.rslora,
        generator=generator,
    )


def say_left_out(
    settings: AdapterSettings, model: nn.Module, adapted: Set[str], progress: Progress
) -> None:
    """What an adapter on all there is to adapt leaves out."""
    if settings.targets not in (ALL, EXPERTS):
        return
    lines = left_out(model, adapted)
    if settings.targets == ALL and any("expert" in line for line in lines) and stacked(model):
        lines[-1] += "; --dial.targets experts adapts stacked experts"
    for line in lines:
        progress.say(line)
