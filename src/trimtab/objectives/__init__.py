"""Losses on readouts: tensors in, a loss a pair out. No model, no tokenizer, no file."""

from trimtab.objectives.base import Objective
from trimtab.objectives.contrastive import ContrastiveSteering
from trimtab.objectives.inner import MSE, PrefVec, Rank
from trimtab.objectives.innerdpo import InnerDPO
from trimtab.objectives.output import DPO, IPO, ORPO, PlackettLuce, SimPO
from trimtab.objectives.reps import RePS
from trimtab.objectives.steering import NLL, ReprPOMargin

__all__ = [
    "DPO",
    "IPO",
    "MSE",
    "NLL",
    "ORPO",
    "ContrastiveSteering",
    "InnerDPO",
    "Objective",
    "PlackettLuce",
    "PrefVec",
    "Rank",
    "RePS",
    "ReprPOMargin",
    "SimPO",
]
