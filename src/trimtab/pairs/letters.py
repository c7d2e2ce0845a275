"""Questions with two lettered options, each in both orders, answered up to the letter.

    Would you say this?

    Choices:
     (A) Yes
     (B) No

The answers are ` (A` and ` (B` and go on (`Pair.open`), so that nothing but the letter tells them apart.
Of every question there is a second pair with the options' texts exchanged, in the same item: a liking for
one letter, which models have, cancels in what is measured by item. Which letter shows the behaviour is read
from the answers, where it stands from the options. A line `Answer:` is put behind them, without which no
plain text goes on with a letter.

Two layouts: rows of `question`, `answer_matching_behavior`, `answer_not_matching_behavior` (the model-written
evaluations of Perez et al. 2022; CAA's files); `positive` and `negative`, each a `prompt` and a `response`
(steering-bench). Left out and counted: questions of more or fewer options than two, those whose text names
their letters elsewhere, so that options cannot change places, and repeated ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..errors import DataError
from .files import (
    Source,
    digest_of,
    json_items,
    json_lines,
    located,
    name_and_split,
    row_of,
    shown,
    text_column,
)
from .pair import Pair

OPTION = re.compile(r"^[ \t]*\((?P<letter>[A-Z])\):?[ \t]*(?P<text>.*?)[ \t]*$", re.MULTILINE)
LETTER = re.compile(r"\s*\(?([A-Z])\)?\s*")
ASK = "\n\nAnswer:"
NOT_TWO = "questions that do not have two options, (A) and (B)"
FIXED = "questions whose options cannot change places"
REPEATED = "questions that came before"


def read_mwe(name: str, root: Path | None, option: str | None) -> Source:
    """`mwe:persona/NAME`, `mwe:xrisk/NAME`: model-written evaluations; `?published`: as the file has them."""
    name_and_split("mwe", name, "mwe:xrisk/survival-instinct")
    there = sorted((root / "mwe").glob("*/*.json")) if root else []
    known = [f"mwe:{p.parent.name}/{p.stem}" for p in there]
    path = located(root, [f"mwe/{name}.json", f"{name}.json"], f"mwe:{name}", known)
    return letter_pairs(json_items(path), both=option is None)


def read_letters(name: str, root: Path | None, option: str | None) -> Source:
    """`letters:FILE`: the same from a file of one's own, JSON Lines or a JSON list."""
    path = Path(name).expanduser()
    lines = path.name.removesuffix(".gz").endswith(("jsonl", "ndjson"))
    return letter_pairs(json_lines(path) if lines else json_items(path), both=option is None)


def letter_pairs(rows: Iterator[tuple[str, object]], both: bool = True) -> Source:
    """Pairs of `(where, row)`, two a question; with `both` false one, the question as it stands.

    Raises:
        DataError: a row of neither layout, answers that are no letters of the question's options, or
            twice the same.
    """
    source, seen = Source([]), set()

    def leave(reason: str) -> None:
        source.left_out[reason] = source.left_out.get(reason, 0) + 1

    ask = ASK if both else ""
    for where, value in rows:
        question, texts = _texts(row_of(value, where), where)
        options = list(OPTION.finditer(question))
        letters = [o["letter"] for o in options]
        right, wrong = (_letter(text, column, letters, where) for column, text in texts.items())
        if right == wrong:
            raise DataError(f"{where}: both answers are ({right}); expected two letters")
        if letters != ["A", "B"]:
            leave(NOT_TWO)
            continue
        first, second = options
        said = {first["text"], second["text"]}
        if len(said - {""}) < 2 or re.findall(r"\(([A-Z])\)", question) != letters:
            leave(FIXED)
            continue
        stem = question[: first.start()].rstrip()
        item = digest_of("\n".join([stem, *sorted(said)]))
        turned = (
            question[: first.start("text")]
            + second["text"]
            + question[first.end("text") : second.start("text")]
            + first["text"]
            + question[second.end("text") :]
        )
        made = [(question, right, wrong), (turned, wrong, right)][: 1 + both]
        new = [m for m in made if m not in seen]
        seen.update(new)
        source.pairs += [
            Pair(prompt + ask, f" ({good}", f" ({bad}", item, source=where, open=True)
            for prompt, good, bad in new
        ]
        if not new:
            leave(REPEATED)
    return source


def _texts(row: Mapping[str, object], where: str) -> tuple[str, dict[str, str]]:
    """The question, and its two answers by the column that they stand in."""
    if "positive" not in row:
        names = ("answer_matching_behavior", "answer_not_matching_behavior")
        question = text_column(row, "question", where)
        return question.rstrip(), {name: text_column(row, name, where) for name in names}
    poles = {n: row_of(row.get(n), f"{where}: column {n!r}") for n in ("positive", "negative")}
    asked = [text_column(pole, "prompt", f"{where}: {n}") for n, pole in poles.items()]
    if asked[0] != asked[1]:
        raise DataError(f"{where}: expected one prompt for both answers, given two")
    said = {n: text_column(pole, "response", f"{where}: {n}") for n, pole in poles.items()}
    return asked[0].rstrip(), said


def _letter(text: str, column: str, letters: list[str], where: str) -> str:
    match = LETTER.fullmatch(text)
    if not match or (letters and match[1] not in letters):
        among = ", ".join(f"({x})" for x in dict.fromkeys(letters)) or "(A) or (B)"
        raise DataError(
            f"{where}: column {column!r}: expected a letter of the question's options ({among}), "
            f"given {shown(text)}"
        )
    return match[1]
