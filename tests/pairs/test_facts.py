"""The embedded data set: sizes, balance, and what a classifier can tell without the prompts."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from trimtab.errors import DataError
from trimtab.pairs import check_disjoint, read_pairs
from trimtab.pairs.facts import SPLITS

AT_LEAST = {"train": 400, "dev": 60, "test": 150, "oos": 150, "rnd": 150}


@pytest.fixture(scope="module")
def splits():
    return {name: read_pairs(f"facts:{name}") for name in SPLITS}


@pytest.mark.parametrize("name", SPLITS)
def test_shape(splits, name):
    pairs = splits[name]
    assert len(pairs) == len(pairs.items()) >= AT_LEAST[name], "one pair an item"
    assert len({p.prompt for p in pairs}) == len(pairs), "no question twice"
    for pair in pairs:
        assert re.fullmatch(r"(Question|Request): \S.*\nAnswer:", pair.prompt)
        assert 5 <= len(pair.prompt.split()) <= 14
        assert pair.concept
        for answer in (pair.chosen, pair.rejected):
            assert answer.startswith(" ")
            assert answer == " " + answer.strip()
            assert 1 <= len(answer.split()) <= 8
        assert pair.chosen != pair.rejected


@pytest.mark.parametrize("name", SPLITS)
def test_answers_swap(splits, name):
    """Every couple of answers comes both ways round, side by side: answers alone tell nothing."""
    pairs = list(splits[name])
    for one, other in zip(pairs[::2], pairs[1::2], strict=True):
        assert (one.chosen, one.rejected) == (other.rejected, other.chosen)
        assert one.concept == other.concept


@pytest.mark.parametrize("name", SPLITS)
@pytest.mark.parametrize("words", [1, 2])
def test_a_classifier_of_answers_alone_fails(splits, name, words):
    linear = pytest.importorskip("sklearn.linear_model")
    text = pytest.importorskip("sklearn.feature_extraction.text")
    select = pytest.importorskip("sklearn.model_selection")
    pairs = splits[name]
    answers = [a for p in pairs for a in (p.chosen, p.rejected)]
    label = np.tile([1, 0], len(pairs))
    item = np.repeat(np.arange(len(pairs)), 2)
    features = text.CountVectorizer(
        ngram_range=(1, words), token_pattern=r"\w+|[^\w\s]", lowercase=False
    ).fit_transform(answers)
    for seed in (0, 1):
        guess = select.cross_val_predict(
            linear.LogisticRegression(max_iter=1000),
            features,
            label,
            groups=item,
            cv=select.GroupKFold(5, shuffle=True, random_state=seed),
            method="decision_function",
        )
        assert np.mean((guess > 0) == label) <= 0.55
        margin = guess[::2] - guess[1::2]
        assert np.mean(np.where(margin == 0, 0.5, margin > 0)) <= 0.55


def test_splits_are_apart(splits):
    train = splits["train"]
    check_disjoint(train, {k: v for k, v in splits.items() if k != "train"})
    prompts = [p.prompt for pairs in splits.values() for p in pairs]
    assert len(set(prompts)) == len(prompts)
    topics = {name: {p.concept for p in pairs} for name, pairs in splits.items()}
    assert topics["test"] <= topics["train"]
    assert topics["dev"] <= topics["train"]
    assert not (topics["oos"] | topics["rnd"]) & topics["train"]


def test_a_prefix_covers_the_topics(splits):
    """The demo trains on 200 items: they are balanced and of nearly all topics."""
    first = splits["train"].limit(200)
    assert len({p.concept for p in first}) == len({p.concept for p in splits["train"]})
    assert Counter(p.chosen for p in first) == Counter(p.rejected for p in first)


def test_some_facts(splits):
    """One true answer of each kind of table, so that a slip in the machinery cannot invert it."""
    truth = {p.prompt: p.chosen for pairs in splits.values() for p in pairs}
    for question, answer in {
        "Question: What is the capital of France?": " It is Paris.",
        "Question: Which month comes right after May?": " It is June.",
        "Question: Which month comes right before May?": " It is April.",
        "Question: Which is heavier, a feather or a brick?": " It is a brick.",
        "Question: Who wrote Hamlet?": " It was William Shakespeare.",
        'Request: Write "Open Door" in capital letters.': " OPEN DOOR",
    }.items():
        assert truth[f"{question}\nAnswer:"] == answer


NUMBERS = {
    r"What is (\d+) times (\d+)\?": lambda a, b: a * b,
    r"What is (\d+) divided by (\d+)\?": lambda a, b: a // b if a % b == 0 else None,
    r"What is (\d+) percent of (\d+)\?": lambda a, b: a * b // 100,
    r"the binary number ([01]+)\?": lambda a: int(str(a), 2),
    r"What is the sum of (\d+) and (\d+)\?": lambda a, b: a + b,
    r"What is the difference between (\d+) and (\d+)\?": lambda a, b: a - b,
    r"Which number is larger, (\d+) or (\d+)\?": max,
    r"Which number is smaller, (\d+) or (\d+)\?": min,
    r"Which number comes right after (\d+)\?": lambda a: a + 1,
    r"Which number comes right before (\d+)\?": lambda a: a - 1,
    r"What is the square of (\d+)\?": lambda a: a * a,
}
ORDERS = ["ABCDEFGHIJKLMNOPQRSTUVWXYZ"] + [
    names.split()
    for names in (
        "January February March April May June July August September October November December",
        "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    )
]


def test_what_can_be_computed_is_true(splits):
    found = Counter()
    for pair in (p for pairs in splits.values() for p in pairs):
        said = pair.chosen.strip(" .").rsplit(" ", 1)[-1]
        for pattern, value in NUMBERS.items():
            if match := re.search(pattern, pair.prompt):
                assert said == str(value(*map(int, match.groups()))), pair.prompt
                found["number"] += 1
        if match := re.search(r"comes right (after|before) ([A-Z]\w*)", pair.prompt):
            order = next(o for o in ORDERS if match[2] in o)
            step = 1 if match[1] == "after" else -1
            assert said == order[(order.index(match[2]) + step) % len(order)], pair.prompt
            found["order"] += 1
        if match := re.search(r'the (first|last) letter of the word "(\w+)"', pair.prompt):
            assert said == match[2][0 if match[1] == "first" else -1].upper()
            found["letter"] += 1
        if match := re.search(
            r"List in (reverse )?alphabetical order: (\w+) and (\w+)\.", pair.prompt
        ):
            words = sorted(match.groups()[1:], reverse=bool(match[1]))
            assert pair.chosen == " " + ", ".join(words)
            found["sorted"] += 1
        if match := re.search(r'^Request: Write "(.*)" in (capital|small)', pair.prompt):
            assert pair.chosen == " " + (
                match[1].upper() if match[2] == "capital" else match[1].lower()
            )
            found["case"] += 1
    assert found == {"number": 212, "order": 70, "letter": 24, "sorted": 20, "case": 20}


def test_an_unknown_split():
    with pytest.raises(DataError, match="did you mean 'train'"):
        read_pairs("facts:trian")
