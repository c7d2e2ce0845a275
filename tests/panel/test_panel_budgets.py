"""Budgets that hold at every measured alpha: known curves, the tail of answers, a property, the command."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from helpers_study import trimtab, write_lines
from trimtab import models
from trimtab.dials import Dial, VectorDial
from trimtab.errors import ConfigError
from trimtab.evaluation.formats import format_for
from trimtab.panel import Choices, PanelOn, budgets, read_items
from trimtab.panel.budgets import (
    Point,
    held,
    panel_range,
    parse_budget,
    rollout_kl,
    rollout_range,
    tails,
)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Answers of few tokens."""
    monkeypatch.setattr(budgets, "TOKENS", 5)


PROMPTS = ["Say a word.", "What is blue?", "Four and two?"]


def test_budgets_are_parsed():
    assert parse_budget("kl=0.1") is None
    assert parse_budget("kl_p95_rollout=1.0") == ("kl_p95_rollout", 1.0)
    assert parse_budget("panel.knowledge=-2") == ("panel.knowledge", -2.0)
    for bad in ("kl_p95_rollout=-1", "kl_p95_rollout", "panel.x=2", "panel.x=0", "panel.x=nan"):
        with pytest.raises(ConfigError, match="--budget"):
            parse_budget(bad)


def curve(of):
    """A measure of a known curve, and the alphas that were asked for."""
    asked: list[float] = []

    def measure(alpha: float) -> Point:
        asked.append(alpha)
        return Point(alpha, of(alpha), of(alpha), of(alpha))

    return measure, asked


def test_the_largest_alpha_below_which_all_measured_hold():
    measure, asked = curve(lambda a: a * a if a > 0 else 9 * a * a)
    found = held("b", measure, lambda p: p.value <= 1.5, 8.0, "x")
    assert found.alpha == (-0.40625, 1.125)  # the roots are -0.408 and 1.225
    assert found.reached == (True, True)
    for point in found.points:
        inside = found.alpha[0] <= point.alpha <= found.alpha[1]
        assert inside == (point.value <= 1.5)
    assert {p.alpha for p in found.points} == {0.0, *asked}
    # A budget that is broken in between and met again further up ends at the gap.
    measure, _ = curve(lambda a: 2.0 if 0.9 < abs(a) < 1.1 else 0.0)
    assert held("b", measure, lambda p: p.value <= 1, 8.0, "x").alpha == (-0.875, 0.875)
    measure, _ = curve(lambda a: 0.0)
    found = held("b", measure, lambda p: p.value <= 1, 3.0, "x")
    assert (found.alpha, found.reached) == ((-3.0, 3.0), (False, False))
    measure, _ = curve(lambda a: 9.0 if a > 0 else 0.0)
    assert held("b", measure, lambda p: p.value <= 1, 3.0, "x").alpha == (-3.0, 0.0)
    measure, _ = curve(lambda a: 9.0)
    with pytest.raises(
        ConfigError, match=r"--budget b: no alpha from 0.0312 on meets it: at -0.0312"
    ):
        held("b", measure, lambda p: p.value <= 1, 3.0, "x")


def test_a_tail_counts_answers_as_often_as_they_are_drawn():
    rng = np.random.default_rng(0)
    kl = [rng.random(n) for n in (5, 0, 9, 12)]
    for counts in ([1, 1, 1, 1], [3, 1, 0, 0], [0, 2, 2, 1]):
        every = np.concatenate([k for k, n in zip(kl, counts, strict=True) for _ in range(n)])
        expected = np.quantile(every, 0.95, method="inverted_cdf")
        assert tails(kl, np.array([counts])) == [expected]
    assert tails([np.zeros(0)] * 2, np.ones((3, 2), int)) == [0.0] * 3


def vector(scale: float = 3.0) -> VectorDial:
    return VectorDial({1: torch.randn(32, generator=torch.Generator().manual_seed(1))}, {1: scale})


def test_kl_on_the_models_own_words(tiny, tokenizer):
    """Against passes written out: greedy tokens of the dialled model, then both distributions there."""
    model, dial = tiny("llama"), vector()
    found = rollout_kl(model, tokenizer, dial, 1.0, PROMPTS)
    form = format_for([dial])
    for prompt, kl in zip(PROMPTS, found, strict=True):
        ids = form.ids(tokenizer, prompt)
        start = len(ids)
        with torch.no_grad():
            while len(ids) < start + 4:
                with dial(model, 1.0):
                    ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            bare = model(input_ids=torch.tensor([ids])).logits[0, start - 1 : -1].log_softmax(-1)
            with dial(model, 1.0):
                own = model(input_ids=torch.tensor([ids])).logits[0, start - 1 : -1].log_softmax(-1)
        expected = (own.exp() * (own - bare)).sum(-1).numpy()
        assert kl[:4] == pytest.approx(expected[: len(kl)], abs=1e-4)


def test_a_range_of_rollouts(tiny, tokenizer):
    asked = [f"What is {n}?" for n in range(32)]
    found = rollout_range(tiny("llama"), tokenizer, vector(), 0.2, prompts=asked, largest=0.5)
    assert found.alpha[0] <= 0 < found.alpha[1]
    here = found.at(found.alpha[1])
    assert here.low <= here.value <= min(here.high, 0.2)
    assert json.loads(json.dumps(found.note()))["budget"] == "kl_p95_rollout=0.2"
    with pytest.raises(ConfigError, match="3 prompts; a tail takes 32"):
        rollout_range(tiny("llama"), tokenizer, vector(), 0.2, prompts=PROMPTS)


@pytest.fixture(scope="module")
def here(tmp_path_factory, tiny, tokenizer):
    """A model, a dial that makes the right answer unlikely, a file of questions."""
    folder = tmp_path_factory.mktemp("budgets")
    model = tiny("llama")
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    letters = "abcdefghijklmnop"
    lines = [
        {"prompt": f"{a}{b}:", "chosen": " x", "rejected": " y"} for a in letters for b in letters
    ]
    write_lines(folder / "asked.jsonl", lines)
    (folder / "mine.yaml").write_text(
        f"asked: {{kind: choices, sources: ['{folder}/asked.jsonl']}}\nmoved: {{kind: neutral}}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_CACHE", str(folder / "cache"))
        loaded, _ = models.load(str(folder / "model"))
        ids = [i for i in range(len(tokenizer)) if "x" in tokenizer.decode([i])]
        dial = VectorDial({3: -loaded.lm_head.weight[ids].mean(0)}, {3: 20.0})
        dial.info.base_digest = models.source_of(loaded).digest
        dial.save_pretrained(folder / "dial")
        yield folder


def test_a_property_may_fall_by_so_much(here, tokenizer):
    model, _ = models.load(str(here / "model"))
    panel = read_items([Choices("asked", sources=(f"{here}/asked.jsonl",))], 256)
    on, dial = PanelOn(model, tokenizer, panel), Dial.from_pretrained(here / "dial")
    found = panel_range(on, dial, "asked", -4.0, largest=2.0)
    assert found.budget == "panel.asked.accuracy=-4"
    up = found.at(found.alpha[1])
    assert up.low >= -4
    assert found.alpha[1] < 2
    assert found.reached[1]
    broken = min((p for p in found.points if p.alpha > found.alpha[1]), key=lambda p: p.alpha)
    assert broken.low < -4
    assert found.alpha[0] == -2  # it gains on the way down
    assert found.at(0.0).low == pytest.approx(-100 * 3.8415 / (256 + 3.8415), abs=0.01)
    said = (
        r"with 256 even a dial at alpha 0 may have lost 1.5; that takes about 381 \(--panel-items\)"
    )
    with pytest.raises(ConfigError, match=said):
        panel_range(on, dial, "asked", -1.0)


def test_the_command_writes_it_into_the_dial_or_nothing(here, monkeypatch):
    monkeypatch.setattr(budgets, "HALVINGS", 1)
    monkeypatch.setattr(budgets, "REQUESTS", "\n".join(budgets.REQUESTS.strip().splitlines()[:32]))
    words = (
        "calibrate",
        "--dial",
        here / "dial",
        "--model",
        here / "model",
        "--device",
        "cpu",
        "--quiet",
    )
    panel = ("--panel", here / "mine.yaml", "--panel-items", "128", "--largest", "1")
    before = (here / "dial" / "dial.json").read_bytes()
    for budget, said in (
        ("panel.asked=-1", "too few items: with 128"),
        ("panel.askd=-1", "no property 'askd'; did you mean 'asked'"),
        ("panel.moved=-1", "panel.moved.: not judged"),
        ("kl_p95_rollout=1e-9", "no alpha from"),
        ("panel.asked=1", "how much of the property may be lost, below 0"),
    ):
        refused = trimtab(*words, *panel, "--budget", budget)
        assert refused.code == 2, refused.out
        assert said in refused.err
        assert (here / "dial" / "dial.json").read_bytes() == before
    done = trimtab(*words, *panel, "--budget", "panel.asked.accuracy=-5")
    assert done.code == 0, done.err
    assert "within panel.asked.accuracy=-5 (128 items, bare model" in done.out
    assert trimtab(*words, "--budget", "kl_p95_rollout=0.5", "--largest", "0.5").code == 0
    measured = Dial.from_pretrained(here / "dial").info.measured["budgets"]
    assert set(measured) == {"panel.asked.accuracy", "kl_p95_rollout"}
    note = measured["panel.asked.accuracy"]
    assert 0.0 in [row[0] for row in note["alpha_value_low_high"]]
    assert note["alpha"][0] < 0 or note["alpha"][1] > 0
