"""Dials: small modules that lean a model towards a preference, at a strength alpha."""

from trimtab.dials.adapter import AdapterDial
from trimtab.dials.attach import Alpha, Edit
from trimtab.dials.dial import Dial, DialInfo
from trimtab.dials.logits import LogitsDial
from trimtab.dials.reward import RewardDial
from trimtab.dials.vector import VectorDial

__all__ = [
    "AdapterDial",
    "Alpha",
    "Dial",
    "DialInfo",
    "Edit",
    "LogitsDial",
    "RewardDial",
    "VectorDial",
]
