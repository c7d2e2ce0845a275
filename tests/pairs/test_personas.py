"""The persona sets, the suffixes and the questions written for this project."""

from __future__ import annotations

import pytest

from trimtab.errors import DataError
from trimtab.pairs import read_pairs
from trimtab.pairs.personas import suffixes
from trimtab.pairs.written import written

SUFFIX = suffixes()
TRAITS = written("traits")
NAMES = ["honesty", "happiness", "formality", "spanish", "refusal", "reasoning"]


def words(text: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()


def grams(texts: list[str], n: int = 4) -> set[tuple[str, ...]]:
    return {tuple(words(t)[i : i + n]) for t in texts for i in range(len(words(t)) - n + 1)}


def test_there_are_enough():
    assert list(written("personas")["personas"]) == NAMES == list(TRAITS)
    assert len(set(SUFFIX)) == len(SUFFIX) >= 120
    assert not any(s != s.strip() or s.endswith(".") for s in SUFFIX)  # all of them go on


@pytest.mark.parametrize("name", NAMES)
def test_personas(name):
    pairs = read_pairs(f"personas:{name}")
    assert len(pairs) == len(SUFFIX) == len(pairs.items())
    assert all(p.prompt == "" for p in pairs)
    for p in pairs:
        asked, said = p.chosen
        other_asked, other_said = p.rejected
        assert said == other_said
        assert asked != other_asked
        assert (asked["role"], said["role"]) == ("user", "assistant")
        assert "{" not in asked["content"]
    every = read_pairs(f"personas:{name}/all")
    assert len(every) == 3 * len(pairs)
    assert len(every.items()) == len(pairs)


@pytest.mark.parametrize("name", NAMES)
def test_personas_as_answers(name):
    """One prompt for all; answers that differ in the persona alone, and go on."""
    pairs = read_pairs(f"personas:{name}/answers")
    assert len(pairs) == len(pairs.items()) == len(SUFFIX)
    assert len({p.prompt for p in pairs}) == 1
    for p, suffix in zip(pairs, SUFFIX, strict=True):
        (with_, said), (without, other) = (a.split(": ", 1) for a in (p.chosen, p.rejected))
        assert said == other == suffix
        assert p.open
        assert with_ != without
        assert with_[0] == " "
    assert not grams([pairs[0].prompt]) & grams([q for lines in TRAITS.values() for q in [lines]])


@pytest.mark.parametrize("name", NAMES)
def test_traits(name):
    test, dev = read_pairs(f"traits:{name}/test"), read_pairs(f"traits:{name}/dev")
    assert len(test.items()) >= 60
    assert len(dev) == 6
    asked = [p.prompt[0]["content"] for p in (*test, *dev)]
    assert len(set(asked)) == len(asked) == 66
    assert {p.concept for p in test} == {name}


def test_questions_share_nothing_with_the_suffixes():
    questions = [line for lines in TRAITS.values() for line in lines.strip().splitlines()]
    assert not grams(SUFFIX) & grams(questions)
    asked = [line.split(" | ")[0] for line in questions]
    assert len(set(asked)) > 0.95 * len(asked)


@pytest.mark.parametrize("spec", ["personas:honest", "personas:honesty/test", "traits:honesty"])
def test_unknown_names_have_near_ones(spec):
    with pytest.raises(
        DataError, match="did you mean" if spec != "personas:honesty/test" else "all"
    ):
        read_pairs(spec)
