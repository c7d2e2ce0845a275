"""Dials: small modules that lean a model towards a preference, at a strength alpha."""

from trimtab.dials.adapter import AdapterDial
from trimtab.dials.attach import Alpha, Edit
from trimtab.dials.concept import ConceptDial
from trimtab.dials.conflicts import Conflict, conflicts
from trimtab.dials.dial import Composed, Dial
from trimtab.dials.logits import LogitsDial
from trimtab.dials.low_rank import DeloraDial, VeraDial
from trimtab.dials.reft import ReftDial
from trimtab.dials.reward import RewardDial
from trimtab.dials.rotation import RotationDial
from trimtab.dials.saved import DialInfo
from trimtab.dials.tuners import IA3Dial, RoadDial
from trimtab.dials.vector import VectorDial
from trimtab.dials.where import Condition

__all__ = [
    "AdapterDial",
    "Alpha",
    "Composed",
    "ConceptDial",
    "Condition",
    "Conflict",
    "DeloraDial",
    "Dial",
    "DialInfo",
    "Edit",
    "IA3Dial",
    "LogitsDial",
    "ReftDial",
    "RewardDial",
    "RoadDial",
    "RotationDial",
    "VectorDial",
    "VeraDial",
    "conflicts",
]
