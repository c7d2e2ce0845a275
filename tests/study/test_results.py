"""The schema of result files: written and read to the same, its reference, pandas, earlier spellings."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from test_report import make_run

import trimtab
from helpers_study import write_lines
from trimtab.errors import TrimtabError
from trimtab.study import reference
from trimtab.study.old_results import OldRow
from trimtab.study.reading import kind_of, read
from trimtab.study.results import (
    About,
    Curve,
    Difference,
    Generation,
    Measurement,
    Run,
    Split,
    row_of,
    write,
)

DOCS = Path(__file__).parents[2] / "docs"
PLACE: dict[str, Any] = {"model": "tiny", "suite": "s", "split": "test", "aggregate": False}


def about(**changes: Any) -> About:
    given: dict[str, Any] = {
        **{"study": "compare", "title": "t", "model": "tiny", "model_digest": "0", "suite": "s"},
        **{"train": "facts:train", "splits": {"test": Split("facts:test", 3, 3, 0)}},
        **{"methods": {"dpo": "x"}, "seeds": (0, 1), "dtype": "float32", "device": "cpu"},
        **{"versions": {"trimtab": "0"}, "command": "", "notes": ("a",)},
    }
    return About(**{**given, **changes})


def figure(**changes: Any) -> Measurement:
    given = {"method": "dpo", "seed": 0, "alpha": 1.0, "at": "alpha_1", "metric": "accuracy"}
    return Measurement(
        **{**PLACE, **given, "value": 0.5, "low": 0.1, "high": 0.9, "items": 3, **changes}
    )


def test_what_is_written_is_read(tmp_path):
    nan = math.nan
    judged = {"p": 0.01, "p_holm": 0.02, "verdict": "better", "in_this_run": True, "mde": nan}
    difference = Difference(
        **{**PLACE, "method": "x", "against": "dpo", "seed": None, "alpha": 1.0, "at": None},
        **{"metric": "accuracy", "value": 0.1, "low": nan, "high": nan, "items": 3, "seeds": 2},
        **judged,
        underpowered=True,
    )
    run = Run(
        about(),
        (figure(), figure(seed=1, value=nan), figure(seed=None, aggregate=True, seeds=2)),
        (difference,),
        (Curve("tiny", "dpo", 0, 1, "loss", 0.7),),
        (Generation("tiny", "dpo", None, 1.0, "Well?", "A \u2028 line."),),
        {"dpo": {"fit_seconds": 1.0}},
    )
    write(tmp_path / "run", run)
    assert repr(read(tmp_path / "run")) == repr(run)
    before = {f.name: f.read_bytes() for f in (tmp_path / "run").iterdir()}
    write(tmp_path / "run", read(tmp_path / "run"))
    assert before == {f.name: f.read_bytes() for f in (tmp_path / "run").iterdir()}
    line = json.loads((tmp_path / "run" / "results.jsonl").read_text().splitlines()[1])
    assert line["value"] is None
    always = [f.name for f in fields(Measurement)][:13]
    assert list(line) == always


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"alpha": "one"}, "'alpha' should be a number, got \"one\""),
        ({"seed": 1.5}, "'seed' should be a whole number, got 1.5"),
        ({"aggregate": 1}, "'aggregate' should be true or false, got 1"),
        ({"at": "equal"}, "'at' should be alpha_1 or equal_kl, got \"equal\""),
        ({"method": None}, "'method' should be text, got null"),
    ],
)
def test_a_wrong_value_is_named(tmp_path, change, said):
    write(tmp_path, Run(about(), (figure(),)))
    write_lines(tmp_path / "results.jsonl", [row_of(figure()), {**row_of(figure()), **change}])
    with pytest.raises(TrimtabError) as error:
        read(tmp_path)
    assert str(error.value) == f"{tmp_path}/results.jsonl:2: {said}"


def test_a_line_lacks_nothing(tmp_path):
    write(tmp_path, Run(about(), (figure(),)))
    for name in [f.name for f in fields(Measurement)][:13]:
        line = {k: v for k, v in row_of(figure()).items() if k != name}
        write_lines(tmp_path / "results.jsonl", [line])
        with pytest.raises(TrimtabError, match=rf"jsonl:1: field '{name}' is missing; it has"):
            read(tmp_path)


def test_the_reference_is_the_docstrings():
    assert (DOCS / "results.md").read_text(encoding="utf-8") == reference.reference(), (
        "python -m trimtab.study.reference > docs/results.md"
    )
    for kind in (Measurement, Difference, Curve, Generation, About):
        assert f"## {kind.__name__}" in reference.reference()


def test_a_frame_of_one_run_and_of_many(tmp_path):
    one = Run(about(), (figure(), figure(seed=1, value=0.7), figure(seed=None, aggregate=True)))
    write(tmp_path / "a", one)
    write(tmp_path / "b" / "c", replace(one, measurements=one.measurements[:1]))
    frame = trimtab.results(tmp_path / "a")
    assert list(frame.columns) == ["run", *(f.name for f in fields(Measurement))]
    assert list(frame.seed.dropna()) == [0, 1]
    assert frame[~frame["aggregate"]].value.mean() == pytest.approx(0.6)
    assert len(trimtab.results(tmp_path)) == 4
    assert trimtab.results(tmp_path).run.nunique() == 2
    assert len(trimtab.results(tmp_path / "a", "verdicts")) == 0
    with pytest.raises(TrimtabError, match="no 'gains'"):
        trimtab.results(tmp_path, "gains")
    with pytest.raises(TrimtabError, match="not a run"):
        trimtab.results(tmp_path / "b" / "c" / "d")


def test_every_committed_figure_says_what_it_is_of():
    frame = trimtab.results(DOCS / "results")
    assert len(frame) > 7000
    assert not frame[["model", "method", "split", "metric", "aggregate"]].isna().any().any()
    assert not ((frame.low > frame.value) | (frame.value > frame.high)).any()
    told = trimtab.results(DOCS / "results", "verdicts")
    assert set(told.verdict) == {"better", "worse", "cannot tell", "not judged"}
    assert {"prompt"}.isdisjoint({*frame.method, *told.method, *told.against})


def test_reading_results_brings_no_torch():
    code = "import sys, trimtab.study.results, trimtab.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- earlier spellings --------------------------------------------------------------------------


def test_a_comparison_of_an_earlier_version(tmp_path):
    """`make_run` writes one: no model nor aggregate in a line, `ci_low`, `baseline`, `difference`."""
    old = make_run(tmp_path / "run", methods=("dpo", "mean"), seeds=(0, 1))
    first = json.loads((old / "results.jsonl").read_text().splitlines()[0])
    assert "ci_low" in first
    assert "model" not in first
    (old / "gains.jsonl").write_text(
        (old / "verdicts.jsonl").read_text().replace('"baseline": "dpo"', '"baseline": "base"')
    )
    text = (old / "results.jsonl").read_text()
    (old / "results.jsonl").write_text(text.replace('"method": "mean"', '"method": "prompt"'))
    run = read(old)
    assert (kind_of(old), run.about.study) == ("compare", "compare")
    assert {m.model for m in run.measurements} == {"smollm2-135m"}
    assert {m.method for m in run.measurements} == {"base", "dpo", "instruction"}
    assert {d.against for d in run.differences} == {"dpo", "base"}
    over = [m for m in run.measurements if (m.method, m.seed) == ("dpo", None) and m.alpha == 1]
    assert over
    assert all(m.aggregate for m in over if (m.metric, m.at) == ("accuracy", "alpha_1"))
    assert not any(m.aggregate for m in run.measurements if m.method == "base")
    write(tmp_path / "new", run)
    assert repr(read(tmp_path / "new")) == repr(run)


def test_a_comparison_of_heads_of_an_earlier_version(tmp_path):
    (tmp_path / "heads.json").write_text(
        json.dumps(
            {
                **{
                    "kind": "heads",
                    "title": "Heads",
                    "train": {"items": 4, "pairs": 5, "dropped": 1},
                },
                **{"tests": {"a": {"items": 2, "pairs": 2, "dropped": 0}}, "clock": "wall"},
                **{"alpha_0_is_the_bare_model": True, "seconds_to_store": 1.5, "cpu_seconds": 9.0},
                **{"seconds_to_train": {"iav": 2.5}, "model": "tiny", "model_digest": "0"},
                **{
                    "dtype": "float32",
                    "device": "cpu",
                    "threads": 1,
                    "versions": {},
                    "commit": "0",
                },
                **{"settings": {"train": "jsonl:a", "seeds": [0], "new_tokens": 3}, "command": ""},
            }
        )
    )
    share = {"split": "a", "metric": "accuracy", "seed": None, "items": 2}
    arms = (("base", 0.0, False, 1), ("iav", 1.0, True, 3), ("iav", 2.0, True, 3))
    write_lines(
        tmp_path / "results.jsonl",
        [
            {**share, "arm": arm, "alpha": alpha, "value": 0.5, "ci_low": 0.1, "ci_high": 0.9}
            | {"aggregate": several, "seeds": seeds}
            for arm, alpha, several, seeds in arms
        ],
    )
    write_lines(
        tmp_path / "verdicts.jsonl",
        [
            {"arm": "iav", "against": "base", "alpha": 1.0, "split": "a", "difference": 0.25}
            | {"difference_low": -0.5, "difference_high": 0.75, "p": 0.5, "mde": 0.2, "seeds": 3}
            | {"items": 2, "p_holm": 0.5, "verdict": "cannot tell", "in_this_run": True}
            | {"underpowered": True}
        ],
    )
    rate = {"tokens_per_second": 9.0, "of_base": 1.0, "low": 0.9, "high": 1.1, "of_genarm": 2.0}
    write_lines(tmp_path / "rates.jsonl", [{"arm": "iav", **rate, "rounds": 5}])
    run = read(tmp_path)
    assert [(m.method, m.alpha, m.at, m.low) for m in run.measurements] == [
        ("base", 0.0, "alpha_1", 0.1),
        ("iav", 1.0, "alpha_1", 0.1),
        ("iav", 2.0, None, 0.1),
    ]
    (d,) = run.differences
    assert (d.method, d.against, d.value, d.low, d.high) == ("iav", "base", 0.25, -0.5, 0.75)
    assert run.costs["iav"]["of_base_low"] == 0.9
    assert run.costs["iav"]["fit_seconds"] == 2.5
    assert (run.about.study, run.about.train_pairs) == ("heads", 5)


def test_a_study_of_steering_of_an_earlier_version(tmp_path):
    (tmp_path / "dose.json").write_text(
        json.dumps(
            {
                **{"trait": "honesty", "model": "tiny", "model_digest": "0", "kl": 0.04},
                **{"train": {"spec": "p", "pairs": 4}, "test": {"spec": "t", "items": 2}},
                **{"personas": {"1.0": "You are."}, "versions": {}, "commit": "0", "command": ""},
            }
        )
    )
    summaries = dict.fromkeys(("slope", "per_damage", "r2", "valid", "score", "antisymmetry"), 0.5)
    published = {f"published_{k}": 0.5 for k in ("slope", "r2", "valid_fraction", "score")}
    common = {"half": "", "alpha": 2.0, "swing": 1.5, "swing_low": 1.0, "swing_high": 2.0}
    common |= {"wrong_way": 0.0, "reached": True, "items": 2, "passages": 3, "seconds": 1.0}
    cells = [("prompt", "prompt", 0), ("mean", "mean", 0), ("random-1", "random", 1)]
    write_lines(
        tmp_path / "results.jsonl",
        [
            {"name": n, "method": m, "seed": s, "kind": m, **common, **summaries, **published}
            | {"cpu_seconds": 0.5}
            for n, m, s in cells
        ],
    )
    write_lines(
        tmp_path / "comparisons.jsonl",
        [
            {"name": "mean", "against": "prompt", "difference": 0.5, "difference_low": 0.25}
            | {"difference_high": 0.75, "swing": 0.125, "swing_low": None, "swing_high": None}
        ],
    )
    point = {"alpha": 2.0, "dose": 0.2, "shift": 0.3, "kl": 0.04, "nll_rise": 0.01, "valid": 1.0}
    write_lines(tmp_path / "curves.jsonl", [{"name": n, **point} for n, _, _ in cells])
    said = {"prompt": "Well?", "alpha": 2.0, "text": "Yes."}
    write_lines(tmp_path / "generations.jsonl", [{"name": n, **said} for n, _, _ in cells])
    run = read(tmp_path)
    assert {(m.method, m.seed) for m in run.measurements} == {
        *(("persona", None), ("mean", None), ("random", 1))
    }
    assert {(d.method, d.against, d.metric, d.value) for d in run.differences} == {
        ("mean", "persona", "per_damage", 0.5),
        ("mean", "persona", "swing", 0.125),
    }
    swing = next(m for m in run.measurements if m.metric == "swing")
    assert (swing.alpha, swing.at, swing.low, swing.items) == (2.0, "equal_kl", 1.0, 2)
    assert {m.items for m in run.measurements if m.split == "neutral"} == {3}
    assert set(run.costs) == {"mean", "random-1"}
    (tmp_path / "curves.jsonl").unlink()
    with pytest.raises(TrimtabError, match=r"curves\.jsonl: missing"):
        read(tmp_path)


def test_a_line_answers_to_its_old_keys():
    line = OldRow(row_of(figure()))
    with pytest.warns(UserWarning, match="'ci_low' of a result line is now 'low'"):
        assert line["ci_low"] == 0.1
    with pytest.raises(KeyError):
        line["ci_middle"]
