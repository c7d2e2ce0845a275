"""Which answer is the better one: letters, numbers, scores and labels as data sets write them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..errors import DataError
from .column_names import SIGNED
from .files import shown

TIE = re.compile(r"^(tie.*|both.*|neither.*|none|equal|same|draw|)$")
ENDING = re.compile(r"^(?:[a-z ]*[ _])?(?:([ab])|([012]))$|^[a-z]+([012])$")


def better_of(value: Any, name: str, first: str, second: str, where: str) -> int | None:
    """0 for the first answer, 1 for the second, None for neither."""
    wrong = DataError(
        f"{where}: column {name!r}: which of {first} and {second} is meant by {shown(value)} cannot be "
        "told; expected "
        + ("0 or 1" if first.endswith("0") else "1 or 2" if first.endswith("1") else "A or B")
        + f", {first} or {second}, or tie"
    )
    if isinstance(value, bool):
        raise wrong
    text = str(value).strip().strip("()[].: ").casefold()
    if name in SIGNED:
        try:
            number = float(text)
        except ValueError:
            raise wrong from None
        return None if number == 0 else int(number > 0)
    if TIE.match(text):
        return None
    if text in (first, second):
        return int(text == second)
    if text in ("first", "left", "second", "right"):
        return int(text in ("second", "right"))
    match = ENDING.match(text.removesuffix(".0"))
    if match is None:
        raise wrong
    letter, digit = match[1], match[2] or match[3]
    if letter:
        return int(letter == "b")
    if first == "human_ref_a" and digit in "01":
        return 1 - int(digit)
    place = int(digit) - {"0": 0, "1": 1}.get(first[-1], 9)
    if place not in (0, 1):
        raise wrong
    return place


def number_of(value: Any, name: str, where: str) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    except (TypeError, ValueError):
        raise DataError(
            f"{where}: column {name!r}: expected a number, given {shown(value)}"
        ) from None


def truth_of(value: Any, name: str, where: str) -> bool:
    words = {"true": True, "1": True, "false": False, "0": False, "good": True, "bad": False}
    words |= {"desirable": True, "undesirable": False, "yes": True, "no": False, "-1": False}
    found = words.get(str(value).strip().casefold().removesuffix(".0"))
    if found is None:
        raise DataError(f"{where}: column {name!r}: expected true or false, given {shown(value)}")
    return found


def index_of(right: object, texts: list[str], labels: list[str], by: str, where: str) -> int:
    if isinstance(right, int) and not isinstance(right, bool) and 0 <= right < len(texts):
        return right
    if isinstance(right, str):
        bare = right.strip().strip("().: ")
        for known, word in ((labels, bare), (texts, right)):
            names = [name.strip().casefold() for name in known]
            if word.strip().casefold() in names:
                return names.index(word.strip().casefold())
    raise DataError(
        f"{where}: column {by!r}: expected a letter of {', '.join(labels)}, an index from 0 or the "
        f"text of a choice, given {shown(right)}"
    )


def mean_rating(annotations: object, where: str) -> float:
    found = [
        number_of(v["Rating"], "Rating", where)
        for v in (annotations.values() if isinstance(annotations, Mapping) else ())
        if isinstance(v, Mapping) and v.get("Rating") not in (None, "N/A")
    ]
    if not found:
        raise DataError(f"{where}: annotations: expected ratings, given {shown(annotations)}")
    return sum(found) / len(found)
