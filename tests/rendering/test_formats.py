"""Prompts reach a model as the dial on it was fitted, unless somebody says otherwise."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from test_calibrate import ACTING, RESTING
from test_rewards import drawn

from trimtab.batching import Encoded, Row, encode_answers, make_contrast
from trimtab.dials import Condition, Dial, VectorDial
from trimtab.dials.saved import _digest
from trimtab.evaluation import Sampling, generate
from trimtab.evaluation.decoding import generate_args, generate_genarm
from trimtab.evaluation.explain import explain
from trimtab.evaluation.formats import format_for
from trimtab.evaluation.judge import reward_judge
from trimtab.evaluation.rewards import Drawing, draw, rewards_of, score_candidates
from trimtab.pairs import PairSet, persona_pairs, read_pairs
from trimtab.pairs.prompts import Prompt
from trimtab.rendering import Rendering
from trimtab.training import fit
from trimtab.training.condition import fit_condition

SHORT = Sampling(max_new_tokens=3)
QUESTION = "Is the sky blue?"


@contextmanager
def watched(model: Any) -> Iterator[list[list[int]]]:
    """The first token rows that reach the model, padding left out."""
    seen: list[list[int]] = []

    def look(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        for i, row in enumerate(kwargs["input_ids"].tolist()):
            there = mask is not None and mask.ndim == 2
            real = mask[i].bool().tolist() if there else [True] * len(row)
            seen.append([t for t, keep in zip(row, real, strict=True) if keep])

    look.__module__ = "trimtab"  # else nothing is kept of a model that a stranger looks into
    handle = model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def as_plain(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text)["input_ids"]


def as_chat(tokenizer: Any, text: str) -> list[int]:
    whole = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    return tokenizer(whole, add_special_tokens=False)["input_ids"]


def lean(**info: Any) -> VectorDial:
    dial = VectorDial({1: torch.randn(32, generator=torch.Generator().manual_seed(0))}, {1: 3.0})
    dial.info.method = info.pop("method", "mean")
    dial.info.config = info
    return dial


def chats(pairs: PairSet) -> PairSet:
    return read_pairs(
        [
            {
                "prompt": [{"role": "user", "content": p.prompt}],
                "chosen": [{"role": "assistant", "content": p.chosen}],
                "rejected": [{"role": "assistant", "content": p.rejected}],
            }
            for p in pairs
        ]
    )


# ---- what a dial says -----------------------------------------------------------------------------


def test_what_was_fitted_is_what_is_used(tiny: Any, tokenizer: Any, few_pairs: Any) -> None:
    """Plain, in the template, and on chats, which go through it without being told."""
    model = tiny("llama")
    for pairs, style, expected in (
        (few_pairs, "plain", as_plain),
        (few_pairs, "chat", as_chat),
        (chats(few_pairs), "plain", as_chat),
    ):
        dial = fit("mean", model, tokenizer, pairs, prompt_style=style)
        assert dial.info.config["prompt_style"] == style
        generate(model, tokenizer, QUESTION, dial, sampling=SHORT)  # the proof of decoding is made
        explain(model, tokenizer, dial, QUESTION, steps=2)
        for run in (
            lambda dial=dial, **how: generate(model, tokenizer, QUESTION, dial, **how),
            lambda dial=dial, **how: explain(model, tokenizer, dial, QUESTION, steps=2, **how),
            lambda dial=dial, **how: generate_genarm(model, tokenizer, QUESTION, dial, **how),
        ):
            with watched(model) as seen:
                run(sampling=SHORT)
            assert seen[0] == expected(tokenizer, QUESTION)
            with watched(model) as seen:
                run(sampling=SHORT, prompt_style="chat" if expected is as_plain else "plain")
            other = as_chat if expected is as_plain else as_plain
            assert seen[0] == other(tokenizer, QUESTION), "told otherwise"


@pytest.mark.parametrize(
    ("dial", "style"),
    [
        (None, "auto"),
        (lean(prompt_style="plain"), "plain"),
        (lean(prompt_style="chat"), "chat"),
        (lean(prompt_style="plain", read_as="chat"), "chat"),
        (lean(), "plain"),  # from before it was written down
        (lean(method=""), "auto"),  # made by hand, or by somebody else
        (lean(method="") + lean(prompt_style="chat"), "chat"),
        (0.5 * lean(prompt_style="plain") + lean(prompt_style="chat"), "plain"),
    ],
)
def test_the_format_of_a_dial(dial: Any, style: str) -> None:
    form = format_for([dial])
    assert form.style == style
    assert bool(form.said) is (style != "auto")
    assert format_for([dial], "chat").style == "chat"
    assert not format_for([dial], "chat").said
    mixed = isinstance(dial, Dial) and dial.kind == "composed" and style == "plain"
    assert ("fitted otherwise" in form.said) is mixed


def test_contrasts_say_what_they_were_as_text(tiny: Any, tokenizer: Any) -> None:
    model = tiny("llama")
    made = make_contrast("I am {persona}.", ["a rose"], ["a nail"], ["so it is"], tokenizer)
    for data, style in (
        (made, "chat"),
        (persona_pairs("I am {}.", ["a rose"], ["a nail"], ["so it is"]), "chat"),
        (read_pairs([{"positive": "a rose is", "negative": "a nail is"}]), "plain"),
    ):
        assert format_for([fit("mean", model, tokenizer, data)]).style == style


def test_settings_of_the_template_travel_too(tiny: Any, tokenizer: Any) -> None:
    import copy

    model, other = tiny("llama"), copy.deepcopy(tokenizer)
    other.chat_template = "{% if deep %}DEEP {% endif %}" + tokenizer.chat_template
    dial = lean(prompt_style="chat", rendering={"template_kwargs": {"deep": True}})
    deep = other("DEEP ", add_special_tokens=False)["input_ids"] + as_chat(tokenizer, QUESTION)
    generate(model, other, QUESTION, dial, sampling=SHORT)
    for rendering, expected in (
        (None, deep),
        (Rendering(template_kwargs='{"deep": false}'), as_chat(tokenizer, QUESTION)),
    ):
        with watched(model) as seen:
            generate(model, other, QUESTION, dial, sampling=SHORT, rendering=rendering)
        assert seen[0] == expected


def test_a_saved_dial_says_it_and_a_run_is_known_again(
    tiny: Any, tokenizer: Any, few_pairs: Any, tmp_path: Path
) -> None:
    model, pairs = tiny("llama"), chats(few_pairs)
    fit("mean", model, tokenizer, pairs, out=tmp_path / "d")
    assert format_for([Dial.from_pretrained(tmp_path / "d")]).style == "chat"
    note = json.loads((tmp_path / "d" / "dial.json").read_text())
    del note["config"]["read_as"]  # as it was saved before
    (tmp_path / "d" / "dial.json").write_text(json.dumps(note))
    assert format_for([Dial.from_pretrained(tmp_path / "d")]).style == "plain"
    fit("mean", model, tokenizer, pairs, out=tmp_path / "d")  # nothing to do
    assert json.loads((tmp_path / "d" / "dial.json").read_text()) == note


# ---- conditions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["plain", "chat", "saved", "old", "composed", "beside"])
def test_a_condition_fires_on_what_it_was_fitted_on(
    how: str, tiny: Any, tokenizer: Any, tmp_path: Path
) -> None:
    """Balanced accuracy in use, by the defaults on both sides."""
    model, style = tiny("llama"), "chat" if how in ("chat", "beside") else "plain"
    given: dict[str, Any] = {"sites": "0,1"} | ({"prompt_style": "chat"} if style == "chat" else {})
    found = fit_condition(model, tokenizer, ACTING, RESTING, **given)
    assert found.balanced_accuracy == 1.0
    v = torch.randn(32, generator=torch.Generator().manual_seed(0))
    dial: Any = VectorDial({1: v}, {1: 20.0}, condition=found.condition)
    if how in ("saved", "old"):
        dial.save_pretrained(tmp_path / "d")
        note = json.loads((tmp_path / "d" / "dial.json").read_text())
        if how == "old":
            del note["settings"]["condition"]["prompt_style"]
            del note["settings"]["condition"]["rendering"]
            note["digest"] = _digest(note)
            (tmp_path / "d" / "dial.json").write_text(json.dumps(note))
        dial = Dial.from_pretrained(tmp_path / "d")
    if how == "composed":
        dial = 0.5 * dial + 0.5 * dial
    if how == "beside":  # the dial's own vector was fitted otherwise
        dial.info.method, dial.info.config = "mean", {"prompt_style": "plain"}
        assert "the dial mean was fitted otherwise" in format_for([dial]).said
    prompts = [*ACTING, *RESTING]
    bare = generate(model, tokenizer, prompts, sampling=SHORT, prompt_style=style)  # type: ignore[arg-type]
    moved = generate(model, tokenizer, prompts, dial, sampling=SHORT)
    changed = [a.text != b.text for a, b in zip(bare, moved, strict=True)]
    assert changed == [True] * len(ACTING) + [False] * len(RESTING)


def test_a_condition_made_by_hand_says_nothing() -> None:
    made = Condition(1, torch.ones(4), 0.0)
    assert format_for([VectorDial({2: torch.ones(4)}, {2: 1.0}, condition=made)]).style == "auto"


# ---- rewards --------------------------------------------------------------------------------------


def head(style: str, **options: Any) -> Any:
    reward = drawn(**options)
    reward.info.method, reward.info.config = "dph", {"prompt_style": style}
    return reward


@pytest.mark.parametrize("style", ["plain", "chat"])
@pytest.mark.parametrize("aggregate", ["marker", "last"])
def test_a_head_ranks_in_the_format_in_which_it_learned(
    style: str, aggregate: str, tiny: Any, tokenizer: Any
) -> None:
    """Drawn with or without a dial of another format: the reward is that of the text when it is given
    as in training, after the prompt in that format and before the mark that ended answers there."""
    model, reward = tiny("llama"), head(style, aggregate=aggregate)
    prompt, sampling = "The sky is", Sampling(max_new_tokens=4, temperature=1.0)
    learned = encode_answers(prompt, [" blue"], tokenizer, prompt_style=style)  # type: ignore[arg-type]
    mark = 3 if style == "chat" else 0
    assert mark in learned.rows[0].answers[0][-2:]
    given = rewards_of(model, reward, learned)[0]
    torch.testing.assert_close(score_candidates(model, tokenizer, reward, prompt, [" blue"]), given)
    other = lean(prompt_style="plain" if style == "chat" else "chat")
    for dial in (None, other):
        found = draw(model, tokenizer, prompt, reward, Drawing(n=4), dial=dial, sampling=sampling)
        assert {c.tokens[-1] for c in found} == {mark}
        rows = [Row("a", learned.rows[0].prompt, (c.tokens,), (), ()) for c in found]
        each = [Encoded((row,), 0, found[0].tokens[-1], "a") for row in rows]
        wanted = torch.cat([rewards_of(model, reward, encoded)[0] for encoded in each])
        rewards = torch.tensor([c.reward for c in found])
        torch.testing.assert_close(rewards, wanted, rtol=1e-3, atol=1e-3)
    with watched(model) as seen:
        draw(model, tokenizer, prompt, reward, Drawing(n=2), dial=other, sampling=sampling)
    assert seen[0] == (as_chat if style == "plain" else as_plain)(tokenizer, prompt)
    with watched(model) as seen:
        generate_args(model, tokenizer, prompt, reward, sampling=SHORT)
    assert seen[0] == (as_chat if style == "chat" else as_plain)(tokenizer, prompt)


def test_a_judge_reads_as_the_head_learned(tiny: Any, tokenizer: Any) -> None:
    model = tiny("llama")
    for style, read in (("plain", as_plain), ("chat", as_chat)):
        reward = head(style)
        judge = reward_judge(model, tokenizer, reward)
        judge("The sky is", "blue", "a sea")  # the proof of the layout is made
        with watched(model) as seen:
            judge("The sky is", "blue", "a sea")
        ids = read(tokenizer, "The sky is")
        assert seen[0][: len(ids)] == ids
        opposite = reward_judge(model, tokenizer, reward, chat=style == "plain")
        with watched(model) as seen:
            opposite("The sky is", "blue", "a sea")
        assert seen[0][: len(ids)] != ids


# ---- prompts --------------------------------------------------------------------------------------


def test_system_texts_before_prompts(tiny: Any, tokenizer: Any) -> None:
    model = tiny("llama")
    whole = "<|im_start|>system\nBe brief.<|im_end|>\n"
    chat = tokenizer(whole, add_special_tokens=False)["input_ids"] + as_chat(tokenizer, QUESTION)
    prompt = Prompt(QUESTION, system="Be brief.")
    generate(model, tokenizer, prompt, sampling=SHORT)
    for style, expected in (
        ("auto", chat),
        ("chat", chat),
        ("plain", as_plain(tokenizer, f"Be brief.\n\n{QUESTION}")),
    ):
        with watched(model) as seen:
            (found,) = generate(model, tokenizer, prompt, sampling=SHORT, prompt_style=style)  # type: ignore[arg-type]
        assert seen[0] == expected
        assert found.prompt == QUESTION
    own = Prompt(({"role": "system", "content": "S"}, {"role": "user", "content": "a"}))
    assert own.with_system("other") == own
    assert Prompt("a").with_system("other").system == "other"
    assert Prompt("a", system="own").with_system("other").system == "own"
