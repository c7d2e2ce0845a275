"""Scores of STS-B: what the harness needs beside `stsb.yaml`."""

from __future__ import annotations

from typing import Any

from scipy import stats


def process_results(doc: dict[str, Any], results: list[Any]) -> dict[str, tuple[float, float]]:
    """The chosen number and the annotators' mean, for both correlations."""
    scores = [r[0] if isinstance(r, tuple | list) else r for r in results]
    pair = (float(max(range(len(scores)), key=scores.__getitem__)), float(doc["label"]))
    return {"pearson": pair, "spearman": pair}


def pearson(items: list[tuple[float, float]]) -> float:
    """Pearson's correlation; 0 where every choice is the same."""
    return _correlation(stats.pearsonr, items)


def spearman(items: list[tuple[float, float]]) -> float:
    """Spearman's rank correlation; 0 where every choice is the same."""
    return _correlation(stats.spearmanr, items)


def _correlation(kind: Any, items: list[tuple[float, float]]) -> float:
    chosen, wanted = zip(*items, strict=True)
    if len(set(chosen)) < 2 or len(set(wanted)) < 2:
        return 0.0
    return float(kind(chosen, wanted)[0])
