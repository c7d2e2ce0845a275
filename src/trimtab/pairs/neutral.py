"""Neutral text, written for this project, on which damage to a model is measured."""

from __future__ import annotations

from .written import written

NEUTRAL: tuple[str, ...] = tuple(written("neutral")["passages"])
"""Passages of plain prose, 60 to 90 words each, that no preference is about."""

GENERATION_PROMPTS: tuple[str, ...] = tuple(written("neutral")["prompts"])
"""Everyday questions and requests, to show what a model says."""
