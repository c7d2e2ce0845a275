"""Dial kinds by the name that `dial.json` gives them."""

from __future__ import annotations

from typing import Any

from trimtab.dials.adapter import AdapterDial
from trimtab.dials.concept import ConceptDial
from trimtab.dials.logits import LogitsDial
from trimtab.dials.reward import RewardDial
from trimtab.dials.rotation import RotationDial
from trimtab.dials.tuners import DeloraDial, IA3Dial, RoadDial, VeraDial
from trimtab.dials.vector import VectorDial

TUNERS: dict[str, Any] = {
    "lora": AdapterDial,
    "ia3": IA3Dial,
    "road": RoadDial,
    "vera": VeraDial,
    "delora": DeloraDial,
}
"""Adapters by the name of what is tuned."""

KINDS: dict[str, Any] = {
    dial.kind: dial
    for dial in (
        VectorDial,
        RotationDial,
        ConceptDial,
        LogitsDial,
        RewardDial,
        *TUNERS.values(),
    )
}
