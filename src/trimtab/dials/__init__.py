"""Dials: small modules that lean a model towards a preference, at a strength alpha."""

from trimtab.dials.adapter import AdapterDial
from trimtab.dials.attach import Alpha, Edit
from trimtab.dials.concept import ConceptDial
from trimtab.dials.dial import Dial, DialInfo
from trimtab.dials.vector import VectorDial

__all__ = ["AdapterDial", "Alpha", "ConceptDial", "Dial", "DialInfo", "Edit", "VectorDial"]
