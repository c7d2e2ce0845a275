"""Training adapters and rotations: the plan, the reference, the spaces and the Trainer put together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from safetensors.torch import save

from trimtab import models
from trimtab.batching import Layout, Schedule, layout_of
from trimtab.dials import AdapterDial, Dial, ReftDial
from trimtab.dials.trial import width_at
from trimtab.dials.where import reach
from trimtab.errors import ConfigError
from trimtab.models.places import before
from trimtab.objectives import ContrastiveSteering
from trimtab.readout import Needs
from trimtab.states import depth, expand_sites
from trimtab.store import Store
from trimtab.training.estimate import Estimate, estimate_training
from trimtab.training.fits import check_reach
from trimtab.training.microbatches import fitting
from trimtab.training.new_dials import in_units, new_dial
from trimtab.training.plan import SPACE, Made, Run
from trimtab.training.poles import PolesModule
from trimtab.training.probe import check_gradients
from trimtab.training.recipes import InnerRecipe, PolesRecipe, ProjectionRecipe
from trimtab.training.reference import read_reference
from trimtab.training.rotation import ContrastiveModule
from trimtab.training.settings import AdapterSettings, RotationSettings, bytes_of, no_effect
from trimtab.training.spaces import Spaces, build_spaces
from trimtab.training.vectors import LearnedVector
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
    deepest = count - 1 if needs.logps else max(depth(model, s) for s in needs.sites)
    if deepest < count - 1 and isinstance(recipe.dial, AdapterSettings | RotationSettings):
        run.progress.say(
            f"the objective reads no deeper than block {deepest}: the adapter stops there"
        )
    dial = new_dial(run, needs, deepest).to(args.device)
    twice = isinstance(recipe.objective, ContrastiveSteering)  # both ends at once, never spared
    schedule = run.schedule(layout, args, None if twice else fitting(run, dial, needs, layout))
    check_reach(recipe, dial.places(), needs.sites, partial(reach, model))
    # Rotations are trained from the whole model, so that figures stay what they were.
    whole = isinstance(recipe.dial, RotationSettings) or models.rows_depend(model)
    block = -1 if whole else before(model, dial.places())
    expected = estimate_training(model, needs, encoded, schedule, layout)
    expected = expected.times(2 if recipe.both_ends else 1)
    if recipe.train.memory is not None:
        held = sum(p.numel() * p.element_size() for p in model.parameters())
        expected = replace(expected, bytes=held + bytes_of(recipe.train.memory, "train.memory"))
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
        lengths = in_units(dial, model, encoded, run.store, run.progress)
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
    parts: Any = {"dial": dial, "objective": recipe.objective, "needs": needs}
    parts |= {"model": model, "reference": reference}
    from_trunk: Any = {"spaces": spaces, "trunk": trunk, "spares": recipe.train.memory is not None}
    if isinstance(recipe.objective, ContrastiveSteering):
        module: FitModule = ContrastiveModule(**parts, encoded=encoded)
    elif isinstance(recipe, PolesRecipe):
        drawn: Any = {k: getattr(recipe, k) for k in ("poles", "factors", "by_answer")}
        module = PolesModule(**parts, **from_trunk, **drawn, seed=run.seed)
    else:
        module = FitModule(**parts, **from_trunk)
    _, extra = train_run(
        run, module, schedule, made.args, layout, said=made.expected, projection=projection
    )
    if isinstance(module, ContrastiveModule):
        dial.eval()
        change = module.settle_sign(encoded, layout)
        run.progress.say(f"from -1 to +1 the log-prob gap rises by {change:.3g} nats a token")
    if spaces is not None and (weights := spaces.state_dict()):
        extra[SPACE] = save({k: v.detach().cpu().contiguous() for k, v in weights.items()})
    if isinstance(dial, ReftDial):
        return dial.settle(), extra
    return dial.trained(lengths) if isinstance(dial, LearnedVector) else dial, extra


def _spaces(run: Run, needs: Needs) -> Spaces | None:
    """The spaces of a run; None where there are none, or where they could change nothing."""
    recipe = run.recipe
    if not isinstance(recipe, InnerRecipe) or recipe.space.kind == "none":
        return None
    if reason := no_effect(recipe.space.kind, recipe.objective):
        run.progress.say(reason)
        return None
    return build_spaces(run, needs)
