"""Which samples carry a concept: labels 0..1 from metadata, keywords or a small classifier, and how
often they are wrong. A few labels on a fraction of a percent of the data are enough to anchor.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

from trimtab.errors import ConfigError, DataError

Labeller = Callable[[str], float]
"""A text to its label, 0..1."""


def from_metadata(rows: Iterable[Mapping[str, Any]], field: str, value: Any) -> list[float]:
    """1 where a row's `field` is `value`, else 0.

    Raises:
        DataError: a row without the field; its number is given.
    """
    found = []
    for number, row in enumerate(rows, 1):
        if field not in row:
            raise DataError(f"row {number}: no field {field!r} (it has {', '.join(row)})")
        found.append(float(row[field] == value))
    return found


@dataclass(frozen=True)
class Keywords:
    """1 where a text holds one of the words (whole words, whatever their case), else 0."""

    words: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.words:
            raise ConfigError("a keyword labeller needs at least one word")

    def __call__(self, text: str) -> float:
        """The label."""
        pattern = "|".join(re.escape(word) for word in self.words)
        return float(bool(re.search(rf"\b(?:{pattern})\b", text, re.IGNORECASE)))


@dataclass(frozen=True)
class BagOfWords:
    """A naive Bayes classifier on words, made from a few labelled texts: a stand-in for any
    sentiment or topic classifier."""

    log_odds: Mapping[str, float]
    """How much each word speaks for the concept."""
    bias: float
    """What speaks for it before any word."""
    threshold: float = 0.5
    """Probability from which a text is labelled."""

    @classmethod
    def fit(
        cls, texts: Sequence[str], labels: Sequence[float], threshold: float = 0.5
    ) -> BagOfWords:
        """From texts and their labels, with one added count a word.

        Raises:
            DataError: only one class among the labels.
        """
        counts = (Counter[str](), Counter[str]())
        for text, label in zip(texts, labels, strict=True):
            counts[int(label > 0.5)].update(set(words(text)))
        with_it = sum(label > 0.5 for label in labels)
        if not 0 < with_it < len(labels):
            raise DataError("a classifier needs texts with the concept and texts without it")
        sizes = (len(labels) - with_it, with_it)
        odds = {
            word: math.log((counts[1][word] + 1) / (sizes[1] + 2))
            - math.log((counts[0][word] + 1) / (sizes[0] + 2))
            for word in counts[0] | counts[1]
        }
        return cls(odds, math.log(sizes[1] / sizes[0]), threshold)

    def score(self, text: str) -> float:
        """Probability of the concept."""
        total = self.bias + sum(self.log_odds.get(word, 0.0) for word in set(words(text)))
        return 1 / (1 + math.exp(-max(-500.0, min(500.0, total))))

    def __call__(self, text: str) -> float:
        """The label."""
        return float(self.score(text) >= self.threshold)


def words(text: str) -> list[str]:
    """Lower-case words of a text."""
    return re.findall(r"[a-z']+", text.lower())


@dataclass(frozen=True)
class ErrorRate:
    """How often a labeller is right, measured on texts whose truth is known."""

    recall: float
    """Share of the texts with the concept that it labels."""
    false_positives: float
    """Share of the texts without it that it labels all the same."""
    texts: int
    """How many were looked at."""

    def __str__(self) -> str:
        return (
            f"recall {self.recall:.1%}, false positives {self.false_positives:.2%} "
            f"on {self.texts} texts"
        )


def error_rate(labels: Sequence[float], truth: Sequence[float]) -> ErrorRate:
    """The error rate of labels against the truth.

    Raises:
        DataError: the truth holds only one class.
    """
    given, true = np.asarray(labels) > 0.5, np.asarray(truth) > 0.5
    if true.all() or not true.any():
        raise DataError("an error rate needs texts with the concept and texts without it")
    return ErrorRate(float(given[true].mean()), float(given[~true].mean()), len(true))


def noisy(
    truth: Sequence[float], *, recall: float, false_positives: float, seed: int = 0
) -> list[float]:
    """Labels as a labeller with these error rates would give them; each sample has its own draw.

    Raises:
        ConfigError: a rate outside 0..1.
    """
    for name, rate in (("recall", recall), ("false_positives", false_positives)):
        if not 0 <= rate <= 1:
            raise ConfigError(f"{name} {rate}: expected 0..1")
    draws = np.random.default_rng(seed).random(len(truth))
    true = np.asarray(truth) > 0.5
    return np.where(true, draws < recall, draws < false_positives).astype(float).tolist()


def auroc(scores: Sequence[float], labels: Sequence[float]) -> float:
    """Area under the ROC curve: how likely a labelled sample scores above an unlabelled one, ties
    half. NaN where there is only one class."""
    values, positive = np.asarray(scores, dtype=float), np.asarray(labels) > 0.5
    n, m = int(positive.sum()), int((~positive).sum())
    if not n or not m:
        return math.nan
    return float((rankdata(values)[positive].sum() - n * (n + 1) / 2) / (n * m))
