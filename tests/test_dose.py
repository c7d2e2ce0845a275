"""Dose evaluation: hand values of the pure functions; the study on a tiny model, stopped and resumed."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from trimtab.batching import Encoded, Row
from trimtab.cli import main
from trimtab.errors import TrimtabError
from trimtab.evaluation import NeutralText
from trimtab.evaluation.dose import (
    antisymmetry,
    binary_log_ratio_correlation,
    damage_dose,
    log_ratios,
    score,
    slopes,
    straightness,
    valid_answers,
    wrong_way,
)
from trimtab.files import write_json, write_lines
from trimtab.report.steering import write_steering
from trimtab.states import Readings
from trimtab.study import steering_cells, steering_tables

# ---- by hand ------------------------------------------------------------------------------------


def test_log_ratios_by_hand():
    rows = (
        Row("a", (5,), ((1, 2), (3,)), ((0, 1),), (0,)),
        Row("b", (6,), ((1,), (2,), (3, 4)), ((0, 1), (0, 2)), (1, 2)),
    )
    encoded = Encoded(rows, 0, None, "two")
    found = Readings(
        logps=torch.tensor([-2.0, -3.0, -1.0, -4.0, -6.0]),
        tokens=torch.tensor([2, 1, 1, 1, 2]),
        states={},
    )
    ratios = log_ratios(encoded, found)
    assert ratios.ratio.tolist() == [-1.0 + 3.0, np.mean([-1 + 4, -1 + 3])]
    assert ratios.best.tolist() == [-1.0, -1.0]


def test_slopes_by_hand():
    y = [[0.0, 1.0], [1.0, 1.0], [2.0, -3.0]]
    assert slopes([-1, 0, 1], y).tolist() == [1.0, -2.0]
    assert wrong_way([1.0, -2.0]) == 0.5
    assert wrong_way([1.0, 0.0]) == 0.25
    with pytest.raises(ValueError, match="different"):
        slopes([1, 1], [[0.0], [1.0]])
    with pytest.raises(ValueError, match="doses"):
        slopes([0, 1], [[0.0], [1.0], [2.0]])


def test_straightness_by_hand():
    # Two parallel lines, far apart: where items start does not count.
    assert straightness([-1, 0, 1], [[-1.0, 99.0], [0.0, 100.0], [1.0, 101.0]]) == pytest.approx(1)
    # One item rises by 1, the other falls: the common slope is 0.
    assert straightness([-1, 0, 1], [[-1.0, 1.0], [0.0, 0.0], [1.0, -1.0]]) == 0
    # Slopes 1 and 0: the mean slope 1/2 explains 1/4 x 2 x 2 of 2.
    assert straightness([-1, 0, 1], [[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]) == pytest.approx(0.5)
    assert math.isnan(straightness([0, 1], [[3.0], [3.0]]))


def test_antisymmetry_by_hand():
    odd = [[-2.0], [1.0], [4.0]]
    even = [[3.0], [1.0], [3.0]]
    half = [[1.0], [1.0], [3.0]]  # odd 1, even 1
    assert antisymmetry([-1, 0, 1], odd) == 1
    assert antisymmetry([-1, 0, 1], even) == 0
    assert antisymmetry([-1, 0, 1], half) == 0.5
    assert math.isnan(antisymmetry([-1, 0, 1], [[1.0], [1.0], [1.0]]))
    with pytest.raises(ValueError, match="opposite"):
        antisymmetry([0, 1], [[0.0], [1.0]])


def test_damage_as_a_dose_by_hand():
    assert damage_dose([-2, 0, 1], [0.25, 0.0, 0.04]).tolist() == [-0.5, 0.0, 0.2]
    assert damage_dose([1], [-1e-9]).tolist() == [0.0]


def test_answers_that_are_lost_do_not_count():
    valid = valid_answers([[-1.0, -2.0], [-1.9, -3.5], [np.nan, -3.0]], [-1.0, -2.0])
    assert valid.tolist() == [[True, True], [True, False], [False, True]]


def test_the_score_has_a_sign():
    assert score(-2.0, 0.5, 0.5) == -0.25


def test_the_published_score_by_hand():
    # log1p of 0, e - 1, e^2 - 1 is 0, 1, 2; a line of slope -3 through all.
    c = [0.0, math.e - 1, math.e**2 - 1]
    found = binary_log_ratio_correlation(c, [1.0, -2.0, -5.0])
    assert found.slope == pytest.approx(-3)
    assert found.r2 == pytest.approx(1)
    assert found.score == pytest.approx(3)  # the sign is lost
    # y = 0, 1, 0 over -1, 0, 1: no slope; a fourth point is not valid: score x (3/4)^2.
    c = [-(math.e - 1), 0.0, math.e - 1, 50.0]
    found = binary_log_ratio_correlation(c, [0.0, 1.0, 4.0, 9.0], [1, 1, 1, 0])
    # x = -1, 0, 1; y - mean = -5/3, -2/3, 7/3; slope 2; R2 = 4^2 / (2 * 26/3)
    assert found.slope == pytest.approx(2)
    assert found.r2 == pytest.approx(16 / (2 * 78 / 9))
    assert found.score == pytest.approx(2 * found.r2 * 0.75**2)
    few = binary_log_ratio_correlation([0, 1, 2], [0.0, 1.0, np.nan])
    assert few.valid_fraction == pytest.approx(2 / 3)
    assert math.isnan(few.score)


def test_the_published_score_of_the_journal():
    """18.01 at R2 0.88 and all answers valid is the 15.9 that is quoted."""
    rng = np.random.default_rng(0)
    x = np.array([-2, -0.75, 0, 0.75, 2])
    s = np.sign(x) * np.log1p(np.abs(x))
    noise = rng.standard_normal(5)
    noise -= noise.mean()
    noise -= (noise @ s) / (s @ s) * s
    noise *= np.sqrt(18.01**2 * (s @ s) * (1 / 0.8845 - 1) / (noise @ noise))
    found = binary_log_ratio_correlation(x, 18.01 * s + noise)
    assert found.score == pytest.approx(15.93, abs=0.01)


# ---- tables -------------------------------------------------------------------------------------


def made_cell(name, gain, *, method=None, half="", kl=0.04, items=20, passages=4, seed=0):
    """A cell whose items move by gain x sqrt(KL), less and more by turns."""
    alphas = [-2.0, -1.0, 0.0, 1.0, 2.0]
    dose = np.sign(alphas) * np.sqrt(kl) * np.abs(alphas) / 2
    spread = np.where(np.arange(items) % 2, 1.5, 0.5)
    y = dose[:, None] * gain * spread + np.arange(items) / 10
    own = np.linspace(0.9, 1.1, passages)
    return {
        "name": name,
        "method": method or name,
        "seed": seed,
        "half": half,
        "kind": "vector",
        "items": [f"i{k}" for k in range(items)],
        "alphas": alphas,
        "matched": [1, 3],
        "kl": (dose**2).tolist(),
        "ratio": y.tolist(),
        "valid": np.ones_like(y, int).tolist(),
        "kl_passages": np.outer(dose**2, own).tolist(),
        "nll_rise_passages": np.outer(dose**2, own).tolist(),
        "generations": [
            {"prompt": "Well?", "alpha": a, "text": f"{name} at {a:g}"} for a in alphas
        ],
        "seconds": 1.0,
        "cpu_seconds": 0.5,
    }


def test_a_row_a_cell():
    (row,) = steering_tables.results([made_cell("mean", 2.0)], "tiny")
    assert row["per_damage"] == pytest.approx(2.0)
    assert row["slope"] == pytest.approx(2.0 * 0.2 / 2)
    assert row["per_damage_low"] < 2.0 < row["per_damage_high"]
    assert (row["antisymmetry"], row["wrong_way"], row["valid"]) == (1, 0, 1)
    assert row["score"] == pytest.approx(2.0 * row["r2"])
    # Slopes 1.5 and 0.5 about a common 1: R2 is 1 / mean of 2.25 and 0.25.
    assert row["r2"] == pytest.approx(1 / 1.25)
    assert (row["alpha"], row["kl_up"]) == (1.0, pytest.approx(0.01))
    assert row["swing"] == pytest.approx(2.0 * 0.1)


def test_a_wrong_way_dial_has_a_negative_score_but_a_positive_published_one():
    (row,) = steering_tables.results([made_cell("mean", -2.0)], "tiny")
    assert row["per_damage"] < 0
    assert row["score"] < 0
    assert row["wrong_way"] == 1
    assert row["published_score"] > 0


def test_slope_per_damage_does_not_depend_on_what_one_alpha_means():
    one, other = made_cell("mean", 2.0), made_cell("mean", 2.0)
    other["alphas"] = [10 * a for a in other["alphas"]]
    a, b = (steering_tables.results([c], "tiny")[0] for c in (one, other))
    assert a["per_damage"] == b["per_damage"]
    assert a["slope"] == pytest.approx(10 * b["slope"])
    assert a["published_slope"] != pytest.approx(b["published_slope"])


def test_comparisons_are_paired_and_the_halves_are_the_noise_floor():
    cells = [
        made_cell("prompt", 1.0),
        made_cell("mean", 2.0),
        made_cell("mean-first", 2.0, method="mean", half="first"),
        made_cell("mean-second", 2.1, method="mean", half="second"),
        made_cell("random-0", 0.1, method="random"),
        made_cell("random-1", -0.1, method="random", seed=1),
    ]
    found = {(c["name"], c["against"]): c for c in steering_tables.comparisons(cells)}
    assert found["mean", "prompt"]["difference"] == pytest.approx(1.0)
    assert found["mean", "random"]["difference"] == pytest.approx(1.9)
    assert found["mean", "prompt"]["swing"] == pytest.approx(0.1)
    noise = found["mean-second", "mean-first"]
    assert noise["difference"] == pytest.approx(0.1)
    # All three move the same items alike: paired, the interval is narrower than either's own.
    own = steering_tables.results(cells[1:2], "tiny")[0]
    width = noise["difference_high"] - noise["difference_low"]
    assert width < (own["per_damage_high"] - own["per_damage_low"]) / 5
    assert ("mean-first", "prompt") not in found
    assert ("prompt", "prompt") not in found


def test_a_dial_that_does_nothing_has_no_slope_per_damage():
    cell = made_cell("mean", 0.0, kl=0.0)
    (row,) = steering_tables.results([cell], "tiny")
    assert row["per_damage"] is None
    assert row["slope"] == pytest.approx(0, abs=1e-12)
    assert json.dumps(row)


def test_the_figure_is_over_damage(tmp_path):
    folder = tmp_path / "steering" / "honesty"
    write_cells(folder, [made_cell("prompt", 1.0), made_cell("mean", 2.0)])
    page = write_steering(tmp_path / "steering", tmp_path / "steering.md")
    text, drawn = page.read_text(), page.with_suffix(".svg").read_text()
    assert "**honesty**: steepest is `mean`, 2.00 [" in text
    assert "mean at -2" in text
    assert "prefers-color-scheme:dark" in drawn
    assert "persona prompt" in drawn
    again = write_steering(tmp_path / "steering", tmp_path / "again.md")
    assert again.with_suffix(".svg").read_bytes() == page.with_suffix(".svg").read_bytes()
    (folder / "results.jsonl").write_text("{")
    with pytest.raises(TrimtabError, match="trimtab dose"):
        write_steering(tmp_path / "steering", page)


def test_a_run_has_its_page_within(tmp_path, capsys):
    """Of one trait and of several: nothing is written beside the folder that was named."""
    one, several = tmp_path / "alone", tmp_path / "several"
    for folder in (one, several / "honesty", several / "happiness"):
        write_cells(folder, [made_cell("prompt", 1.0), made_cell("mean", 2.0)])
    before = set(tmp_path.rglob("*"))
    for folder in (one, several, several / "honesty"):
        with pytest.raises(SystemExit) as stop:
            main(("report", str(folder)))
        assert stop.value.code == 0
        assert capsys.readouterr().out.strip() == str(folder / "report.md")
        assert "(report.svg)" in (folder / "report.md").read_text()
    made = {p.relative_to(tmp_path).as_posix() for p in set(tmp_path.rglob("*")) - before}
    pages = {f"{name}/report" for name in ("alone", "several", "several/honesty")}
    assert made == {page + end for page in pages for end in (".md", ".svg")}
    assert "## Happiness" in (several / "report.md").read_text()


def test_every_line_says_what_it_is_of():
    (row,) = steering_tables.results([made_cell("mean", 2.0)], "tiny")
    assert (row["model"], row["method"], row["seed"], row["aggregate"]) == (
        "tiny",
        "mean",
        0,
        False,
    )


def test_no_item_moved_the_wrong_way_is_what_the_number_allows():
    (row,) = steering_tables.results([made_cell("mean", 2.0, items=12)], "tiny")
    assert (row["wrong_way"], row["wrong_way_low"]) == (0, 0)
    assert row["wrong_way_high"] == pytest.approx(0.242494, abs=1e-5)
    at_0 = next(r for r in steering_tables.curves([made_cell("mean", 2.0)]) if r["alpha"] == 0)
    assert [at_0[f"kl{end}"] for end in ("", "_low", "_high")] == [0, 0, 0]


def write_cells(folder, cells):
    """Result files as `dose` writes them."""
    folder.mkdir(parents=True)
    for name in ("results", "comparisons", "curves"):
        more = ("tiny",) if name == "results" else ()
        write_lines(folder / f"{name}.jsonl", getattr(steering_tables, name)(cells, *more))
    said = [{"name": c["name"], **g} for c in cells for g in c["generations"]]
    write_lines(folder / "generations.jsonl", said)
    about = {
        "trait": folder.name,
        "model": "tiny",
        "model_digest": "0",
        "train": {"spec": "personas:honesty", "pairs": 4},
        "test": {"spec": "traits:honesty/test", "items": 20},
        "personas": {"1.0": "You are honest.", "-1.0": "You are not."},
        "kl": 0.04,
        "versions": {"trimtab": "0"},
        "commit": "0",
        "command": "trimtab dose",
    }
    write_json(folder / "dose.json", about)


# ---- the study ----------------------------------------------------------------------------------

TINY = (
    *("--traits", "honesty", "--limit", "6", "--items", "3", "--passages", "2"),
    *("--new-tokens", "2", "--steps", "1", "--random-seeds", "0", "--kl", "0.001"),
)


def dose_words(folder, out, *more):
    return ("dose", "--model", str(folder), "--out", str(out), "--quiet", *TINY, *more)


def test_the_study_is_resumed_cell_by_cell(saved_model, tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "results" / "steering" / "honesty"
    words = dose_words(saved_model(), folder, "--methods", "mean", "contrastive")
    calls = []
    whole = steering_cells._dial

    def stopped(cell, *rest):
        calls.append(cell.name)
        if cell.name == "mean-second" and len(calls) < 5:
            raise KeyboardInterrupt
        return whole(cell, *rest)

    monkeypatch.setattr(steering_cells, "_dial", stopped)
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 130
    assert calls == ["mean", "contrastive", "mean-first", "mean-second"]
    assert not (folder / "results.jsonl").exists()
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 0, capsys.readouterr().err
    assert calls[4:] == ["mean-second", "random-0"]
    rows = {r["name"]: r for r in map(json.loads, (folder / "results.jsonl").open())}
    assert list(rows) == ["prompt", "mean", "contrastive", "mean-first", "mean-second", "random-0"]
    assert rows["mean"]["kl_up"] == pytest.approx(0.001, rel=0.3)
    assert rows["prompt"]["seconds"] == 0
    said = [json.loads(x) for x in (folder / "generations.jsonl").open()]
    assert sum(g["name"] == "mean" for g in said) == 5
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(("report", str(tmp_path / "results")))
    assert capsys.readouterr().out.strip() == str(tmp_path / "results" / "steering.md")
    assert "## Honesty" in (tmp_path / "results" / "steering.md").read_text()


def test_measured_again_gives_the_same_bytes(saved_model, tmp_path, monkeypatch):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    found, folder = [], saved_model()
    for out in ("a", "b"):
        with pytest.raises(SystemExit):
            main(dose_words(folder, tmp_path / out, "--methods", "pca", "pca_center", "--halves"))
        cells = [json.loads(f.read_text()) for f in (tmp_path / out / "cells").glob("pca*")]
        assert {c["name"] for c in cells} == {"pca", "pca_center"}
        assert cells[0]["ratio"] == cells[1]["ratio"]  # one direction, measured once
        rows = [json.loads(x) for x in (tmp_path / out / "results.jsonl").open()]
        found.append([{k: v for k, v in r.items() if "seconds" not in k} for r in rows])
        found[-1].append((tmp_path / out / "curves.jsonl").read_text())
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--traits", "honestly"), "honesty"),
        (("--methods", "dpo"), "personas in contrast"),
        (("--methods", "maen"), "mean"),
        (("--methods", "random"), "random_seeds"),
        (("--kl", "0"), "above 0"),
        (("--items", "1"), "expected 2 or more"),
        (("--methods", "mean", "mean"), "once"),
    ],
)
def test_what_cannot_be_dosed(saved_model, tmp_path, capsys, change, message):
    with pytest.raises(SystemExit) as stop:
        main((*dose_words(saved_model(), tmp_path / "run"), *change))
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_lead_is_not_measured(tiny, tokenizer):
    """Damage after a lead is that of the passage's tokens alone, and a lead against itself is none."""
    model = tiny("llama")
    text = "The cat sat on the mat."
    plain = NeutralText(model, tokenizer, [text])
    led = NeutralText(model, tokenizer, [text], lead=[7, 8, 9])
    tokens = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    assert led._logps(0).shape[0] == tokens
    assert plain._logps(0).shape[0] == plain.ids[0].shape[1] - 1
    same = led.damage_of_lead(NeutralText(model, tokenizer, [text], lead=[7, 8, 9]))
    assert same.kl.tolist() == [0.0]
    other = led.damage_of_lead(NeutralText(model, tokenizer, [text], lead=[10, 11]))
    base, new = led._logps(0), NeutralText(model, tokenizer, [text], lead=[10, 11])._logps(0)
    assert other.kl[0] == pytest.approx((base.exp() * (base - new)).sum(-1).mean().item())
    assert other.kl[0] > 0
