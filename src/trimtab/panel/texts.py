"""What texts say of themselves: whether a request was followed, how much is repeated, how long it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from trimtab.errors import ConfigError
from trimtab.panel.values import Values
from trimtab.statistics import POSITIVE, SHARE

GRAM = 4
"""Tokens of a repeated piece."""


class Request(NamedTuple):
    """A request and how to tell whether it was followed: a check of `CHECKS` and its words."""

    prompt: str
    check: str
    words: tuple[str, ...]

    def followed(self, text: str) -> bool:
        """Whether the text does what was asked."""
        return CHECKS[self.check](text.strip(), self.words)


def _between(count: int, words: Sequence[str]) -> bool:
    return int(words[0]) <= count <= int(words[1])


def _bare(text: str) -> str:
    return re.sub(r"[^\w\s]", "", text).strip().lower()


CHECKS: Mapping[str, Callable[[str, Sequence[str]], bool]] = {
    "words": lambda text, w: _between(len(text.split()), w),
    "sentences": lambda text, w: _between(len(re.findall(r"[.!?]+(?=\s|$)", text)) or 1, w),
    "lines": lambda text, w: sum(bool(line.strip()) for line in text.splitlines()) == int(w[0]),
    "commas": lambda text, w: text.count(",") >= int(w[0]),
    "one": lambda text, w: _bare(text) in w[1:],
    "has": lambda text, w: (
        all(word.lower() in text.lower() for word in w)
        if not w[0].isupper()
        else all(word in text for word in w)
    ),
    "lacks": lambda text, w: bool(text) and not any(word.lower() in text.lower() for word in w),
    "begins": lambda text, w: text.lstrip("\"'").startswith(w[0]),
    "ends": lambda text, w: text.rstrip("\"'").endswith(w[0]),
    "lower": lambda text, w: any(map(str.isalpha, text)) and text == text.lower(),
    "upper": lambda text, w: any(map(str.isalpha, text)) and text == text.upper(),
    "digits": lambda text, w: bool(re.search(r"\d", text)),
}
"""Whether a text, blanks at its ends aside, does what was asked."""


def read_requests(table: str) -> list[Request]:
    """Lines `request | check words`.

    Raises:
        ConfigError: a line that is none, or an unknown check.
    """
    found = []
    for line in table.strip().splitlines():
        prompt, bar, rest = line.partition(" | ")
        check, *words = rest.split()
        if not bar or check not in CHECKS:
            raise ConfigError(
                f"texts: {line!r}: expected `request | check`, of {', '.join(CHECKS)}"
            )
        found.append(Request(prompt.strip(), check, tuple(words)))
    return found


def text_values(
    requests: Sequence[Request], texts: Sequence[str], ids: Sequence[Sequence[int]]
) -> list[Values]:
    """Requests followed, repetition, distinct tokens, length.

    `repetition`: the share of a text's 4-grams that occurred before in it. `distinct`: distinct tokens
    over tokens. `length`: tokens, up to where the text was cut.

    Args:
        ids: token ids of the texts.
    """
    items = tuple(r.prompt for r in requests)
    followed = [float(r.followed(t)) for r, t in zip(requests, texts, strict=True)]
    repeated = [_repeated(i) for i in ids]
    distinct = [len(set(i)) / len(i) if len(i) else 1.0 for i in ids]
    length = np.array([float(len(i)) for i in ids])
    return [
        Values("followed", items, np.array(followed), within=SHARE),
        Values("repetition", items, np.array(repeated), better=-1),
        Values("distinct", items, np.array(distinct), better=0),
        Values("length", items, length, within=POSITIVE, better=0, unit="tokens"),
    ]


def _repeated(ids: Sequence[int]) -> float:
    grams = [tuple(ids[i : i + GRAM]) for i in range(len(ids) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
