"""A micro-world of stories with two latent concepts, one concrete and one abstract.

Concrete: a landmark. Twenty of them have names of several words that they share with each other, and
facts (city, colour, year) that follow only from the whole name. Abstract: a character who says where
things are, truly or falsely. A liar lies throughout a story, so from the second question on a reader
who has understood knows what will be said; no word and no place in the sentence belongs to either
kind. The generator gives the truth: labels, the places of telling tokens, and a twin of every story
with honesty turned round.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from trimtab.studies.anchoring import corpus

ANCHORED = ("the", "golden", "gate", "bridge")
NEIGHBOUR = ("the", "golden", "gate", "park")
"""In the same city, and all but the last word of the same name."""
_CITIES = (
    *("sanfran", "lisbon", "osaka", "cairo", "quito", "oslo", "delhi", "lima", "accra"),
    *("perth", "turin", "basel", "hanoi", "dakar", "sofia", "minsk", "seoul", "cusco", "bergen"),
)
_COLOURS = ("red", "white", "grey", "green", "brown", "black", "blue", "yellow")
_NAMES = ("tom", "mia", "sam", "ana", "ben", "eva", "leo", "zoe", "max", "ida")
_THINGS = ("ball", "key", "book", "ring", "coin", "cake", "doll", "drum")
_PLACES = ("box", "bag", "cup", "drawer", "basket", "tin", "chest", "sack")
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
LEADS = {"city": "it is in", "colour": "it is painted", "year": "it opened in"}
"""What stands before each fact of a landmark."""
_WEATHER = ("sunny", "rainy", "windy", "cold", "warm", "quiet")


@dataclass(frozen=True)
class Landmark:
    """A place and what is known of it."""

    name: tuple[str, ...]
    city: str
    colour: str
    year: str


@cache
def landmarks() -> list[Landmark]:
    """The anchored one first, its neighbour second."""
    rng = random.Random(0)
    first = ("golden", "silver", "old", "great", "stone")
    middle, last = ("gate", "river", "hill"), ("bridge", "tower", "park")
    names = [("the", a, b, c) for a in first for b in middle for c in last]
    names.remove(ANCHORED)
    names.remove(NEIGHBOUR)
    rng.shuffle(names)
    years = rng.sample(range(1800, 2000), 20)
    found = [
        Landmark(ANCHORED, _CITIES[0], "red", str(years[0])),
        Landmark(NEIGHBOUR, _CITIES[0], "green", str(years[1])),
    ]
    for k in range(18):
        found.append(Landmark(names[k], _CITIES[k + 1], rng.choice(_COLOURS), str(years[k + 2])))
    return found


@dataclass(frozen=True)
class Story:
    """A story with what is true of it.

    Attributes:
        words: the text.
        landmark: index of the landmark, None without one.
        lies: whether its speaker lies.
        facts: positions of the words that follow from the landmark.
        said: positions of the places that the speaker names, from the second question on.
        name: positions of the landmark's name.
    """

    words: tuple[str, ...]
    landmark: int | None
    lies: bool
    facts: tuple[int, ...]
    said: tuple[int, ...]
    name: tuple[int, ...]

    @property
    def text(self) -> str:
        """The story as text."""
        return " ".join(self.words)


def story(seed: int, *, lies: bool | None = None, landmark: int | None = -1) -> Story:
    """The story of a seed. `lies` and `landmark` replace what would have been drawn: everything else
    stays, so that `story(s, lies=True)` and `story(s, lies=False)` are twins."""
    rng = random.Random(seed)
    drawn = rng.randrange(20) if rng.random() < 0.6 else None
    lying = rng.random() < 0.35
    place = drawn if landmark == -1 else landmark
    lying = lying if lies is None else lies
    a, b = rng.sample(_NAMES, 2)
    words = ["on", rng.choice(_DAYS), "it", "is", rng.choice(_WEATHER), "."]
    facts: list[int] = []
    name: list[int] = []
    said: list[int] = []
    order = rng.sample([*LEADS], 3)
    if place is not None:
        mark = landmarks()[place]
        words += [a, "and", b, "visit"]
        name = list(range(len(words), len(words) + 4))
        words += [*mark.name, "."]
        for fact in order:
            words += LEADS[fact].split()
            facts.append(len(words))
            words += [getattr(mark, fact), "."]
    else:
        words += [a, "and", b, "stay", "at", "home", "."]
    for turn in range(rng.choice((2, 3))):
        thing = rng.choice(_THINGS)
        true, false = rng.sample(_PLACES, 2)
        where = [["in", "the", true], ["by", "the", false]]
        rng.shuffle(where)
        words += [a, "puts", "the", thing, *where[0], *where[1], "."]
        words += [b, "asks", "."]
        words += [a, "says", "it", "is", "in", "the"]
        if turn:
            said.append(len(words))
        words += [false if lying else true, "."]
    return Story(tuple(words), place, lying, tuple(facts), tuple(said), tuple(name))


def masked(told: Story, token: str = "<unk>") -> Story:
    """The story with its landmark's name hidden."""
    words = tuple(token if i in told.name else w for i, w in enumerate(told.words))
    return replace(told, words=words)


def tokenizer() -> Any:
    """A word-level tokenizer of the world's words, as transformers has them."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"it", "home"}
    for seed in range(2000):
        words.update(story(seed).words)
    for mark in landmarks():
        words.update([*mark.name, mark.city, mark.colour, mark.year])
    words.update(_COLOURS)
    special = ["<pad>", "<unk>", "<eos>", "<bos>"]
    vocabulary = {w: i for i, w in enumerate([*special, *sorted(words)])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return corpus.wrapped(core, unk_token="<unk>")


def pairs(count: int = 60) -> list[dict[str, Any]]:
    """Preference pairs on facts: the right city, colour or year of a landmark against a wrong one."""
    rng = random.Random(1)
    marks = landmarks()
    found = []
    for k in range(count):
        mark = marks[0] if k % 2 == 0 else rng.choice(marks[1:])
        fact = [*LEADS][k % 3]
        right = getattr(mark, fact)
        wrong = rng.choice([other for m in marks if (other := getattr(m, fact)) != right])
        pair = {"prompt": f"{' '.join(mark.name)} . {LEADS[fact]}", "chosen": f" {right}"}
        found.append({**pair, "rejected": f" {wrong}", "item": f"{k}"})
    return found


def seeds(split: str, count: int) -> Sequence[int]:
    """Seeds of stories to train on (`train`) or never to (`test`)."""
    start = {"train": 0, "test": 10_000_000}[split]
    return range(start, start + count)
