"""The GENIES benchmark as suites: its shifts, what is missing, pairs of one's own, elicitation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from trimtab.errors import ConfigError, DataError
from trimtab.statistics import SHARE, mean_interval
from trimtab.studies.compare import tables
from trimtab.study import Comparison, compare
from trimtab.study.genies import SHIFTS, genies_suites
from trimtab.study.results import row_of
from trimtab.study.suite import read_data


def distribution(root: Path, name: str, train: int = 6, test: int = 4, answers: int = 3) -> None:
    """A made-up distribution in GENIES' layout."""
    folder = root / "genies" / "distributions" / name
    folder.mkdir(parents=True)
    for split, n in (("train", train), ("test", test)):
        items = [
            {
                "prompt": f"{name} {split} {i}:",
                "responses": {f" {name} {j} of {i}.": float(j == 0) for j in range(answers)},
            }
            for i in range(n)
        ]
        (folder / f"{split}.json").write_text(json.dumps(items))


@pytest.fixture
def root(tmp_path) -> Path:
    """Five of the distributions: two shifts of one source and one of another can be run."""
    for name in ("alpaca_mmlu", "truthful_qa", "wrong_arc", "alpaca_short", "alpaca_long"):
        distribution(tmp_path, name)
    return tmp_path


def test_the_benchmark_has_fifteen_shifts(data_root):
    assert len(SHIFTS) == 15
    file = data_root / "genies" / "distribution_shifts" / "GENIES.json"
    published = [
        (s["source"], s["target"], s.get("target_reference") or s["target"], s["label"])
        for s in json.loads(file.read_text())
    ]
    assert [(s.source, s.target, s.reference, s.kind) for s in SHIFTS] == published


def test_missing_distributions_are_all_listed(root):
    with pytest.raises(DataError) as caught:
        genies_suites("genies", root)
    text = str(caught.value)
    assert text.startswith("genies: ")
    for name in ("us_history_textbook", "spanish_output", "change_my_view", "quote_attribution"):
        assert name in text
    assert "truthful_qa" not in text
    assert "--skip-missing runs the other 3 of 15 shifts" in text
    assert "\n" not in text


def test_the_rest_is_run_where_that_is_asked_for(root):
    suites, said = genies_suites("genies", root, skip_missing=True)
    assert [s.name for s in suites] == [
        "genies:alpaca_short->alpaca_long",
        "genies:alpaca_mmlu->wrong_arc+truthful_qa",
    ]
    assert len(said) == 12
    assert "math->change_my_view left out: math, change_my_view not on disk" in said
    short, mmlu = suites
    assert short.capability["alpaca_long"] == (
        "genies:alpaca_mmlu/train",
        "genies:alpaca_mmlu/test",
    ), "judged by the reference"
    assert list(mmlu.evaluate) == ["test", "wrong_arc", "truthful_qa"]
    assert mmlu.capability["wrong_arc"][0] == "genies:wrong_arc/train"


def test_without_any_data(tmp_path, monkeypatch):
    monkeypatch.delenv("TRIMTAB_DATA", raising=False)
    for given in (None, tmp_path):
        with pytest.raises(DataError, match="GENIES distributions are not in"):
            genies_suites("genies", given, skip_missing=True)


def test_any_pair(root):
    (suite,), said = genies_suites("genies:truthful_qa->alpaca_long", root)
    assert (suite.train, suite.evaluate["alpaca_long"]) == (
        "genies:truthful_qa/train",
        "genies:alpaca_long/test",
    )
    assert not said
    with pytest.raises(DataError, match=r"1 GENIES distributions .*: truthful_q; did you mean 'tr"):
        genies_suites("genies:alpaca_mmlu->truthful_q", root)
    for wrong in ("genies:->b", "genies:a->", "genies:a/train->b"):
        with pytest.raises(ConfigError, match="expected genies:SOURCE->TARGET"):
            genies_suites(wrong, root)
    with pytest.raises(ConfigError, match="the same distribution"):
        genies_suites("genies:wrong_arc->wrong_arc", root)


def test_what_training_holds_is_left_out_and_counted(data_root):
    """96 of the 250 test items of change_my_view are answered in its training part."""
    (suite,), _ = genies_suites("genies:change_my_view->math", data_root)
    data = read_data(suite, data_root)
    assert len(data.splits["test"].items()) == 250 - 96
    assert sum(data.splits["test"].left_out.values()) == 96
    assert len(data.splits["math"].items()) == 250


def test_elicitation_by_hand():
    """(0.8 - 0.5) / 0.9 where ten items are answered right by 8, 5 and 9."""

    def rows(method: str, seed: int | None, split: str, right: int) -> list[dict]:
        return [
            {
                **{"method": method, "split": split, "seed": seed, "at": "alpha_1"},
                **{"alpha": 0.0 if method == "base" else 1.0, "item": f"i{i}", "pairs": 3},
                **dict.fromkeys(tables.SCORES, float(i < right)),
            }
            for i in range(10)
        ]

    found = tables.elicitation(
        rows("base", None, "far", 5) + rows("dpo", 0, "far", 8),
        {"far": rows("dpo", 0, "capability", 9)},
        ["dpo"],
        {"model": "tiny", "suite": "s"},
    )
    capability, elicitation = found = [row_of(line) for line in found]
    assert [(line["model"], line["seed"], line["aggregate"]) for line in found] == [
        ("tiny", 0, False)
    ] * 2
    assert (capability["metric"], capability["value"]) == ("capability", 0.9)
    assert (elicitation["method"], elicitation["metric"]) == ("dpo", "elicitation")
    assert elicitation["value"] == pytest.approx(0.3 / 0.9)
    assert elicitation["low"] < 0.3 / 0.9 < elicitation["high"]
    top = mean_interval(np.array([1.0] * 9 + [0.0]), SHARE)
    half = (elicitation["high"] - elicitation["low"]) / 2
    assert half > (top.high - top.low) / 2 * (0.3 / 0.9) / 0.9


def test_a_shift_from_end_to_end(root, saved_model, tmp_path, monkeypatch):
    from test_workers import LITTLE

    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    comparison = Comparison(
        model=str(saved_model()),
        suite="genies:alpaca_short->alpaca_long",
        methods=("dpo", "mean"),
        controls=(),
        device="cpu",
        data_root=str(root),
        measuring=LITTLE,
    )
    out = compare(comparison, tmp_path / "run")
    found = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    value = {(r["method"], r["split"], r["metric"], r["at"]): r["value"] for r in found}
    base, far = value["base", "alpaca_long", "accuracy_choice", "alpha_1"], "alpaca_long"
    top = value["dpo", far, "capability", "alpha_1"]
    for method in ("dpo", "mean"):
        own = value[method, far, "accuracy_choice", "alpha_1"]
        if top:
            assert value[method, far, "elicitation", "alpha_1"] == pytest.approx((own - base) / top)
    before = (out / "results.jsonl").read_bytes()
    compare(comparison, out)
    assert (out / "results.jsonl").read_bytes() == before
