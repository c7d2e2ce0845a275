"""The report on pairs: counts, lengths, leakage; and the neutral text beside it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from rich.console import Console

from trimtab.pairs import Pair, PairSet, read_pairs
from trimtab.pairs.inspect import accuracy, inspect_pairs, leakage, render
from trimtab.pairs.neutral import GENERATION_PROMPTS, NEUTRAL


def tokenizer(texts, add_special_tokens):
    """One token a word."""
    assert not add_special_tokens
    return {"input_ids": [t.split() for t in texts]}


def make(rows, name="toy"):
    return PairSet([Pair(*row) for row in rows], name)


def test_the_report():
    pairs = make(
        [
            ("a b c", "one two", "three", "1", "x"),
            ("a b c", "one two", "four five six", "1", "x"),
            ("d", "seven", "eight", "2"),
            ("d", "seven", "eight", "2"),
        ]
    )
    other = make([("d", "nine", "seven", "9"), ("a b c", "ten", "three four", "8")], "other")
    report = inspect_pairs(pairs, tokenizer, max_length=6, other=other)
    assert (report["pairs"], report["items"]) == (4, 2)
    assert report["responses_per_item"] == {2: 1, 3: 1}
    assert report["concepts"] == {"x": 2}
    assert report["duplicates"] == 1
    assert report["tokens"]["chosen"] == {"min": 1, "median": 2, "p95": 2, "max": 2}
    assert report["tokens"]["row"] == {"min": 3, "median": 6, "p95": 7, "max": 7}
    assert report["tokens"]["too_long"] == 1
    assert report["overlap"] == {
        "name": "other",
        "pairs": 2,
        "items": 1,
        "prompts": 2,
        "answers": 1,
    }
    assert len(report["examples"]) == 3
    assert report["examples"][0] == {"prompt": "a b c", "chosen": "one two", "rejected": "three"}
    json.dumps(report)

    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(report))
    text = console.export_text()
    for part in ("toy", "4 in 2 items", "in common with other", "1 rows are longer than 6 tokens"):
        assert part in text


def test_chat_messages_and_brackets_are_shown():
    def message(text):
        return ({"role": "assistant", "content": text},)

    prompt = ({"role": "user", "content": "[b]Hi[/b]"},)
    pairs = make([(prompt, message("yes [/x]"), message("no"), str(i)) for i in range(2)], "a[:2]")
    report = inspect_pairs(pairs, tokenizer)
    assert report["conversational"] == 2
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(report))
    text = console.export_text()
    assert "user: [b]Hi[/b]" in text
    assert "a[:2]" in text


def test_leaking_words_and_lengths_are_found():
    rng = np.random.default_rng(0)

    def sentence(last):
        return " ".join([*rng.choice(list("abcdefgh"), 4), last])

    leaking = make([(f"p{i}", sentence("gladly now"), sentence("no"), str(i)) for i in range(60)])
    assert leakage(leaking) == {"words": 1.0, "longer": 1.0, "balanced": False}
    clean = make([(f"p{i}", sentence("x"), sentence("x"), str(i)) for i in range(300)])
    assert leakage(clean)["words"] == pytest.approx(0.5, abs=0.1)
    assert leakage(clean)["longer"] == 0.5
    balanced = leakage(read_pairs("facts:train"))
    assert balanced["balanced"]
    assert balanced["words"] <= 0.55
    assert balanced["longer"] == pytest.approx(0.5)
    assert leakage(leaking[:1])["words"] is None


def test_accuracy_counts_items():
    margin, group = np.array([1.0, 1.0, 1.0, -1.0, 0.0]), np.array([0, 0, 0, 1, 2])
    assert accuracy(margin, group) == pytest.approx((1 + 0 + 0.5) / 3)


def test_our_classifier_is_about_scikit_learns():
    """The same leak, within a few points, as a reference implementation finds."""
    linear = pytest.importorskip("sklearn.linear_model")
    text = pytest.importorskip("sklearn.feature_extraction.text")
    select = pytest.importorskip("sklearn.model_selection")
    rng = np.random.default_rng(1)

    def sentence(weights):
        return " ".join(rng.choice(list("abcdefghij"), 6, p=weights / weights.sum()))

    up, flat = np.linspace(1, 2, 10), np.ones(10)
    pairs = make([("p", sentence(up), sentence(flat), str(i)) for i in range(400)])
    answers = [a for p in pairs for a in (p.chosen, p.rejected)]
    guess = select.cross_val_predict(
        linear.LogisticRegression(),
        text.CountVectorizer(token_pattern=r"\w+").fit_transform(answers),
        np.tile([1, 0], len(pairs)),
        groups=np.repeat(np.arange(len(pairs)), 2),
        cv=select.GroupKFold(5),
        method="decision_function",
    )
    reference = accuracy(guess[::2] - guess[1::2], np.arange(len(pairs)))
    assert leakage(pairs)["words"] == pytest.approx(reference, abs=0.04)


def test_neutral_text():
    assert len(set(NEUTRAL)) == len(NEUTRAL) == 24
    assert all(60 <= len(passage.split()) <= 90 for passage in NEUTRAL)
    assert len(set(GENERATION_PROMPTS)) == len(GENERATION_PROMPTS) == 8
