"""The catalogue: every method by its name. An objective is trained once it has a row here."""

from __future__ import annotations

import re
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
    SimPO,
)
from trimtab.objectives.heads import ARM, DPH, IAV
from trimtab.training.recipes import InnerRecipe, Method, ProjectionRecipe, Recipe, RotationRecipe
from trimtab.training.settings import (
    LogitsSettings,
    ProjectionSettings,
    RewardSettings,
    SpaceSettings,
)
from trimtab.training.steering import PUBLISHED, DirectionRecipe, GradientRecipe

LORA = "LoRA on all linear layers"
MIDDLE = "vector at the middle block"

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


def _inner_methods() -> list[Method]:
    found = []
    for name, (objective, what) in INNER.items():
        for kind, where in SPACES.items():
            recipe = InnerRecipe(objective, space=SpaceSettings(kind=kind))  # type: ignore[arg-type]
            text = f"{what}, compared {where}" if where else what
            found.append(Method(f"hs-{kind}-{name}", recipe, LORA, text))
        side = InnerRecipe(replace(objective, sites=SIDE))
        text = f"{what}, at the inputs of o_proj and down_proj"
        found.append(Method(f"side-none-{name}", side, LORA, text))
    return found


METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Method(
            "dpo",
            Recipe(DPO()),
            LORA,
            "direct preference optimization of log-probs: the baseline",
        ),
        Method("ipo", Recipe(IPO()), LORA, "log-ratios drawn to a margin instead of to infinity"),
        Method("simpo", Recipe(SimPO()), LORA, "mean log-probs apart by a margin, no reference"),
        Method("orpo", Recipe(ORPO()), LORA, "likelihood of the chosen answer plus an odds ratio"),
        Method(
            "plackett-luce",
            Recipe(PlackettLuce()),
            LORA,
            "the order of all answers of an item at once: DPO for rankings and best-of-K",
        ),
        Method(
            "projgrad",
            ProjectionRecipe(DPO()),
            LORA,
            "DPO, the weights' gradient kept to the reference's preference direction",
        ),
        Method(
            "projbp",
            ProjectionRecipe(DPO(), projection=ProjectionSettings(of="signal")),
            LORA,
            "DPO, the backpropagated signal kept to the reference's preference direction",
        ),
        Method("innerdpo", InnerRecipe(InnerDPO()), LORA, INNER["innerdpo"][1]),
        *_inner_methods(),
        Method(
            "mean",
            DirectionRecipe(),
            MIDDLE,
            "mean difference of hidden states, no training",
        ),
        Method(
            "pca",
            DirectionRecipe("pca"),
            MIDDLE,
            "first principal component of the differences, no training",
        ),
        Method(
            "pca_center",
            DirectionRecipe("pca_center"),
            MIDDLE,
            "pca under repeng's name: states less the pair's mean",
        ),
        Method(
            "logistic",
            DirectionRecipe("logistic"),
            MIDDLE,
            "logistic regression between chosen and rejected states",
        ),
        Method(
            "random",
            DirectionRecipe("random"),
            MIDDLE,
            "a random direction as long as the others: the control of vectors",
        ),
        Method(
            "gradient_mean",
            GradientRecipe("gradient_mean"),
            MIDDLE,
            "mean gradient of a loss at hidden states",
        ),
        Method(
            "gradient_svd",
            GradientRecipe("gradient_svd"),
            MIDDLE,
            "first singular vector of such gradients",
        ),
        Method(
            "fisher",
            GradientRecipe(),
            MIDDLE,
            "mean gradient times the inverse Fisher matrix (published: fisher_steer_cov_reg1, …)",
        ),
        Method(
            "rotation",
            RotationRecipe(ContrastiveSteering()),
            "rotations of o_proj and down_proj in the middle half",
            "hidden states apart at alpha = 1 and together at -1, from one training",
        ),
        Method(
            "contrastive",
            Recipe(ContrastiveSteering()),
            LORA,
            "the objective of `rotation`, for an adapter",
        ),
        Method(
            "iav",
            Recipe(IAV(), LogitsSettings()),
            "low-rank head beside the LM head",
            "alignment vectors added to the logits, by exact DPO from stored hidden states",
        ),
        Method(
            "dph",
            Recipe(DPH(), RewardSettings()),
            "reward head on the last hidden state",
            "a reward by which answers are ranked; the model itself stays as it is",
        ),
        Method(
            "genarm",
            Recipe(ARM()),
            LORA,
            "an autoregressive reward model that decodes beside the bare model: a baseline",
        ),
    )
}


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
