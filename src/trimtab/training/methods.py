"""The catalogue: every method by its name. An objective is trained once it has a row here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from trimtab.errors import ConfigError, near
from trimtab.objectives import (
    DPO,
    IPO,
    MSE,
    ORPO,
    ContrastiveSteering,
    InnerDPO,
    PlackettLuce,
    PrefVec,
    Rank,
    RePS,
    SimPO,
)
from trimtab.objectives.heads import ARM, DPH, IAV
from trimtab.training.recipes import (
    InnerRecipe,
    Method,
    PolesRecipe,
    ProjectionRecipe,
    Recipe,
    RotationRecipe,
)
from trimtab.training.settings import (
    AdapterSettings,
    LogitsSettings,
    ProjectionSettings,
    ReftSettings,
    RewardSettings,
    RotationSettings,
    SpaceSettings,
    VectorSettings,
)
from trimtab.training.steering import PUBLISHED, DirectionRecipe, GradientRecipe

LORA = "LoRA on all linear layers"
MIDDLE = "vector at the middle block"
WHERE: dict[type, str] = {
    AdapterSettings: LORA,
    VectorSettings: MIDDLE,
    ReftSettings: "low-rank edit of the states after the middle block",
    RotationSettings: "rotations of o_proj and down_proj in the middle half",
    LogitsSettings: "low-rank head beside the LM head",
    RewardSettings: "reward head on the last hidden state",
}
"""By the kind of what is trained, where it sits."""

INNER: dict[str, tuple[Any, str]] = {
    "mse": (MSE(), "rejected states drawn to the reference's chosen ones"),
    "prefvec": (
        PrefVec(),
        "states apart along the reference's direction, as far as a trust region",
    ),
    "rank": (Rank(), "the rejected states' ranking of units drawn to the chosen ones'"),
    "innerdpo": (
        InnerDPO(),
        "hidden states apart along the reference's preference direction, plus DPO",
    ),
}
"""Each loss on hidden states: it is trained in every space, and at the sites on the side."""
SPACES = {
    "none": "",
    "svd": "without the top directions of embedding and unembedding",
    "ortho": "after a trained orthogonal map",
    "hra": "after trained Householder reflections",
    "ether": "after a trained blockwise reflection",
    "etherplus": "after a trained blockwise map that may stretch",
    "suppressed": "in the span of the tokens that the reference suppresses",
}
SIDE = "(o_proj|down_proj)$:in@0.3..0.9"
"""Where the published "side" variants read: what attention and MLP hand to their last projection."""


def _inner() -> Iterator[tuple[str, tuple[Any, str]]]:
    for name, (objective, what) in INNER.items():
        for kind, where in SPACES.items():
            recipe = InnerRecipe(objective, space=SpaceSettings(kind=kind))  # type: ignore[arg-type]
            yield f"hs-{kind}-{name}", (recipe, f"{what}, compared {where}" if where else what)
        side = InnerRecipe(replace(objective, sites=SIDE))
        yield f"side-none-{name}", (side, f"{what}, at the inputs of o_proj and down_proj")


SIGNAL = ProjectionSettings(of="signal")
ROWS: dict[str, tuple[Any, str]] = {
    "dpo": (Recipe(DPO()), "direct preference optimization of log-probs: the baseline"),
    "ipo": (Recipe(IPO()), "log-ratios drawn to a margin instead of to infinity"),
    "simpo": (Recipe(SimPO()), "mean log-probs apart by a margin, no reference"),
    "orpo": (Recipe(ORPO()), "likelihood of the chosen answer plus an odds ratio"),
    "plackett-luce": (
        Recipe(PlackettLuce()),
        "the order of all answers of an item at once: DPO for rankings and best-of-K",
    ),
    "projgrad": (
        ProjectionRecipe(DPO()),
        "DPO, the weights' gradient kept to the reference's preference direction",
    ),
    "projbp": (
        ProjectionRecipe(DPO(), projection=SIGNAL),
        "DPO, the backpropagated signal kept to the reference's preference direction",
    ),
    "innerdpo": (InnerRecipe(InnerDPO()), INNER["innerdpo"][1]),
    **dict(_inner()),
    "mean": (DirectionRecipe(), "mean difference of hidden states, no training"),
    "pca": (DirectionRecipe("pca"), "first principal component of the differences, no training"),
    "pca_center": (
        DirectionRecipe("pca_center"),
        "pca under repeng's name: states less the pair's mean",
    ),
    "logistic": (
        DirectionRecipe("logistic"),
        "logistic regression between chosen and rejected states",
    ),
    "random": (
        DirectionRecipe("random"),
        "a random direction as long as the others: the control of vectors",
    ),
    "gradient_mean": (GradientRecipe("gradient_mean"), "mean gradient of a loss at hidden states"),
    "gradient_svd": (GradientRecipe("gradient_svd"), "first singular vector of such gradients"),
    "fisher": (
        GradientRecipe(),
        "mean gradient times the inverse Fisher matrix (published: fisher_steer_cov_reg1, …)",
    ),
    "bipo": (
        PolesRecipe(DPO()),
        "DPO of the vector itself, at alpha = 1 and, the answers exchanged, at -1",
    ),
    "reps": (
        PolesRecipe(RePS(), poles="one", factors=(0.5, 2.0)),
        "mean log-probs apart, the chosen one's weighed, at strengths drawn around the trained one",
    ),
    "loreft": (
        Recipe(DPO(), ReftSettings("loreft")),
        "DPO of an edit that replaces what lies in a few directions",
    ),
    "direft": (
        Recipe(DPO(), ReftSettings()),
        "DPO of an edit that adds in a few directions, from what the state is",
    ),
    "rotation": (
        RotationRecipe(ContrastiveSteering()),
        "hidden states apart at alpha = 1 and together at -1, from one training",
    ),
    "contrastive": (Recipe(ContrastiveSteering()), "the objective of `rotation`, for an adapter"),
    "iav": (
        Recipe(IAV(), LogitsSettings()),
        "alignment vectors added to the logits, by exact DPO from stored hidden states",
    ),
    "dph": (
        Recipe(DPH(), RewardSettings()),
        "a reward by which answers are ranked; the model itself stays as it is",
    ),
    "genarm": (
        Recipe(ARM()),
        "an autoregressive reward model that decodes beside the bare model: a baseline",
    ),
}
"""A recipe, and what it optimises, a method."""


def listed(name: str, recipe: Any, what: str) -> Method:
    """A row as a method."""
    return Method(
        name, recipe, WHERE[type(recipe.dial)] if isinstance(recipe, Recipe) else MIDDLE, what
    )


METHODS: dict[str, Method] = {name: listed(name, *row) for name, row in ROWS.items()}


def method(name: str) -> Method:
    """The method of that name, published names among them. Raises ConfigError with the near names."""
    if name in PUBLISHED:
        what = re.sub(r"_(reg\d|dual.*)$", "", name)
        return Method(name, PUBLISHED[name], MIDDLE, f"{what} of wassname/repeng, as published")
    if name not in METHODS:
        raise ConfigError(
            f"unknown method {name!r}{near(name, [*METHODS, *PUBLISHED])} (trimtab methods lists all "
            f"{len(METHODS)})"
        )
    return METHODS[name]
