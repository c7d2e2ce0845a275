"""What each experiment has to show: `gates.csv`, a bound a line, written down before the runs it judges.

A gate compares one number of a result file with a bound; where it would hang on a single draw, the
number is a median or a share of seeds. Its columns: the experiments; what is said; how a metric's
values, one a seed, become one number; the metric, `[a / b]` or `[a - b]` behind it two arms (or all
`with` or `without` some terms) whose numbers are compared; the bounds; whether it is only aimed for,
so that missing it fails nothing; the figure of the original series, for reading beside ours.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

Result = Mapping[str, Any]
BEST = 10
"""Of more seeds than these, the best ones are meant by `median of best`."""
HOW: dict[str, Callable[..., Any]] = {
    "median": np.median,
    "over seeds": np.median,
    "median of best": np.median,
    "mean": np.mean,
    "share": np.mean,
    "min": np.min,
    "max": np.max,
    "sd": partial(np.std, ddof=1),
    "5 %": partial(np.percentile, q=5),
}
"""`over seeds` is a median that is shown with its range."""


@dataclass(frozen=True)
class Gate:
    """One bound, and what was found."""

    what: str
    value: float
    low: float | None = None
    high: float | None = None
    published: str = ""
    stretch: bool = False
    """Aimed for; missing it fails nothing."""
    over: tuple[float, ...] = ()
    """A value a seed, where the value is their median."""

    @property
    def passed(self) -> bool:
        """Whether the value is within the bounds; what was not measured is not."""
        return bool(
            self.value == self.value
            and (self.low is None or self.value >= self.low)
            and (self.high is None or self.value <= self.high)
        )

    @property
    def bound(self) -> str:
        """The bounds as text."""
        if self.low is not None and self.high is not None:
            return f"{self.low:g} to {self.high:g}"
        return f"at least {self.low:g}" if self.low is not None else f"at most {self.high:g}"


@cache
def rows() -> list[dict[str, str]]:
    """The lines of `gates.csv`."""
    with Path(__file__).with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def judged(result: Result) -> list[Gate]:
    """The gates of a result; a figure has none."""
    return [_gate(result, row) for row in rows() if result["name"] in row["experiments"].split()]


def metrics(name: str) -> set[str]:
    """What the gates of an experiment read, by the names of its values."""
    asked = [row["metric"] for row in rows() if name in row["experiments"].split()]
    parts = [part for metric in asked for part in metric.partition(" [")[0].split(" and ")]
    return {part.split(" <= ")[0].split(" >= ")[0] for part in parts}


def _gate(result: Result, row: Mapping[str, str]) -> Gate:
    how, metric = row["how"], row["metric"]
    low, high = (float(row[k]) if row[k] else None for k in ("low", "high"))
    if compared := re.fullmatch(r"(.+) \[(.+) ([/-]) (.+)\]", metric):
        name, one, sign, other = compared.groups()
        a, b = (
            float(np.mean([HOW[how](_seeds(result, name, arm)) for arm in _arms(result, which)]))
            for which in (one, other)
        )
        value, over = a / b if sign == "/" else a - b, ()
    else:
        values = _holds(result, metric) if how == "share" else _seeds(result, metric)
        if how == "median of best":  # the seeds with the highest first score
            scores = _seeds(result, f"r2/{result['scores'][0]['cut']}")
            values = values[np.argsort(-scores, kind="stable")[:BEST]]
        value = float(HOW[how](values))
        over = tuple(values.tolist()) if how == "over seeds" else ()
    count = len(result["seeds"])
    best = f"over {count} seed{'' if count == 1 else 's'}"
    what = row["gate"].format(best=best if count <= BEST else "of the ten best seeds")
    return Gate(what, value, low, high, row["published"], bool(row["aim"]), over)


def _seeds(result: Result, name: str, arm: str = "") -> np.ndarray:
    """A value a seed."""
    if "arms" in result and "metrics" not in result:
        values = result["arms"][arm or result["best"]["arm"]]["values"]
    else:
        values = result["metrics"]
    return np.asarray([np.nan if v is None else v for v in values[name]], float)


def _arms(result: Result, which: str) -> list[str]:
    """An arm by its name, or all with or without some terms."""
    first, *terms = which.split()
    if first not in ("with", "without"):
        return [which]
    kept = {arm: set(arm.split(" + ")) for arm in result["arms"]}
    if first == "with":
        return [arm for arm, names in kept.items() if names.issuperset(terms)]
    return [arm for arm, names in kept.items() if names.isdisjoint(terms)]


def _holds(result: Result, conditions: str) -> np.ndarray:
    """In which seeds some bounds hold."""
    found = np.ones(len(result["seeds"]), bool)
    for condition in conditions.split(" and "):
        name, sign, bound = condition.rsplit(" ", 2)
        values = _seeds(result, name)
        found &= values <= float(bound) if sign == "<=" else values >= float(bound)
    return found
