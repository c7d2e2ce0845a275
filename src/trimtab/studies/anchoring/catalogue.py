"""The colour experiments, as `experiments.yaml` has them: model, data, labels, terms, interventions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal

from trimtab.errors import ConfigError
from trimtab.interventions import Bezier, Falloff, Linear
from trimtab.interventions.falloffs import Mapper
from trimtab.objectives import anchoring
from trimtab.objectives.anchoring import Term
from trimtab.studies.anchoring.autoencoder import Shape
from trimtab.studies.anchoring.colours import NoisyLabel
from trimtab.studies.anchoring.registry import entry

Kind = Literal["suppress", "repel", "project", "ablate", "prune", "reflect", "redirect"]


@dataclass(frozen=True)
class Cut:
    """What is done to a trained model: on the bottleneck's states, or in the weights around it."""

    kind: Kind
    axes: tuple[int, ...] = (0,)
    falloff: Falloff = field(default_factory=Falloff)
    mapper: Mapper = field(default_factory=Linear)
    renormalise: bool = False


@dataclass(frozen=True)
class Score:
    """Selectivity: R2 between the error after a cut and a power of a colour's likeness."""

    cut: str
    of: Literal["red", "hue"]
    power: float


@dataclass(frozen=True)
class Arm:
    """A variant within an experiment, trained beside the others."""

    name: str = "main"
    sheet: str = ""
    shape: Shape | None = None
    without: frozenset[str] = frozenset()
    """Terms that are switched off."""


@dataclass(frozen=True)
class Experiment:
    """A colour experiment."""

    name: str
    shape: Shape = field(default_factory=Shape)
    data: Literal["hues", "phases", "focus", "hsv", "rgb8", "rgb10", "no red"] = "rgb8"
    batch: int = 64
    """Samples a step and seed; 0: all of them."""
    labels: Mapping[str, NoisyLabel] = field(default_factory=dict)
    terms: tuple[Term, ...] = ()
    sheet: str = ""
    """Another experiment's sheet; its own where empty."""
    arms: tuple[Arm, ...] = (Arm(),)
    cuts: Mapping[str, Cut] = field(default_factory=dict)
    scores: tuple[Score, ...] = ()


def find(name: str) -> Experiment:
    """A colour experiment by number. Raises ConfigError where there is none."""
    if (found := entry(name)).kind != "colour":
        raise ConfigError(f"{name} is no colour model: there is nothing to train")
    given = found.settings
    made: dict[str, Any] = dict(given)
    terms = given.get("terms", {})
    arms = given.get("arms", {"main": {}})
    if isinstance(arms, str):
        made["arms"] = _choices(tuple(terms))
    else:
        shapes = {n: Shape(**a["shape"]) if "shape" in a else None for n, a in arms.items()}
        made["arms"] = tuple(Arm(n, a.get("sheet", ""), shapes[n]) for n, a in arms.items())
    made["shape"] = Shape(**given.get("shape", {}))
    made["labels"] = {n: NoisyLabel(*v) for n, v in given.get("labels", {}).items()}
    made["cuts"] = {n: _cut(c) for n, c in given.get("cuts", {}).items()}
    made["scores"] = tuple(Score(*s) for s in given.get("scores", ()))
    made["terms"] = tuple(_term(n, t) for n, t in terms.items())
    return Experiment(name, **made)


def _term(name: str, given: Mapping[str, Any]) -> Term:
    kind, options = next(iter(given.items()))
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in (options or {}).items()}
    labels = {given["of"]: 1.0} if "of" in given else None
    return Term(name, getattr(anchoring, kind)(**options), given.get("layer", "bottleneck"), labels)


def _cut(given: Mapping[str, Any]) -> Cut:
    """Its kind, and the falloff (start, end, power), or the angle at which a mapper ends."""
    kind: Any
    kind, shape = next(iter(given.items()))
    made: dict[str, Any] = {"axes": tuple(given.get("axes", (0,)))}
    if kind == "suppress":
        made["falloff"] = Falloff(*shape)
    elif kind == "repel":
        (mapper, angle) = next(iter(shape.items()))
        made["mapper"] = {"Linear": Linear, "Bezier": Bezier}[mapper](
            0, math.cos(math.radians(angle))
        )
    return Cut(kind, **made, renormalise=given.get("renormalise", False))


def _choices(names: tuple[str, ...]) -> tuple[Arm, ...]:
    """An arm for every non-empty choice of terms: the others are switched off."""
    return tuple(
        Arm(" + ".join(kept), without=frozenset(names) - set(kept))
        for size in range(len(names), 0, -1)
        for kept in combinations(names, size)
    )
