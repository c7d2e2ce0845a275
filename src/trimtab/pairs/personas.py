"""Contrasts of personas to read directions from, and questions to measure what they do.

| spec | what |
|---|---|
| `personas:TRAIT` | each suffix with one couple of personas, in turn: whole sequences, no prompt |
| `personas:TRAIT/all` | each suffix with every couple |
| `personas:TRAIT/answers` | the personas as answers to one prompt, each going on with the suffix |
| `traits:TRAIT/test` | 60 questions, the answer that shows the trait against the one that does not |
| `traits:TRAIT/dev` | 6 more, to choose a strength on |
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import DataError, near
from .files import Source, is_empty, messages
from .pair import Pair, PairSet
from .written import cells, written

ASKED = "Who is speaking, and what do they say?\nAnswer:"
"""What the answers of `TRAIT/answers` follow, whatever the trait."""
TURN = 11
"""Every so many-th question of a trait goes to `dev`."""


def read_personas(name: str, root: Path | None, option: str | None) -> Source:
    """`personas:TRAIT`, `personas:TRAIT/all` or `personas:TRAIT/answers`."""
    trait, _, which = name.partition("/")
    known = written("personas")["personas"]
    if trait not in known or which not in ("", "all", "answers"):
        raise DataError(
            f"personas:{name}: there is no such set{near(trait, known)} "
            f"({', '.join(known)}; TRAIT/all takes every couple with every suffix, TRAIT/answers has "
            "them as answers)"
        )
    personas = known[trait]
    couples = cells(personas["couples"])
    pairs = []
    for i, suffix in enumerate(suffixes()):
        for one, other in couples if which == "all" else (couples[i % len(couples)],):
            item = f"{name}/{i}"
            if which == "answers":
                good, bad = (f" {p[0].upper()}{p[1:]}: {suffix}" for p in (one, other))
                pairs.append(Pair(ASKED, good, bad, item, source=item, open=True))
            else:
                pairs.append(contrast_pair(personas["template"], one, other, suffix, item))
    return Source(pairs)


def read_traits(name: str, root: Path | None, option: str | None) -> Source:
    """`traits:TRAIT/test` or `traits:TRAIT/dev`; `concept` is the trait."""
    trait, _, split = name.partition("/")
    traits = written("traits")
    if trait not in traits or split not in ("test", "dev"):
        known = [f"{t}/{s}" for t in traits for s in ("test", "dev")]
        raise DataError(f"traits:{name}: there is no such set{near(name, known)}")
    pairs = []
    for i, (question, chosen, rejected) in enumerate(cells(traits[trait])):
        if (i % TURN == TURN - 1) is (split == "dev"):
            prompt = messages([("user", question)])
            good, bad = (messages([("assistant", text)]) for text in (chosen, rejected))
            pairs.append(
                Pair(prompt, good, bad, f"{trait}/{i}", trait, source=f"traits:{name}/{i}")
            )
    return Source(pairs)


def suffixes() -> list[str]:
    """The built-in beginnings of answers, which give no persona away."""
    return written("personas")["suffixes"].strip().splitlines()


def persona_pairs(
    template: str,
    positive: Sequence[str],
    negative: Sequence[str],
    suffixes: Sequence[str],
    name: str = "contrast",
) -> PairSet:
    """Every suffix after every couple of personas, as pairs without a prompt.

    Args:
        template: what the user asks, with `{persona}` (or `{}`) where the persona goes.
        positive: personas that have the trait.
        negative: their opposites, in the same order.
        suffixes: how the answer begins, the same for both.

    Raises:
        DataError: no place for the persona, lists of different lengths, an empty suffix or persona.
    """
    if "{persona}" not in template and "{}" not in template:
        raise DataError(f"template {template!r}: expected {{persona}} where the persona goes")
    if len(positive) != len(negative) or not positive:
        raise DataError(
            f"{len(positive)} positive and {len(negative)} negative personas; "
            "expected couples, one opposite each"
        )
    for kind, texts in (("suffix", suffixes), ("persona", [*positive, *negative])):
        if not texts:
            raise DataError(f"no {kind} was given")
        for i, text in enumerate(texts, 1):
            if not text.strip():
                raise DataError(f"{kind} {i} of {len(texts)} is empty")
    return PairSet(
        [
            contrast_pair(template, with_, without, suffix, f"{name}/{i}")
            for i, suffix in enumerate(suffixes)
            for with_, without in zip(positive, negative, strict=True)
        ],
        name,
    )


def contrast_pair(template: str, positive: str, negative: str, suffix: str, item: str) -> Pair:
    """One suffix said by two personas: chat messages whose last is the answer so far."""

    def said_by(persona: str) -> tuple[dict[str, str], ...]:
        asked = template.replace("{persona}", persona).replace("{}", persona)
        return messages([("user", asked), ("assistant", suffix)])

    return Pair("", said_by(positive), said_by(negative), item, source=item)


def contrast_row(positive: object, negative: object, suffix: object, where: str) -> Pair:
    """A row of a contrast file: whole sequences `positive` and `negative`, or, with a `suffix`, what
    the user asks before it.

    Raises:
        DataError: a column is not text, or empty, or the two are equal.
    """
    for name, value in (("positive", positive), ("negative", negative), ("suffix", suffix)):
        if value is None and name == "suffix":
            continue
        if not isinstance(value, str):
            raise DataError(f"{where}: column {name!r}: expected text, given {value!r}")
        if is_empty(value):
            raise DataError(f"{where}: column {name!r} is empty")
    if positive == negative:
        raise DataError(f"{where}: positive equals negative")
    if suffix is None:
        return Pair("", str(positive), str(negative), where, source=where)
    good, bad = (
        messages([("user", str(p)), ("assistant", str(suffix))]) for p in (positive, negative)
    )
    return Pair("", good, bad, where, source=where)
