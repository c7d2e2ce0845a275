"""Figures of a property by item: what intervals and verdicts are made from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from trimtab.statistics import UNBOUNDED, Range


@dataclass(frozen=True)
class Values:
    """One metric of one property on I items, by which arms are paired.

    Attributes:
        metric: its name.
        items: names of the items, or of the clusters that items come in.
        values: whose weighted mean is the figure.
        weights: how much each counts; None where all count alike.
        within: what a value lies between. Nothing is said of shares that change a little everywhere, such as
            probabilities: intervals that allow for jumps to an end would hide that.
        better: 1 where more is better, -1 where less is, 0 where neither: then it is not judged.
        unit: `points` of a share, `nats`, or nothing.
    """

    metric: str
    items: tuple[str, ...]
    values: Float[np.ndarray, " items"]
    weights: Float[np.ndarray, " items"] | None = None
    within: Range = UNBOUNDED
    better: int = 1
    unit: str = "points"

    @property
    def mean(self) -> float:
        """The figure."""
        return float(np.average(self.values, weights=self.weights))

    def as_json(self) -> dict[str, Any]:
        """JSON values, from which `values_of` makes it again; a value has six digits."""
        rest = {k: v for k, v in vars(self).items() if k not in ("values", "weights", "within")}
        ends = [end if math.isfinite(end) else None for end in self.within]
        weights = None if self.weights is None else self.weights.tolist()
        short = [float(f"{x:.6g}") for x in self.values]
        own = {"items": list(self.items), "within": ends, "weights": weights, "values": short}
        return {**rest, **own}


def values_of(found: Mapping[str, Any]) -> Values:
    """What `Values.as_json` wrote."""
    low, high = found["within"]
    within = (-math.inf if low is None else low, math.inf if high is None else high)
    weights = None if found["weights"] is None else np.array(found["weights"])
    own = {"items": tuple(found["items"]), "within": within, "weights": weights}
    return Values(**{**found, **own, "values": np.array(found["values"])})


def by_cluster(
    values: ArrayLike, clusters: Sequence[str]
) -> tuple[tuple[str, ...], Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """Means of clusters (items that share a template go together in every interval), and their sizes."""
    names = tuple(dict.fromkeys(clusters))
    place = {name: i for i, name in enumerate(names)}
    index = np.array([place[c] for c in clusters])
    size = np.bincount(index, minlength=len(names)).astype(float)
    total = np.bincount(index, weights=np.asarray(values, float), minlength=len(names))
    return names, total / size, size


def ratio(above: ArrayLike, below: ArrayLike) -> Float[np.ndarray, " items"]:
    """A ratio of sums as values an item: their mean is the ratio, their spread that of its linearisation
    (Cochran 1977, *Sampling Techniques*, section 6.4). Nothing below: the ratio is 0."""
    n, d = np.asarray(above, float), np.asarray(below, float)
    if not d.sum():
        return np.zeros_like(n)
    r = n.sum() / d.sum()
    return r + (n - r * d) / d.mean()


def product(a: Float[np.ndarray, " i"], b: Float[np.ndarray, " i"]) -> Float[np.ndarray, " i"]:
    """A product of two means as values an item, linearised likewise."""
    return a.mean() * b.mean() + a.mean() * (b - b.mean()) + b.mean() * (a - a.mean())
