"""Scores, damage and generation: against figures worked out by hand, naive code, and the bare model."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from trimtab.batching import Encoded, Row, encode
from trimtab.dials import VectorDial
from trimtab.errors import ConfigError, DataError, DialError, ModelError
from trimtab.evaluation import Damage, NeutralText, Sampling, alpha_at_kl, generate, score
from trimtab.evaluation.items import item_scores
from trimtab.states import Readings

PASSAGES = ("The capital of France is Paris.", "Two and two are four. Water boils.")


def a_dial(model: Any, scale: float = 0.5, seed: int = 1) -> VectorDial:
    """A vector in a random direction in the middle of a model."""
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(model.config.hidden_size, generator=generator)
    return VectorDial({1: vector}, {1: scale})


# ---- scores -------------------------------------------------------------------------------------


def by_hand(mean: dict[str, list[tuple[float, list[float]]]], tokens: int = 2) -> Any:
    """Scores of items given as `[(chosen, [rejected, ...])]` in mean log-probs."""
    rows, logps = [], []
    for item, groups in mean.items():
        for chosen, rejected in groups:
            answers = tuple((i,) * tokens for i in range(len(rejected) + 1))
            pairs = tuple((0, r + 1) for r in range(len(rejected)))
            rows.append(Row(item, (1,), answers, pairs, tuple(range(len(pairs)))))
            logps += [chosen, *rejected]
    encoded = Encoded(tuple(rows), 0, 0, "hand")
    counts = torch.full((len(logps),), tokens)
    return item_scores(encoded, Readings(logps=torch.tensor(logps) * tokens, tokens=counts))


def test_scores_worked_out_by_hand():
    nan = math.nan
    found = by_hand(
        {
            "all": [(-1.0, [-2.0, -3.0, -4.0])],
            "one of three": [(-2.0, [-1.0, -3.0, -1.5])],
            "tie": [(-1.0, [-1.0])],
            "tie and wrong": [(-1.0, [-1.0, -0.5])],
            "tie and right": [(-1.0, [-1.0, -2.0])],
            "all tie": [(-1.0, [-1.0, -1.0, -1.0])],
            "nan": [(nan, [-1.0])],
            "two prompts": [(-1.0, [-2.0]), (-3.0, [-2.0])],
        }
    )
    assert found.items[0] == "all"
    assert found.pairs.tolist() == [3, 3, 1, 2, 2, 3, 1, 2]
    assert found.accuracy == pytest.approx([1, 1 / 3, 0.5, 0.25, 0.75, 0.5, 0, 0.5])
    assert found.accuracy_choice.tolist() == [1, 0, 0.5, 0, 0.5, 0.25, 0, 0]
    assert found.margin[:3] == pytest.approx([2.0, -1 / 6, 0.0])
    assert math.isnan(found.margin[6])
    # Over items, not over pairs: 17 pairs would have given another mean.
    assert found.accuracy.mean() == pytest.approx((1 + 1 / 3 + 0.5 + 0.25 + 0.75 + 0.5 + 0.5) / 8)


def test_means_and_sums_may_disagree():
    """A long answer has the better mean and the worse sum: -1 x 8 against -2 x 2."""
    row = Row("item", (1,), ((1,) * 8, (2,) * 2), ((0, 1),), (0,))
    readings = Readings(logps=torch.tensor([-8.0, -4.0]), tokens=torch.tensor([8, 2]))
    found = item_scores(Encoded((row,), 0, 0, "hand"), readings)
    assert (found.accuracy[0], found.accuracy_sum[0], found.margin[0]) == (1, 0, 1)


def naive(model: Any, tokenizer: Any, prompt: str, answer: str) -> tuple[float, int]:
    """Summed log-prob of an answer and its EOS, one sequence by itself, in float64."""
    start = tokenizer(prompt)["input_ids"]
    ids = [*tokenizer(prompt + answer)["input_ids"], tokenizer.eos_token_id]
    logps = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    terms = [logps[t - 1, ids[t]].item() for t in range(len(start), len(ids))]
    return sum(terms), len(terms)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("alpha", [0.0, -1.5])
def test_scores_equal_a_naive_implementation(tiny, tokenizer, few_pairs, store, name, alpha):
    model = tiny(name)
    dial = a_dial(model)
    found = score(model, encode(few_pairs, tokenizer), dial, alpha, store=store)
    margins: dict[str, list[float]] = {}
    with torch.no_grad(), dial(model, alpha):
        for pair in few_pairs:
            (c, n), (r, k) = (
                naive(model, tokenizer, pair.prompt, a) for a in (pair.chosen, pair.rejected)
            )
            margins.setdefault(pair.item, []).append(c / n - r / k)
    assert list(found.items) == list(margins)
    assert found.margin == pytest.approx([np.mean(m) for m in margins.values()], abs=1e-5)
    right = [np.mean([m > 0 for m in ms]) for ms in margins.values()]
    assert found.accuracy == pytest.approx(right)


def test_alpha_0_is_the_bare_model_and_other_alphas_are_not(tiny, tokenizer, few_pairs, store):
    model = tiny("llama")
    encoded = encode(few_pairs, tokenizer)
    bare = score(model, encoded, store=store)
    at_0 = score(model, encoded, a_dial(model), 0.0, store=store)
    assert at_0.margin.tolist() == bare.margin.tolist()
    assert (
        score(model, encoded, a_dial(model), 1.0, store=store).margin.tolist()
        != bare.margin.tolist()
    )


def test_a_dial_of_another_model_is_refused_unless_forced(tiny, tokenizer, few_pairs, store):
    from trimtab import models

    model, encoded = tiny("llama"), encode(few_pairs, tokenizer)
    models.source_of(model)
    dial = a_dial(model)
    dial.info.base_digest, dial.info.base_model = "0" * 64, "another"
    with pytest.raises(DialError, match=r"made for another .*--force"):
        score(model, encoded, dial, 1.0, store=store)
    assert score(model, encoded, dial, 1.0, force=True, store=store).items


# ---- damage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [True, False])
def test_damage_equals_a_naive_computation(tiny, tokenizer, monkeypatch, keep):
    monkeypatch.setattr("trimtab.damage.KEEP_BYTES", 1 << 30 if keep else 0)
    model = tiny("llama")
    dial, text = a_dial(model), NeutralText(model, tokenizer, PASSAGES)
    zero = text.damage(dial, 0.0)
    assert zero.kl.tolist() == [0, 0]
    assert zero.nll_rise.tolist() == [0, 0]
    found = text.damage(dial, 1.0)
    assert bool(text.kept) == keep
    for i, passage in enumerate(PASSAGES):
        ids = torch.tensor([tokenizer(passage)["input_ids"]])
        with torch.no_grad():
            base = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
            with dial(model, 1.0):
                new = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
        kl = torch.nn.functional.kl_div(new, base, log_target=True, reduction="none").sum(-1)
        assert found.kl[i] == pytest.approx(kl.mean().item(), rel=1e-4)
        assert found.kl[i] > 1e-3
        nll = [-torch.gather(p, 1, ids[0, 1:, None]).mean().item() for p in (base, new)]
        assert found.nll_rise[i] == pytest.approx(nll[1] - nll[0], abs=1e-5)


@pytest.mark.parametrize("share", [0.05, 0.5, 3.0])
def test_alpha_at_kl_finds_its_target(tiny, tokenizer, share):
    model = tiny("llama")
    dial, text = a_dial(model), NeutralText(model, tokenizer, PASSAGES)
    at_1 = text.damage(dial, 1.0).kl.mean()
    found = alpha_at_kl(text, dial, share * at_1, {1.0: at_1})
    assert found is not None
    alpha, kl = found
    assert kl == pytest.approx(share * at_1, rel=0.02)
    assert text.damage(dial, alpha).kl.mean() == pytest.approx(kl, rel=1e-6)


class Curve:
    """Stands in for neutral text: KL as a function of alpha, calls counted."""

    def __init__(self, kl: Any):
        self.kl, self.asked = kl, []

    def damage(self, dial: Any, alpha: float) -> Damage:
        assert math.isfinite(alpha)
        self.asked.append(alpha)
        return Damage(np.array([self.kl(alpha)]), np.array([0.0]))


def test_alpha_at_kl_is_none_out_of_range_and_asks_little():
    weak: Any = Curve(lambda a: 1e-6 * a * a)
    assert alpha_at_kl(weak, None, 1.0, {1.0: 1e-6}) is None  # type: ignore[arg-type]
    assert weak.asked == [8.0]
    dead: Any = Curve(lambda a: 0.0)
    assert alpha_at_kl(dead, None, 1.0, {1.0: 0.0, 2.0: 0.0}) is None  # type: ignore[arg-type]
    parabola: Any = Curve(lambda a: 0.3 * a * a)
    found = alpha_at_kl(parabola, None, 0.3, {2.0: 1.2, -1.0: 9.0})  # type: ignore[arg-type]
    assert found == (pytest.approx(1.0), pytest.approx(0.3))
    assert len(parabola.asked) == 1
    assert alpha_at_kl(parabola, None, 1.2, {2.0: 1.2}) == (2.0, 1.2)  # type: ignore[arg-type]
    assert len(parabola.asked) == 1


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_alpha_at_kl_steps_back_from_a_broken_model(broken):
    """A KL that is not finite is beyond every target."""
    curve: Any = Curve(lambda a: 0.3 * a * a if a < 1.5 else broken)
    found = alpha_at_kl(curve, None, 0.5, {2.0: broken, 4.0: broken})  # type: ignore[arg-type]
    assert found is not None
    assert found[1] == pytest.approx(0.5, rel=0.1)


# ---- generation ---------------------------------------------------------------------------------

PROMPTS = ("The capital of France is", "Two and two are four. A triangle has", "Is the sky blue?")
SHORT = Sampling(max_new_tokens=8)


def plain(model: Any, tokenizer: Any, prompt: str, **flags: Any) -> str:
    """transformers by itself: one prompt, no padding, the likeliest token each time."""
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **flags)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_alpha_0_generates_as_the_bare_model(tiny, tokenizer, name):
    model = tiny(name)
    wanted = [plain(model, tokenizer, p, max_new_tokens=8, pad_token_id=1) for p in PROMPTS]
    assert len(set(wanted)) == 3
    found = generate(
        model, tokenizer, PROMPTS, a_dial(model), [0.0], sampling=SHORT, prompt_style="plain"
    )
    assert [g.text for g in found] == wanted
    bare = generate(model, tokenizer, PROMPTS, alphas=[1.0], sampling=SHORT, prompt_style="plain")
    assert [(g.alpha, g.text) for g in bare] == [(0.0, text) for text in wanted]


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_alphas_in_one_batch_are_each_as_alone(tiny, tokenizer, name):
    """Prompts of several lengths are padded on the left, so this is a test of padding too."""
    model = tiny(name)
    dial, alphas = a_dial(model, scale=2.0), [-1.0, 0.0, 1.0]
    together = generate(
        model, tokenizer, PROMPTS, dial, alphas, sampling=SHORT, prompt_style="plain"
    )
    assert [(g.prompt, g.alpha) for g in together] == [(p, a) for p in PROMPTS for a in alphas]
    alone = [
        generate(model, tokenizer, p, dial, [a], sampling=SHORT, prompt_style="plain")[0]
        for p in PROMPTS
        for a in alphas
    ]
    assert together == alone
    assert len({g.text for g in together}) > len(PROMPTS), "the dial did nothing"
    parts = generate(
        model, tokenizer, PROMPTS, dial, alphas, sampling=SHORT, prompt_style="plain", batch_size=2
    )
    assert parts == together


def test_beams_keep_each_row_at_its_alpha(tiny, tokenizer):
    model = tiny("llama")
    dial, beams = a_dial(model, scale=2.0), Sampling(max_new_tokens=6, num_beams=3)
    together = generate(
        model, tokenizer, PROMPTS[0], dial, [0.0, 1.0], sampling=beams, prompt_style="plain"
    )
    for g in together:
        alone = generate(
            model, tokenizer, PROMPTS[0], dial, [g.alpha], sampling=beams, prompt_style="plain"
        )
        assert alone == [g]


def test_sampling_has_a_seed_and_leaves_the_callers_alone(tiny, tokenizer):
    model = tiny("llama")

    def draw(seed: int) -> list[str]:
        sampling = Sampling(max_new_tokens=12, temperature=1.0, seed=seed)
        return [g.text for g in generate(model, tokenizer, PROMPTS, sampling=sampling)]

    torch.manual_seed(3)
    wanted = torch.rand(1).item()
    torch.manual_seed(3)
    assert draw(0) == draw(0) != draw(1)
    assert torch.rand(1).item() == wanted


def test_sampling_draws_from_all_tokens(tiny, tokenizer):
    """transformers would silently draw from the 50 likeliest only."""
    model = tiny("llama")
    sampling = Sampling(max_new_tokens=1, temperature=50.0)
    found = generate(model, tokenizer, [PROMPTS[0]] * 400, sampling=sampling, batch_size=400)
    assert len({g.text for g in found}) > 60


def test_chat_and_plain_prompts(tiny, tokenizer):
    model = tiny("llama")
    wrapped = "<|im_start|>user\nIs the sky blue?<|im_end|>\n<|im_start|>assistant\n"
    as_plain = generate(model, tokenizer, wrapped, sampling=SHORT, prompt_style="plain")[0].text
    for style in ("chat", "auto"):
        found = generate(model, tokenizer, PROMPTS[2], sampling=SHORT, prompt_style=style)
        assert found[0].text == as_plain
    untouched = generate(model, tokenizer, PROMPTS[2], sampling=SHORT, prompt_style="plain")
    assert untouched[0].text != as_plain


def test_chat_needs_a_template(tiny, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(ModelError, match="no chat template"):
        generate(tiny("llama"), tokenizer, "Hello", prompt_style="chat")
    assert generate(tiny("llama"), tokenizer, "Hello", sampling=SHORT)


def test_generation_stops_at_eos(tiny, tokenizer):
    """The first row's third token is declared to end an answer: padding follows, and is not shown."""
    model, five = tiny("llama", fresh=True), Sampling(max_new_tokens=5)
    whole = generate(model, tokenizer, PROMPTS[:2], sampling=five, prompt_style="plain")
    start = tokenizer(PROMPTS[0])["input_ids"]
    out = model.generate(torch.tensor([start]), max_new_tokens=5, do_sample=False, pad_token_id=1)
    new = out[0, len(start) :].tolist()
    assert new[2] not in new[:2]
    model.generation_config.eos_token_id = new[2]
    first, second = generate(model, tokenizer, PROMPTS[:2], sampling=five, prompt_style="plain")
    assert first.text == tokenizer.decode(new[:3])
    assert len(first.text) < len(whole[0].text)
    assert second == whole[1]


def test_wrong_prompts_and_settings(tiny, tokenizer):
    model = tiny("llama")
    for prompt in ("", "  \n", ["fine", ""]):
        with pytest.raises(DataError, match="a prompt is empty"):
            generate(model, tokenizer, prompt)
    for alphas in ([], [math.nan], [1.0, math.inf]):
        with pytest.raises(ConfigError, match="alpha: expected finite numbers"):
            generate(model, tokenizer, "fine", a_dial(model), alphas)
    for wrong in (
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"num_beams": 0},
        {"repetition_penalty": 0.0},
    ):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            Sampling(**wrong)  # type: ignore[arg-type]
