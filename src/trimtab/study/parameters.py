"""What `tune` searches: settings of a method, and the values that they may take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from trimtab.errors import ConfigError
from trimtab.foreign import Malformed, parse_yaml
from trimtab.study.settings import configured
from trimtab.training import Method
from trimtab.training.steering import DirectionRecipe, GradientRecipe

RATES = (1e-5, 5e-3)
"""Bounds of the learning rate."""

FACTOR = 10.0
"""Weights and betas of an objective are searched from a tenth of their default to ten times it."""

SITES = ("0.3", "0.4", "0.5", "0.6", "0.7")
"""Blocks that a direction may sit at."""


@dataclass(frozen=True)
class Range:
    """Numbers between two bounds, on a log scale."""

    low: float
    high: float


Parameters = dict[str, Range | tuple[str, ...]]
"""What is searched, by setting (`train.learning_rate`)."""


def parameters_of(method: Method) -> Parameters:
    """What is searched of a method unless something else is asked for: of a trained one the
    learning rate and its objective's betas and weights, of a direction its block."""
    recipe: Any = method.recipe
    if isinstance(recipe, DirectionRecipe | GradientRecipe):
        return {"sites": SITES}
    found: Parameters = {"train.learning_rate": Range(*RATES)}
    for field in fields(recipe.objective):
        value = getattr(recipe.objective, field.name)
        named = field.name.startswith(("beta", "weight_"))
        if named and isinstance(value, float) and value > 0:
            found[f"objective.{field.name}"] = Range(value / FACTOR, value * FACTOR)
    return found


def parse_parameters(texts: Sequence[str], method: Method) -> Parameters:
    """`train.learning_rate=1e-5..1e-3` and `sites=0.3,0.5` as parameters of a method.

    Raises:
        ConfigError: a malformed text, an empty range, or no such setting.
    """
    found: Parameters = {}
    for text in texts:
        name, equals, values = text.partition("=")
        expected = f"--parameters {text}: expected NAME=LOW..HIGH or NAME=a,b,c"
        if not equals or not name or not values:
            raise ConfigError(expected)
        low, dots, high = values.partition("..")
        if dots:
            try:
                bounds = Range(float(low), float(high))
            except ValueError:
                raise ConfigError(expected) from None
            if not 0 < bounds.low < bounds.high < math.inf:
                raise ConfigError(f"{expected}, LOW above 0 and below HIGH")
            found[name] = bounds
        else:
            found[name] = tuple(v for v in values.split(",") if v)
        some = found[name]
        configured(
            method.recipe,
            {name: some.low if isinstance(some, Range) else value_of(some[0])},
            f"--parameters {text}",
        )
    return found


def value_of(text: str) -> Any:
    """A choice as YAML reads it. Raises ConfigError where it reads none."""
    try:
        return parse_yaml(text)
    except Malformed as error:
        raise ConfigError(f"--parameters: {text!r} is no value ({error})") from None
