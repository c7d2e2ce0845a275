"""Every named method: runs, lowers its own loss, and differs from all that are not declared equal."""

from __future__ import annotations

import dataclasses
import json
import math
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import _tokenizer, build
from helpers_fit import files_of, random_pairs, relative
from trimtab.dials import AdapterDial, Dial
from trimtab.errors import ConfigError
from trimtab.objectives import InnerDPO
from trimtab.pairs import read_pairs
from trimtab.training import METHODS, fit, method
from trimtab.training.recipes import InnerDPORecipe, InnerRecipe, Recipe
from trimtab.training.settings import (
    AdapterSettings,
    SpaceSettings,
    TrainSettings,
    VectorSettings,
)

TRAINED = [
    name for name, m in METHODS.items() if isinstance(m.recipe, Recipe) and not m.recipe.head
]
STEPS = 10
tiny_llama = cache(partial(build, "llama"))


def short(name: str, steps: int = STEPS, **train: Any) -> Any:
    """The method, in few steps, its spaces of a size that a tiny model has room for."""
    named = METHODS[name]
    settings = {"pairs_per_step": 8, "max_steps": steps, "epochs": 99.0, "learning_rate": 3e-3}
    lora = isinstance(named.recipe.dial, AdapterSettings)
    small = {"rank": 2, "lora_alpha": 4} if lora else {"rank": 4}
    small = {} if isinstance(named.recipe.dial, VectorSettings) else small
    changes: dict[str, Any] = {
        "dial": dataclasses.replace(named.recipe.dial, **small),
        "train": TrainSettings(**{**settings, **train}),
    }
    if isinstance(named.recipe, InnerRecipe):
        rank = 4 if named.recipe.space.kind in ("hra", "suppressed") else None
        changes["space"] = dataclasses.replace(named.recipe.space, rank=rank)
    return dataclasses.replace(named, recipe=dataclasses.replace(named.recipe, **changes))


class Runs(dict[str, tuple[Dial, list[dict[str, float]]]]):
    """A method's dial and curve, ten steps on a tiny model: fitted when it is asked for."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __missing__(self, name: str) -> tuple[Dial, list[dict[str, float]]]:
        dial = fit(short(name), tiny_llama(), _tokenizer(), random_pairs(8), out=self.folder / name)
        lines = (self.folder / name / "training.jsonl").read_text().splitlines()
        self[name] = (dial, [json.loads(line) for line in lines])
        return self[name]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Every trained method's dial and curve."""
    return Runs(tmp_path_factory.mktemp("recipes"))


def test_every_published_combination_is_there():
    wanted = {
        f"hs-{space}-{loss}"
        for space in ("none", "svd", "ortho", "hra", "ether", "suppressed")
        for loss in ("mse", "prefvec", "rank", "innerdpo")
    }
    wanted |= {f"side-none-{loss}" for loss in ("mse", "prefvec", "rank", "innerdpo")}
    wanted |= {"projgrad", "projbp", "dpo", "ipo", "simpo", "orpo", "innerdpo", "mean", "pca"}
    assert wanted <= set(METHODS)
    assert all(m.what and m.where for m in METHODS.values())


@pytest.mark.parametrize("name", TRAINED)
def test_ten_steps_lower_the_loss(runs, name):
    _, curve = runs[name]
    assert len(curve) == STEPS
    assert all(math.isfinite(v) for record in curve for v in record.values())
    assert min(record["loss"] for record in curve[-3:]) < curve[0]["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_ten_steps_on_the_real_model(smollm2, tmp_path, name):
    """Without NaN, and each moves its own loss on pairs that it sees."""
    named = METHODS[name]
    settings = {"pairs_per_step": 4, "max_steps": STEPS, "epochs": 99.0, "learning_rate": 1e-4}
    recipe = dataclasses.replace(named.recipe, train=TrainSettings(**settings))
    pairs = read_pairs("facts:train[:4]")
    fit(dataclasses.replace(named, recipe=recipe), *smollm2, pairs, out=tmp_path / "dial")
    curve = [json.loads(line) for line in (tmp_path / "dial" / "training.jsonl").open()]
    assert len(curve) == STEPS
    assert all(math.isfinite(v) for record in curve for v in record.values())
    assert curve[-1]["loss"] < curve[0]["loss"]  # every step sees the same four


def test_methods_differ_unless_they_are_declared_equal(runs):
    weights = {name: list(runs[name][0].state_dict().values()) for name in TRAINED}
    for n, one in enumerate(TRAINED):
        for other in TRAINED[:n]:
            a, b = (METHODS[name].equivalent or name for name in (one, other))
            shapes = [[w.shape for w in weights[name]] for name in (one, other)]
            same = shapes[0] == shapes[1] and all(
                torch.equal(x, y) for x, y in zip(weights[one], weights[other], strict=True)
            )
            assert same == (a == b), f"{one} and {other}"


def test_equal_ones_are_isometries_under_objectives_that_see_lengths_alone():
    assert {name for name, m in METHODS.items() if m.equivalent} == {
        "innerdpo",
        *(f"hs-{s}-{o}" for s in ("ortho", "hra", "ether") for o in ("mse", "prefvec", "innerdpo")),
    }
    assert METHODS["hs-ether-mse"].equivalent == "hs-none-mse"
    assert METHODS["innerdpo"].equivalent == "hs-none-innerdpo"


def test_spaces_are_saved_with_the_run_and_not_in_the_dial(tiny, tokenizer, tmp_path: Path):
    fit(short("hs-etherplus-mse", 2), tiny("llama"), tokenizer, random_pairs(8), out=tmp_path / "a")
    fit(short("hs-none-mse", 2), tiny("llama"), tokenizer, random_pairs(8), out=tmp_path / "b")
    assert set(files_of(tmp_path / "a")) - set(files_of(tmp_path / "b")) == {"space.safetensors"}
    dial = Dial.from_pretrained(tmp_path / "a")
    assert isinstance(dial, AdapterDial)
    assert not any("space" in name for name in dial.state_dict())


def test_a_space_has_a_learning_rate_of_its_own(tiny, tokenizer, tmp_path: Path):
    from safetensors.torch import load_file

    moved = []
    for rate in (None, 1e-12):
        settings = short("hs-etherplus-mse", 3)
        space = dataclasses.replace(settings.recipe.space, learning_rate=rate)
        recipe = dataclasses.replace(settings.recipe, space=space)
        out = tmp_path / str(rate)
        fit(recipe, tiny("llama"), tokenizer, random_pairs(8), out=out)
        found = load_file(out / "space.safetensors")
        u, v = found["each.0.u"], found["each.0.v"]
        moved.append(float((u - v).norm()))  # equal at the start
    assert moved[0] > 1e-3
    assert moved[1] < 1e-6


@pytest.mark.parametrize("direction", ["pair", "batch", "data"])
def test_microbatches_do_not_reach_the_result_whatever_the_direction(tiny, tokenizer, direction):
    found = []
    for tokens in (4096, 40):
        named = short("hs-none-prefvec", 4, microbatch_tokens=tokens)
        objective = dataclasses.replace(named.recipe.objective, direction=direction)
        recipe = dataclasses.replace(named.recipe, objective=objective)
        dial = fit(recipe, tiny("llama"), tokenizer, random_pairs(8))
        found.append(list(dial.state_dict().values()))
    assert relative(*found) < 1e-4


def test_terms_on_top_run(tiny, tokenizer, tmp_path: Path):
    named = short("hs-none-mse", 3)
    objective = dataclasses.replace(
        named.recipe.objective,
        weight_outer=0.5,
        weight_nll=0.1,
        weight_kl=1.0,
        wpo=True,
        sinks=False,
    )
    fit(
        dataclasses.replace(named.recipe, objective=objective),
        tiny("llama"),
        tokenizer,
        random_pairs(8),
        out=tmp_path / "dial",
    )
    curve = [json.loads(line) for line in (tmp_path / "dial/training.jsonl").open()]
    assert curve[0]["kl"] == pytest.approx(0, abs=1e-6), "the policy starts as the reference"
    assert curve[-1]["kl"] > curve[0]["kl"]
    assert {"weight", "nll_rise", "margin", "drift"} <= set(curve[0])


def test_what_cannot_be_combined_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'hs-ether-mse'"):
        method("hs-eter-mse")
    with pytest.raises(ConfigError, match=r"space\.kind"):
        SpaceSettings(kind="ethre")  # type: ignore[arg-type]


def test_a_map_of_tokens_in_a_space_takes_each_pairs_direction(tiny, tokenizer):
    recipe = InnerDPORecipe(
        objective=InnerDPO(variant="published", align="para_orth_signed", direction="batch"),
        space=SpaceSettings(kind="hra", rank=4),
        dial=AdapterSettings(rank=2),
        train=TrainSettings(max_steps=1, pairs_per_step=4),
    )
    with pytest.raises(ConfigError, match="expected direction pair"):
        fit(recipe, tiny("llama"), tokenizer, random_pairs(8))
