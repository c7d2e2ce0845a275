"""Interventions: functions on hidden states. No model, no file.

`falloffs` says how strongly, `concepts` acts on the direction of a concept.
"""

from trimtab.interventions.concepts import project, redirect, reflect, repel, suppress
from trimtab.interventions.falloffs import Bezier, Falloff, Linear

__all__ = ["Bezier", "Falloff", "Linear", "project", "redirect", "reflect", "repel", "suppress"]
