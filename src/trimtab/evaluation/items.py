"""Scores by item, and what alphas may be: what all measuring shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from trimtab.batching import Encoded
from trimtab.errors import ConfigError, ModelError
from trimtab.states import Readings


@dataclass(frozen=True)
class ItemScores:
    """Scores of I items, each a mean over the item's pairs.

    Attributes:
        items: names, in order of first appearance.
        pairs: pairs of each item.
        accuracy: share of pairs whose chosen answer has the higher mean log-prob a token, EOS
            included; a tie counts one half, a NaN is wrong.
        accuracy_sum: the same with summed log-probs.
        accuracy_choice: 1 where the item's chosen answers beat all of their rejected ones by mean
            log-prob; where the best they do is tie with k of them, 1 / (1 + k), as a draw would be right.
        margin: mean log-prob of chosen minus rejected, in nats a token.
        preference: summed log-prob of chosen minus rejected, in nats.
    """

    items: tuple[str, ...]
    pairs: np.ndarray
    accuracy: np.ndarray
    accuracy_sum: np.ndarray
    accuracy_choice: np.ndarray
    margin: np.ndarray
    preference: np.ndarray


def logps_of(found: Readings) -> tuple[np.ndarray, np.ndarray]:
    """Log-probs of answers in nats, float64: summed, and a token."""
    assert found.logps is not None
    assert found.tokens is not None
    total = found.logps.double().numpy()
    return total, total / found.tokens.numpy()


METRICS = ("accuracy", "accuracy_sum", "accuracy_choice", "margin")


def item_scores(encoded: Encoded, found: Readings) -> ItemScores:
    """Scores from the log-probs of an encoded set's answers."""
    total, mean = logps_of(found)
    chosen, rejected = (at.numpy() for at in encoded.pair_answers())
    items = [row.item for row in encoded.rows for _ in row.pairs]
    by_item: dict[str, list[np.ndarray]] = {}
    for item, c, r in zip(items, chosen, rejected, strict=True):
        by_item.setdefault(item, []).append(np.array([mean[c] - mean[r], total[c] - total[r]]))
    margins = [np.array(values) for values in by_item.values()]
    return ItemScores(
        items=tuple(by_item),
        pairs=np.array([len(m) for m in margins]),
        accuracy=np.array([_right(m[:, 0]).mean() for m in margins]),
        accuracy_sum=np.array([_right(m[:, 1]).mean() for m in margins]),
        accuracy_choice=np.array([won(m[:, 0]) for m in margins]),
        margin=np.array([m[:, 0].mean() for m in margins]),
        preference=np.array([m[:, 1].mean() for m in margins]),
    )


def _right(margin: np.ndarray) -> np.ndarray:
    """1 above zero, one half at zero, 0 below and for NaN."""
    return np.where(margin > 0, 1.0, np.where(margin == 0, 0.5, 0.0))


def won(margin: np.ndarray) -> float:
    """1 where every margin is above zero, 1 / (1 + k) with k at zero, 0 with one below or NaN. A half
    for any tie would have a score that is the same for all answers be right half of the time."""
    return 1 / (1 + np.sum(margin == 0)) if np.all(margin >= 0) else 0.0


def numbers(values: Tensor, what: str) -> Tensor:
    """The values; raises ModelError where one is a NaN or infinite, which ranks nothing."""
    if not values.isfinite().all():
        raise ModelError(
            f"{what} that are no numbers: they overflow in the model's dtype (try --dtype float32), "
            "or a dial is turned too far"
        )
    return values


def check_alphas(alphas: Sequence[float]) -> None:
    """Raise ConfigError unless there is at least one alpha and all are finite."""
    if not len(alphas) or not all(math.isfinite(a) for a in alphas):
        shown = " ".join(f"{a:g}" for a in alphas) or "nothing"
        raise ConfigError(f"alpha: expected finite numbers, at least one, given {shown}")
