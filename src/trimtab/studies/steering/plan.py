"""What `dose` is to do: its settings, and the cells of a trait."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import tyro

from trimtab.bounds import Bounded, Count, Positive, Seed, Several, Whole
from trimtab.errors import ConfigError, near
from trimtab.pairs.neutral import NEUTRAL
from trimtab.pairs.written import written
from trimtab.rendering import USUAL, Rendering
from trimtab.training import Method
from trimtab.training.methods import method
from trimtab.training.rotation import ContrastiveRecipe, RotationRecipe
from trimtab.training.run import recipe_digest
from trimtab.training.settings import TrainSettings
from trimtab.training.steering import SteeringRecipe

PROMPT = "prompt"
"""The control that leaves the model alone and makes the persona the system message."""
ESTIMATORS = (
    "mean",
    "pca",
    "pca_center",
    "logistic",
    "gradient_mean",
    "gradient_svd",
    "fisher",
)
ADAPTERS = ("rotation", "contrastive")
PAIRS_PER_STEP = 8

Half = Literal["", "first", "second"]


@dataclass(frozen=True)
class Dosing(Bounded):
    """What is compared, and on how much."""

    model: str = "smollm2-135m"
    """Hub id, folder, .gguf file, or smollm2-135m."""
    traits: tuple[str, ...] = ("honesty",)
    """Traits that have personas and questions: honesty, happiness, formality, spanish, …"""
    methods: tuple[str, ...] = (*ESTIMATORS, *ADAPTERS)
    """Methods (see trimtab methods); vectors in closed form, `rotation`, `contrastive`."""
    halves: tuple[str, ...] = ("mean",)
    """Methods fitted to each half of the suffixes, too: how far two such fits differ is the noise
    floor."""
    random_seeds: tuple[int, ...] = (0, 1, 2, 3)
    """Random directions, turned to the same damage."""
    kl: Positive | None = None
    """Damage at dose 1, mean KL in nats a token (default: that of the persona prompt)."""
    steps: Count = 8
    """Training steps of `rotation` and `contrastive`, of 8 pairs each."""
    limit: Several | None = None
    """The first so many suffixes."""
    items: Several = 60
    """Questions that are measured on."""
    passages: Several = 6
    """Neutral passages on which damage is measured."""
    prompts: Whole = 1
    """Questions that are answered freely at every dose; 0 generates nothing."""
    new_tokens: Annotated[Count, tyro.conf.arg(name="max_new_tokens")] = 24
    """Longest answer, in tokens."""
    seed: Seed = 0
    """Of what is trained."""
    dtype: str = "auto"
    """float32, bfloat16, float16, or auto."""
    device: str = "auto"
    """A torch device, or auto."""
    threads: Count = 1
    """Of torch: the last bits of a sum depend on them."""
    rendering: Annotated[Rendering, tyro.conf.arg(name="")] = USUAL

    def __post_init__(self) -> None:
        super().__post_init__()
        known = [t for t in written("personas")["personas"] if t in written("traits")]
        for trait in self.traits:
            if trait not in known:
                raise ConfigError(
                    f"trait {trait!r}{near(trait, known)} (known: {', '.join(known)})"
                )
        for name in ("traits", "methods", "halves", "random_seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ConfigError(f"{name}: each is to be given once, given {values}")
        if not self.traits or not (self.methods or self.random_seeds):
            raise ConfigError("expected a trait and a method at least")
        if self.passages > len(NEUTRAL):
            raise ConfigError(f"passages is {self.passages}; there are {len(NEUTRAL)}")
        for name in (*self.methods, *self.halves):
            recipe = method(name).recipe
            if not isinstance(recipe, SteeringRecipe | ContrastiveRecipe):
                raise ConfigError(
                    f"{name}: does not learn from personas in contrast; expected a vector in closed "
                    "form, rotation or contrastive"
                )
        if "random" in self.methods:
            raise ConfigError("random: say how many with random_seeds")


@dataclass(frozen=True)
class Way:
    """One way to steer: a method at a seed, fitted to all of the suffixes or to a half of them."""

    method: Method
    seed: int = 0
    half: Half = ""

    @property
    def name(self) -> str:
        """`mean`, `random-1`, `mean-first`."""
        if self.method.name == "random":
            return f"random-{self.seed}"
        return f"{self.method.name}-{self.half}" if self.half else self.method.name

    def inputs(self, dosing: Dosing) -> dict[str, Any]:
        """What its figures depend on, beside what those of all of a trait do."""
        own = {"method": self.method.name, "recipe": recipe_digest(self.method.recipe)}
        return {**own, "seed": self.seed, "half": self.half, "kl": dosing.kl}


def ways(dosing: Dosing) -> list[Way]:
    """The ways to steer towards a trait, beside the prompt."""
    halves: tuple[Half, Half] = ("first", "second")
    chosen = [for_personas(method(name), dosing.steps) for name in dosing.methods]
    half = [for_personas(method(name), dosing.steps) for name in dosing.halves]
    return [
        *(Way(m, dosing.seed if m.seeded else 0) for m in chosen),
        *(Way(m, 0, h) for m in half for h in halves),
        *(Way(method("random"), seed) for seed in dosing.random_seeds),
    ]


def for_personas(named: Method, steps: int) -> Method:
    """The method as it learns from whole sequences that differ in a persona: adapters read the last
    token, and train for a minute or two."""
    recipe = named.recipe
    if not isinstance(recipe, ContrastiveRecipe):
        return named
    rate = 2e-2 if isinstance(recipe, RotationRecipe) else 2e-3
    train = TrainSettings(pairs_per_step=PAIRS_PER_STEP, max_steps=steps, learning_rate=rate)
    recipe = replace(recipe, train=train, objective=replace(recipe.objective, pool="last"))
    if isinstance(recipe, RotationRecipe):
        recipe = replace(recipe, dial=replace(recipe.dial, rank=16))
    return replace(named, recipe=recipe)
