"""What else a dial changes: a panel of properties beside the preference, each a figure an item."""

from trimtab.panel.file import BUILT_IN, read_panel
from trimtab.panel.properties import (
    PROPERTIES,
    Bbq,
    Choices,
    Neutral,
    Property,
    Refusal,
    Texts,
    Truth,
)
from trimtab.panel.run import Arm, Change, Panel, PanelOn, changes, measure, read_items
from trimtab.panel.values import Values, ratio

__all__ = [
    "BUILT_IN",
    "PROPERTIES",
    "Arm",
    "Bbq",
    "Change",
    "Choices",
    "Neutral",
    "Panel",
    "PanelOn",
    "Property",
    "Refusal",
    "Texts",
    "Truth",
    "Values",
    "changes",
    "measure",
    "ratio",
    "read_items",
    "read_panel",
]
