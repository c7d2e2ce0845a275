"""Ranges within a budget of damage, and conditions found on examples."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from trimtab.damage import Damage
from trimtab.dials import Dial, VectorDial
from trimtab.errors import ConfigError, DataError, DialError
from trimtab.evaluation import NeutralText, calibrate, generate, parse_budget
from trimtab.evaluation.calibration import _interval, _meets, passages_of
from trimtab.pairs.neutral import NEUTRAL
from trimtab.training.condition import best_threshold, fit_condition

PASSAGES = [text[:160] for text in NEUTRAL[12:18]]


def vector(model: Any, scale: float = 0.5, **options: Any) -> VectorDial:
    g = torch.Generator().manual_seed(1)
    direction = torch.randn(model.config.hidden_size, generator=g)
    return VectorDial({1: direction}, {1: scale}, **options)


class Known(NeutralText):
    """Text whose KL is rate x alpha^2, passage by passage, up at another rate than down."""

    def __init__(self, rates: list[float], up: float = 1.0, down: float = 4.0):
        self.ids = [torch.zeros(1, 3)] * len(rates)
        self.rates, self.up, self.down = np.array(rates), up, down
        self.asked: list[float] = []

    def damage(self, dial: Any, alpha: float, *, force: bool = False) -> Damage:
        self.asked.append(alpha)
        kl = self.rates * alpha**2 * (self.up if alpha > 0 else self.down)
        return Damage(kl, np.zeros(len(kl)))


def test_the_range_of_a_known_curve():
    """Mean KL is 0.1 alpha^2 up and 0.4 alpha^2 down: the budget 0.1 is met at 1 and at -0.5."""
    text = Known([0.05, 0.1, 0.15])
    found = calibrate(text, None, 0.1)  # type: ignore[arg-type]
    assert 0.98 < found.up.alpha <= 1.0
    assert -0.5 <= found.down.alpha < -0.49
    for end in (found.up, found.down):
        assert 0.096 < end.kl <= 0.1
        assert end.low < end.alpha < end.high
        assert end.reached
    assert found.up.low == pytest.approx(1 / 1.5**0.5, abs=0.05)
    assert found.up.high == pytest.approx(1 / 0.5**0.5, abs=0.05)
    assert len(text.asked) <= 10
    note = found.note()
    assert note["budget"] == "kl=0.1"
    assert note["alpha"] == [pytest.approx(found.down.alpha, 1e-3), pytest.approx(1, abs=0.02)]
    assert json.loads(json.dumps(note)) == note


def test_a_budget_that_is_never_met():
    found = calibrate(Known([0.0, 0.0]), None, 0.1, largest=4.0)  # type: ignore[arg-type]
    assert found.up.alpha == 4.0
    assert found.down.alpha == -4.0
    assert not found.up.reached


def test_a_curve_that_breaks_off():
    """Beyond 0.6 the KL is not finite: what was measured inside the budget is taken."""

    class Broken(Known):
        def damage(self, dial: Any, alpha: float, *, force: bool = False) -> Damage:
            found = super().damage(dial, alpha)
            return Damage(np.full(2, np.nan), found.nll_rise) if abs(alpha) > 0.6 else found

    found = calibrate(Broken([0.1, 0.1], 1.0, 1.0), None, 0.1)  # type: ignore[arg-type]
    assert 0.4 < found.up.alpha <= 0.6
    assert found.up.kl <= 0.1
    assert found.up.reached


def test_where_a_line_meets_its_target_by_hand():
    alphas, roots = np.array([0.0, 1.0, 2.0]), np.array([0.0, 0.2, 0.6])
    assert _meets(alphas, roots, 0.4, 8.0) == pytest.approx(1.5)
    assert _meets(alphas, roots, 0.1, 8.0) == pytest.approx(0.5)
    assert _meets(alphas, roots, 0.9, 8.0) == pytest.approx(3.0)
    assert _meets(alphas, roots, 9.0, 8.0) == 8.0
    assert _meets(alphas, np.zeros(3), 0.1, 8.0) == 8.0
    low, high = _interval({0.0: np.zeros(3), 1.0: np.full(3, 0.1)}, 0.1, 8.0, 100, 0)
    assert low == pytest.approx(1.0)
    assert high == pytest.approx(1.0)


def test_the_range_of_a_dial_is_inside_the_budget(tiny, tokenizer):
    model = tiny("llama")
    text, dial = NeutralText(model, tokenizer, PASSAGES), vector(model, 2.0)
    found = calibrate(text, dial, 0.05)
    for end in (found.down, found.up):
        assert 0.045 < text.damage(dial, end.alpha).kl.mean() <= 0.05
        assert text.damage(dial, 1.1 * end.alpha).kl.mean() > 0.05
        assert end.low <= end.alpha <= end.high
    again = calibrate(text, dial, 0.05)
    assert again == found  # the bootstrap has its own seed


def test_the_range_is_written_into_the_dial_and_nothing_else_is(tiny, tokenizer, tmp_path):
    model = tiny("llama")
    dial = vector(model)
    dial.info.measured = {"kl": 1.0}
    dial.save_pretrained(tmp_path / "d", {"training.jsonl": "{}\n"})
    dial.info.measured = {**dial.info.measured, "range": {"alpha": [-1.0, 2.0]}}
    dial.save_measured(tmp_path / "d")
    again = Dial.from_pretrained(tmp_path / "d")
    assert again.info.measured == {"kl": 1.0, "range": {"alpha": [-1.0, 2.0]}}
    assert (tmp_path / "d" / "training.jsonl").read_text() == "{}\n"
    assert "range" in (tmp_path / "d" / "README.md").read_text()
    assert not list((tmp_path / "d").glob(".*"))
    other = vector(model)
    other.info.base_digest = "ab"
    with pytest.raises(DialError, match="another dial than the one"):
        other.save_measured(tmp_path / "d")
    with pytest.raises(DialError, match="cannot be written to"):
        dial.save_measured(tmp_path / "none")


@pytest.mark.parametrize("text", ["0.1", "kl", "kl=", "kl=-1", "kl=0", "kl=nan", "nll=0.1", "kl=a"])
def test_what_is_no_budget(text):
    with pytest.raises(ConfigError, match=r"expected kl=NATS above 0"):
        parse_budget(text)
    assert parse_budget("kl=0.25") == 0.25


def test_too_little_text(tiny, tokenizer):
    model = tiny("llama")
    with pytest.raises(ConfigError, match="two passages"):
        calibrate(NeutralText(model, tokenizer, PASSAGES[:1]), vector(model), 0.1)
    assert passages_of("one paragraph of some length\n\nshort\n\nanother of some length\n") == [
        "one paragraph of some length",
        "another of some length",
    ]


# ---- conditions from examples -------------------------------------------------------------------

ACTING = [f"The capital of {c} is" for c in ("France", "Italy", "Rome", "Paris", "there", "other")]
RESTING = [f"Two and {n} are four. Water" for n in ("two", "three", "one", "nine", "a", "the")]


@pytest.mark.parametrize("style", ["plain", "chat"])
@pytest.mark.parametrize("over", ["prompt", "last"])
def test_a_condition_found_on_examples_acts_on_their_like(tiny, tokenizer, over, style):
    model = tiny("llama")
    found = fit_condition(
        model, tokenizer, ACTING, RESTING, sites="0,1", over=over, prompt_style=style
    )
    if over == "last" and style == "chat":
        return  # every chat prompt ends in the same token: what is found may be chance
    assert found.balanced_accuracy == 1.0
    dial = vector(model, 20.0, condition=found.condition)
    prompts = [ACTING[1], RESTING[1], RESTING[3], ACTING[5]]
    texts = [
        [
            g.text
            for g in generate(model, tokenizer, prompts, d, [1.0], prompt_style=style)  # type: ignore[arg-type]
        ]
        for d in (dial, vector(model, 20.0), None)
    ]
    for prompt, conditioned, always, bare in zip(prompts, *texts, strict=True):
        assert always != bare
        assert conditioned == (always if prompt in ACTING else bare)


def test_the_threshold_by_hand():
    scores = torch.tensor([0.1, 0.2, 0.5, 0.9])
    cut, accuracy = best_threshold(scores, torch.tensor([False, False, True, True]))
    assert cut == pytest.approx(0.35)
    assert accuracy == 1.0
    cut, accuracy = best_threshold(scores, torch.tensor([False, True, False, True]))
    assert accuracy == pytest.approx(0.75)
    assert cut == pytest.approx(0.7)  # of .15 and .7 the one in the wider gap
    assert best_threshold(torch.ones(4), torch.tensor([True, True, False, False]))[1] == 0.5


def test_examples_that_do_not_suffice(tiny, tokenizer):
    model = tiny("llama")
    with pytest.raises(DataError, match="3 prompts to act on and 6 others"):
        fit_condition(model, tokenizer, ACTING[:3], RESTING)
    with pytest.raises(DataError, match="prompt 2 of 12 is empty"):
        fit_condition(model, tokenizer, [ACTING[0], " ", *ACTING[2:]], RESTING)
    with pytest.raises(DataError, match="the same states"):
        fit_condition(model, tokenizer, ACTING, ACTING)
