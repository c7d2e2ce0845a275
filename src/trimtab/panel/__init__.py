"""What else a dial changes: a panel of properties beside the preference, each a figure an item."""

from trimtab.panel.file import BUILT_IN, read_panel
from trimtab.panel.properties import PROPERTIES, Bbq, Choices, Property, Refusal, Texts, Truth
from trimtab.panel.run import Arm, Change, changes, measure
from trimtab.panel.values import Values, ratio

__all__ = [
    "BUILT_IN",
    "PROPERTIES",
    "Arm",
    "Bbq",
    "Change",
    "Choices",
    "Property",
    "Refusal",
    "Texts",
    "Truth",
    "Values",
    "changes",
    "measure",
    "ratio",
    "read_panel",
]
