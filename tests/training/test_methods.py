"""The table of methods: digests of settings stay as they were, and a new objective takes two steps."""

from __future__ import annotations

import importlib
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from helpers_fit import random_pairs
from trimtab.cli.fit import _parse
from trimtab.dials import Dial
from trimtab.errors import ConfigError
from trimtab.objectives import DPO, MSE
from trimtab.study.settings import as_json, from_json, read_settings
from trimtab.study.tune import parameters_of
from trimtab.training import METHODS, fit, method
from trimtab.training.methods import listed
from trimtab.training.recipes import Recipe
from trimtab.training.run import recipe_digest
from trimtab.training.settings import AdapterSettings, TrainSettings
from trimtab.training.steering import PUBLISHED


def test_settings_have_the_digests_that_they_had():
    """Keys of finished cells are made of them. Written down at 7bdd3df; a method whose defaults are
    changed on purpose gets a new line, and the log says why."""
    known = json.loads(Path(__file__).with_name("method_digests.json").read_text())
    recipes = {name: m.recipe for name, m in METHODS.items()} | PUBLISHED
    assert {name: recipe_digest(r)[:16] for name, r in recipes.items()} == known


# ---- a new objective: a class, and a row in the table ---------------------------------------------


HEADER = """
from dataclasses import dataclass

import torch.nn.functional as F

from trimtab.bounds import Positive
from trimtab.objectives.base import Loss, Terms, require
from trimtab.objectives.output import log_ratio
from trimtab.readout import Needs, Readout
from trimtab.training.recipes import Recipe

"""


@pytest.fixture
def hinge(monkeypatch, tmp_path):
    """The method of CONTRIBUTING.md's two blocks: the class in a module, the row in the table."""
    text = Path(__file__).parents[2].joinpath("CONTRIBUTING.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    loss, row = (block for block in blocks if "Hinge" in block)
    file = tmp_path / "hinge.py"
    file.write_text(f"{HEADER}{loss}\nROWS = {{}}\n{row}\n")
    monkeypatch.syspath_prepend(tmp_path)
    ((name, row),) = importlib.import_module("hinge").ROWS.items()
    monkeypatch.setitem(METHODS, name, made := listed(name, *row))
    yield made
    del sys.modules["hinge"]


def test_a_new_objective_is_fitted(hinge, tiny, tokenizer, tmp_path):
    train = TrainSettings(pairs_per_step=4, max_steps=6, epochs=9, learning_rate=3e-3)
    named = replace(hinge, recipe=replace(hinge.recipe, train=train))
    dial = fit(named, tiny("llama", fresh=True), tokenizer, random_pairs(8), out=tmp_path / "dial")
    curve = [json.loads(line) for line in (tmp_path / "dial/training.jsonl").open()]
    assert curve[0]["loss"] == 1.0, "policy and reference agree at the start"
    assert curve[-1]["loss"] < 1.0
    saved = Dial.from_pretrained(tmp_path / "dial")
    assert saved.info == dial.info
    assert saved.info.method == "hinge"
    assert saved.info.config["objective"]["margin"] == 1.0


def test_a_new_objective_has_flags_help_settings_and_a_digest(hinge, tmp_path, capsys):
    words = ["--pairs", "facts:train", "--out", str(tmp_path / "dial"), "--objective.margin", "2"]
    args = _parse(method("hinge"), words)
    assert args.recipe == replace(
        hinge.recipe, objective=replace(hinge.recipe.objective, margin=2.0)
    )
    with pytest.raises(SystemExit):
        _parse(method("hinge"), ["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert re.search(r"costs nothing, in nats\.[^.]*above 0[^.]*default: 1\.0", shown)
    with pytest.raises(ConfigError, match=r"objective\.margin is 0\.0; expected a number above 0"):
        _parse(method("hinge"), [*words[:-1], "0"])
    assert as_json(hinge)["method"] == "hinge"
    assert from_json(json.loads(json.dumps(as_json(hinge)))) == hinge
    file = tmp_path / "settings.yaml"
    file.write_text("settings:\n  wide: {method: hinge, objective.margin: 3}\n")
    assert read_settings([file]).method("wide").recipe.objective == replace(
        hinge.recipe.objective, margin=3.0
    )
    assert recipe_digest(args.recipe) != recipe_digest(hinge.recipe)
    assert "objective.margin" not in parameters_of(hinge)
    assert method("hinge").seeded


def test_classes_of_earlier_versions_make_the_same_recipes():
    from trimtab.training.head_recipes import IAVRecipe  # pyright: ignore[reportMissingImports]

    from trimtab.training.recipes import DPORecipe, InnerDPORecipe, PrefVecRecipe, TrainingRecipe

    assert DPORecipe(train=TrainSettings(epochs=1.0)) == Recipe(
        DPO(), train=TrainSettings(epochs=1.0)
    )
    assert DPORecipe(DPO(beta=0.2)).objective.beta == 0.2
    assert IAVRecipe() == METHODS["iav"].recipe
    assert isinstance(METHODS["projgrad"].recipe, DPORecipe)
    assert not isinstance(METHODS["ipo"].recipe, DPORecipe)
    assert isinstance(METHODS["hs-svd-innerdpo"].recipe, InnerDPORecipe)
    assert isinstance(PrefVecRecipe(), TrainingRecipe)


def test_a_combination_without_a_row_is_named_for_its_objective(tiny, tokenizer):
    recipe = Recipe(MSE(sites="1"), AdapterSettings("ia3"), TrainSettings(max_steps=1))
    dial = fit(recipe, tiny("llama", fresh=True), tokenizer, random_pairs(4))
    assert (dial.info.method, dial.kind) == ("mse", "ia3")
    with pytest.raises(ConfigError, match="expected a Recipe"):
        fit(AdapterSettings(), tiny("llama", fresh=True), tokenizer, random_pairs(4))  # type: ignore[arg-type]
