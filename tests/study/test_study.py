"""Comparisons: suites, cells and their keys, result files, verdicts, resuming after any end."""

from __future__ import annotations

import itertools
import json
import math
import random
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from helpers_study import (
    RESULT_FILES,
    SMALL,
    Commands,
    at_home,
    result_bytes,
    rows,
    trimtab,
    write_lines,
    write_suite,
)
from trimtab import models
from trimtab.dials import Dial, VectorDial
from trimtab.errors import ConfigError, DataError, DialError
from trimtab.pairs import PairSet
from trimtab.progress import Progress
from trimtab.report import read_results, wording, write_page
from trimtab.statistics import holm
from trimtab.studies.compare import tables
from trimtab.studies.compare.cell import Measuring, Setting, plan_cells
from trimtab.studies.compare.measure import _stamp
from trimtab.studies.pages import write_pages
from trimtab.study import Comparison, compare, evaluate, read_suite, suite_names
from trimtab.study.files import read_rows
from trimtab.study.results import row_of
from trimtab.study.suite import read_data
from trimtab.training import METHODS

LITTLE = Measuring(
    alphas=(-1.0, 0.0, 1.0),
    dose_items=4,
    train_items=4,
    passages=1,
    prompts=1,
    generate_alphas=(0.0, 1.0),
    new_tokens=4,
)


class Listening(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


# ---- suites -------------------------------------------------------------------------------------

GOOD = {"train": "facts:train", "evaluate": {"test": "facts:test"}}


def test_the_built_in_suites():
    assert suite_names() == [
        "alpaca-quality",
        "facts",
        "math-difficulty",
        "math-to-persuasion",
        "truthful-qa",
    ]
    for name in suite_names():
        suite = read_suite(name)
        assert (suite.name, list(suite.evaluate)) == (name, ["test", "oos", "rnd"])
        assert suite.description
    truthful = read_suite("truthful-qa")
    assert truthful.train == "genies:truthful_qa/train[:750]"
    assert truthful.dose == truthful.evaluate["test"] == "genies:truthful_qa/test"
    assert read_suite("facts").dose == "facts:dev"


@pytest.mark.parametrize("name", ["facts", "truthful-qa", "math-to-persuasion"])
def test_built_in_suites_share_nothing_with_training(name, data_root):
    data = read_data(read_suite(name), data_root, limit=200)
    assert set(data.splits) == {"test", "oos", "rnd"}
    assert len(data.train.items()) <= 200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": None}, "a.yaml: expected the keys train"),
        ({"evaluate": ...}, "the key 'evaluate' is missing"),
        ({"train": ...}, "the key 'train' is missing"),
        ({"evaluate": {}}, "expected the keys"),
        ({"evaluate": "facts:test"}, "expected the keys"),
        ({"evaluate": {"test": 3}}, "expected the keys"),
        ({"tests": "x"}, "unknown key 'tests'"),
        ({"evaluate": {"neutral": "facts:test"}}, "cannot be called 'neutral'"),
        ({"dose": ["facts:dev"]}, "dose: expected a spec"),
    ],
)
def test_a_suite_file_that_is_wrong(tmp_path, change, message):
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in {**GOOD, **change}.items() if v is not ...}))
    with pytest.raises(ConfigError, match=message):
        read_suite(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: [", "not YAML"),
        ("just text", "expected the keys"),
        ("", "expected the keys"),
    ],
)
def test_a_suite_file_that_is_no_suite(tmp_path, text, message):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_suite(tmp_path / "a.yaml")


def test_an_unknown_suite_names_the_nearest():
    with pytest.raises(ConfigError, match=r"no suite 'thruthful-qa'; did you mean 'truthful-qa'"):
        read_suite("thruthful-qa")


def test_a_suites_digest_is_of_its_specs_not_its_name(tmp_path):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(GOOD))
    (tmp_path / "b.yaml").write_text(yaml.safe_dump({**GOOD, "description": "the same"}))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**GOOD, "train": "facts:train[:9]"}))
    a, b, c = (read_suite(tmp_path / f"{name}.yaml").digest for name in "abc")
    assert a == b != c


def test_a_split_that_shares_items_with_training(tmp_path):
    file = write_suite(tmp_path)
    shared = rows(10, "train")[3]
    write_lines(tmp_path / "oos.jsonl", [*rows(6, "oos"), {**shared, "item": "renamed"}])
    with pytest.raises(
        DataError, match=r"split 'oos' .* shares 1 items \(1 pairs\) with the train"
    ):
        read_data(read_suite(file))
    assert read_data(read_suite(file), limit=3).splits["oos"], (
        "the first three items do not overlap"
    )


def test_limits_of_training_and_of_splits(tmp_path):
    suite = read_suite(write_suite(tmp_path))
    assert [len(s) for s in _sizes(suite, None, None)] == [10, 8, 6]
    assert [len(s) for s in _sizes(suite, 3, None)] == [3, 3, 3]
    assert [len(s) for s in _sizes(suite, 3, 7)] == [7, 3, 3], "more training items than the limit"
    for limits in ((0, None), (None, 0)):
        with pytest.raises(DataError, match="1 or more"):
            _sizes(suite, *limits)


def _sizes(suite: Any, limit: int | None, train_limit: int | None) -> list[PairSet]:
    data = read_data(suite, limit=limit, train_limit=train_limit)
    return [data.train, *data.splits.values()]


# ---- cells and their keys -----------------------------------------------------------------------


@pytest.fixture
def plan(tmp_path):
    """`plan(**changes)`: the folder names of the cells of a small comparison."""
    suite = read_suite(write_suite(tmp_path))
    start = Setting(
        model="m",
        digest="d",
        dtype="float32",
        device="cpu",
        threads=1,
        data=read_data(suite),
        measuring=LITTLE,
    )

    def names(
        out: Any = None, methods: Any = None, seeds: Any = (0, 1), **changes: Any
    ) -> list[str]:
        setting = replace(start, **changes)
        methods = methods or [METHODS["dpo"], METHODS["mean"]]
        cells = plan_cells(out or tmp_path / "run", setting, methods, seeds)
        return [cell.folder.name for cell in cells]

    return names


def test_cells_are_of_a_models_config_tokenizer_and_template(plan):
    parts = {"values": "v", "config": {"rope_theta": 1.0}, "tokenizer": "t", "template": "none"}
    start = plan(parts=parts)
    assert (
        plan(parts=dict(reversed(parts.items())), digest="the same values in other files") == start
    )
    for name, other in (("values", "w"), ("config", {}), ("tokenizer", "u"), ("template", "x")):
        assert not set(plan(parts={**parts, name: other})) & set(start)


def test_cells_of_a_grid(plan):
    names = [name.rpartition("-")[0] for name in plan()]
    assert names == ["base", "dpo-s0", "dpo-s1", "mean"], "closed-form methods run once"
    assert plan() == plan()
    assert plan(seeds=[1, 0, 2])[1:3] == [plan()[2], plan()[1]], "other seeds change no cell"
    assert plan(methods=[METHODS["mean"]]) == [plan()[0], plan()[3]], "nor do other methods"


def test_keys_change_with_every_setting(plan, tmp_path):
    suite = read_suite(write_suite(tmp_path))
    data = read_data(suite)
    changes: dict[str, dict[str, Any]] = {
        "model": {"digest": "e"},
        "dtype": {"dtype": "bfloat16"},
        "device": {"device": "cuda"},
        "threads": {"threads": 2},
        "training data": {"data": replace(data, train=data.train[:-1])},
        "split": {"data": replace(data, splits={**data.splits, "oos": data.splits["oos"][1:]})},
        "split's name": {
            "data": replace(data, splits={"test": data.splits["test"], "far": data.splits["oos"]})
        },
        "dose": {"data": replace(data, dose=data.dose[:-1])},
    }
    other: dict[str, Any] = {
        "alphas": (0.0, 1.0),
        "generate_alphas": (1.0,),
        "prompt_style": "chat",
        "equal_kl": ("oos",),
        **{k: n + 1 for k, n in vars(LITTLE).items() if isinstance(n, int)},
    }
    assert set(other) == {f.name for f in fields(Measuring)}
    for name, value in other.items():
        changes[name] = {"measuring": replace(LITTLE, **{name: value})}
    seen = {tuple(plan()): "nothing"}
    for what, change in changes.items():
        names = tuple(plan(**change))
        assert not {n for key in seen for n in key}.intersection(names), f"{what} changes no key"
        seen[names] = what


def test_keys_change_with_the_recipe_of_their_method_only(plan):
    dpo = METHODS["dpo"]
    recipe: Any = dpo.recipe
    for changed in (
        replace(recipe, objective=replace(recipe.objective, beta=0.3)),
        replace(recipe, dial=replace(recipe.dial, rank=2)),
        replace(recipe, train=replace(recipe.train, learning_rate=1e-3)),
    ):
        names = plan(methods=[replace(dpo, recipe=changed), METHODS["mean"]])
        assert [a == b for a, b in zip(names, plan(), strict=True)] == [True, False, False, True]
    renamed = replace(dpo, where="elsewhere", what="something")
    assert plan(methods=[renamed, METHODS["mean"]]) == plan(), "words about a method are no setting"


def test_keys_do_not_change_with_names_and_places(plan, tmp_path):
    moved = read_suite(write_suite(tmp_path / "moved"))
    data = read_data(replace(moved, name="other", description="other words"))
    assert plan(data=data) == plan()
    assert [n for n in plan(out=tmp_path / "elsewhere")] == plan()


@pytest.mark.parametrize(
    "wrong",
    [
        {"dose_items": 0},
        {"passages": 0},
        {"passages": 10_000},
        {"prompts": -1},
        {"prompts": 10_000},
        {"new_tokens": 0},
        {"alphas": (1.0, math.nan)},
        {"alphas": ()},
        {"alphas": (1.0, 1.0)},
        {"generate_alphas": (math.inf,)},
    ],
)
def test_what_cannot_be_measured_is_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        replace(LITTLE, **wrong)


def test_what_lies_beside_a_dial_outlives_its_stamp(tmp_path):
    dial = VectorDial({1: torch.ones(4)}, {1: 1.0})
    dial.save_pretrained(tmp_path / "dial", {"training.jsonl": "{}\n", "space.safetensors": b"\0"})
    row = {"split": "neutral", "alpha": 1.0, "kl": 0.5}
    _stamp(tmp_path / "dial", dial, [row])
    assert (tmp_path / "dial/training.jsonl").read_text() == "{}\n"
    assert (tmp_path / "dial/space.safetensors").read_bytes() == b"\0"
    assert Dial.from_pretrained(tmp_path / "dial").info.measured["alphas"] == [1.0]


# ---- a whole comparison -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def here(tmp_path_factory, tiny, tokenizer) -> Iterator[Path]:
    """A folder with a tiny model, a suite, and the cache that this module uses."""
    folder = tmp_path_factory.mktemp("study")
    with at_home(folder, tiny("llama"), tokenizer):
        yield folder


def small(here: Path, **changes: Any) -> Comparison:
    """DPO at two seeds and a mean difference."""
    start = Comparison(
        model=str(here / "model"),
        suite=str(here / "suite.yaml"),
        methods=("dpo", "mean"),
        seeds=(0, 1),
        controls=(),
        device="cpu",
        measuring=LITTLE,
    )
    return replace(start, **changes)


@pytest.fixture(scope="module")
def run(here) -> Path:
    """A finished comparison; leave it as it is."""
    return compare(small(here), here / "run", command="trimtab compare", progress=Progress(True))


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_results_say_what_the_issue_asks(run, here):
    found = lines(run / "results.jsonl")
    keys = {
        "model",
        "aggregate",
        "method",
        "suite",
        "split",
        "seed",
        "alpha",
        "at",
        "metric",
        "value",
    }
    keys |= {"low", "high", "items", "pairs"}
    assert all({*line, "pairs"} == keys for line in found)
    assert "NaN" not in (run / "results.jsonl").read_text()
    assert {line["suite"] for line in found} == {"suite"}
    study = json.loads((run / "study.json").read_text())
    assert study["suite_digest"] == read_suite(here / "suite.yaml").digest
    assert study["dtype"] == "float32"
    assert {line["method"] for line in found} == {"base", "dpo", "mean"}
    accuracy = [r for r in found if r["metric"] == "accuracy" and r["at"] == "alpha_1"]
    places = {(r["method"], r["split"], r["seed"]) for r in accuracy}
    seeds = {"base": [None], "mean": [None], "dpo": [0, 1, None]}
    wanted = {(m, s, k) for m in seeds for s in ("train", "test", "oos") for k in seeds[m]}
    assert places == wanted
    assert {r["alpha"] for r in accuracy if r["method"] == "base"} == {0.0}
    sizes = {r["split"]: (r["items"], r["pairs"]) for r in accuracy}
    assert sizes == {"train": (4, 4), "test": (8, 8), "oos": (6, 6)}
    assert {r["metric"] for r in found} == {
        *("accuracy", "accuracy_sum", "accuracy_choice", "margin"),
        *("kl", "nll_rise", "slope", "r2", "monotone", "rising"),
        *("steerability", "wrong_way"),
    }
    for r in found:
        if r["low"] is not None:
            assert r["low"] <= r["value"] <= r["high"]


def test_means_over_seeds(run):
    found = lines(run / "results.jsonl")
    compared = 0
    for whole in found:
        if whole["method"] != "dpo" or whole["seed"] is not None:
            continue
        parts = [
            r["value"]
            for r in found
            if r["seed"] is not None
            and all(r[k] == whole[k] for k in ("method", "split", "alpha", "at", "metric"))
        ]
        assert len(parts) == 2
        if whole["metric"] not in ("r2", "monotone"):  # of the mean curve, not means of two
            assert whole["value"] == pytest.approx(np.mean(parts)), whole
            compared += 1
    assert compared == 28


def test_results_are_means_of_the_items(run):
    items = read_rows(run / "items.parquet")
    for r in lines(run / "results.jsonl"):
        if r["metric"] not in ("accuracy", "margin", "kl", "nll_rise") or r["seed"] != 1:
            continue
        at = r["at"] or "dose"
        own = [
            i[r["metric"]]
            for i in items
            if (i["method"], i["split"], i["seed"], i["alpha"])
            == ("dpo", r["split"], 1, r["alpha"])
            and i["at"] == at
        ]
        assert len(own) == r["items"]
        assert r["value"] == pytest.approx(np.mean(own)), r


def test_the_dose_response_starts_from_the_bare_model(run):
    items = read_rows(run / "items.parquet")
    dose = {(i["method"], i["seed"], i["alpha"]) for i in items if i["split"] == "dose"}
    assert dose == {
        ("base", None, 0.0),
        *(("dpo", seed, a) for seed in (0, 1) for a in (-1.0, 1.0)),
        *(("mean", None, a) for a in (-1.0, 1.0)),
    }


def test_equal_kl_is_equal(run):
    found = lines(run / "results.jsonl")
    target = json.loads((run / "study.json").read_text())["equal_kl"]
    dpo = [
        r["value"] for r in found if (r["method"], r["metric"]) == ("dpo", "kl") and r["alpha"] == 1
    ]
    assert target == pytest.approx(np.mean(dpo[:2]))
    there = [r for r in found if r["at"] == "equal_kl"]
    assert {r["method"] for r in there} == {"mean"}
    assert {r["split"] for r in there} == {"test", "oos", "neutral"}
    kl = next(r for r in there if r["metric"] == "kl")
    assert kl["value"] == pytest.approx(target, rel=0.02)
    assert kl["alpha"] not in (0.0, 1.0)


def test_verdicts_of_the_run(run):
    found = lines(run / "verdicts.jsonl")
    found, slopes = (
        [v for v in found if v["against"] == "dpo" and (v["metric"] != "steerability") == told]
        for told in (True, False)
    )
    places = [(v["metric"], v["method"], v["split"], v["at"]) for v in found]
    assert places == [
        (metric, "mean", split, at)
        for metric in ("accuracy", "margin")
        for at in ("alpha_1", "equal_kl")
        for split in ("test", "oos")
    ]
    for metric in ("accuracy", "margin"):  # each adjusted over the two at a place
        for place in ("alpha_1", "equal_kl"):
            two = sorted(
                (v["p"], v["p_holm"]) for v in found if (v["metric"], v["at"]) == (metric, place)
            )
            first = min(1, 2 * two[0][0])
            assert [x for _, x in two] == pytest.approx([first, max(first, two[1][0])])
    items = read_rows(run / "items.parquet")
    for v in (*found[:2], *found[4:6]):
        means = {
            m: np.mean(
                [
                    i[v["metric"]]
                    for i in items
                    if (i["method"], i["split"], i["at"]) == (m, v["split"], "alpha_1")
                ]
            )
            for m in ("dpo", "mean")
        }
        assert v["value"] == pytest.approx(means["mean"] - means["dpo"])
        assert v["seeds"] == 2
        assert v["in_this_run"]
    slope = {
        m: np.mean([i["preference"] * i["alpha"] / 2 for i in dose if i["method"] == m]) * 2
        for dose in [[i for i in items if i["split"] == "dose"]]
        for m in ("dpo", "mean")
    }
    (v,) = slopes
    assert (v["method"], v["metric"], v["split"], v["at"]) == ("mean", "steerability", "dose", None)
    assert v["value"] == pytest.approx(slope["mean"] - slope["dpo"], abs=1e-6)
    assert v["low"] < v["value"] < v["high"]


def test_the_page_of_trained_dials_is_made_of_comparisons(run, tmp_path):
    names = ("study.json", "results.jsonl", "verdicts.jsonl", "costs.json")
    for group, name in itertools.product(("cross", "upper"), names):
        file = tmp_path / "trained" / group / "suite" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(run / name, file)
    (page,) = write_pages(tmp_path, ["trained"])
    shown = page.read_text()
    assert "against the mean difference at α = 1, DPO steers further in " in shown
    for title in (
        "Steerability against DPO",
        "Wrong way, %",
        "per root nat",
        "Seconds to fit",
        "suite, at equal KL",
    ):
        assert title in shown
    assert (tmp_path / "trained.svg").is_file()


def test_the_page_has_verdicts_on_the_mean_margin(run):
    page = write_page(run).read_text()
    title, (first, *_) = "Against DPO, by the mean margin", read_results(run).margins
    assert title in page
    shown = f"{first.value:+.3f}".replace("-", "−")
    assert shown in page.partition(title)[2]
    assert (
        len(read_results(run).margins) == 8
    )  # four against DPO, four of two methods against the bare model


def test_the_other_files_of_a_run(run, here):
    curves = lines(run / "curves.jsonl")
    assert {(c["method"], c["seed"]) for c in curves} == {("dpo", 0), ("dpo", 1)}
    assert {"loss", "grad_norm", "learning_rate"} <= {c["metric"] for c in curves}
    texts = lines(run / "generations.jsonl")
    assert {(t["method"], t["seed"], t["alpha"]) for t in texts} == {
        ("base", None, 0.0),
        *(("dpo", s, a) for s in (0, 1) for a in (0.0, 1.0)),
        *(("mean", None, a) for a in (0.0, 1.0)),
    }
    bare = next(t["text"] for t in texts if t["method"] == "base")
    assert all(t["text"] == bare for t in texts if t["alpha"] == 0)
    costs = json.loads((run / "costs.json").read_text())
    assert set(costs) == {"dpo", "mean"}
    took = {"fit_seconds", "fit_cpu_seconds", "evaluate_seconds"}
    assert {*took, "parameters"} == set(costs["dpo"])
    study = json.loads((run / "study.json").read_text())
    assert study["model_digest"] == models.digest_of(str(here / "model"))
    assert study["splits"]["test"] == {
        "spec": f"jsonl:{here}/test.jsonl",
        "items": 8,
        "pairs": 8,
        "dropped": 0,
    }
    dial = Dial.from_pretrained(next(run.glob("cells/dpo-s1-*")) / "dial")
    assert dial.info.seed == 1
    assert list(dial.info.measured["kl_nats_per_token"]) == ["-1", "1"]
    assert "neutral passages" in next(run.glob("cells/dpo-s1-*/dial/README.md")).read_text()


def test_a_finished_run_is_not_run_again(run, here, monkeypatch):
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(models, "load", never)
    before, progress = result_bytes(run), Listening()
    assert len(before) == len(RESULT_FILES) + 3, "two seeds of one method, and another"
    started = time.monotonic()
    compare(small(here), run, command="trimtab compare", progress=progress)
    assert time.monotonic() - started < 5
    assert result_bytes(run) == before
    assert any("4 of them done" in said for said in progress.said)


def test_another_run_gives_the_same_bytes(run, here):
    again = compare(small(here), here / "again", command="trimtab compare")
    assert result_bytes(again) == result_bytes(run)


def test_other_seeds_reuse_cells(run, here, monkeypatch):
    copy = here / "copy"
    shutil.copytree(run, copy)
    from trimtab.study import on_model as measure

    fitted, fit = [], measure.fit
    monkeypatch.setattr(
        measure, "fit", lambda recipe, *a, **k: fitted.append(k["seed"]) or fit(recipe, *a, **k)
    )
    compare(small(here, seeds=(1, 2), methods=("mean", "dpo")), copy)
    assert fitted == [2]
    found = lines(copy / "results.jsonl")
    assert {r["seed"] for r in found} == {1, 2, None}
    assert {r["method"] for r in found} == {"base", "mean", "dpo"}
    assert len(list(copy.glob("cells/*/summary.json"))) == 5, "what was done before is kept"


def test_a_cell_begun_otherwise_is_begun_again(run, here):
    """A half-done cell of another version of torch, say: its dial is not this run's."""
    copy = here / "begun"
    shutil.copytree(run, copy)
    cell = next(copy.glob("cells/mean-*"))
    (cell / "summary.json").unlink()
    note = cell / "dial" / "dial.json"
    values = json.loads(note.read_text())
    note.write_text(json.dumps({**values, "versions": {"torch": "0.1"}}))
    progress = Listening()
    compare(small(here), copy, progress=progress)
    assert any("starting it again" in said for said in progress.said)
    assert result_bytes(copy) == result_bytes(run)


def test_pairs_left_out_and_dropped_are_told(here, tiny, tokenizer):
    progress = Listening()
    long = {"prompt": "long", "chosen": " a" * 90, "rejected": " the" * 90, "item": "long"}
    write_lines(here / "l" / "oos.jsonl", [*rows(3, "oos"), long])
    pairs = PairSet(
        [*_sizes(read_suite(here / "suite.yaml"), 3, None)[1]],
        "some",
        {"pairs with an empty answer": 2},
    )
    splits = {"some": pairs, "oos": f"jsonl:{here}/l/oos.jsonl"}
    found = evaluate(
        tiny("llama"), tokenizer, None, splits, max_length=64, passages=1, progress=progress
    )
    assert "some: 2 pairs with an empty answer left out" in progress.said
    assert f"jsonl:{here}/l/oos.jsonl: 1 of 4 pairs exceed 64 tokens: dropped" in progress.said
    assert {r["split"]: r["items"] for r in found} == {"some": 3, "oos": 3}


# ---- tables made by hand ------------------------------------------------------------------------


def table(accuracies: dict[tuple[str, int | None, str], list[float]]) -> list[dict[str, Any]]:
    """Rows of `items.parquet` on split `test`: (method, seed, at) to accuracies of items."""
    return [
        {
            **{"method": method, "split": "test", "seed": seed, "at": at},
            **{"alpha": 0.0 if method == "base" else 1.0, "item": f"i{i}", "pairs": 2},
            **{name: value for name in tables.SCORES},
            **dict.fromkeys(tables.DAMAGE),
        }
        for (method, seed, at), values in accuracies.items()
        for i, value in enumerate(values)
    ]


COMMON = {"model": "tiny", "suite": "s"}


def verdicts(rows: Any, methods: list[str]) -> list[dict[str, Any]]:
    """Lines of `verdicts.jsonl` on accuracy, as they are written."""
    found = tables.verdicts(rows, methods, ["test"], COMMON)
    return [row_of(line) for line in found if line.metric == "accuracy"]


def results(made: Any) -> list[dict[str, Any]]:
    """The same of `results.jsonl`."""
    return [row_of(line) for line in tables.results(made, COMMON)]


HALF, MOST = [1.0, 0.0] * 50, [1.0, 1.0] * 45 + [1.0, 0.0] * 5


def test_a_verdict_by_hand():
    made = table(
        {("dpo", 0, "alpha_1"): HALF, ("x", 0, "alpha_1"): MOST, ("y", 0, "alpha_1"): HALF}
    )
    better, same = verdicts(made, ["dpo", "x", "y"])
    assert (better["method"], better["verdict"], better["in_this_run"]) == ("x", "better", True)
    assert better["value"] == pytest.approx(0.95 - 0.5)
    assert better["low"] < 0.45 < better["high"]
    assert better["p_holm"] == pytest.approx(2 * better["p"]), "Holm over the two rows of the table"
    assert better["underpowered"] == (better["mde"] > 0.05)
    assert better["mde"] == pytest.approx(2.8 * math.sqrt(0.45 * 0.55 / 100), rel=0.1)
    assert (same["method"], same["verdict"], same["value"], same["p"]) == (
        "y",
        "cannot tell",
        0,
        1,
    )
    worse, _ = verdicts(
        table(
            {("dpo", 0, "alpha_1"): MOST, ("x", 0, "alpha_1"): HALF, ("y", None, "alpha_1"): HALF}
        ),
        ["dpo", "x", "y"],
    )
    assert worse["verdict"] == "worse"


def test_five_seeds_make_a_claim():
    made: dict[Any, list[float]] = {("dpo", s, "alpha_1"): HALF for s in range(5)}
    made |= {("x", s, "alpha_1"): MOST for s in range(5)}
    (line,) = verdicts(table(made), ["dpo", "x"])
    assert (line["verdict"], line["in_this_run"], line["seeds"]) == ("better", False, 5)


def test_no_verdict_without_dpo():
    made = table({("base", None, "alpha_1"): HALF, ("x", 0, "alpha_1"): MOST})
    assert verdicts(made, ["x"]) == []


def test_seeds_are_paired_by_number_and_one_may_be_missing():
    """Seed 1 of x never reached DPO's KL: the comparison there is of seeds 0 and 2."""
    dpo = {("dpo", s, "alpha_1"): [1.0 if s == 1 else 0.0] * 10 for s in (0, 1, 2)}
    own = {("x", s, "equal_kl"): [0.0] * 10 for s in (2, 0)}
    (line,) = verdicts(table({**dpo, **own}), ["dpo", "x"])
    assert (line["at"], line["seeds"], line["value"]) == ("equal_kl", 2, 0.0)
    only = {("x", 3, "equal_kl"): [0.0] * 10}
    assert verdicts(table({**dpo, **only}), ["dpo", "x"]) == []


def test_one_item_has_no_interval_and_json_no_nan():
    made = table({("dpo", 0, "alpha_1"): [1.0], ("x", 0, "alpha_1"): [0.0]})
    found = results(made) + verdicts(made, ["dpo", "x"])
    json.dumps(found, allow_nan=False)
    assert found[0]["value"] == 1.0
    assert found[0]["low"] is None


def test_a_broken_dial_gives_nulls_not_an_end():
    made = table({("x", 0, "alpha_1"): HALF, ("x", 1, "alpha_1"): HALF})
    made[3]["margin"] = math.nan
    dose = [
        {**row, "split": "dose", "at": "dose", "alpha": a, "margin": math.nan if a == 2 else 1.0}
        for row in made
        for a in (1.0, 2.0)
    ]
    found = results([*made, *dose])
    json.dumps(found, allow_nan=False)
    value = {(r["metric"], r["seed"]): r["value"] for r in found if r["split"] == "test"}
    assert value["margin", 0] is None
    assert value["margin", None] is None
    assert value["margin", 1] == 0.5
    assert value["accuracy", None] == 0.5
    assert not [r for r in found if r["metric"] == "slope"]


# ---- evaluate -----------------------------------------------------------------------------------


def test_evaluate_dials_on_splits(tiny, tokenizer, here, tmp_path):
    model = tiny("llama")
    dial = VectorDial({1: torch.ones(32)}, {1: 1.0})
    splits = {"test": f"jsonl:{here}/test.jsonl", "oos": f"jsonl:{here}/oos.jsonl"}
    found = evaluate(
        model,
        tokenizer,
        {"v": dial},
        splits,
        alphas=(-1.0, 0.0, 1.0),
        out=tmp_path / "run",
        passages=1,
    )
    assert lines(tmp_path / "run" / "results.jsonl") == json.loads(json.dumps(found))
    accuracy = {(r["method"], r["split"], r["alpha"]) for r in found if r["metric"] == "accuracy"}
    assert accuracy == {
        *(("base", s, 0.0) for s in ("test", "oos", "dose")),
        *(("v", s, a) for s in ("test", "oos", "dose") for a in (-1.0, 1.0)),
    }
    told = {
        (r["method"], r["metric"]): r for r in found if r["metric"] in ("steerability", "wrong_way")
    }
    assert {m for m, _ in told} == {"v", "random for v"}
    items = [r for r in read_rows(tmp_path / "run" / "items.parquet") if r["split"] == "dose"]
    for method in ("v", "random for v"):
        up, down = (
            np.array([r["preference"] for r in items if (r["method"], r["alpha"]) == (method, a)])
            for a in (1.0, -1.0)
        )
        slopes = (up - down) / 2  # of -1, 0, 1: what is at 0 does not count
        assert told[method, "steerability"]["value"] == pytest.approx(slopes.mean(), abs=1e-6)
        assert told[method, "wrong_way"]["value"] == pytest.approx((slopes < 0).mean())
    shown = write_page(tmp_path / "run").read_text()
    assert "Steerability" in shown
    assert "random, wrong way" in shown
    kl = {r["alpha"]: r["value"] for r in found if r["metric"] == "kl"}
    assert set(kl) == {-1.0, 1.0}
    assert min(kl.values()) > 0
    again = evaluate(model, tokenizer, dial, splits, alphas=(-1.0, 0.0, 1.0), passages=1)
    assert [{**r, "method": "v"} for r in again if r["method"] == "dial"] == [
        r for r in found if r["method"] == "v"
    ]


@pytest.mark.parametrize("names", [("v", "w"), ("v", "dpo")])
def test_evaluate_judges_against_the_bare_model_and_dpo(tiny, tokenizer, here, tmp_path, names):
    """Every dial at every strength against alpha 0, one Holm table; beside it DPO, where there is one."""
    dials = {
        n: VectorDial({1: k * torch.ones(32)}, {1: 9.0})
        for n, k in zip(names, (1, -1), strict=True)
    }
    splits, alphas = {"test": f"jsonl:{here}/test.jsonl"}, (0.5, 1.0)
    evaluate(tiny("llama"), tokenizer, dials, splits, alphas=alphas, out=tmp_path, passages=1)
    found = lines(tmp_path / "verdicts.jsonl")
    items = pd.read_parquet(tmp_path / "items.parquet").query("split == 'test'")
    for metric in ("accuracy", "margin"):
        told = [d for d in found if d["metric"] == metric]
        bare = [d for d in told if d["against"] == "base"]
        assert [(d["method"], d["alpha"], d["at"]) for d in bare] == [
            (name, alpha, {1.0: "alpha_1"}.get(alpha)) for alpha in alphas for name in names
        ]
        means = items.groupby(["method", "alpha"])[metric].mean()
        for d in bare:
            assert d["value"] == pytest.approx(means[d["method"], d["alpha"]] - means["base", 0.0])
        np.testing.assert_allclose([d["p_holm"] for d in bare], holm([d["p"] for d in bare]))
        against = [(d["method"], d["against"]) for d in told if d not in bare]
        assert against == [("v", "dpo")] * ("dpo" in names)
    said = " ".join(wording.headline(read_results(tmp_path)).split())
    assert ("the bare model" in said, "DPO" in said) == ("w" in names, "dpo" in names)


def test_evaluate_refuses(tiny, tokenizer, here, tmp_path):
    model, spec = tiny("llama"), f"jsonl:{here}/test.jsonl"
    dial = VectorDial({1: torch.ones(32)}, {1: 1.0})
    with pytest.raises(ConfigError, match="cannot be called 'base'"):
        evaluate(model, tokenizer, {"base": dial}, spec)
    with pytest.raises(ConfigError, match="cannot be called 'dose'"):
        evaluate(model, tokenizer, dial, {"dose": spec})
    with pytest.raises(ConfigError, match="no pairs"):
        evaluate(model, tokenizer, dial, {})
    with pytest.raises(ConfigError, match="finite"):
        evaluate(model, tokenizer, dial, spec, alphas=[math.nan])
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        evaluate(model, tokenizer, dial, spec, out=tmp_path)
    models.source_of(model)
    dial.info.base_digest = "0" * 64
    with pytest.raises(DialError, match="made for"):
        evaluate(model, tokenizer, dial, spec)
    assert evaluate(model, tokenizer, dial, spec, force=True, passages=1)


def test_a_comparisons_folder_is_not_overwritten(run, tiny, tokenizer, here, tmp_path):
    with pytest.raises(ConfigError, match="holds a comparison"):
        evaluate(tiny("llama"), tokenizer, None, f"jsonl:{here}/test.jsonl", out=run)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        compare(small(here), tmp_path)
    with pytest.raises(ConfigError, match="a file"):
        compare(small(here), tmp_path / "notes.txt")


# ---- killed, interrupted ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def commands(here) -> Iterator[Commands]:
    """Commands in processes of their own."""
    started = Commands(here / "cache-of-commands")
    yield started
    started.close()


def words(here: Path, out: Path) -> list[str]:
    """The command whose end is awaited, or brought about."""
    flags = ["--model", f"{here}/model", "--suite", f"{here}/suite.yaml", "--seeds", "0", "1"]
    return [
        "compare",
        *flags,
        "--methods",
        "dpo",
        "mean",
        "--device",
        "cpu",
        "--out",
        f"{out}",
        *SMALL,
    ]


@pytest.fixture(scope="module")
def unharmed(here, commands) -> tuple[Path, int]:
    """A comparison that ran through, and how often it wrote to its folder."""
    out, err, count = here / "unharmed", here / "err", here / "count"
    assert commands.run(*words(here, out), err=err, count=count) == 0, err.read_text()
    return out, int(count.read_text())


def test_killed_at_any_moment_a_run_ends_with_the_same_bytes(here, commands, unharmed):
    whole, writes = unharmed
    rng = random.Random(0)
    ends: list[tuple[int, float, int]] = []
    for round_ in range(2):
        out = here / f"killed{round_}"
        shutil.rmtree(here / "cache-of-commands", ignore_errors=True)
        for _ in range(3):
            # Right before a write, or some milliseconds later.
            at, delay = rng.randint(1, writes // 3), rng.choice([0, rng.uniform(0.001, 0.1)])
            code = commands.run(*words(here, out), signal_at=(signal.SIGKILL, at, delay))
            ends.append((at, delay, code))
        assert commands.run(*words(here, out), err=here / "err") == 0, (here / "err").read_text()
        assert result_bytes(out) == result_bytes(whole), ends
    assert [code for *_, code in ends].count(-signal.SIGKILL) >= 5, ends


def test_ctrl_c_is_130_and_the_run_goes_on(here, commands, unharmed):
    whole, writes = unharmed
    out, said = here / "stopped", here / "stopped.txt"
    shutil.rmtree(here / "cache-of-commands", ignore_errors=True)
    for at in (writes // 4, writes // 3):
        stop = (signal.SIGINT, at, 0.0)
        assert commands.run(*words(here, out), err=said, signal_at=stop) == 130, said.read_text()
        text = said.read_text()
        assert "Traceback" not in text
        assert text.splitlines()[-1].startswith("interrupted: ")
        assert not (out / "results.jsonl").exists()
    assert commands.run(*words(here, out)) == 0
    assert result_bytes(out) == result_bytes(whole)


@pytest.mark.parametrize("size", [300, 3000, 9000, 20_000])
def test_a_full_disk_is_one_line_and_the_run_goes_on(here, commands, unharmed, size):
    """A real limit on the size of files, met by this file or that."""
    out, said = here / f"full{size}", here / "full.txt"
    assert commands.run(*words(here, out), "--quiet", err=said, file_limit=size) == 2
    text = said.read_text()
    assert text.startswith((f"error: {out}/", f"error: {here}/cache-of-commands/"))
    assert "File too large" in text
    assert text.count("\n") == 1
    assert not (out / "results.jsonl").exists()
    assert commands.run(*words(here, out)) == 0
    assert result_bytes(out) == result_bytes(unharmed[0])


def test_the_page_is_made_again_from_the_files(run):
    first = trimtab("report", run)
    page = (run / "report.html").read_bytes()
    assert first.code == 0
    assert trimtab("report", run) == first
    assert (run / "report.html").read_bytes() == page
