"""From per-item scores to the result files: means with intervals, dose–response, verdicts."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from trimtab.evaluation.dose import slopes
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
from trimtab.study.files import Rows
from trimtab.study.lines import alone, compared, judged, line
from trimtab.study.results import ALPHA_1, BASE, EQUAL_KL, Difference, Measurement

SCORES = ("accuracy", "accuracy_sum", "accuracy_choice", "margin")
DAMAGE = ("kl", "nll_rise")
WITHIN: dict[str, Range] = {"margin": UNBOUNDED, "nll_rise": UNBOUNDED, "kl": POSITIVE}
"""What values of a metric lie between, where they are no shares."""
JUDGED = ("accuracy", "margin")
"""Metrics of which methods are compared, each a table of its own."""
NOTHING = Interval(0.0, 0.0, 0.0)
"""Damage at 0, where nothing is attached: exactly none."""
BASELINE, MEAN = "dpo", "mean"
STEERED = "steerability"
COMPARED = (ALPHA_1, EQUAL_KL)
"""Where dials are compared."""
Key = tuple[str, str, str, float | None]
"""Method, split, where, alpha (None at equal KL)."""
Seeds = dict[int | None, Rows]
"""Rows by seed."""


def results(rows: Rows, common: Mapping[str, Any]) -> list[Measurement]:
    """A mean with its interval for every method, split, alpha and metric, a seed each, and over seeds
    where there are several; then the summaries of the dose-response.

    Args:
        common: what all lines share: `model`, `suite`, …
    """
    lines: list[Measurement] = []
    for (method, split, at, _), seeds in _grouped(rows).items():
        first = next(iter(seeds.values()))
        idle = split == "neutral" and not any(part[0]["alpha"] for part in seeds.values())
        for metric in DAMAGE if split == "neutral" else SCORES:
            tables = {seed: _column(part, metric) for seed, part in seeds.items()}
            for seed, values in _with_all(tables).items():
                found = NOTHING if idle else _interval(values, WITHIN.get(metric, SHARE))
                of: dict[str, Any] = {"method": method, "split": split, "metric": metric}
                of |= {"seed": seed, "aggregate": seed is None and None not in seeds}
                of["alpha"] = _alpha(seeds.values() if seed is None else [seeds[seed]])
                of["at"] = at if at in COMPARED else None
                of["pairs"] = None if split == "neutral" else sum(r["pairs"] for r in first)
                lines.append(line(found, **of, items=len(first), **common))
    return lines + dose_summaries(rows, common)


def _with_all(tables: dict[int | None, np.ndarray]) -> dict[int | None, np.ndarray]:
    """Values by seed, and of several seeds those of all."""
    if len(tables) > 1 and None not in tables:
        return {**tables, None: np.stack(list(tables.values()))}
    return tables


Curves = tuple[list[float], list[Any], dict[int | None, np.ndarray]]
"""Alphas, items, and values [items, alphas] by seed."""


def dose_summaries(rows: Rows, common: Mapping[str, Any]) -> list[Measurement]:
    """Slope, straightness and monotonicity of each method's dose-response of the margin, a seed
    each, and over seeds where there are several; slope and wrong way of the summed log-ratio."""
    lines: list[Measurement] = []
    for metric, summed in (("margin", _response), ("preference", _steered)):
        for method, (alphas, items, values) in _curves(rows, metric).items():
            for seed, table in _with_all(values).items():
                if not np.isfinite(table).all():
                    continue
                of = {"method": method, "split": "dose", "items": len(items), **common}
                of |= {"seed": seed, "aggregate": seed is None and None not in values}
                lines += [
                    line(figure, metric=m, **of) for m, figure in summed(alphas, table).items()
                ]
    return lines


def _curves(rows: Rows, metric: str) -> dict[str, Curves]:
    """Values of a metric over alpha by method, the bare model's at 0."""
    given = [  # cells of earlier versions have no sums
        r for r in rows if r["split"] == "dose" and r.get(metric) is not None
    ]
    base = {r["item"]: r[metric] for r in given if r["method"] == BASE}
    made: dict[str, Curves] = {}
    for method in dict.fromkeys(r["method"] for r in given if r["method"] != BASE):
        curves: dict[int | None, dict[float, dict[str, float]]] = {}
        for r in given:
            if r["method"] == method:
                curve = curves.setdefault(r["seed"], {0.0: base} if base else {})
                curve.setdefault(r["alpha"], {})[r["item"]] = r[metric]
        alphas = sorted(next(iter(curves.values())))
        items = list(next(iter(curves.values()))[alphas[0]])
        if len(alphas) > 1:
            values = {
                s: np.array([[c[a][i] for a in alphas] for i in items]) for s, c in curves.items()
            }
            made[method] = (alphas, items, values)
    return made


def steered(rows: Rows, common: Mapping[str, Any]) -> list[Difference]:
    """Steerability of every method less that of the mean difference and of DPO, on the same items, as one
    table."""
    found: dict[str, Seeds] = {
        method: {
            seed: [
                {"item": item, STEERED: slope}
                for item, slope in zip(items, slopes(alphas, table.T).tolist(), strict=True)
            ]
            for seed, table in values.items()
        }
        for method, (alphas, items, values) in _curves(rows, "preference").items()
        if all(np.isfinite(table).all() for table in values.values())
    }
    lines: list[Difference] = []
    for against, method in product((MEAN, BASELINE), found):
        if against in found and method != against:
            mine, theirs = _same_items(found[method], found[against], STEERED)
            labels: dict[str, Any] = {"method": method, "against": against, "metric": STEERED}
            labels |= {"split": "dose", "alpha": None, "at": None, **common}
            lines.append(compared(mine, theirs, within=UNBOUNDED, **labels))
    return judged(lines)


def _response(alphas: Sequence[float], table: np.ndarray) -> dict[str, Interval]:
    found = dose_response(alphas, table)
    others = ("r2", "monotone", "rising")
    return {"slope": found.slope, **{m: alone(getattr(found, m)) for m in others}}


def _steered(alphas: Sequence[float], table: np.ndarray) -> dict[str, Interval]:
    """Of values [items, alphas] or [seeds, items, alphas]."""
    found = slopes(alphas, table.reshape(-1, len(alphas)).T).reshape(table.shape[:-1])
    return {
        STEERED: mean_interval(found),
        "wrong_way": mean_interval((1 - np.sign(found)) / 2, SHARE),
    }


def verdicts(
    rows: Rows,
    methods: Sequence[str],
    splits: Sequence[str],
    common: Mapping[str, Any],
    alphas: Sequence[float] = (),
) -> list[Difference]:
    """Every other method against DPO on every split, at alpha 1 and at equal KL, and every method against
    the bare model at each of `alphas`; p-values adjusted by Holm over each of the three tables, for either
    metric."""
    gains = differences(rows, methods, splits, common, BASE, alphas)
    told = judged_apart(differences(rows, methods, splits, common))
    return [*told, *judged_apart(gains, lambda line: line.metric)]


def differences(
    rows: Rows,
    methods: Sequence[str],
    splits: Sequence[str],
    common: Mapping[str, Any],
    baseline: str = BASELINE,
    places: Sequence[str | float] = COMPARED,
) -> list[Difference]:
    """Lines without verdicts: every method less the baseline on every split, on the same items, at each
    of some places, or alphas; accuracies, then mean margins.

    Seeds are paired by their number. One for which a method never reached DPO's KL is left out of
    the comparison at equal KL, on both sides; so is an item that one side dropped as over-long.
    """
    groups = _grouped(rows)
    lines: list[Difference] = []
    for metric, place, method, split in product(JUDGED, places, methods, splits):
        theirs = _seeds(groups, baseline, split, ALPHA_1)
        mine = _seeds(groups, method, split, place)
        if None not in {*mine, *theirs}:
            both = [seed for seed in mine if seed in theirs]
            mine, theirs = ({s: group[s] for s in both} for group in (mine, theirs))
        if method == baseline or not theirs or not mine:
            continue
        values, against = _same_items(mine, theirs, metric)
        sides = [*values.values(), *against.values()]
        if len(sides[0]) and (metric not in WITHIN or np.isfinite(sides).all()):
            at = place if place in COMPARED else ALPHA_1 if place == 1 else None
            where = {"split": split, "alpha": _alpha(mine.values()), "at": at}
            labels = {"method": method, "against": baseline, "metric": metric}
            within = WITHIN.get(metric, SHARE)
            lines.append(compared(values, against, within=within, **labels, **where, **common))
    return lines


def judged_apart(
    lines: Sequence[Difference],
    table: Callable[[Difference], Hashable] = lambda line: (line.metric, line.at),
) -> list[Difference]:
    """Lines of one study or of many with verdicts: all lines of a metric at one place are one table."""
    tables: dict[Hashable, list[int]] = {}
    for i, each in enumerate(lines):
        tables.setdefault(table(each), []).append(i)
    told = {
        i: line
        for places in tables.values()
        for i, line in zip(places, judged([lines[i] for i in places]), strict=True)
    }
    return [told[i] for i in range(len(lines))]


def elicitation(
    rows: Rows, capability: dict[str, Rows], methods: Sequence[str], common: Mapping[str, Any]
) -> list[Measurement]:
    """GENIES' metric a split and method, and the capability that it is a share of (see `genies`).

    The interval joins those of the gain and of the capability as if they were independent (their
    relative half-widths add in squares).

    Args:
        capability: by split, rows of the model that was trained on that split's reference.
    """
    groups, lines = _grouped(rows), []

    def told(method: str, split: str, metric: str, found: Interval, seeds: Seeds) -> Measurement:
        (first, items), several = next(iter(seeds.items())), len(seeds) > 1
        of = {"method": method, "split": split, "metric": metric, "items": len(items), **common}
        of |= {"seed": None if several else first, "aggregate": several}
        return line(found, **of, alpha=1.0, at=ALPHA_1)

    for split, reached in capability.items():
        seeds = _seeds(_grouped(reached), BASELINE, "capability", ALPHA_1)
        base = _seeds(groups, BASE, split, ALPHA_1)
        if not seeds or not base:
            continue
        top = mean_interval([_column(part, "accuracy_choice") for part in seeds.values()], SHARE)
        lines.append(told(BASELINE, split, "capability", top, seeds))
        for method in methods:
            mine = _seeds(groups, method, split, ALPHA_1)
            if not mine or not top.value > 0:
                continue
            values, starts = _same_items(mine, base, "accuracy_choice")
            gain = paired_difference([*values.values()], [*starts.values()], SHARE)
            share, start = gain.value / top.value, np.mean([*starts.values()])
            half = (
                np.hypot((gain.high - gain.low) / 2, share * (top.high - top.low) / 2) / top.value
            )
            least, most = -start / top.value, (1 - start) / top.value
            found = Interval(share, max(share - half, least), min(share + half, most))
            lines.append(told(method, split, "elicitation", found, mine))
    return lines


def _same_items(
    mine: Seeds, theirs: Seeds, metric: str = "accuracy"
) -> tuple[dict[int | None, list[float]], dict[int | None, list[float]]]:
    """The values by seed of the items that both sides have."""
    sides = [
        {seed: {r["item"]: r[metric] for r in part} for seed, part in side.items()}
        for side in (mine, theirs)
    ]
    parts = [values for side in sides for values in side.values()]
    shared = [item for item in parts[0] if all(item in part for part in parts)]
    one, other = (
        {seed: [float(values[i]) for i in shared] for seed, values in side.items()}
        for side in sides
    )
    return one, other


def _seeds(groups: dict[Key, Seeds], method: str, split: str, place: str | float) -> Seeds:
    """Rows of a method on a split at a place or an alpha by seed, seeds in order; empty where it was not
    measured."""
    found = next((g for k, g in groups.items() if k[:2] == (method, split) and place in k[2:]), {})
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


def _interval(values: np.ndarray, within: Range) -> Interval:
    """Mean and 95 % interval; not a number where a value is not finite, as of a dial turned up until the
    model breaks."""
    return mean_interval(values, within) if np.isfinite(values).all() else alone(np.nan)
