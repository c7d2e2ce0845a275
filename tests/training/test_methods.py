"""The table of methods: digests of settings stay as they were, and a new objective takes two steps."""

from __future__ import annotations

import json
from pathlib import Path

from trimtab.training.methods import METHODS
from trimtab.training.run import recipe_digest
from trimtab.training.steering import PUBLISHED


def test_settings_have_the_digests_that_they_had():
    """Keys of finished cells are made of them. Written down at 7bdd3df; a method whose defaults are
    changed on purpose gets a new line, and the log says why."""
    known = json.loads(Path(__file__).with_name("method_digests.json").read_text())
    recipes = {name: m.recipe for name, m in METHODS.items()} | PUBLISHED
    assert {name: recipe_digest(r)[:16] for name, r in recipes.items()} == known
