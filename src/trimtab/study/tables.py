"""From per-item scores to the result files: means with intervals, dose–response, verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from trimtab import statistics
from trimtab.statistics import (
    POSITIVE,
    SHARE,
    UNBOUNDED,
    Interval,
    Range,
    dose_response,
    mean_interval,
    paired_difference,
)
from trimtab.study.cell import BASE
from trimtab.study.files import Rows

SCORES = ("accuracy", "accuracy_sum", "accuracy_choice", "margin")
DAMAGE = ("kl", "nll_rise")
WITHIN: dict[str, Range] = {"margin": UNBOUNDED, "nll_rise": UNBOUNDED, "kl": POSITIVE}
"""What values of a metric lie between, where they are no shares."""
NOTHING = {"value": 0.0, "ci_low": 0.0, "ci_high": 0.0}
"""Damage at 0, where nothing is attached: exactly none."""
BASELINE = "dpo"
COMPARED = ("alpha_1", "equal_kl")
"""Where dials are compared."""
Key = tuple[str, str, str, float | None]
"""Method, split, where, alpha (None at equal KL)."""
Seeds = dict[int | None, Rows]
"""Rows by seed."""


def results(rows: Rows, model: str, common: dict[str, Any]) -> Rows:
    """Lines of `results.jsonl`: a mean with its interval for every method, split, alpha and metric, a
    seed each (null for what has none), and over seeds (`aggregate`) where there are several. A value that
    is not finite, as of a dial turned up until the model breaks, is null."""
    lines: Rows = []
    for (method, split, at, _), seeds in _grouped(rows).items():
        first = next(iter(seeds.values()))
        idle = split == "neutral" and not any(part[0]["alpha"] for part in seeds.values())
        for metric in DAMAGE if split == "neutral" else SCORES:
            tables = {seed: _column(part, metric) for seed, part in seeds.items()}
            if len(tables) > 1 and None not in tables:
                tables[None] = np.stack(list(tables.values()))
            for seed, values in tables.items():
                line = {
                    "model": model,
                    "method": method,
                    "split": split,
                    "seed": seed,
                    "aggregate": seed is None and None not in seeds,
                    "alpha": _alpha(seeds.values() if seed is None else [seeds[seed]]),
                    "at": at if at in COMPARED else None,
                    "metric": metric,
                    **(NOTHING if idle else _interval(values, WITHIN.get(metric, SHARE))),
                    "items": len(first),
                    "pairs": None if split == "neutral" else sum(r["pairs"] for r in first),
                }
                lines.append({**line, **common})
    return lines + _dose_summaries(rows, model, common)


def _dose_summaries(rows: Rows, model: str, common: dict[str, Any]) -> Rows:
    """Slope, straightness and monotonicity of each method's dose–response of the margin, a seed
    each, and over seeds where there are several."""
    dose = [r for r in rows if r["split"] == "dose"]
    base = {r["item"]: r["margin"] for r in dose if r["method"] == BASE}
    lines: Rows = []
    for method in dict.fromkeys(r["method"] for r in dose if r["method"] != BASE):
        curves: dict[int | None, dict[float, dict[str, float]]] = {}
        for r in dose:
            if r["method"] == method:
                curve = curves.setdefault(r["seed"], {0.0: base} if base else {})
                curve.setdefault(r["alpha"], {})[r["item"]] = r["margin"]
        alphas = sorted(next(iter(curves.values())))
        items = list(next(iter(curves.values()))[alphas[0]])
        if len(alphas) < 2:
            continue
        values = {
            s: np.array([[c[a][i] for a in alphas] for i in items]) for s, c in curves.items()
        }
        if len(values) > 1 and None not in values:
            values[None] = np.stack(list(values.values()))
        for seed, table in values.items():
            if not np.isfinite(table).all():
                continue
            found = dose_response(alphas, table)
            none = {"ci_low": None, "ci_high": None}
            summaries = {
                "slope": _bounds(found.slope),
                "r2": {"value": _number(found.r2), **none},
                "monotone": {"value": _number(found.monotone), **none},
                "rising": {"value": _number(found.rising), **none},
            }
            for metric, figures in summaries.items():
                line = {
                    "model": model,
                    "method": method,
                    "split": "dose",
                    "seed": seed,
                    "aggregate": seed is None and None not in curves,
                    "alpha": None,
                    "at": None,
                    "metric": metric,
                    **figures,
                    "items": len(items),
                    "pairs": None,
                }
                lines.append({**line, **common})
    return lines


def verdicts(rows: Rows, methods: Sequence[str], splits: Sequence[str], suite: str) -> Rows:
    """Lines of `verdicts.jsonl` of one study: every other method against DPO on every split, at
    alpha 1 and at equal KL; p-values adjusted by Holm over each of the two tables."""
    return judged(differences(rows, methods, splits, suite))


def differences(
    rows: Rows,
    methods: Sequence[str],
    splits: Sequence[str],
    suite: str,
    baseline: str = BASELINE,
    places: Sequence[str] = COMPARED,
) -> Rows:
    """Lines without verdicts: every method less the baseline on every split, on the same items.

    Seeds are paired by their number. One for which a method never reached DPO's KL is left out of
    the comparison at equal KL, on both sides; so is an item that one side dropped as over-long.
    """
    groups = _grouped(rows)
    lines: Rows = []
    for at in places:
        for method in methods:
            for split in splits:
                theirs = _seeds(groups, baseline, split, "alpha_1")
                mine = _seeds(groups, method, split, at)
                both = [s for s in mine if s in theirs] if None not in {*mine, *theirs} else None
                if both is not None:
                    mine, theirs = ({s: group[s] for s in both} for group in (mine, theirs))
                if method == baseline or not theirs or not mine:
                    continue
                values, against = _same_items(mine, theirs)
                if not values.shape[1]:
                    continue
                difference = paired_difference(values, against, SHARE)
                lines.append(
                    {
                        "method": method,
                        "suite": suite,
                        "split": split,
                        "at": at,
                        "alpha": _alpha(mine.values()),
                        "baseline": baseline,
                        "difference": difference.value,
                        "ci_low": _number(difference.low),
                        "ci_high": _number(difference.high),
                        "p": difference.p,
                        "seeds": max(len(mine), len(theirs)),
                        "mde": _number(difference.mde),
                        "items": values.shape[1],
                        "_difference": difference,
                    }
                )
    return lines


def judged(lines: Rows) -> Rows:
    """Lines of `differences`, of one study or of many, with verdicts: all lines at one place are one
    table."""
    found: dict[int, statistics.Verdict] = {}
    for at in COMPARED:
        table = [i for i, line in enumerate(lines) if line["at"] == at]
        told = statistics.judged([(lines[i]["_difference"], lines[i]["seeds"]) for i in table])
        found |= dict(zip(table, told, strict=True))
    return [
        {k: v for k, v in line.items() if k != "_difference"} | found[i]._asdict()
        for i, line in enumerate(lines)
    ]


def elicitation(
    rows: Rows,
    capability: dict[str, Rows],
    methods: Sequence[str],
    model: str,
    common: dict[str, Any],
) -> Rows:
    """GENIES' metric a split and method, and the capability that it is a share of (see `genies`).

    The interval joins those of the gain and of the capability as if they were independent (their
    relative half-widths add in squares).

    Args:
        capability: by split, rows of the model that was trained on that split's reference.
    """
    groups, lines = _grouped(rows), []
    for split, reached in capability.items():
        seeds = _seeds(_grouped(reached), BASELINE, "capability", "alpha_1")
        base = _seeds(groups, BASE, split, "alpha_1")
        if not seeds or not base:
            continue
        top = mean_interval(
            np.stack([_column(part, "accuracy_choice") for part in seeds.values()]), SHARE
        )
        start = {"model": model, "split": split, "alpha": 1.0, "at": "alpha_1", "pairs": None}
        items = len(next(iter(seeds.values())))
        line = {**start, "method": BASELINE, "metric": "capability", **_bounds(top), "items": items}
        lines.append({**line, **_over(seeds), **common})
        for method in methods:
            mine = _seeds(groups, method, split, "alpha_1")
            if not mine or not top.value > 0:
                continue
            values, start_values = _same_items(mine, base, "accuracy_choice")
            gain = paired_difference(values, start_values, SHARE)
            share = gain.value / top.value
            half = (
                np.hypot((gain.high - gain.low) / 2, share * (top.high - top.low) / 2) / top.value
            )
            least, most = -start_values.mean() / top.value, (1 - start_values.mean()) / top.value
            found = _bounds(Interval(share, max(share - half, least), min(share + half, most)))
            items = len(next(iter(mine.values())))
            line = {**start, "method": method, "metric": "elicitation", **found, "items": items}
            lines.append({**line, **_over(mine), **common})
    return lines


def _over(seeds: Seeds) -> dict[str, Any]:
    """Whether a line is over several seeds; its seed where it is not."""
    several = len(seeds) > 1
    return {"seed": None if several else next(iter(seeds)), "aggregate": several}


def _same_items(
    mine: Seeds, theirs: Seeds, metric: str = "accuracy"
) -> tuple[np.ndarray, np.ndarray]:
    """Two tables `[seeds, items]` of the items that both have."""
    sides = [
        [{r["item"]: r[metric] for r in part} for part in side.values()] for side in (mine, theirs)
    ]
    shared = set.intersection(*(set(values) for side in sides for values in side))
    items = [item for item in sides[0][0] if item in shared]
    one, other = (
        np.array([[values[i] for i in items] for values in side], dtype=float) for side in sides
    )
    return one, other


def _seeds(groups: dict[Key, Seeds], method: str, split: str, at: str) -> Seeds:
    """Rows of a method on a split by seed, seeds in order; empty where it was not measured."""
    found = next((group for key, group in groups.items() if key[:3] == (method, split, at)), {})
    return dict(sorted(found.items(), key=lambda pair: -1 if pair[0] is None else pair[0]))


def _grouped(rows: Rows) -> dict[Key, Seeds]:
    """Rows by (method, split, at, alpha), then by seed, items in order. At equal KL every seed has
    an alpha of its own: the key's is None there."""
    groups: dict[Key, Seeds] = {}
    for row in rows:
        alpha = None if row["at"] == "equal_kl" else row["alpha"]
        key = (row["method"], row["split"], row["at"], alpha)
        groups.setdefault(key, {}).setdefault(row["seed"], []).append(row)
    return groups


def _alpha(groups: Iterable[Rows]) -> float:
    """Mean alpha over seeds."""
    return float(np.mean([group[0]["alpha"] for group in groups]))


def _column(rows: Rows, metric: str) -> np.ndarray:
    return np.array([r[metric] for r in rows], dtype=float)


def _interval(values: np.ndarray, within: Range) -> dict[str, float | None]:
    """Mean and 95 % interval as fields of a line; nulls where a value is not finite."""
    if not np.isfinite(values).all():
        return {"value": None, "ci_low": None, "ci_high": None}
    return _bounds(mean_interval(values, within))


def _bounds(interval: Interval) -> dict[str, float | None]:
    return {
        "value": interval.value,
        "ci_low": _number(interval.low),
        "ci_high": _number(interval.high),
    }


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return float(value) if np.isfinite(value) else None
