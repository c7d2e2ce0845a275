"""Lines of result files from values by item, a list a seed: means, differences, verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from trimtab import statistics
from trimtab.errors import ConfigError
from trimtab.statistics import SHARE, Interval, Range, mean_interval, paired_difference
from trimtab.study.results import Difference, Measurement

Scores = Mapping[int | None, Sequence[float]]
"""Values by item, a list a seed; the seed is None where nothing is drawn."""

UNJUDGED: dict[str, Any] = {
    **{"p_holm": float("nan"), "verdict": "not judged", "in_this_run": True, "underpowered": True}
}
"""Fields of a difference that `judged` fills in."""
UNTESTED: dict[str, Any] = {"p": float("nan"), "mde": float("nan"), **UNJUDGED}
"""The same where nothing is tested."""

Weights = Sequence[float] | None
"""How much each item counts; None where all count alike."""


def measured(
    scores: Scores, weights: Weights = None, within: Range = SHARE, **labels: Any
) -> Measurement:
    """A mean over items, and over seeds, with its 95 % interval."""
    found, seeds = mean_interval([*map(list, scores.values())], within, weights), len(scores)
    drawn = {"seed": next(iter(scores)) if seeds == 1 else None, "aggregate": seeds > 1}
    return line(found, **labels, **drawn, seeds=seeds, items=len(next(iter(scores.values()))))


def compared(
    mine: Scores, theirs: Scores, weights: Weights = None, within: Range = SHARE, **labels: Any
) -> Difference:
    """Shares, or values within another range, `mine` less `theirs` on the same items, without a verdict.
    Seeds are paired by their number; a side with one is set against every seed of the other."""
    if len(mine) > 1 and len(theirs) > 1:
        both = [seed for seed in mine if seed in theirs]
        mine, theirs = ({s: side[s] for s in both} for side in (mine, theirs))
    one, other = ([list(s) for s in side.values()] for side in (mine, theirs))
    found, seeds = paired_difference(one, other, within, weights), max(len(mine), len(theirs))
    return difference(found, seeds, items=len(one[0]), **labels)


def difference(
    found: statistics.Difference, seeds: int, verdict: Mapping[str, Any] = UNJUDGED, **of: Any
) -> Difference:
    """A difference over so many seeds, without a verdict unless it is given."""
    drawn = {"seed": None, "aggregate": seeds > 1, "seeds": seeds}
    return Difference(**of, **drawn, **ends(found), p=found.p, mde=found.mde, **verdict)


def judged(table: Sequence[Difference]) -> list[Difference]:
    """The lines of one printed table with verdicts: p-values adjusted by Holm over all of it."""
    nothing = float("nan")
    found = [statistics.Difference(d.value, d.low, d.high, d.p, nothing, d.mde) for d in table]
    told = statistics.judged([(f, d.seeds) for f, d in zip(found, table, strict=True)])
    return [replace(d, **v._asdict()) for d, v in zip(table, told, strict=True)]


def averaged(parts: Sequence[Scores]) -> tuple[dict[int | None, list[float]], list[float]]:
    """Items of several tasks, and weights by which their mean is the unweighted mean of the tasks' means.
    An interval over such items counts the tasks' different means as spread, and is rather too wide than
    too narrow."""
    sizes = [len(next(iter(part.values()))) for part in parts]
    weights = [sum(sizes) / (len(parts) * size) for size in sizes for _ in range(size)]
    return {seed: [value for part in parts for value in part[seed]] for seed in parts[0]}, weights


def line(found: Interval, **of: Any) -> Measurement:
    """A figure with its interval, of the bare model or of one fit, over strengths, unless `of` says more."""
    usual: dict[str, Any] = {"seed": None, "aggregate": False, "alpha": None, "at": None}
    return Measurement(**{**usual, **of, **ends(found)})


def ends(found: Interval | statistics.Difference) -> dict[str, Any]:
    """A figure with its interval, as fields of a line."""
    return {"value": float(found.value), "low": float(found.low), "high": float(found.high)}


def alone(value: float) -> Interval:
    """A figure without an interval."""
    return Interval(float(value), float("nan"), float("nan"))


def check_seeds(name: str, seeds: Sequence[int]) -> None:
    """Raise ConfigError unless there is at least one seed of 0 or more, each once."""
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ConfigError(f"{name}: expected at least one number of 0 or more, each once")
