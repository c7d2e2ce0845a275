"""Dose evaluation: hand values of the pure functions; the study on a tiny model, stopped and resumed."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from trimtab import models
from trimtab.batching import Encoded, Row, encode
from trimtab.cli import main
from trimtab.dials import VectorDial
from trimtab.errors import TrimtabError
from trimtab.evaluation import NeutralText
from trimtab.evaluation import score as score_items
from trimtab.evaluation.dose import (
    antisymmetry,
    binary_log_ratio_correlation,
    damage_dose,
    log_ratios,
    score,
    slopes,
    steerability,
    straightness,
    valid_answers,
    wrong_way,
)
from trimtab.pairs import Pair, PairSet
from trimtab.states import Readings
from trimtab.studies.pages import write_pages
from trimtab.studies.steering import tables as steering_tables
from trimtab.studies.steering.trait import Trait
from trimtab.study.reading import read
from trimtab.study.results import About, Generation, Run, Split, write

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


def test_steerability_by_hand():
    """Seven strengths as Tan et al. have them; one item goes up, one down."""
    up, down = (-1, -0.5, 0, 0.2, 0.5, 1, 1.6), (0.5, 0.4, 0.2, 0, -0.1, -0.2, -0.4)
    found = steerability(np.linspace(-1.5, 1.5, 7), np.array([up, down]).T)
    assert found.slopes == pytest.approx([0.8071429, -0.3], abs=5e-8)
    assert found.slope.value == pytest.approx(0.2535714, abs=5e-8)  # that of the mean
    assert found.wrong_way.value == 0.5


def test_a_liking_for_a_letter_is_no_slope(tiny, tokenizer, store):
    """A vector that makes one letter likelier whatever is asked moves no item, for each has both orders;
    the pairs by themselves go 1 in 2 the wrong way."""
    question = "Which?\n (A) {}\n (B) {}\n\nAnswer:"
    texts = [(f"up {n}", f"down {n}") for n in range(4)]
    pairs = [
        Pair(question.format(*order), f" ({right}", f" ({wrong}", str(n), open=True)
        for n, (good, bad) in enumerate(texts)
        for order, right, wrong in (((good, bad), "A", "B"), ((bad, good), "B", "A"))
    ]
    model = tiny("llama")
    encoded = encode(PairSet(pairs, "letters"), tokenizer)
    a, b = (tokenizer(f" ({x}")["input_ids"][-1] for x in "AB")
    last = len(models.layers(model)) - 1
    dial = VectorDial({last: model.lm_head.weight[a] - model.lm_head.weight[b]}, {last: 0.3})
    alphas = (-1.0, 0.0, 1.0)
    scores = [score_items(model, encoded, dial, x, store=store) for x in alphas]
    found = steerability(alphas, np.array([s.preference for s in scores]))
    single = [
        score_items(
            model, encode(PairSet(pairs[::2], "one order"), tokenizer), dial, x, store=store
        )
        for x in alphas
    ]
    liking = steerability(alphas, np.array([s.preference for s in single]))
    assert liking.wrong_way.value == 0.0
    assert liking.slope.low > 0.05
    assert abs(found.slopes).max() < 0.5 * liking.slopes.min()


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
    row = row_of_cell(made_cell("mean", 2.0))
    assert row["per_damage"] == pytest.approx(2.0)
    assert row["slope"] == pytest.approx(2.0 * 0.2 / 2)
    assert row["per_damage_low"] < 2.0 < row["per_damage_high"]
    assert (row["antisymmetry"], row["wrong_way"], row["valid"]) == (1, 0, 1)
    assert row["score"] == pytest.approx(2.0 * row["r2"])
    # Slopes 1.5 and 0.5 about a common 1: R2 is 1 / mean of 2.25 and 0.25.
    assert row["r2"] == pytest.approx(1 / 1.25)
    swing = next(m for m in steering_tables.results([made_cell("mean", 2.0)], COMMON))
    assert (swing.metric, swing.alpha, swing.at) == ("swing", 1.0, "equal_kl")
    assert row["swing"] == pytest.approx(2.0 * 0.1)


def test_a_wrong_way_dial_has_a_negative_score_but_a_positive_published_one():
    row = row_of_cell(made_cell("mean", -2.0))
    assert row["per_damage"] < 0
    assert row["score"] < 0
    assert row["wrong_way"] == 1
    assert row["published_score"] > 0


def test_slope_per_damage_does_not_depend_on_what_one_alpha_means():
    one, other = made_cell("mean", 2.0), made_cell("mean", 2.0)
    other["alphas"] = [10 * a for a in other["alphas"]]
    a, b = (row_of_cell(c) for c in (one, other))
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
    lines = steering_tables.comparisons(cells, COMMON)
    found = {(d.method, d.against): d for d in lines if d.metric == "per_damage"}
    swings = {(d.method, d.against): d for d in lines if d.metric == "swing"}
    assert found["mean", "persona"].value == pytest.approx(1.0)
    assert found["mean", "random"].value == pytest.approx(1.9)
    assert swings["mean", "persona"].value == pytest.approx(0.1)
    noise = found["mean-second", "mean-first"]
    assert noise.value == pytest.approx(0.1)
    # All three move the same items alike: paired, the interval is narrower than either's own.
    own = row_of_cell(cells[1])
    width = noise.high - noise.low
    assert width < (own["per_damage_high"] - own["per_damage_low"]) / 5
    assert ("mean-first", "persona") not in found
    assert ("persona", "persona") not in found


def test_a_dial_that_does_nothing_has_no_slope_per_damage():
    cell = made_cell("mean", 0.0, kl=0.0)
    row = row_of_cell(cell)
    assert row["per_damage"] is None
    assert row["slope"] == pytest.approx(0, abs=1e-12)
    assert json.dumps(row)


def test_the_figure_is_over_damage(tmp_path):
    folder = tmp_path / "steering" / "honesty"
    write_cells(folder, [made_cell("prompt", 1.0), made_cell("mean", 2.0)])
    [page] = write_pages(tmp_path)
    text, drawn = page.read_text(), page.with_suffix(".svg").read_text()
    assert "**honesty**: steepest is `mean`, 2.00 [" in text
    assert "mean at -2" in text
    assert "prefers-color-scheme:dark" in drawn
    assert "persona prompt" in drawn
    before = page.read_bytes(), page.with_suffix(".svg").read_bytes()
    assert write_pages(tmp_path) == [page]
    assert (page.read_bytes(), page.with_suffix(".svg").read_bytes()) == before
    (folder / "results.jsonl").write_text("{")
    with pytest.raises(TrimtabError, match=r"results\.jsonl:1: not a JSON object"):
        write_pages(tmp_path)


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
        made = [str(folder / name) for name in ("report.md", "report.html")]
        assert capsys.readouterr().out.split() == made
        assert "(report.svg)" in (folder / "report.md").read_text()
    made = {p.relative_to(tmp_path).as_posix() for p in set(tmp_path.rglob("*")) - before}
    pages = {f"{name}/report" for name in ("alone", "several", "several/honesty")}
    assert made == {page + end for page in pages for end in (".md", ".svg", ".html")}
    assert "## Happiness" in (several / "report.md").read_text()


def test_every_line_says_what_it_is_of():
    cells = [made_cell("mean", 2.0), made_cell("random-1", 0.1, method="random", seed=1)]
    found = {
        (m.model, m.suite, m.method, m.seed, m.aggregate)
        for m in steering_tables.results(cells, COMMON)
    }
    assert found == {("tiny", "honesty", m, s, False) for m, s in (("mean", None), ("random", 1))}


def test_no_item_moved_the_wrong_way_is_what_the_number_allows():
    row = row_of_cell(made_cell("mean", 2.0, items=12))
    assert (row["wrong_way"], row["wrong_way_low"]) == (0, 0)
    assert row["wrong_way_high"] == pytest.approx(0.242494, abs=1e-5)
    lines = steering_tables.results([made_cell("mean", 2.0)], COMMON)
    at_0 = next(m for m in lines if (m.alpha, m.metric) == (0, "kl"))
    assert (at_0.value, at_0.low, at_0.high) == (0, 0, 0)


COMMON = {"model": "tiny", "suite": "honesty"}


def row_of_cell(cell):
    """A cell's summaries by metric, with the ends of their intervals."""
    found = {}
    for m in steering_tables.results([cell], COMMON):
        if m.alpha is None or m.at == "equal_kl":
            row = {m.metric: m.value, f"{m.metric}_low": m.low, f"{m.metric}_high": m.high}
            found |= {k: None if math.isnan(v) else v for k, v in row.items()}
    return found


def write_cells(folder, cells):
    """Result files as `dose` writes them."""
    common = {**COMMON, "suite": folder.name}
    about = About(
        study="steering",
        title="Steering",
        **common,
        model_digest="0",
        train="personas:honesty",
        train_items=4,
        train_pairs=4,
        splits={
            "test": Split("traits:honesty/test", 20, 20, 0),
            "neutral": Split("neutral passages", 4, 0, 0),
        },
        methods={},
        seeds=(),
        dtype="float32",
        device="cpu",
        versions={"trimtab": "0"},
        command="trimtab dose",
        commit="0",
        equal_kl=0.04,
        more={"personas": {"1.0": "You are honest.", "-1.0": "You are not."}},
    )
    said = [
        Generation("tiny", **steering_tables.named(c), **g) for c in cells for g in c["generations"]
    ]
    lines = (f(cells, common) for f in (steering_tables.results, steering_tables.comparisons))
    write(folder, Run(about, *map(tuple, lines), (), tuple(said)))


# ---- the study ----------------------------------------------------------------------------------

TINY = (
    *("--traits", "honesty", "--limit", "6", "--items", "3", "--passages", "2"),
    *("--max-new-tokens", "2", "--steps", "1", "--random-seeds", "0", "--kl", "0.001"),
)


def dose_words(folder, out, *more):
    return ("dose", "--model", str(folder), "--out", str(out), "--quiet", *TINY, *more)


def test_the_study_is_resumed_cell_by_cell(saved_model, tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "results" / "steering" / "honesty"
    words = dose_words(saved_model(), folder, "--methods", "mean", "contrastive")
    calls = []
    whole = Trait._dial

    def stopped(self, name, target):
        calls.append(name)
        if name == "mean-second" and len(calls) < 5:
            raise KeyboardInterrupt
        return whole(self, name, target)

    monkeypatch.setattr(Trait, "_dial", stopped)
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 130
    assert calls == ["mean", "contrastive", "mean-first", "mean-second"]
    assert not (folder / "results.jsonl").exists()
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 0, capsys.readouterr().err
    assert calls[4:] == ["mean-second", "random-0"]
    done = read(folder)
    methods = dict.fromkeys(m.method for m in done.measurements)
    assert list(methods) == [
        *("persona", "mean", "contrastive", "mean-first"),
        "mean-second",
        "random",
    ]
    one = next(m.alpha for m in done.measurements if (m.method, m.metric) == ("mean", "swing"))
    kl = next(
        m.value for m in done.measurements if (m.method, m.metric, m.alpha) == ("mean", "kl", one)
    )
    assert kl == pytest.approx(0.001, rel=0.3)
    assert "persona" not in done.costs
    assert sum(g.method == "mean" for g in done.generations) == 5
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
        files = (tmp_path / out / "cells").glob("pca*.json")
        cells = [json.loads(f.read_text())["found"] for f in files]
        assert {c["name"] for c in cells} == {"pca", "pca_center"}
        assert cells[0]["ratio"] == cells[1]["ratio"]  # one direction, measured once
        names = ("results.jsonl", "verdicts.jsonl", "generations.jsonl")
        found.append([(tmp_path / out / name).read_bytes() for name in names])
    assert found[0] == found[1]


def test_two_at_once_give_the_same_bytes(saved_model, tmp_path, monkeypatch):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    found, folder = [], saved_model()
    for out in ("one", "two"):
        more = ("--methods", "mean", "--jobs", "2" if out == "two" else "1")
        with pytest.raises(SystemExit) as stop:
            main(dose_words(folder, tmp_path / out, *more))
        assert stop.value.code == 0
        names = ("results.jsonl", "verdicts.jsonl", "generations.jsonl")
        found.append([(tmp_path / out / name).read_bytes() for name in names])
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
    assert led.log_probs(0).shape[0] == tokens
    assert plain.log_probs(0).shape[0] == plain.ids[0].shape[1] - 1
    same = led.damage_of_lead(NeutralText(model, tokenizer, [text], lead=[7, 8, 9]))
    assert same.kl.tolist() == [0.0]
    other = led.damage_of_lead(NeutralText(model, tokenizer, [text], lead=[10, 11]))
    base, new = led.log_probs(0), NeutralText(model, tokenizer, [text], lead=[10, 11]).log_probs(0)
    assert other.kl[0] == pytest.approx((base.exp() * (base - new)).sum(-1).mean().item())
    assert other.kl[0] > 0
