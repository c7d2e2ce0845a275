"""Lines of result files from what arms of a panel measured; `study`, `compare` and `evaluate` share them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trimtab.panel import Arm, PanelOn, Property, Values, changes
from trimtab.panel.run import Measured
from trimtab.panel.values import values_of
from trimtab.study.lines import UNJUDGED, difference, measured
from trimtab.study.results import ALPHA_1, BASE, PANEL, Difference, Measurement, Row


@dataclass(frozen=True)
class Read:
    """What was measured with a dial at a strength, at one seed."""

    method: str
    seed: int | None
    at: Any
    alpha: float
    found: Measured

    def as_json(self) -> Row:
        """JSON values, from which `read_of` makes it again."""
        found = {name: [v.as_json() for v in of] for name, of in self.found.items()}
        return {**vars(self), "found": found}


def read_of(values: Mapping[str, Any]) -> Read:
    """What `Read.as_json` wrote."""
    found = {name: [values_of(v) for v in of] for name, of in values["found"].items()}
    return Read(**{**values, "found": found})


def read_arms(on: PanelOn, arms: Iterable[Arm], seed: int | None = None) -> list[Read]:
    """Arms on a panel."""
    return [Read(arm.name, seed, arm.at, arm.alpha, on.measure(arm)) for arm in arms]


def lines(
    bare: Read, dialled: Sequence[Read], common: Mapping[str, Any]
) -> tuple[list[Measurement], list[Difference]]:
    """A figure of every metric, and what a dial changes of it; p-values are adjusted (Holm) over the panel
    of a dial at a place, and `worse` is said of what the dial makes worse.

    Args:
        dialled: arms, those of one method at one place being its seeds.
        common: what all lines share: `model`, `suite`.
    """
    figures: list[Measurement] = []
    told: list[Difference] = []

    def figure(values: Sequence[Values], labels: Row, seeds: Sequence[int | None]) -> Measurement:
        first = values[0]
        scores = {seed: v.values.tolist() for seed, v in zip(seeds, values, strict=True)}
        weights = None if first.weights is None else first.weights.tolist()
        return measured(scores, weights, first.within, **labels, metric=first.metric)

    places: dict[tuple[str, Any], list[Read]] = {}
    for read in dialled:
        places.setdefault((read.method, read.at), []).append(read)
    base = {**common, "method": BASE, "alpha": 0.0, "at": ALPHA_1}
    for name, metrics in bare.found.items():
        figures += [figure([v], {**base, "split": PANEL + name}, [None]) for v in metrics]
    for (method, at), reads in places.items():
        labels = {**common, "method": method, "at": at}
        labels["alpha"] = float(np.mean([r.alpha for r in reads]))
        seeds = [r.seed for r in reads]
        for change in changes(bare.found, *(r.found for r in reads)):
            own = {**labels, "split": PANEL + change.property}
            place = [v.metric for v in bare.found[change.property]].index(change.metric)
            values = [r.found[change.property][place] for r in reads]
            figures.append(figure(values, own, seeds))
            verdict = UNJUDGED if change.verdict is None else change.verdict._asdict()
            own |= {"against": BASE, "metric": change.metric, "items": len(change.bare.items)}
            told.append(difference(change.difference, len(reads), verdict, **own))
    return figures, told


def about(
    panel: Sequence[Property],
    bare: Read,
    dialled: Sequence[Read],
    trained: Mapping[str, Iterable[str]],
    kl: float | None,
) -> Row:
    """What the page has to know beside the lines, for `About.more`.

    Args:
        trained: by method, the specs of pairs that it was trained on.
        kl: to which dials were turned at `equal_kl`; None where they were not.
    """

    def known(p: Property) -> list[str]:
        """Dials that were trained on the property's distribution, or on its very items."""
        own = (*p.in_distribution, *getattr(p, "sources", ()))
        return [m for m, specs in trained.items() if any(s in spec for spec in specs for s in own)]

    kinds = {
        p.name: {
            "about": p.about,
            "trained_on": known(p),
            "metrics": {v.metric: [v.unit, v.better] for v in bare.found[p.name]},
        }
        for p in panel
    }
    turned = {r.method for r in dialled if r.at != ALPHA_1}
    missing = dict.fromkeys(r.method for r in dialled if r.method not in turned)
    return {"properties": kinds, "kl": kl, "not_reached": list(missing) if kl else []}
