"""Recipes: an objective, the dial that is trained on it, and how. Their fields are the command line's
flags, what a digest is taken of, and the keys of a file of settings."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Generic, Literal, TypeVar, cast

from trimtab.bounds import Positive
from trimtab.errors import ConfigError, near
from trimtab.objectives import (
    DPO,
    IPO,
    MSE,
    ORPO,
    ContrastiveSteering,
    InnerDPO,
    PrefVec,
    Rank,
    RePS,
    SimPO,
)
from trimtab.objectives.heads import ARM, DPH, IAV
from trimtab.training.settings import (
    DIALS,
    AdapterSettings,
    LogitsSettings,
    ProjectionSettings,
    RewardSettings,
    RotationSettings,
    SpaceSettings,
    TrainSettings,
    VectorSettings,
    check_space,
    no_effect,
)
from trimtab.training.steering import DirectionRecipe, GradientRecipe, SteeringRecipe

O = TypeVar("O")  # noqa: E741
D = TypeVar("D")


@dataclass(frozen=True)
class Recipe(Generic[O, D]):
    """A method that trains a dial on an objective."""

    objective: O
    """What is minimised."""
    dial: D = field(default_factory=AdapterSettings)  # type: ignore[assignment]
    """What is trained."""
    train: TrainSettings = None  # type: ignore[assignment]  # the dial's usual ones
    """How."""

    def __post_init__(self) -> None:
        if self.train is None:
            object.__setattr__(self, "train", self.dial.usual)  # type: ignore[attr-defined]
        joint = isinstance(self.objective, DPH) and self.objective.logps
        if joint and isinstance(self.dial, RewardSettings) and self.dial.adapter == "none":
            raise ConfigError(
                "objective.weight_dpo and weight_sft train an adapter: add --dial.adapter lora"
            )

    @property
    def both_ends(self) -> bool:
        """Whether every pair is run at a positive and at a negative alpha."""
        return isinstance(self.objective, ContrastiveSteering)

    @property
    def by_row(self) -> bool:
        """Whether rows are trained at alphas of their own."""
        return self.both_ends

    @property
    def on_answers(self) -> bool:
        """Whether it compares what is said after a prompt, and not hidden states alone."""
        return not isinstance(self.objective, MSE | PrefVec | Rank | ContrastiveSteering)

    @property
    def head(self) -> bool:
        """Whether its dial is a head on a frozen model."""
        return isinstance(self.dial, LogitsSettings | RewardSettings)


@dataclass(frozen=True)
class InnerRecipe(Recipe[O, D]):
    """A method that trains a dial on hidden states, compared in a space."""

    space: SpaceSettings = field(default_factory=SpaceSettings)
    """Where states are compared."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_space(self.space.kind, self.objective)


@dataclass(frozen=True)
class PolesRecipe(Recipe[O, D]):
    """A method that trains a dial at several alphas. At a negative one the rejected answer is to win:
    any objective on pairs, with the answers exchanged there."""

    dial: D = field(default_factory=VectorSettings)  # type: ignore[assignment]
    """What is trained."""
    poles: Literal["both", "one", "drawn"] = "both"
    """both: each pair at both signs of alpha, the mean of the two losses; one: at the positive sign;
    drawn: at one of them, the same for all pairs of a step (published)."""
    factors: tuple[Positive, Positive] = (1.0, 1.0)
    """The size of alpha is drawn anew at each step, for all answers of an item alike: log-uniformly
    between these."""
    variant: Literal["sound", "published"] = "sound"
    """Ours, or the published training: what is not given is then as published."""

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.factors
        if not 0 < low <= high:
            raise ConfigError(
                f"factors {low:g} {high:g}: expected two numbers above 0, the least first"
            )

    @property
    def by_answer(self) -> bool:
        """Whether each answer has a factor of its own, one of 2, 4, … 20 (RePS as published)."""
        return self.variant == "published" and isinstance(self.objective, RePS)

    @property
    def both_ends(self) -> bool:
        """Whether every pair is run at a positive and at a negative alpha."""
        return self.settled().poles == "both"

    @property
    def by_row(self) -> bool:
        """Rows have alphas of their own."""
        return True

    def settled(self) -> PolesRecipe[O, D]:
        """The recipe with what `published` stands for written out, where nothing else was asked for."""
        if self.variant == "sound":
            return self
        dial: Any = self.dial
        own, usual = PUBLISHED_POLES.get(type(self.objective), PUBLISHED_POLES[DPO]), dial.usual
        still = {
            k: v for k, v in own["train"].items() if getattr(self.train, k) == getattr(usual, k)
        }
        if isinstance(dial, VectorSettings):
            dial = replace(dial, unit="raw")
        objective: Any = self.objective
        if isinstance(objective, RePS):
            objective = replace(objective, variant="published")
        train = replace(self.train, **still)
        return replace(self, objective=objective, dial=dial, train=train, poles=own["poles"])


PUBLISHED_POLES: dict[type, dict[str, Any]] = {
    DPO: {
        "poles": "drawn",
        "train": {"pairs_per_step": 4, "epochs": 100.0, "learning_rate": 5e-4, "warmup": 0.006},
    },
    RePS: {
        "poles": "one",
        "train": {
            **{"pairs_per_step": 6, "epochs": 18.0, "learning_rate": 0.04},
            **{"scheduler": "linear", "warmup": 0.0},
        },
    },
}
"""How the published methods are trained, by objective: BiPO (CaoYuanpu/BiPO, with the 100 steps of
warm-up as a share of power-seeking's 16,050) and RePS (AxBench's for a 2B model)."""


@dataclass(frozen=True)
class ProjectionRecipe(Recipe[O, D]):
    """A method whose gradient is kept to the reference's preference direction."""

    objective: O = field(default_factory=DPO)  # type: ignore[assignment]
    """What is minimised."""
    projection: ProjectionSettings = field(default_factory=ProjectionSettings)
    """What of the gradient is let through."""


@dataclass(frozen=True)
class RotationRecipe(Recipe[O, D]):
    """Rotations of linear layers' singular vectors, trained at alpha = +1 and -1 at once."""

    objective: O = field(default_factory=ContrastiveSteering)  # type: ignore[assignment]
    """What is minimised."""
    dial: D = field(default_factory=RotationSettings)  # type: ignore[assignment]
    """What is turned."""
    quick: bool = False
    """A try of about a minute: few pairs, few steps, rank 16."""

    def settled(self) -> RotationRecipe[O, D]:
        """The recipe with what `quick` stands for written out."""
        if not self.quick:
            return self
        train = replace(self.train, pairs_per_step=8, max_steps=8, learning_rate=2e-2)
        dial: Any = self.dial
        return replace(self, dial=replace(dial, rank=min(16, dial.rank)), train=train)


AnyRecipe = Recipe[Any, Any] | DirectionRecipe | GradientRecipe


@dataclass(frozen=True)
class Method:
    """A named recipe."""

    name: str
    recipe: Any
    """An `AnyRecipe`."""
    where: str
    """Where the dial sits."""
    what: str
    """What it optimises, in one line."""

    @property
    def kind(self) -> Any:
        """The type of its recipe, that of its parts with it."""
        own, kind = self.recipe, cast(Any, type(self.recipe))
        return kind[type(own.objective), type(own.dial)] if self.trained else kind

    @property
    def trained(self) -> bool:
        """Whether it takes training steps."""
        return isinstance(self.recipe, Recipe)

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

    def varies(self, recipe: AnyRecipe) -> bool:
        """Whether a recipe of the same parts is this one with other settings: what a method is named
        for is the same."""
        return _named_for(self.recipe) == _named_for(recipe)


def alike(a: AnyRecipe, b: object) -> bool:
    """Whether two recipes have the same parts, and so the same settings."""
    if type(a) is not type(b) or not isinstance(a, Recipe):
        return type(a) is type(b)
    return all(type(getattr(a, part)) is type(getattr(b, part)) for part in ("objective", "dial"))


def on_dial(recipe: Any, kind: str) -> Any:
    """The recipe with a dial of another kind at its defaults, trained as such a dial is unless the recipe
    has settings of its own.

    Raises:
        ConfigError: no such kind, or a recipe that trains none.
    """
    if not isinstance(recipe, Recipe):
        raise ConfigError(
            f"dial.kind={kind}: a method in closed form makes a vector; train with dpo"
        )
    if kind not in DIALS:
        raise ConfigError(
            f"dial.kind={kind}{near(kind, DIALS)}; expected one of {', '.join(DIALS)}"
        )
    if isinstance(recipe.dial, DIALS[kind]):
        return recipe
    usual = recipe.train == recipe.dial.usual
    changes = {"dial": DIALS[kind](), **({"train": DIALS[kind].usual} if usual else {})}
    return replace(recipe, **changes)


def _named_for(recipe: Any) -> tuple[Any, ...]:
    if isinstance(recipe, SteeringRecipe):
        return (recipe.estimator,)
    if isinstance(recipe, InnerRecipe):
        return (recipe.space.kind, ":" in str(recipe.objective.sites))
    return (recipe.projection.of,) if isinstance(recipe, ProjectionRecipe) else ()


# ---- names of earlier versions ------------------------------------------------------------------

TrainingRecipe = Recipe
_EARLIER: dict[str, Recipe[Any, Any]] = {
    **{f"{kind.__name__}Recipe": Recipe(kind()) for kind in (DPO, IPO, SimPO, ORPO)},
    **{f"{kind.__name__}Recipe": InnerRecipe(kind()) for kind in (MSE, PrefVec, Rank, InnerDPO)},
    "IAVRecipe": Recipe(IAV(), LogitsSettings()),
    "DPHRecipe": Recipe(DPH(), RewardSettings()),
    "GenARMRecipe": Recipe(ARM()),
    "ContrastiveRecipe": Recipe(ContrastiveSteering()),
}


class _Earlier(type):
    """A class a method, as there was: called, it makes the recipe with other settings; recipes with
    its objective are its instances."""

    like: Recipe[Any, Any]

    def __call__(cls, *parts: Any, **named: Any) -> Any:
        names = [f.name for f in fields(cls.like)]
        return replace(cls.like, **dict(zip(names, parts, strict=False)), **named)

    def __instancecheck__(cls, recipe: object) -> bool:
        kind = type(cls.like.objective)
        return isinstance(recipe, type(cls.like)) and isinstance(recipe.objective, kind)


def __getattr__(name: str) -> Any:
    if name not in _EARLIER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _Earlier(name, (), {"like": _EARLIER[name]})
