"""The colour experiments: model, data, labels, terms, interventions of each.

Numbers are those of the published series; sheets with the same name lie in `sheets/`. Where the
published setting was lost or faulty, `about` says what is done instead. 2.9.2 and 2.9.3 are ours:
a gentler learning rate, and a fallback for the deleted concept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

from trimtab.errors import ConfigError, near
from trimtab.interventions import Bezier, Falloff, Linear
from trimtab.interventions.falloffs import Mapper
from trimtab.objectives.anchoring import (
    Anchor,
    AngularAnchor,
    AntiAnchor,
    AntiSubspace,
    EuclideanSeparate,
    Fallback,
    ReferenceAnchor,
    Separate,
    Subspace,
    Term,
    Unitarity,
)
from trimtab.studies.anchoring.autoencoder import Shape
from trimtab.studies.anchoring.colours import NoisyLabel


@dataclass(frozen=True)
class Cut:
    """What is done to a trained model: on the bottleneck's states, or in the weights around it."""

    kind: Literal["suppress", "repel", "project", "ablate", "prune", "reflect", "redirect"]
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
    title: str
    about: str
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
    seeds: int = 60
    """Seeds of an arm where none are asked for."""
    figure: bool = False
    """A figure alone: nothing is trained."""

    def said(self, seeds: int) -> str:
        """What it is about, of a run on so many seeds."""
        return self.about.replace("{seeds}", f"{seeds} seed{'' if seeds == 1 else 's'}")


_RED_10 = {"red": NoisyLabel("redness", 10, 0.5)}
_M1 = _RED_10 | {"vibrant": NoisyLabel("vibrancy", 100, 0.5)}
_RED_8 = {"red": NoisyLabel("redness", 8, 0.08)}

_SPREAD = Separate(100, shift=True)
_RED, _VIBRANT = {"red": 1.0}, {"vibrant": 1.0}
_SOFT, _ROUND = Falloff(0, 1, 2), Bezier(0, math.cos(math.radians(60)))
_GATE, _EQUATOR = Falloff(0, 1, 0), Linear(0, math.cos(math.radians(89)))

_BARE = Shape(4, norm=False, sigmoid=True)
_DEEP = Shape(5, layers=2)

_TERMS_17 = (
    Term("separate", Separate(10, shift=False), "encoder"),
    Term("planar", Subspace((0, 1)), "encoder", _VIBRANT),
    Term("norm", Unitarity(), "encoder"),
    Term("norm-v", Unitarity(), "encoder", _VIBRANT),
    Term("polar", Anchor(0), "encoder", _RED),
)
_TERMS_24 = (
    Term("separate", _SPREAD),
    Term("anchor", Anchor(0), labels=_RED),
    Term("unit", Unitarity(), "encoder"),
    Term("planar", Subspace((0, 1)), labels=_VIBRANT),
)
_TERMS_23 = tuple(Term(t.name, t.loss, "encoder", t.labels) for t in _TERMS_24)
_CURRICULUM = (
    Term("separate", EuclideanSeparate(), "encoder"),
    Term("planar", Subspace((0, 1)), "encoder"),
    Term("norm", Unitarity(), "encoder"),
    Term("anchor", ReferenceAnchor(), "reference"),
)
_ANCHOR = Term("anchor", AngularAnchor(0), labels=_RED)
_SOFT_CUTS = {
    "suppression": Cut("suppress", falloff=_SOFT),
    "repulsion": Cut("repel", mapper=_ROUND),
}
_CUTS = {
    "suppression": Cut("suppress", falloff=_GATE),
    "repulsion": Cut("repel", mapper=_EQUATOR),
    "ablation": Cut("ablate"),
    "pruning": Cut("prune"),
    "suppression, renormalised": Cut("suppress", falloff=_GATE, renormalise=True),
}
_CUTS_2 = {name: Cut(c.kind, (0,), c.falloff, c.mapper) for name, c in _SOFT_CUTS.items()}
_ABLATIONS = {"ablation": Cut("ablate"), "pruning": Cut("prune")}
_HUE_ABLATIONS = {"ablation": Cut("ablate", (0, 1)), "pruning": Cut("prune", (0, 1))}
_TERMS_291 = (
    Term("separate", _SPREAD),
    _ANCHOR,
    Term("anti-anchor", AntiAnchor(0)),
    Term("anti-subspace", AntiSubspace((0,))),
)
_BY_RED = (
    Score("suppression", "red", 2),
    Score("repulsion", "red", 2),
    Score("ablation", "red", 3),
)
_BY_ABLATED_RED = (Score("ablation", "red", 3), Score("suppression", "red", 2))


def _without(names: tuple[str, ...]) -> tuple[Arm, ...]:
    """An arm for every non-empty choice of terms: the others are switched off."""
    return tuple(
        Arm(
            " + ".join(kept),
            without=frozenset(names) - set(kept),
        )
        for size in range(len(names), 0, -1)
        for kept in combinations(names, size)
    )


_ALL = (
    Experiment("1.1", "Colour data", "The RGB and HSV cubes and the labels on them.", figure=True),
    Experiment(
        "1.2",
        "A two-dimensional bottleneck",
        "Vivid hues through a circle: an explicit norm finds the colour wheel. A quarter of the "
        "hues is held out.",
        Shape(2, activation="relu", sigmoid=True),
        data="hues",
        batch=0,
        seeds=10,
    ),
    Experiment(
        "1.3",
        "A curriculum in steps",
        "Three dimensions, no norm: five phases of data, stepped weights. Batches of 256 instead of "
        "whole phases.",
        Shape(3, norm=False, sigmoid=True),
        data="phases",
        batch=256,
        terms=(
            Term("norm", Unitarity(), "encoder"),
            Term("planar", Subspace((0, 1)), "encoder"),
        ),
        seeds=10,
    ),
    Experiment(
        "1.4",
        "Transitions",
        "Values that move smoothly to targets, on a schedule or in reaction.",
        figure=True,
    ),
    Experiment(
        "1.5",
        "A smooth curriculum",
        "Four dimensions; data widen smoothly from six colours to all; six colours are held where "
        "they were when the hues came in.",
        _BARE,
        data="focus",
        batch=256,
        terms=_CURRICULUM,
        seeds=10,
    ),
    Experiment(
        "1.6",
        "Smooth against stepped",
        "The same keys, once smooth and once in steps. The published smooth sheet is lost; ours has "
        "the stepped sheet's keys with smooth timing.",
        _BARE,
        data="focus",
        batch=32,
        terms=_CURRICULUM,
        arms=(Arm("smooth", "1.6-smooth"), Arm("stepped", "1.6-stepped")),
        seeds=10,
    ),
    Experiment(
        "1.7",
        "Sparse labels",
        "All colours from the start; noisy labels say which samples a term acts on.",
        _BARE,
        data="hsv",
        labels=_M1,
        terms=_TERMS_17,
        seeds=10,
    ),
    Experiment(
        "1.8",
        "Every combination of terms",
        "1.7 with each of the 31 non-empty choices of its five terms.",
        _BARE,
        data="hsv",
        labels=_M1,
        terms=_TERMS_17,
        sheet="1.7",
        arms=_without(tuple(t.name for t in _TERMS_17)),
        seeds=2,
    ),
    Experiment(
        "2.1",
        "Intervention lobes",
        "What suppression and repulsion do to every direction.",
        figure=True,
    ),
    Experiment(
        "2.2",
        "Intervening on red",
        "The model of 1.7, intervened on. The published sheet's columns were shifted against their "
        "names (planarity ran at weight 1); here 1.7's own sheet is used.",
        _BARE,
        data="hsv",
        labels=_M1,
        terms=_TERMS_17,
        sheet="1.7",
        cuts=_CUTS_2,
        scores=(Score("suppression", "red", 2), Score("repulsion", "red", 2)),
        seeds=10,
    ),
    Experiment(
        "2.3",
        "An explicit norm",
        "The bottleneck divided by its length, terms before the norm; with and without a sigmoid.",
        Shape(4),
        data="hsv",
        labels=_M1,
        terms=_TERMS_23,
        sheet="2.4",
        arms=(Arm("linear"), Arm("sigmoid", shape=Shape(4, sigmoid=True))),
        cuts=_SOFT_CUTS,
        scores=(Score("suppression", "red", 2), Score("repulsion", "red", 2)),
        seeds=10,
    ),
    Experiment(
        "2.4",
        "Terms after the norm",
        "As 2.3 (linear), but all terms except unit length act after the norm.",
        Shape(4),
        data="hsv",
        labels=_M1,
        terms=_TERMS_24,
        cuts=_SOFT_CUTS,
        scores=(Score("suppression", "red", 2), Score("repulsion", "red", 2)),
        seeds=10,
    ),
    Experiment(
        "2.5",
        "One anchor alone",
        "2.4 without the hue plane.",
        Shape(4),
        data="hsv",
        labels=_RED_10,
        terms=_TERMS_24[:3],
        cuts=_SOFT_CUTS,
        scores=(Score("suppression", "red", 2), Score("repulsion", "red", 2)),
        seeds=10,
    ),
    Experiment(
        "2.6",
        "Deleting warmth",
        "2.4 with dimension 0 cut out of the weights: red and its opposite go together.",
        Shape(4),
        data="hsv",
        labels=_M1,
        terms=_TERMS_24,
        sheet="2.4",
        cuts=_ABLATIONS,
        seeds=10,
    ),
    Experiment(
        "2.7",
        "Deleting hue",
        "2.4 with dimensions 0 and 1 cut out: hue goes, greys stay.",
        Shape(4),
        data="hsv",
        labels=_M1,
        terms=_TERMS_24,
        sheet="2.4",
        cuts=_HUE_ABLATIONS,
        scores=(Score("ablation", "hue", 2.3),),
        seeds=10,
    ),
    Experiment(
        "2.8",
        "Deleting red alone (fails)",
        "Four dimensions and one hidden layer, red anchored, everything kept from its opposite: too "
        "little room. It must fail.",
        Shape(4),
        data="hsv",
        labels=_RED_10,
        terms=(
            Term("separate", _SPREAD),
            _ANCHOR,
            Term("anti-anchor", AntiAnchor(0)),
            Term("unit", Unitarity(), "encoder"),
        ),
        cuts=_ABLATIONS,
        scores=(Score("ablation", "red", 3),),
        seeds=10,
    ),
    Experiment(
        "2.9",
        "Deleting red alone",
        "Five dimensions and two hidden layers; greys drawn to dimensions 2 to 4 by a label.",
        _DEEP,
        data="hsv",
        labels=_RED_10 | {"desaturated": NoisyLabel("dullness", 10, 0.5)},
        terms=(
            Term("separate", _SPREAD),
            _ANCHOR,
            Term("planar-d", Subspace((2, 3, 4)), labels={"desaturated": 1.0}),
            Term("anti-anchor", AntiAnchor(0)),
            Term("unit", Unitarity(), "encoder"),
        ),
        cuts=_ABLATIONS,
        scores=(Score("ablation", "red", 3),),
        seeds=10,
    ),
    Experiment(
        "2.10",
        "Deleting red, one label",
        "As 2.9 without the label of greys: everything is kept out of dimension 0 a little.",
        _DEEP,
        data="rgb10",
        labels=_RED_8,
        terms=(Term("separate", _SPREAD), _ANCHOR, _TERMS_291[3]),
        cuts=_ABLATIONS,
        scores=(Score("ablation", "red", 3),),
        seeds=10,
    ),
    Experiment(
        "2.4.1",
        "Soft intervention on red, with a colour wheel",
        "2.4 again over {seeds}, on the RGB cube, with labels on about 0.1 % of samples.",
        Shape(4),
        labels=_RED_8 | {"vibrant": NoisyLabel("vibrancy", 10, 0.01)},
        terms=(
            Term("separate", _SPREAD),
            _ANCHOR,
            Term("subspace", Subspace((0, 1)), labels=_VIBRANT),
        ),
        cuts=_CUTS,
        scores=_BY_RED,
    ),
    Experiment(
        "2.5.1",
        "Soft intervention on red, nothing else anchored",
        "2.5 again over {seeds}.",
        Shape(4),
        labels=_RED_8,
        terms=(Term("separate", _SPREAD), _ANCHOR),
        cuts=_CUTS,
        scores=_BY_RED,
    ),
    Experiment(
        "2.7.1",
        "Deleting hue",
        "2.7 again over {seeds}.",
        Shape(4),
        labels={"vibrant": NoisyLabel("vibrancy", 8, 0.008)},
        terms=(
            Term("separate", _SPREAD),
            Term("subspace", Subspace((0, 1)), labels=_VIBRANT),
        ),
        cuts={**_HUE_ABLATIONS, "projection": Cut("project", (0, 1))},
        scores=(Score("ablation", "hue", 2.3), Score("projection", "hue", 2)),
    ),
    Experiment(
        "2.9.1",
        "Deleting red alone",
        "2.9 again over {seeds}, with one label: anti-anchor and anti-subspace.",
        _DEEP,
        labels=_RED_8,
        terms=_TERMS_291,
        cuts=_CUTS,
        scores=_BY_ABLATED_RED,
    ),
    Experiment(
        "2.9.2",
        "Deleting red alone, gently",
        "2.9.1 at half the peak learning rate.",
        _DEEP,
        labels=_RED_8,
        terms=_TERMS_291,
        cuts=_CUTS,
        scores=_BY_ABLATED_RED,
    ),
    Experiment(
        "2.9.3",
        "Deleting red, with a fallback",
        "2.9.2, and the decoder taught grey for the direction opposite to red, which is empty: red "
        "is then reflected there instead of cut.",
        _DEEP,
        labels=_RED_8,
        terms=(*_TERMS_291, Term("fallback", Fallback(0.5), "opposite")),
        cuts={
            **_CUTS,
            "reflection": Cut("reflect"),
            "redirection": Cut("redirect"),
        },
        scores=_BY_ABLATED_RED,
    ),
    Experiment(
        "2.10.1",
        "Deleting red, one repulsive term",
        "2.10 again over {seeds}.",
        _DEEP,
        labels=_RED_8,
        terms=(Term("separate", _SPREAD), _ANCHOR, _TERMS_291[3]),
        cuts=_CUTS,
        scores=_BY_ABLATED_RED,
    ),
)

COLOUR = {e.name: e for e in _ALL}
"""The colour experiments by number."""


def find(name: str) -> Experiment:
    """A colour experiment by number. Raises ConfigError where there is none."""
    if name not in COLOUR:
        raise ConfigError(
            f"unknown experiment {name!r}{near(name, COLOUR)} (known: {', '.join(COLOUR)})"
        )
    return COLOUR[name]
