"""A panel through the command line: `evaluate --panel`, `compare --panel`, the study, and its page."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers_study import SMALL, trimtab, write_lines, write_suite
from trimtab import models
from trimtab.dials import LogitsDial, VectorDial
from trimtab.panel import read_items, read_panel
from trimtab.panel.run import random_like
from trimtab.panel.values import values_of
from trimtab.report.blocks import Figure
from trimtab.report.panel import SideEffects, blocks
from trimtab.report.results import read_results
from trimtab.statistics import paired_difference
from trimtab.study.reading import read

LETTERS = "abcdefghij"


@pytest.fixture(scope="module")
def here(tmp_path_factory, tiny, tokenizer):
    """A model, a panel of its own, and a head that makes tokens with an x less likely."""
    folder = tmp_path_factory.mktemp("panel")
    model = tiny("llama")
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    write_suite(folder / "suite")
    for name, right, wrong in (("planted", "x", "y"), ("twin", "y", "z")):
        lines = [
            {"prompt": f"{a}{b}:", "chosen": f" {right}", "rejected": f" {wrong}"}
            for a in LETTERS
            for b in LETTERS[:6]
        ]
        write_lines(folder / f"{name}.jsonl", lines)
    refusals = "\\n".join(f"Do {w} harm. | Do {w} good." for w in ("some", "no", "much", "such"))
    (folder / "mine.yaml").write_text(
        f"planted: {{kind: choices, sources: ['{folder}/planted.jsonl'], about: x}}\n"
        f"twin: {{kind: choices, sources: ['{folder}/twin.jsonl'], in_distribution: "
        f"['{folder}/suite/train']}}\n"
        f'refusal: {{kind: refusal, table: "{refusals}"}}\n'
        "texts: {kind: texts, table: 'Say a word. | words 1 1', new_tokens: 3}\n"
        "neutral: {kind: neutral, passages: 12}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_CACHE", str(folder / "cache"))
        loaded, _ = models.load(str(folder / "model"))
        dial = LogitsDial.for_model(loaded, shape="full")
        # A plane of states from which every x is less likely: along the mean state behind the prompts.
        ids = [i for i in range(len(tokenizer)) if "x" in tokenizer.decode([i])]
        ends = [tokenizer(f"{a}b:", return_tensors="pt")["input_ids"] for a in LETTERS]
        seen = torch.cat([loaded.model(input_ids=e).last_hidden_state[0, -1:] for e in ends])
        with torch.no_grad():
            dial.B[ids] -= 4 * seen.mean(0) / seen.mean(0).norm() ** 2
        dial.info.base_digest = models.source_of(loaded).digest
        dial.info.data = {f"jsonl:{folder}/suite/train.jsonl": "0"}
        dial.save_pretrained(folder / "less-x")
        yield folder


@pytest.fixture(scope="module")
def evaluated(here):
    done = trimtab(
        *(
            "evaluate",
            "--model",
            here / "model",
            "--device",
            "cpu",
            "--dial",
            f"head={here}/less-x",
        ),
        *("--panel", here / "mine.yaml", "--panel-items", "60", "--panel-kl", "0.05"),
        *("--out", here / "evaluated", "--quiet"),
    )
    assert done.code == 0, done.err
    return done.out, here / "evaluated"


def test_a_head_that_lowers_one_property_is_found_and_its_twin_is_not(evaluated):
    said, out = evaluated
    run = read(out)
    found = {(d.method, d.at, d.split, d.metric): d for d in run.differences}
    planted = found["head", "alpha_1", "panel.planted", "accuracy"]
    assert (planted.verdict, planted.against) == ("worse", "base")
    assert planted.value < -planted.mde < 0
    assert found["head", "alpha_1", "panel.twin", "accuracy"].verdict == "cannot tell"
    assert {d.method for d in run.differences} == {"head", "random"}
    assert "planted: accuracy worse" in " ".join(said.split())
    # Where KL is equal, it is: measured on the passages on which it was looked for.
    kl = {m.method: m.value for m in run.measurements if (m.metric, m.at) == ("kl", "equal_kl")}
    assert kl.keys() == {"head", "random"}
    assert list(kl.values()) == pytest.approx([0.05, 0.05], rel=0.05)


def test_lines_are_what_the_items_say(evaluated):
    """Against a computation of its own from the values by item beside them."""
    run, content = read(evaluated[1]), json.loads((evaluated[1] / "panel.json").read_text())
    bare, *arms = content
    assert [bare["method"], *dict.fromkeys(a["method"] for a in arms)] == ["base", "head", "random"]
    for arm in arms:
        judged = []
        for name, metrics in arm["found"].items():
            for mine, theirs in zip(metrics, bare["found"][name], strict=True):
                a, b = values_of(mine), values_of(theirs)
                line = next(
                    d
                    for d in run.differences
                    if (d.method, d.at, d.split, d.metric)
                    == (arm["method"], arm["at"], f"panel.{name}", a.metric)
                )
                own = paired_difference(a.values, b.values, a.within, a.weights)
                assert line.value == pytest.approx(own.value, abs=1e-4)
                shares = np.isfinite(a.within).all()  # of others the larger of bootstrap's and t
                assert line.p == pytest.approx(own.p, abs=1e-4) if shares else line.p > own.p - 1e-3
                assert line.value == pytest.approx(a.mean - b.mean, abs=1e-4)
                judged += [line] if a.better else []
                assert (line.verdict == "not judged") is (a.better == 0)
        smallest = min(judged, key=lambda d: d.p)
        assert smallest.p_holm == pytest.approx(min(1, len(judged) * smallest.p))


def test_the_page_marks_what_a_dial_was_trained_on(evaluated):
    results = read_results(evaluated[1])
    panel = SideEffects(results)
    rows = {row.name: row.trained_on for row in panel.rows}
    assert rows["twin"] == ("head",)
    assert rows["planted"] == ()
    assert results.splits == ()  # no split of the suite
    page = (evaluated[1] / "report.html").read_text()
    assert page.count("twin: accuracy †") == 1
    drawn = next(b for b in blocks(results) if isinstance(b, Figure))
    shown = [p.title for p in drawn.panels]
    assert shown[:2] == [f"What head changes, in {unit}" for unit in ("points", "nats")]
    assert "points from the bare model" in drawn.panels[0].svg


def test_bad_input_of_a_panel_is_said_before_a_model_is_loaded(here, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "load", lambda *a, **k: pytest.fail("loaded"))
    dial = ("--dial", here / "less-x", "--model", here / "model", "--out", tmp_path / "out")

    def refused(*words):
        done = trimtab("evaluate", *dial, *words)
        assert done.code == 2, done.out
        assert not (tmp_path / "out").exists()
        return done.err

    said = refused("--panel", "--data-root", tmp_path)
    assert "choices:ARC-Easy/test was not found" in said
    assert f"looked for {tmp_path}/choices/ARC-Easy.test.jsonl" in said
    (tmp_path / "bbq.yaml").write_text("bias: {kind: bbq}")
    bbq = ("--panel", tmp_path / "bbq.yaml")
    assert f"no .jsonl files in {tmp_path}/bbq" in refused(*bbq, "--data-root", tmp_path)
    (tmp_path / "none.yaml").write_text("none: {kind: texts, table: ''}")
    assert "panel: none: no items; give it some" in refused("--panel", tmp_path / "none.yaml")
    for sources, why in (
        ("[]", "no items: expected sources, a list of specs"),
        (f"['jsonl:{tmp_path}/gone.jsonl']", f"{tmp_path}/gone.jsonl: there is no such file"),
    ):
        (tmp_path / "mine.yaml").write_text(f"mine: {{kind: choices, sources: {sources}}}")
        assert f"panel: mine: {why}" in refused("--panel", tmp_path / "mine.yaml")
    empty = trimtab("study", "run", "panel", "--model", here / "model", "--out", tmp_path / "out")
    assert "panel: nothing to measure; give --dials NAME=DIR or --methods" in empty.err
    assert "expected one file at most" in refused("--panel", "a.yaml", "b.yaml")
    monkeypatch.delenv("TRIMTAB_DATA", raising=False)
    assert "panel: bias: no data folder is known" in refused(*bbq)
    bare = ("evaluate", "--model", here / "model", "--panel", here / "mine.yaml")
    assert "--panel: give --dial" in trimtab(*bare, "--out", tmp_path / "out").err


def compare(here: Path, out: Path, *more: object):
    return trimtab(
        *(
            "compare",
            "--model",
            here / "model",
            "--device",
            "cpu",
            "--suite",
            here / "suite/suite.yaml",
        ),
        *("--methods", "dpo", "mean", "--out", out, "--quiet", *SMALL, *more),
    )


def test_a_comparison_has_the_panel_of_every_method_in_cells_of_its_own(here):
    out, panel = here / "compared", ("--panel", here / "mine.yaml", "--panel-items", "24")
    assert compare(here, out).code == 0
    made = {f: f.stat().st_mtime_ns for f in out.glob("cells/*/summary.json")}
    assert not [d for d in read(out).differences if d.split.startswith("panel.")]
    done = compare(here, out, *panel)
    assert done.code == 0, done.err
    # Nothing that was done is done again, and the figures of the rest stay.
    assert {f: f.stat().st_mtime_ns for f in out.glob("cells/*/summary.json")} == made
    run = read(out)
    sides = [d for d in run.differences if d.split.startswith("panel.")]
    assert {(d.method, d.at) for d in sides} == {
        ("dpo", "alpha_1"),
        ("mean", "alpha_1"),
        ("mean", "equal_kl"),
    }
    assert run.about.more["panel"]["kl"] == run.about.equal_kl
    results = read_results(out)
    assert results.splits == ("test", "oos")
    assert {d.split for d in results.over_base} == {"test", "oos"}
    assert "What else the dials change" in done.out
    # One panel's cell is lost: it alone is measured again, to the same bytes, in two processes as in one.
    whole = {name: (out / name).read_bytes() for name in ("results.jsonl", "verdicts.jsonl")}
    for lost in sorted(out.glob("cells/*/panel-*.json"))[:2]:
        lost.unlink()
    assert "not done (suite: base, side effects)" in trimtab("study", "check", out).out
    assert compare(here, out, *panel, "--jobs", "2").code == 0
    assert {name: (out / name).read_bytes() for name in whole} == whole


def test_the_study_reads_saved_dials_and_makes_others(here):
    out = here / "study"
    words = (
        "study",
        "run",
        "panel",
        "--model",
        here / "model",
        "--device",
        "cpu",
        "--panel",
        here / "mine.yaml",
    )
    words = (
        *words,
        "--panel-items",
        "12",
        "--methods",
        "mean",
        "--train",
        f"jsonl:{here}/suite/train.jsonl",
    )
    done = trimtab(*words, "--dials", f"head={here}/less-x", "--out", out, "--quiet")
    assert done.code == 0, done.err
    run = read(out)
    assert list(run.about.methods) == ["head", "mean", "random"]
    assert run.about.study == "panel"
    assert run.about.command.startswith("trimtab study run panel --model ")
    assert trimtab("pack", out, "--out", here / "sides.json").code == 0
    again = trimtab("reproduce", here / "sides.json", "--out", out, "--quiet")
    assert again.code == 0, again.out + again.err
    assert re.search(r"(\d{2,}) figures: \1 the same", again.out), again.out
    text = (out / "report.html").read_text()
    assert "What else the dials change" in text
    assert "random direction" in text
    shutil.rmtree(out / "cells")
    assert trimtab("report", out).code == 0  # from result files alone
    assert "nothing" not in (out / "report.md").read_text()
    gone = trimtab(*words, "--dials", f"head={here}/nowhere", "--out", here / "other")
    assert gone.code == 2
    assert "expected NAME=DIR, a saved dial" in gone.err


def test_a_random_twin_is_as_long(tiny):
    dial = VectorDial(
        {1: torch.ones(32), 2: torch.ones(32)}, {1: 2.0, 2: 3.0}, positions="completion"
    )
    twin = random_like(dial)
    assert twin is not None
    assert twin.scales == dial.scales
    assert twin.positions == "completion"
    assert twin.direction(1).norm().item() == pytest.approx(1)
    assert abs(float(twin.direction(1) @ dial.direction(1))) < 0.6
    assert random_like(VectorDial({1: torch.ones(32)}, {1: 1.0}, operator="project_out")) is None


def test_a_panel_knows_its_items(here):
    panel = read_items(read_panel(here / "mine.yaml"), 12)
    assert {n: len(items) for n, items in panel.items.items()} == {
        **{"planted": 12, "twin": 12, "refusal": 4, "texts": 1, "neutral": 12}
    }
    assert panel.digest == read_items(read_panel(here / "mine.yaml"), 12).digest
    assert panel.digest != read_items(read_panel(here / "mine.yaml"), 11).digest
    assert len(panel.pairs) == 24 + 4 * 2 * 11
    assert np.isfinite([len(p.rejected) for p in panel.pairs]).all()
