"""Losses on readouts: tensors in, a loss a pair out. No model, no tokenizer, no file."""

from trimtab.objectives.base import Objective
from trimtab.objectives.inner import InnerDPO
from trimtab.objectives.output import DPO
from trimtab.objectives.steering import ContrastiveSteering

__all__ = ["DPO", "ContrastiveSteering", "InnerDPO", "Objective"]
