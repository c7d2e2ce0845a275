"""The behaviours that BiPO's vectors were trained on (Cao et al. 2024): a question and two answers to it."""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError
from .files import Source, csv_rows, digest_of, located, name_and_split, text_column
from .pair import Pair

ALSO_IN_TEST = "pairs whose question is in the test split, too"
NO_QUESTION = "pairs without a question"


def read_bipo(name: str, root: Path | None, option: str | None) -> Source:
    """`bipo:NAME/SPLIT`: the matching answer against the other; the item is the question.

    Answers begin with the space that parts them from the question. A row without a question, and one of
    another split whose question the test split holds, is left out and counted.
    """
    behaviour, split = name_and_split("bipo", name, "bipo:power-seeking/train")
    there = sorted((root / "bipo").glob("*/*.csv")) if root else []
    path = located(
        root,
        [f"bipo/{behaviour}/{split}.csv", f"{behaviour}/{split}.csv"],
        f"bipo:{name}",
        [f"bipo:{p.parent.name}/{p.stem}" for p in there],
    )
    test = path.with_name("test.csv")
    held = set(map(_question, csv_rows(test))) if test.is_file() and test != path else set()
    source = Source([])
    for where, row in csv_rows(path):
        question = _question((where, row))
        chosen, rejected = (
            text_column(row, c, where).strip() for c in ("matching", "not_matching")
        )
        for column, answer in (("matching", chosen), ("not_matching", rejected)):
            if not answer:
                raise DataError(f"{where}: column {column!r} is empty")
        if not question or question in held:
            reason = ALSO_IN_TEST if question else NO_QUESTION
            source.left_out[reason] = source.left_out.get(reason, 0) + 1
            continue
        item = f"{behaviour}/{digest_of(question)}"
        source.pairs.append(Pair(question, f" {chosen}", f" {rejected}", item, source=where))
    return source


def _question(row: tuple[str, dict[str, object]]) -> str:
    return text_column(row[1], "question", row[0]).strip()
