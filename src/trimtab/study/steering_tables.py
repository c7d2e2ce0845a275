"""What follows from the cells of `dose`: slopes with intervals, comparisons at equal damage, curves.

Items and passages are both resampled, and alike in every cell of a trait, so that differences of two
cells are paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from trimtab.evaluation.dose import (
    antisymmetry,
    binary_log_ratio_correlation,
    damage_dose,
    score,
    slopes,
    straightness,
    wrong_way,
)
from trimtab.statistics import BOOTSTRAP_SEED, QUANTILES, SHARE, Interval, mean_interval
from trimtab.study.files import Rows

DRAWS = 2000
RANDOM, PROMPT = "random", "prompt"


def results(cells: Sequence[dict[str, Any]], model: str) -> Rows:
    """A row a cell.

    `slope` is in nats a token of log-ratio for one alpha, `per_damage` for one root nat of KL (see
    `evaluate.dose`); `score` is the latter times R² times the square of the valid share. Ends of 95 %
    intervals are `…_low` and `…_high`.
    """
    rows = []
    for cell in cells:
        alphas, y, valid, _, dose = _arrays(cell)
        weights = _weights(y.shape[1], len(cell["kl_passages"][0]))
        moved = np.ptp(dose) > 0
        item_slopes = slopes(dose, y) if moved else np.full(y.shape[1], np.nan)
        r2 = straightness(dose, y) if moved else np.nan
        share = float(valid.mean())
        per_damage = float(item_slopes.mean())
        published = [
            binary_log_ratio_correlation(alphas, line, ok)
            for line, ok in zip(y.T, valid.T, strict=True)
        ]
        row: dict[str, Any] = {"model": model, **{k: cell[k] for k in ("name", "method", "seed")}}
        row |= {"aggregate": False, "half": cell["half"], "kind": cell["kind"]}
        row |= {
            "alpha": float(alphas[cell["matched"][1]]),
            "kl_up": cell["kl"][cell["matched"][1]],
            "kl_down": cell["kl"][cell["matched"][0]],
            **_interval("swing", mean_interval(_swing(cell))),
            "reached": cell.get("reached", True),
            **_interval("slope", mean_interval(slopes(alphas, y))),
            **_interval("per_damage", _of_draws(per_damage, slope_draws(cell, weights))),
            "r2": r2,
            "valid": share,
            **_interval(
                "score", _of_draws(score(per_damage, r2, share), score_draws(cell, weights))
            ),
            "antisymmetry": antisymmetry(alphas, y),
            **_interval(
                "wrong_way",
                mean_interval((1 - np.sign(item_slopes)) / 2, SHARE)
                if moved
                else Interval(wrong_way(item_slopes), np.nan, np.nan),
            ),
            "published_slope": _mean(p.slope for p in published),
            "published_r2": _mean(p.r2 for p in published),
            "published_valid_fraction": _mean(p.valid_fraction for p in published),
            "published_score": float(np.mean([np.nan_to_num(p.score) for p in published])),
            "seconds": cell["seconds"],
            "cpu_seconds": cell["cpu_seconds"],
            "items": y.shape[1],
            "passages": len(cell["kl_passages"][0]),
        }
        rows.append({k: _plain(v) for k, v in row.items()})
    return rows


def comparisons(cells: Sequence[dict[str, Any]]) -> Rows:
    """Differences from the controls, items (and passages) paired: `difference` of the slopes per unit
    damage; `swing` of what the two doses do to the log-ratio, (y(1) - y(-1)) / 2, where the damage of
    both is the same.

    `against` is `random`, `prompt`, or for the second of two halves the first: then the difference is
    noise alone. `random` is the mean of the random directions, each turned the way it leans: their
    signs mean nothing, and a direction that knows the trait has to do more than one that does not.
    """
    if not cells:
        return []
    weights = _weights(len(cells[0]["items"]), len(cells[0]["kl_passages"][0]))
    one = _weights(len(cells[0]["items"]), len(cells[0]["kl_passages"][0]), whole=True)
    draws = {c["name"]: slope_draws(c, weights) for c in cells}
    value = {c["name"]: float(slope_draws(c, one)[0]) for c in cells}
    swings = {c["name"]: _swing(c) for c in cells}
    if names := [c["name"] for c in cells if c["method"] == RANDOM]:
        lean = {n: -1.0 if value[n] < 0 else 1.0 for n in names}
        swings[RANDOM] = np.mean([lean[n] * swings[n] for n in names], axis=0)
        draws[RANDOM] = np.mean([lean[n] * draws[n] for n in names], axis=0)
        value[RANDOM] = float(np.mean([abs(value[n]) for n in names]))
    rows = []
    for cell in cells:
        name = cell["name"]
        if cell["half"] == "first":
            continue
        rivals = [r for r in (RANDOM, PROMPT) if r in draws and cell["method"] != r]
        if cell["half"]:
            rivals = [f"{cell['method']}-first"]
        for rival in rivals:
            found = _of_draws(value[name] - value[rival], draws[name] - draws[rival])
            row = {"name": name, "against": rival, **_interval("difference", found)}
            row |= _interval("swing", mean_interval(swings[name] - swings[rival]))
            rows.append({k: _plain(v) for k, v in row.items()})
    return rows


def curves(cells: Sequence[dict[str, Any]]) -> Rows:
    """A row a cell and dose: change of the mean log-ratio from 0 with its interval, and the damage."""
    rows = []
    for cell in cells:
        alphas, y, valid, _, dose = _arrays(cell)
        base = y[int(np.argmin(np.abs(alphas)))]
        for a, alpha in enumerate(alphas):
            mean = mean_interval if alpha else _nothing
            row = {
                "name": cell["name"],
                "alpha": float(alpha),
                "dose": float(dose[a]),
                **_interval("shift", mean(y[a] - base)),
                **_interval("kl", mean(cell["kl_passages"][a])),
                **_interval("nll_rise", mean(cell["nll_rise_passages"][a])),
                "valid": float(valid[a].mean()),
            }
            rows.append({k: _plain(v) for k, v in row.items()})
    return rows


def _nothing(values: Any) -> Interval:
    """At 0 nothing is attached: every change is exactly 0."""
    return Interval(0.0, 0.0, 0.0)


# ---- resampling ---------------------------------------------------------------------------------

Weights = tuple[Float[np.ndarray, "draws items"], Float[np.ndarray, "draws passages"]]


def _weights(items: int, passages: int, *, whole: bool = False) -> Weights:
    """Shares of items and of passages in each draw; with `whole` one draw, the sample itself."""
    if whole:
        return np.full((1, items), 1 / items), np.full((1, passages), 1 / passages)
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    return tuple(  # type: ignore[return-value]
        rng.multinomial(n, np.full(n, 1 / n), size=DRAWS) / n for n in (items, passages)
    )


def slope_draws(cell: dict[str, Any], weights: Weights) -> Float[np.ndarray, "draws"]:
    """The slope per unit damage in every draw; NaN where the dial did no damage at all."""
    slope, _, _ = _fits(cell, weights)
    return slope


def score_draws(cell: dict[str, Any], weights: Weights) -> Float[np.ndarray, "draws"]:
    """The composite in every draw."""
    slope, r2, valid = _fits(cell, weights)
    return slope * r2 * valid**2


def _fits(cell: dict[str, Any], weights: Weights) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Slope, R² and valid share in every draw, as `evaluate.dose` has them."""
    alphas, y, valid, kl, _ = _arrays(cell)
    of_items, of_passages = weights
    x = damage_dose(alphas[:, None], kl @ of_passages.T)  # dose draw
    x = x - x.mean(0)
    sxx = (x**2).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = (x * (y @ of_items.T)).sum(0) / sxx
        within = of_items @ ((y - y.mean(0)) ** 2).sum(0)
        r2 = slope**2 * sxx / within
    return slope, r2, of_items @ valid.mean(0)


def _swing(cell: dict[str, Any]) -> Float[np.ndarray, "items"]:
    """What a cell does at the prompt's damage: half the log-ratios' way from one end to the other."""
    low, high = cell["matched"]
    y = np.array(cell["ratio"], float)
    return (y[high] - y[low]) / 2


def _arrays(cell: dict[str, Any]) -> tuple[np.ndarray, ...]:
    """Alphas [dose], ratios [dose, item], valid [dose, item], KL [dose, passage], doses [dose]."""
    alphas = np.array(cell["alphas"], float)
    y, valid, kl = (np.array(cell[k], float) for k in ("ratio", "valid", "kl_passages"))
    return alphas, y, valid, kl, damage_dose(alphas, kl.mean(1))


def _of_draws(value: float, draws: np.ndarray) -> Interval:
    """A percentile interval; none where draws are not finite."""
    if not np.isfinite(draws).all():
        return Interval(value, np.nan, np.nan)
    low, high = np.quantile(draws, QUANTILES)
    return Interval(value, float(low), float(high))


def _interval(name: str, found: Interval) -> dict[str, float]:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def _mean(values: Any) -> float:
    finite = [v for v in values if np.isfinite(v)]
    return float(np.mean(finite)) if finite else float("nan")


def _plain(value: Any) -> Any:
    """JSON has no NaN: null."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value
