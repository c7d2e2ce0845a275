"""What follows from the cells of `dose`: slopes with intervals, comparisons at equal damage, curves.

Items and passages are both resampled, and alike in every cell of a trait, so that differences of two
cells are paired.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from trimtab.study.lines import UNTESTED, alone, line
from trimtab.study.results import EQUAL_KL, PERSONA, Difference, Measurement, Row

DRAWS = 2000
RANDOM, PROMPT = "random", "prompt"
"""Methods of cells; lines call the latter `persona`."""
PUBLISHED = ("slope", "r2", "valid_fraction", "score")


def results(cells: Sequence[Row], common: Row) -> list[Measurement]:
    """The figures of every cell: `swing` at equal damage; summaries over doses; and at each alpha the
    change of the mean log-ratio from 0 (`shift`), the damage, and the share of valid answers.

    `slope` is in nats a token of log-ratio for one alpha, `per_damage` for one root nat of KL (see
    `evaluate.dose`); `score` is the latter times R² times the square of the valid share.
    """
    return [line for cell in cells for line in (*_summaries(cell, common), *_curve(cell, common))]


def _line(
    cell: Row, common: Row, metric: str, found: Interval, split: str = "test", **more: Any
) -> Measurement:
    items = len(cell["kl_passages" if split == "neutral" else "ratio"][0])
    short = Interval(*(float(f"{x:.6g}") for x in found))
    return line(short, **{**common, **named(cell), **more}, split=split, metric=metric, items=items)


def named(cell: Row) -> Row:
    """Method and seed of a cell, as lines have them: a half has a name of its own."""
    method = {PROMPT: PERSONA, RANDOM: RANDOM}.get(cell["method"], cell["name"])
    drawn = cell["method"] in (RANDOM, "rotation", "contrastive")
    return {"method": method, "seed": cell["seed"] if drawn else None}


def _summaries(cell: Row, common: Row) -> Iterator[Measurement]:
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
    swing = mean_interval(_swing(cell))
    at = {"alpha": float(f"{alphas[cell['matched'][1]]:.6g}"), "at": EQUAL_KL}
    yield _line(cell, common, "swing", swing, **at)
    wrong = (
        mean_interval((1 - np.sign(item_slopes)) / 2, SHARE)
        if moved
        else alone(wrong_way(item_slopes))
    )
    composite = score(per_damage, r2, share)
    told = {
        "slope": mean_interval(slopes(alphas, y)),
        "per_damage": _of_draws(per_damage, slope_draws(cell, weights)),
        "r2": alone(r2),
        "valid": alone(share),
        "score": _of_draws(composite, score_draws(cell, weights)),
        "antisymmetry": alone(antisymmetry(alphas, y)),
        "wrong_way": wrong,
        **{
            f"published_{name}": alone(_mean(getattr(p, name) for p in published))
            for name in PUBLISHED[:-1]
        },
        "published_score": alone(float(np.mean([np.nan_to_num(p.score) for p in published]))),
    }
    for metric, found in told.items():
        yield _line(cell, common, metric, found)


def _curve(cell: Row, common: Row) -> Iterator[Measurement]:
    alphas, y, valid, _, dose = _arrays(cell)
    base = y[int(np.argmin(np.abs(alphas)))]
    for a, alpha in enumerate(alphas):
        mean = mean_interval if alpha else _nothing
        for metric, split, found in (
            ("shift", "test", mean(y[a] - base)),
            ("kl", "neutral", mean(cell["kl_passages"][a])),
            ("nll_rise", "neutral", mean(cell["nll_rise_passages"][a])),
            ("valid", "test", alone(float(valid[a].mean()))),
            ("dose", "neutral", alone(float(dose[a]))),
        ):
            yield _line(cell, common, metric, found, split, alpha=float(f"{alpha:.6g}"))


def comparisons(cells: Sequence[Row], common: Row) -> list[Difference]:
    """Differences from the controls, items (and passages) paired: `per_damage`, of the slopes per unit
    damage; `swing` of what the two doses do to the log-ratio, (y(1) - y(-1)) / 2, where the damage of
    both is the same.

    `against` is `random`, `persona`, or for the second of two halves the first: then the difference is
    noise alone. `random` is the mean of the random directions, each turned the way it leans: their
    signs mean nothing, and a direction that knows the trait has to do more than one that does not.
    """
    if not cells:
        return []
    sizes = len(cells[0]["items"]), len(cells[0]["kl_passages"][0])
    weights, one = _weights(*sizes), _weights(*sizes, whole=True)
    draws = {c["name"]: slope_draws(c, weights) for c in cells}
    value = {c["name"]: float(slope_draws(c, one)[0]) for c in cells}
    swings = {c["name"]: _swing(c) for c in cells}
    if names := [c["name"] for c in cells if c["method"] == RANDOM]:
        lean = {n: -1.0 if value[n] < 0 else 1.0 for n in names}
        swings[RANDOM] = np.mean([lean[n] * swings[n] for n in names], axis=0)
        draws[RANDOM] = np.mean([lean[n] * draws[n] for n in names], axis=0)
        value[RANDOM] = float(np.mean([abs(value[n]) for n in names]))
    lines = []
    for cell in cells:
        name, half = cell["name"], cell["half"]
        others = [r for r in (RANDOM, PROMPT) if r in draws and cell["method"] != r]
        for rival in {"first": [], "second": [f"{cell['method']}-first"]}.get(half, others):
            slope = _of_draws(value[name] - value[rival], draws[name] - draws[rival])
            swing = mean_interval(swings[name] - swings[rival])
            for metric, found, at in (("per_damage", slope, None), ("swing", swing, EQUAL_KL)):
                own = vars(_line(cell, common, metric, found, at=at)).items()
                shared = {f: v for f, v in own if f in Difference.__dataclass_fields__}
                against = {"against": PERSONA if rival == PROMPT else rival, "seeds": 1}
                lines.append(Difference(**shared | against | UNTESTED))
    return lines


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


def _mean(values: Any) -> float:
    finite = [v for v in values if np.isfinite(v)]
    return float(np.mean(finite)) if finite else float("nan")
