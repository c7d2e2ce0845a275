"""What a dose of a dial does to a binary log-ratio, as functions on arrays.

y[a, i] = mean log p(answer that shows the trait) - mean log p(answer that does not), in nats a token,
of item i at dose a: both answers are given (teacher-forced), nothing is drawn. A dose x is alpha, or
the damage that it did (`damage_dose`), so that dials of any kind and a prompt stand on one axis.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike

from trimtab.batching import Encoded
from trimtab.states import Readings
from trimtab.statistics import SHARE, Interval, mean_interval

LOST = 1.0
"""A pair of answers counts as valid while the likelier one has lost no more than this, in nats a
token: beyond it the model says neither, and their ratio says nothing of what it says."""


class LogRatios(NamedTuple):
    """Of every item: the log-ratio of its answers, and the mean log-prob of the likelier one, both in
    nats a token; means over the item's pairs."""

    ratio: Float[np.ndarray, "items"]
    best: Float[np.ndarray, "items"]


def log_ratios(encoded: Encoded, found: Readings) -> LogRatios:
    """Log-ratios from the log-probs of an encoded set's answers (end marker included)."""
    assert found.logps is not None
    assert found.tokens is not None
    mean = found.logps.double().numpy() / found.tokens.numpy()
    by_item: dict[str, list[tuple[float, float]]] = {}
    for offset, row in zip(encoded.answer_offsets, encoded.rows, strict=False):
        for c, r in row.pairs:
            chosen, rejected = mean[offset + c], mean[offset + r]
            by_item.setdefault(row.item, []).append((chosen - rejected, max(chosen, rejected)))
    table = np.array([np.mean(pairs, axis=0) for pairs in by_item.values()])
    return LogRatios(table[:, 0], table[:, 1])


def valid_answers(best: ArrayLike, base: ArrayLike) -> Bool[np.ndarray, "doses items"]:
    """Where the log-ratio still means something (see `LOST`).

    Args:
        best: mean log-prob of the likelier answer, `[doses, items]`.
        base: the same of the bare model, `[items]`.
    """
    best, base = np.asarray(best, float), np.asarray(base, float)
    with np.errstate(invalid="ignore"):
        return np.isfinite(best) & (best >= base - LOST)


def damage_dose(alphas: ArrayLike, kl: ArrayLike) -> Float[np.ndarray, "doses"]:
    """Damage as a dose: sign(alpha) x root of KL. KL grows as alpha squared, its root as alpha.

    Args:
        alphas: `[doses]`.
        kl: mean KL from the bare model at each, in nats a token; rounding below 0 counts as 0.
    """
    return np.sign(np.asarray(alphas, float)) * np.sqrt(np.maximum(np.asarray(kl, float), 0.0))


def slopes(doses: ArrayLike, values: ArrayLike) -> Float[np.ndarray, "items"]:
    """Least-squares slope of every item over the doses.

    Args:
        doses: `[doses]`, at least two of them different.
        values: `[doses, items]`.

    Raises:
        ValueError: all doses are the same, or shapes do not fit.
    """
    x, y = _curve(doses, values)
    centred = x - x.mean()
    return centred @ y / (centred @ centred)


def straightness(doses: ArrayLike, values: ArrayLike) -> float:
    """R²: share of the values' variance within items that one line for all of them explains, 0 to 1.

    Items differ in where they start; that is taken out. NaN where no item moves.
    """
    x, y = _curve(doses, values)
    centred, moved = x - x.mean(), y - y.mean(0)
    total = float((moved**2).sum())
    if total <= 1e-24 * max(1.0, float((y**2).sum())):
        return float("nan")
    slope = float(slopes(x, y).mean())
    return slope**2 * float(centred @ centred) * y.shape[1] / total


def score(slope: float, r2: float, valid: float) -> float:
    """The composite, with its sign: slope x R² x (valid share)²."""
    return slope * r2 * valid**2


def antisymmetry(alphas: ArrayLike, values: ArrayLike) -> float:
    """How far -alpha does the opposite of alpha: 1 wholly, 0.5 no relation, 0 where both ends do the
    same.

    Of every item and every alpha of which the opposite was measured, too, the odd part of the
    change from 0 is (y(a) - y(-a)) / 2 and the even part (y(a) + y(-a)) / 2 - y(0); this is the sum
    of squares of the odd parts over that of both. NaN where nothing moves.

    Args:
        alphas: `[doses]`, 0 and at least one alpha with its opposite among them.
        values: `[doses, items]`.

    Raises:
        ValueError: there is no 0, or no opposite.
    """
    x, y = _curve(alphas, values)
    at = {round(float(a), 9): row for a, row in zip(x, y, strict=True)}
    ups = [a for a in at if a > 0 and -a in at]
    if 0.0 not in at or not ups:
        raise ValueError(f"alphas {sorted(at)}: expected 0, and an alpha with its opposite")
    odd = sum(float((((at[a] - at[-a]) / 2) ** 2).sum()) for a in ups)
    even = sum(float((((at[a] + at[-a]) / 2 - at[0.0]) ** 2).sum()) for a in ups)
    return odd / (odd + even) if odd + even > 0 else float("nan")


class Steerability(NamedTuple):
    """How far a dial moves the choice between two given answers (Tan et al. 2024, section 3).

    `slopes`: of each item, in nats for one unit of alpha. `slope`: their mean, which is the slope of the
    mean, over items. `wrong_way`: share of items that are moved away, ties one half.
    """

    slopes: Float[np.ndarray, "items"]
    slope: Interval
    wrong_way: Interval


def steerability(alphas: ArrayLike, preferences: ArrayLike) -> Steerability:
    """Least-squares slopes of items over alpha.

    Args:
        alphas: `[doses]`, at least two of them different.
        preferences: `[doses, items]`, summed log-prob of the answer that shows the trait less that of the
            other, the mean over an item's pairs (`ItemScores.preference`): both orders of a lettered
            question, or else a liking for one letter looks like a slope.
    """
    found = slopes(alphas, preferences)
    return Steerability(found, mean_interval(found), mean_interval((1 - np.sign(found)) / 2, SHARE))


def wrong_way(item_slopes: ArrayLike) -> float:
    """Share of items that the dial moves away from the trait; one that does not move counts half."""
    return float(((1 - np.sign(np.asarray(item_slopes, float))) / 2).mean())


class Published(NamedTuple):
    """The binary log-ratio correlation of one question, as published."""

    slope: float
    r2: float
    valid_fraction: float
    score: float


def binary_log_ratio_correlation(
    alphas: ArrayLike, ratios: ArrayLike, valid: ArrayLike | None = None
) -> Published:
    """wassname/repeng's evaluation of one question: |slope| x R² x valid_fraction².

    A line through the valid log-ratios over sign(c) log1p|c|. The sign of the slope does not enter
    the score: a vector that works the wrong way round scores as well. There the ratio is read from
    one drawn answer a strength; ours come from given answers.

    Args:
        alphas: `[doses]`, the strengths c.
        ratios: `[doses]`.
        valid: `[doses]`, which of them count; all by default.

    Returns:
        All NaN but the valid fraction with fewer than three valid points or one strength alone; R²
        and score NaN where the ratio never changes.
    """
    x, y = np.asarray(alphas, float), np.asarray(ratios, float)
    ok = np.isfinite(y) if valid is None else np.asarray(valid, bool) & np.isfinite(y)
    share = float(ok.mean())
    x, y = (np.sign(x) * np.log1p(np.abs(x)))[ok], y[ok]
    if len(x) < 3 or np.ptp(x) == 0:
        return Published(np.nan, np.nan, share, np.nan)
    dx, dy = x - x.mean(), y - y.mean()
    slope = float(dx @ dy / (dx @ dx))
    r2 = float((dx @ dy) ** 2 / ((dx @ dx) * (dy @ dy))) if dy @ dy > 0 else float("nan")
    return Published(slope, r2, share, abs(slope) * r2 * share**2)


def _curve(
    doses: ArrayLike, values: ArrayLike
) -> tuple[Float[np.ndarray, "doses"], Float[np.ndarray, "doses items"]]:
    x, y = np.asarray(doses, float).reshape(-1), np.asarray(values, float)
    if y.ndim != 2 or len(y) != len(x) or not y.shape[1]:
        raise ValueError(f"values of shape {y.shape} for {len(x)} doses; expected [doses, items]")
    if not np.isfinite(x).all() or np.ptp(x) == 0:
        raise ValueError("doses must be finite, and at least two of them different")
    return x, y
