"""What the tests of the language models share."""

from __future__ import annotations

import dataclasses
from types import ModuleType

import pytest

from trimtab.studies.anchoring import language, language_study


def smaller(patch: pytest.MonkeyPatch, module: ModuleType, kind: type) -> None:
    """An experiment with a smaller model, on fewer texts, at two strengths."""
    setup = dataclasses.replace(module.SETUP, width=16, layers=2, batch=8)
    patch.setattr(module, "SETUP", setup)
    patch.setattr(kind, "setup", setup)
    for where in (language, language_study):
        patch.setattr(where, "ALPHAS", (0.5, 1.0))
