"""Intervals, paired differences and verdicts from per-item scores: arrays in, numbers out."""

from trimtab.statistics.curves import DoseResponse, dose_response
from trimtab.statistics.intervals import (
    BOOTSTRAP_SEED,
    Difference,
    Interval,
    Spread,
    mean_interval,
    paired_difference,
    spread,
)
from trimtab.statistics.pooling import Pooled, pooled, share_a_nat, standard_error
from trimtab.statistics.scores import POSITIVE, QUANTILES, SHARE, UNBOUNDED, Range, Score
from trimtab.statistics.verdicts import Verdict, holm, judged, verdict

__all__ = [
    "BOOTSTRAP_SEED",
    "POSITIVE",
    "QUANTILES",
    "SHARE",
    "UNBOUNDED",
    "Difference",
    "DoseResponse",
    "Interval",
    "Pooled",
    "Range",
    "Score",
    "Spread",
    "Verdict",
    "dose_response",
    "holm",
    "judged",
    "mean_interval",
    "paired_difference",
    "pooled",
    "share_a_nat",
    "spread",
    "standard_error",
    "verdict",
]
