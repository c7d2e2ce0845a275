"""Training adapters and rotations: the plan, the reference, the spaces and the Trainer put together."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save
from torch import nn

from trimtab import models
from trimtab.batching import Layout, Schedule, layout_of
from trimtab.dials import AdapterDial, DeloraDial, Dial, IA3Dial, RoadDial, VeraDial
from trimtab.dials.experts import stacked
from trimtab.dials.low_rank import column_norms
from trimtab.dials.targets import ALL, EXPERTS, left_out, linear_modules
from trimtab.dials.trial import width_at
from trimtab.errors import ConfigError
from trimtab.models.places import before
from trimtab.progress import Progress
from trimtab.readout import Needs
from trimtab.states import depth, expand_sites
from trimtab.store import Store
from trimtab.training.estimate import Estimate, estimate_training
from trimtab.training.plan import SPACE, Made, Run
from trimtab.training.probe import check_gradients
from trimtab.training.recipes import InnerRecipe, ProjectionRecipe
from trimtab.training.reference import read_reference
from trimtab.training.rotation import ContrastiveModule, new_rotation
from trimtab.training.settings import AdapterSettings, RotationSettings, no_effect
from trimtab.training.spaces import Spaces, build_spaces
from trimtab.trunk import trunk_of

if TYPE_CHECKING:
    from transformers import TrainingArguments


def fit_adapter(run: Run) -> Made:
    """Train an adapter or a rotation; raises where the method does not fit, or the base is unsound."""
    if models.rows_depend(
        run.model
    ):  # stored values were read with inputs rounded, training's are not
        run = replace(run, store=None)
    check_gradients(run.model)
    with models.differentiable(run.model):
        return _trained(run)


@dataclass
class Plan:
    """All that is decided before the first pass over the pairs."""

    needs: Needs
    args: TrainingArguments
    layout: Layout
    schedule: Schedule
    dial: Dial
    block: int
    """After which the steps start from stored states; -1 for the whole model's."""
    expected: Estimate


def plan(run: Run) -> Plan:
    """Steps, layout, a fresh dial and what the run will take. Raises where the method does not fit."""
    recipe, model, encoded = run.recipe, run.model, run.encoded
    count = models.n_layers(model)
    needs = recipe.objective.needs(count)
    needs = replace(needs, sites=expand_sites(model, needs.sites))
    for site in needs.sites:
        width_at(model, site, run.named.name)  # refuses what holds no one state a token
    args = run.arguments()
    layout = run.layout(layout_of(model, encoded))
    schedule = run.schedule(layout, args)
    blocks = None if needs.logps else range(1 + max(depth(model, s) for s in needs.sites))
    if blocks is not None and len(blocks) < count:
        run.progress.say(
            f"the objective reads no deeper than block {blocks[-1]}: the adapter stops there"
        )
    dial = _new_dial(run, needs, blocks).to(args.device)
    # Rotations are trained from the whole model, so that figures stay what they were.
    whole = isinstance(recipe.dial, RotationSettings) or models.rows_depend(model)
    block = -1 if whole else before(model, dial.places())
    expected = estimate_training(model, needs, encoded, schedule, layout)
    expected = expected.times(2 if recipe.both_ends else 1)
    return Plan(needs, args, layout, schedule, dial, block, expected)


def _trained(run: Run) -> Made:
    from trimtab.training.projection import Projection, step_differences
    from trimtab.training.trainer import FitModule, train_run

    made, recipe, model, encoded = plan(run), run.recipe, run.model, run.encoded
    needs, dial, layout, schedule = made.needs, made.dial, made.layout, made.schedule
    with made.args.main_process_first(local=False, desc="reading the reference"):
        spaces = _spaces(run, needs)
        read: Any = {"spaces": spaces, "schedule": schedule, "block": made.block}
        reference = read_reference(model, encoded, needs, run.store, run.progress, **read)
        trunk = trunk_of(model, encoded, run.store or Store(), block=made.block, sites=needs.sites)
    projection = None
    if isinstance(recipe, ProjectionRecipe):
        if not isinstance(dial, AdapterDial) or dial.nests:
            raise ConfigError(
                f"dial.tuner={recipe.dial.tuner}, targets {recipe.dial.targets}: a projection keeps "
                "gradients to an output, and only LoRA on linear layers has weights of its own for it; "
                "expected lora, all-linear"
            )
        differences = step_differences(
            model, encoded, schedule, dial.paths, layout, progress=run.progress
        )
        projection = Projection(recipe.projection, dial, differences)
    module = (
        ContrastiveModule(model, dial, recipe.objective, needs, reference, encoded)
        if recipe.both_ends
        else FitModule(model, dial, recipe.objective, needs, reference, spaces, trunk)
    )
    _, extra = train_run(
        run, module, schedule, made.args, layout, said=made.expected, projection=projection
    )
    if isinstance(module, ContrastiveModule):
        dial.eval()
        change = module.settle_sign(encoded, layout)
        run.progress.say(f"from -1 to +1 the log-prob gap rises by {change:.3g} nats a token")
    if spaces is not None and (weights := spaces.state_dict()):
        extra[SPACE] = save({k: v.detach().cpu().contiguous() for k, v in weights.items()})
    return dial, extra


def _spaces(run: Run, needs: Needs) -> Spaces | None:
    """The spaces of a run; None where there are none, or where they could change nothing."""
    recipe = run.recipe
    if not isinstance(recipe, InnerRecipe) or recipe.space.kind == "none":
        return None
    if reason := no_effect(recipe.space.kind, recipe.objective):
        run.progress.say(reason)
        return None
    return build_spaces(run, needs)


def _new_dial(run: Run, needs: Needs, blocks: range | None) -> Dial:
    """What a training recipe trains, drawn from a seed."""
    settings, model, progress = run.recipe.dial, run.model, run.progress
    if isinstance(settings, RotationSettings):
        return new_rotation(settings, model, run.encoded, needs, run.seed, progress)
    generator = torch.Generator().manual_seed(run.seed)
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
