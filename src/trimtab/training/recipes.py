"""Recipes of trained methods: frozen dataclasses whose fields are the command line's flags."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trimtab.objectives import DPO, IPO, MSE, ORPO, InnerDPO, Objective, PrefVec, Rank, SimPO
from trimtab.training.settings import (
    AdapterSettings,
    ProjectionSettings,
    SpaceSettings,
    TrainSettings,
    check_space,
    no_effect,
)
from trimtab.training.steering import SteeringRecipe


@dataclass(frozen=True)
class TrainingRecipe:
    """A method that trains an adapter on an objective."""

    objective: Objective
    """What is minimised."""
    dial: AdapterSettings = field(default_factory=AdapterSettings)
    """What is trained."""
    train: TrainSettings = field(default_factory=TrainSettings)
    """How."""


@dataclass(frozen=True)
class DPORecipe(TrainingRecipe):
    """Direct preference optimization of a LoRA adapter: the baseline."""

    objective: DPO = field(default_factory=DPO)
    """The loss on log-probs."""


@dataclass(frozen=True)
class IPORecipe(TrainingRecipe):
    """Identity preference optimization of a LoRA adapter."""

    objective: IPO = field(default_factory=IPO)
    """The loss on log-probs."""


@dataclass(frozen=True)
class SimPORecipe(TrainingRecipe):
    """Simple preference optimization of a LoRA adapter, without a reference."""

    objective: SimPO = field(default_factory=SimPO)
    """The loss on log-probs."""


@dataclass(frozen=True)
class ORPORecipe(TrainingRecipe):
    """Odds ratio preference optimization of a LoRA adapter, without a reference."""

    objective: ORPO = field(default_factory=ORPO)
    """The loss on log-probs."""


@dataclass(frozen=True)
class ProjectionRecipe(DPORecipe):
    """DPO whose gradient is kept to the reference's preference direction."""

    projection: ProjectionSettings = field(default_factory=ProjectionSettings)
    """What of the gradient is let through."""


@dataclass(frozen=True)
class InnerRecipe(TrainingRecipe):
    """A method that trains an adapter on hidden states, compared in a space."""

    space: SpaceSettings = field(default_factory=SpaceSettings)
    """Where states are compared."""

    def __post_init__(self) -> None:
        check_space(self.space.kind, self.objective)


@dataclass(frozen=True)
class MSERecipe(InnerRecipe):
    """Rejected states drawn to the reference's chosen ones."""

    objective: MSE = field(default_factory=MSE)
    """The loss on hidden states."""


@dataclass(frozen=True)
class PrefVecRecipe(InnerRecipe):
    """States separated along the reference's preference direction, within a trust region."""

    objective: PrefVec = field(default_factory=PrefVec)
    """The loss on hidden states."""


@dataclass(frozen=True)
class RankRecipe(InnerRecipe):
    """Rankings of hidden units: the rejected states' drawn to those of the reference's chosen."""

    objective: Rank = field(default_factory=Rank)
    """The loss on hidden states."""


@dataclass(frozen=True)
class InnerDPORecipe(InnerRecipe):
    """Hidden states of a LoRA adapter's model, pulled apart along the reference's preference."""

    objective: InnerDPO = field(default_factory=InnerDPO)
    """The loss on hidden states, with an outer DPO term."""


Recipe = TrainingRecipe | SteeringRecipe


@dataclass(frozen=True)
class Method:
    """A named recipe."""

    name: str
    recipe: Recipe
    where: str
    """Where the dial sits."""
    what: str
    """What it optimises, in one line."""

    @property
    def trained(self) -> bool:
        """Whether it takes training steps."""
        return isinstance(self.recipe, TrainingRecipe)

    @property
    def seeded(self) -> bool:
        """Whether it depends on a seed; methods that do not run once."""
        return self.trained or getattr(self.recipe, "estimator", None) == "random"

    @property
    def equivalent(self) -> str | None:
        """The method whose dial this one's provably is, where there is one: another name for it, or
        a space that cannot change what is trained."""
        if self.name == "innerdpo":
            return "hs-none-innerdpo"
        if isinstance(self.recipe, InnerRecipe) and no_effect(
            self.recipe.space.kind, self.recipe.objective
        ):
            return f"hs-none-{self.name.rpartition('-')[2]}"
        return None

    def varies(self, recipe: Recipe) -> bool:
        """Whether a recipe of the same type is this one with other settings: what a method is named
        for is the same."""
        return _named_for(self.recipe) == _named_for(recipe)


def _named_for(recipe: Recipe) -> tuple[Any, ...]:
    if isinstance(recipe, SteeringRecipe):
        return (recipe.estimator,)
    if isinstance(recipe, InnerRecipe):
        return (recipe.space.kind, ":" in str(recipe.objective.sites))  # type: ignore[attr-defined]
    return (recipe.projection.of,) if isinstance(recipe, ProjectionRecipe) else ()
