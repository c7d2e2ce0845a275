"""Dial kinds by the name that `dial.json` gives them."""

from __future__ import annotations

from typing import Any

from trimtab.dials.adapter import AdapterDial
from trimtab.dials.logits import LogitsDial
from trimtab.dials.reward import RewardDial
from trimtab.dials.vector import VectorDial

KINDS: dict[str, Any] = {
    dial.kind: dial for dial in (VectorDial, AdapterDial, LogitsDial, RewardDial)
}
