"""Methods with other settings: from YAML files, as JSON for workers, on the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers_study import SMALL, trimtab, write_suite
from trimtab.errors import ConfigError
from trimtab.study.settings import as_json, configured, from_json, read_settings
from trimtab.training import METHODS


@pytest.mark.parametrize("name", METHODS)
def test_every_method_comes_back_from_json(name):
    method = METHODS[name]
    assert from_json(json.loads(json.dumps(as_json(method)))) == method


def test_a_variation_comes_back_from_json():
    recipe: Any = METHODS["dpo"].recipe
    recipe = replace(recipe, train=replace(recipe.train, learning_rate=1e-3, max_steps=3))
    varied = replace(METHODS["dpo"], name="dpo-fast", recipe=recipe)
    text = json.dumps(as_json(varied))
    assert json.loads(text)["method"] == "dpo"
    assert from_json(json.loads(text)) == varied


def test_settings_reach_into_parts():
    recipe = METHODS["dpo"].recipe
    by_dot = configured(recipe, {"train.epochs": 3, "objective.beta": "2e-1"}, "x")
    nested = configured(recipe, {"train": {"epochs": 3.0}, "objective": {"beta": 0.2}}, "x")
    assert by_dot == nested
    assert (by_dot.train.epochs, by_dot.objective.beta) == (3.0, 0.2)
    assert by_dot.dial == recipe.dial  # type: ignore[union-attr]
    assert configured(METHODS["mean"].recipe, {"sites": 0.4}, "x").sites == "0.4"


def write(tmp_path: Path, content: Any, name: str = "a.yaml") -> Path:
    file = tmp_path / name
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return file


def test_files_of_settings(tmp_path):
    file = write(
        tmp_path,
        "settings:\n  dpo: {train: {learning_rate: 1e-4}}\n"
        "  low: {method: innerdpo, objective.sites: 0.1..0.5}\n  mean:\n"
        "tuned:\n  dpo: {trials: 7}\n",
    )
    found = read_settings([file])
    dpo: Any = found.method("dpo").recipe
    assert dpo.train.learning_rate == 1e-4
    low: Any = found.method("low")
    assert (low.name, low.recipe.objective.sites) == ("low", "0.1..0.5")
    assert found.method("mean") == METHODS["mean"]
    assert found.method("pca") == METHODS["pca"]
    assert found.trials == {"dpo": 7}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("settings: [dpo]", "expected the key settings"),
        ("methods: {}", "expected the key settings"),
        ("[", "not YAML"),
        ("a", "expected keys and values"),
        ("settings: {dpo: 3}", "dpo: expected settings, given 3"),
        ("settings: {dppo: {}}", "no method 'dppo'; did you mean 'dpo'"),
        ("settings: {x: {method: nope}}", "no method 'nope'"),
        ("settings: {a b: {method: dpo}}", "a name is made of"),
        ("settings: {dpo: {trian: {}}}", "no setting 'trian'; did you mean 'train'"),
        ("settings: {dpo: {train: {epohcs: 1}}}", "train: no setting 'epohcs'; did you mean"),
        ("settings: {dpo: {train: 3}}", "train: expected settings, given 3"),
        ("settings: {dpo: {train: {epochs: many}}}", "epochs: expected a number, given 'many'"),
        ("settings: {dpo: {dial: {rank: 1.5}}}", "rank: expected a whole number, given 1.5"),
        ("settings: {dpo: {train: {epochs: -1}}}", "epochs is -1"),
        ("settings: {dpo: {train: 3, train.epochs: 1}}", "train is given twice"),
    ],
)
def test_files_that_are_wrong(tmp_path, content, message):
    with pytest.raises(ConfigError, match=message):
        read_settings([write(tmp_path, content)])


def test_two_files_may_not_describe_one_name(tmp_path):
    files = [write(tmp_path, {"settings": {"dpo": {}}}, f"{n}.yaml") for n in "ab"]
    with pytest.raises(ConfigError, match="described by another file, too"):
        read_settings(files)


def test_a_file_may_hold_a_whole_comparison(tmp_path, saved_model, monkeypatch):
    """`compare --config FILE` with per-method settings."""
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    file = write(
        tmp_path,
        {
            "models": [str(saved_model())],
            "suites": [str(write_suite(tmp_path))],
            "methods": ["dpo", "dpo-short"],
            "settings": {"dpo-short": {"method": "dpo", "train": {"max_steps": 1}}},
            "title": "A title",
        },
        "all.yaml",
    )
    words = ["compare", "--config", file, "--out", tmp_path / "run", "--device", "cpu", *SMALL]
    done = trimtab(*words)
    assert done.code == 0, done.err
    study = json.loads((tmp_path / "run" / "study.json").read_text())
    assert (list(study["methods"]), study["title"]) == (["dpo", "dpo-short"], "A title")
    curves = (tmp_path / "run" / "curves.jsonl").read_text().splitlines()
    steps = {c["method"]: c["step"] for c in map(json.loads, curves)}
    assert steps["dpo-short"] == 1 < steps["dpo"]
    wrong = write(tmp_path, {"settings": {"dppo": {}}}, "wrong.yaml")
    refused = trimtab("compare", "--config", wrong, "--out", tmp_path / "other")
    assert refused.code == 2
    assert "no method 'dppo'" in refused.err
