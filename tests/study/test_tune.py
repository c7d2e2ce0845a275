"""Tuning: what is searched, that no evaluation split is read, resuming, what is refused."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers_study import Commands, trimtab, write_suite
from trimtab.errors import ConfigError
from trimtab.progress import Progress
from trimtab.study.settings import read_settings
from trimtab.study.suite import read_suite
from trimtab.study.tune import (
    Range,
    Search,
    _write,
    best,
    parameters_of,
    parse_parameters,
    tune,
)
from trimtab.training import METHODS

pytest.importorskip("optuna")


@pytest.fixture(scope="module")
def here(tmp_path_factory, tiny, tokenizer) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("tune")
    tiny("llama").save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    write_suite(folder, train=12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_CACHE", str(folder / "cache"))
        yield folder


def search(here: Path, **changes: Any) -> Search:
    start = Search(
        suite=str(here / "suite.yaml"), model=str(here / "model"), device="cpu", trials=4
    )
    return replace(start, **changes)


class Told(Progress):
    """Keeps its lines."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def found(here) -> Path:
    told = Told()
    folder = tune("dpo", search(here), here / "dpo", command="trimtab tune dpo", progress=told)
    best_line = r"dpo: the best of 4 trials is number \d, with accuracy [\d.]+, margin -?[\d.e-]+"
    assert re.fullmatch(best_line, told.lines[-1])
    assert sum(line.startswith("training dpo: loss ") for line in told.lines) == 4
    return folder


def test_what_is_searched():
    dpo = parameters_of(METHODS["dpo"])
    assert dpo == {"train.learning_rate": Range(1e-5, 5e-3), "objective.beta": Range(0.01, 1.0)}
    inner = parameters_of(METHODS["innerdpo"])
    assert inner["train.learning_rate"] == dpo["train.learning_rate"], "the same range for all"
    assert "objective.beta_inner" in inner
    assert list(parameters_of(METHODS["mean"])) == ["sites"]


def test_the_first_trial_is_the_method_as_it_stands(found):
    trials = [json.loads(line) for line in (found / "trials.jsonl").read_text().splitlines()]
    assert [t["trial"] for t in trials] == [0, 1, 2, 3]
    assert trials[0]["settings"] == {"train.learning_rate": 5e-4, "objective.beta": 0.1}
    assert len({json.dumps(t["settings"]) for t in trials}) == 4
    for trial in trials:
        assert 1e-5 <= trial["settings"]["train.learning_rate"] <= 5e-3
        assert 0 <= trial["accuracy"] <= 1
    assert not list(found.glob("trials/*/dial")), "weights of trials are not kept"


def test_the_result_is_read_by_compare_and_by_fit(found, here, tmp_path):
    trials = [json.loads(line) for line in (found / "trials.jsonl").read_text().splitlines()]
    settings = read_settings([found / "recipe.yaml"])
    chosen: Any = settings.method("dpo").recipe
    assert chosen.train.learning_rate == best(trials)["settings"]["train.learning_rate"]
    assert settings.trials == {"dpo": 4}
    words = ["--model", here / "model", "--pairs", f"jsonl:{here}/train.jsonl", "--device", "cpu"]
    out = tmp_path / "dial"
    done = trimtab("fit", "dpo", "--config", found / "fit.yaml", *words, "--out", out, "--quiet")
    assert done.code == 0, done.err
    config = json.loads((out / "dial.json").read_text())["config"]
    assert config["train"]["learning_rate"] == chosen.train.learning_rate


def test_the_evaluation_splits_are_never_read(here, tmp_path):
    """They need not even be there."""
    content = yaml.safe_load((here / "suite.yaml").read_text())
    content["evaluate"] = {"test": "jsonl:nowhere.jsonl"}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(content))
    tune("mean", search(here, suite=str(tmp_path / "suite.yaml"), trials=1), tmp_path / "out")


def test_more_trials_go_on(found, here, tmp_path):
    import shutil

    shutil.copytree(found, tmp_path / "more")
    tune("dpo", search(here, trials=5), tmp_path / "more", command="trimtab tune dpo")
    trials = (tmp_path / "more" / "trials.jsonl").read_text().splitlines()
    assert len(trials) == 5
    assert trials[:4] == (found / "trials.jsonl").read_text().splitlines()


def test_killed_it_ends_with_the_same_trials(found, here, tmp_path):
    commands = Commands(here / "cache-of-commands")
    words = ["tune", "dpo", "--suite", f"{here}/suite.yaml", "--model", f"{here}/model"]
    words += ["--device", "cpu", "--trials", "4", "--quiet", "--out", f"{tmp_path}/killed"]
    try:
        for at in (25, 60, 90):
            commands.run(*words, signal_at=(signal.SIGKILL, at, 0.01))
        assert commands.run(*words, err=tmp_path / "err") == 0, (tmp_path / "err").read_text()
    finally:
        commands.close()
    settings = [
        [json.loads(line)["settings"] for line in (run / "trials.jsonl").read_text().splitlines()]
        for run in (found, tmp_path / "killed")
    ]
    assert settings[0] == settings[1]


def test_ties_go_to_the_larger_margin():
    trials = [
        {"trial": 0, "accuracy": 0.5, "margin": 9.0},
        {"trial": 1, "accuracy": 0.7, "margin": 0.1},
        {"trial": 2, "accuracy": 0.7, "margin": 0.2},
        {"trial": 3, "accuracy": 0.7, "margin": None},
    ]
    assert best(trials)["trial"] == 2


def test_parameters_of_ones_own():
    given = ["train.learning_rate=1e-5..1e-3", "dial.rank=4,8"]
    assert parse_parameters(given, METHODS["dpo"]) == {
        "train.learning_rate": Range(1e-5, 1e-3),
        "dial.rank": ("4", "8"),
    }


@pytest.mark.parametrize(
    ("changes", "method", "message"),
    [
        ({"trials": 0}, "dpo", "trials is 0; expected 1 or more"),
        ({}, "dppo", "unknown method 'dppo'; did you mean 'dpo'"),
        ({}, "random", "nothing to tune"),
        ({"suite": "fatcs"}, "dpo", "no suite 'fatcs'"),
        ({"limit": 3}, "dpo", "3 items; tuning needs at least 8"),
        ({"parameters": ("x",)}, "dpo", "expected NAME=LOW..HIGH"),
        ({"parameters": ("train.learning_rate=2..1",)}, "dpo", "LOW above 0 and below HIGH"),
        ({"parameters": ("train.rate=1..2",)}, "dpo", "no setting 'rate'"),
    ],
)
def test_what_is_refused_before_the_model_loads(here, tmp_path, changes, method, message):
    with pytest.raises(ConfigError, match=message):
        tune(method, search(here, **changes), tmp_path / "out")


def test_another_search_is_not_mixed_in(found, here, tmp_path):
    with pytest.raises(ConfigError, match="holds another search"):
        tune("innerdpo", search(here), found)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        tune("dpo", search(here), tmp_path)


def test_without_optuna(here, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"trimtab\[tune\]"):
        tune("dpo", search(here), tmp_path / "out")


@pytest.mark.parametrize(
    ("start", "settings"),
    [
        ("mine", "mine: {method: innerdpo, objective: {align: logodds}}"),
        ("innerdpo", "innerdpo: {train: {epochs: 1.0}}"),
    ],
)
def test_what_a_search_started_from_is_kept(tmp_path, start, settings):
    """The file of a tuned variation describes all of it, so that a comparison can read it."""
    file = tmp_path / "start.yaml"
    file.write_text(f"settings: {{{settings}}}")
    named = read_settings([file]).method(start)
    trial = {"trial": 0, "settings": {"train.learning_rate": 2e-3}, "accuracy": 0.5, "margin": 0.1}
    result = tmp_path / "trials" / "000-x" / "result.json"
    result.parent.mkdir(parents=True)
    result.write_text(json.dumps(trial))
    _write(tmp_path, Search(trials=1), named, read_suite("facts"), "")
    found = read_settings([tmp_path / "recipe.yaml"]).method(start)
    rate = replace(named.recipe.train, learning_rate=2e-3)
    assert found.recipe == replace(named.recipe, train=rate)
    assert yaml.safe_load((tmp_path / "fit.yaml").read_text())["train"]["learning_rate"] == 2e-3
