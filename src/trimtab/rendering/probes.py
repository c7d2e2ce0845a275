"""What renderings are compared by: words that occur nowhere else, what stands around them, one clock and
the same draws in each; and the tags of reasoning."""

from __future__ import annotations

import random
import re
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from datetime import date as Day
from typing import NamedTuple

TAG = re.compile(
    r"[<◁][^<>◁▷\s'\"]*(?:think|thought|reason)[^<>◁▷\s'\"]*[>▷]"
    r"|(?-i:\[/?[A-Z_]*(?:THINK|THOUGHT|REASON)[A-Z_]*\])",
    re.I,
)
"""What a template may put around reasoning, where it does not show it when probed."""


class Around(NamedTuple):
    """What a template puts before and after each message of a chat, up to its neighbours'
    contents; None for a message that it leaves out."""

    before: tuple[str | None, ...]
    after: tuple[str | None, ...]


class Tags(NamedTuple):
    """What opens and what closes the reasoning of an answer, whitespace included."""

    open: str
    close: str


def tags_written(source: str, vocab: Container[str]) -> Tags | None:
    """What opens and closes reasoning by a template's own text, or the vocabulary."""
    tags = list(dict.fromkeys(TAG.findall(source)))
    closing = [t for t in tags if "/" in t or "end" in t.lower()]
    opening = [t for t in tags if t not in closing]
    if closing and not opening:
        opening = [closing[0].replace("/", "").replace("END", "START").replace("end", "start")]
    if opening and not closing:
        tag = opening[0].replace("START", "END").replace("start", "end")
        closing = [tag if tag != opening[0] else f"{tag[0]}/{tag[1:]}"]
    if not closing and "<think>" in vocab:
        opening, closing = ["<think>"], ["</think>"]
    if not (opening and closing):
        return None
    return Tags(f"{opening[0]}\n", f"\n{closing[0]}\n\n")


WORD = re.compile("qzx[a-z]{2}jvkw")


def words_for(n: int) -> list[str]:
    """Texts that no template and no message holds."""
    return [f"qzx{chr(97 + i // 26 % 26)}{chr(97 + i % 26)}jvkw" for i in range(n)]


def around_in(text: str, words: Sequence[str]) -> Around:
    """What stands around each of the words in a rendering."""
    places = [text.find(w) for w in words]
    order = sorted((p, p + len(w)) for p, w in zip(places, words, strict=True) if p >= 0)
    before: list[str | None] = []
    after: list[str | None] = []
    for at, word in zip(places, words, strict=True):
        if at < 0:
            before.append(None)
            after.append(None)
            continue
        end = at + len(word)
        before.append(text[max((e for _, e in order if e <= at), default=0) : at])
        after.append(text[end : min((s for s, _ in order if s >= end), default=len(text))])
    return Around(tuple(before), tuple(after))


@contextmanager
def same_draws() -> Iterator[None]:
    """What a template draws at random (Jinja's filter asks Python) is the same in every rendering."""
    state = random.getstate()
    random.seed(0)
    try:
        yield
    finally:
        random.setstate(state)


def clock(day: Day) -> str:
    """`strftime_now` of a fixed day, as a macro before a template: transformers gives templates the
    clock of the machine, and lets no function through to them."""
    steps = "".join(
        f" | replace('%{flag}{letter}', '{day.strftime(f'%{flag}{letter}')}')"
        for letter in "aAbBcCdDeFgGhHIjklmMnpPrRStTuUVwWxXyYzZ"
        for flag in ("-", "")
    )
    steps = f" | replace('%%', '\\0') | replace('%f', '000000'){steps} | replace('\\0', '%')"
    # The line break is the one that the environment takes away behind a block.
    last = " }}{% endmacro %}\n"
    return "{% macro strftime_now(format) %}{{ format" + steps + last
