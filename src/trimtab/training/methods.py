"""The catalogue: every method by its name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from trimtab.errors import ConfigError, near
from trimtab.training.head_recipes import HEADS
from trimtab.training.recipes import (
    DPORecipe,
    InnerDPORecipe,
    IPORecipe,
    Method,
    MSERecipe,
    ORPORecipe,
    PrefVecRecipe,
    ProjectionRecipe,
    RankRecipe,
    SimPORecipe,
)
from trimtab.training.rotation import CONTRASTIVE_METHODS
from trimtab.training.settings import ProjectionSettings, SpaceSettings
from trimtab.training.steering import PUBLISHED, STEERING, published

LORA = "LoRA on all linear layers"
INNER = {
    "mse": (MSERecipe, "rejected states drawn to the reference's chosen ones"),
    "prefvec": (
        PrefVecRecipe,
        "states apart along the reference's direction, as far as a trust region",
    ),
    "rank": (RankRecipe, "the rejected states' ranking of units drawn to the chosen ones'"),
    "innerdpo": (
        InnerDPORecipe,
        "hidden states apart along the reference's preference direction, plus DPO",
    ),
}
"""Recipe and description of each loss on hidden states."""
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
    """Every loss on hidden states in every space, and at the sites on the side."""
    found = []
    for name, (recipe, what) in INNER.items():
        for kind, where in SPACES.items():
            made: Any = recipe(space=SpaceSettings(kind=kind))  # type: ignore[arg-type]
            text = f"{what}, compared {where}" if where else what
            found.append(Method(f"hs-{kind}-{name}", made, LORA, text))
        side: Any = recipe()
        side = replace(side, objective=replace(side.objective, sites=SIDE))
        found.append(
            Method(
                f"side-none-{name}", side, LORA, f"{what}, at the inputs of o_proj and down_proj"
            )
        )
    return found


METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Method(
            "dpo",
            DPORecipe(),
            LORA,
            "direct preference optimization of log-probs: the baseline",
        ),
        Method("ipo", IPORecipe(), LORA, "log-ratios drawn to a margin instead of to infinity"),
        Method("simpo", SimPORecipe(), LORA, "mean log-probs apart by a margin, no reference"),
        Method("orpo", ORPORecipe(), LORA, "likelihood of the chosen answer plus an odds ratio"),
        Method(
            "projgrad",
            ProjectionRecipe(),
            LORA,
            "DPO, the weights' gradient kept to the reference's preference direction",
        ),
        Method(
            "projbp",
            ProjectionRecipe(projection=ProjectionSettings(of="signal")),
            LORA,
            "DPO, the backpropagated signal kept to the reference's preference direction",
        ),
        Method("innerdpo", InnerDPORecipe(), LORA, INNER["innerdpo"][1]),
        *_inner_methods(),
    )
}
METHODS |= {name: Method(name, *given) for name, given in STEERING.items()}
METHODS |= CONTRASTIVE_METHODS | HEADS


def method(name: str) -> Method:
    """The method of that name, published names among them. Raises ConfigError with the near names."""
    if (given := published(name)) is not None:
        return Method(name, *given)
    if name not in METHODS:
        raise ConfigError(
            f"unknown method {name!r}{near(name, [*METHODS, *PUBLISHED])} (trimtab methods lists all "
            f"{len(METHODS)})"
        )
    return METHODS[name]
