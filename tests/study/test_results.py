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

import trimtab
from helpers_study import write_lines
from trimtab.errors import TrimtabError
from trimtab.studies.compare.evaluation import OldRow
from trimtab.study import reference
from trimtab.study.reading import check, kind_of, read
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
    assert len(frame) > 4000
    assert not frame[["model", "method", "split", "metric", "aggregate"]].isna().any().any()
    assert not ((frame.low > frame.value) | (frame.value > frame.high)).any()
    told = trimtab.results(DOCS / "results", "verdicts")
    assert set(told.verdict) == {"better", "worse", "cannot tell", "not judged"}
    assert {"prompt"}.isdisjoint({*frame.method, *told.method, *told.against})


def test_reading_results_brings_no_torch():
    code = "import sys, trimtab.study.results, trimtab.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- earlier versions ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["heads.json", "dose.json", "study.json"])
def test_files_of_an_earlier_version_are_refused_in_a_line(tmp_path, name):
    """Of the schema's predecessors: said by whatever reads the folder, with what to do."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text(json.dumps({"title": "t", "kind": "heads"}))
    write_lines(tmp_path / "run" / "results.jsonl", [{"arm": "iav", "ci_low": 0.1}])
    for given in (read, kind_of, check, trimtab.results):
        with pytest.raises(TrimtabError) as error:
            given(tmp_path / "run")
        assert str(error.value).startswith(f"{tmp_path / 'run' / name}: of an earlier version")
        assert "run the study again over the same folder" in str(error.value)


def test_a_line_answers_to_its_old_keys():
    line = OldRow(row_of(figure()))
    with pytest.warns(UserWarning, match="'ci_low' of a result line is now 'low'"):
        assert line["ci_low"] == 0.1
    with pytest.raises(KeyError):
        line["ci_middle"]
