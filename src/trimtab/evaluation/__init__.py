"""Measuring a dial: preference accuracy, damage, dose–response, generations. Scores per item; what
they mean together is `study`'s business."""

from trimtab.damage import Damage, NeutralText, alpha_at_kl
from trimtab.evaluation.calibration import Calibration, calibrate, parse_budget
from trimtab.evaluation.generation import Generation, Sampling, generate
from trimtab.evaluation.items import ItemScores
from trimtab.evaluation.scores import score

__all__ = [
    "Calibration",
    "Damage",
    "Generation",
    "ItemScores",
    "NeutralText",
    "Sampling",
    "alpha_at_kl",
    "calibrate",
    "generate",
    "parse_budget",
    "score",
]
