"""GENIES distributions (Clymer et al. 2023): items of a right and some wrong responses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..errors import DataError
from .files import Source, column, json_value, located, name_and_split, read_text, row_of, shown
from .files import text_column as text
from .pair import Pair

FOLDERS = ("genies/distributions", "distributions")
"""Where distributions lie under a data folder, or under a checkout of GENIES itself."""


def read_genies(name: str, root: Path | None, option: str | None) -> Source:
    """`genies:NAME/SPLIT`: one pair a wrong response, in file order; items are the file's."""
    pairs = []
    for number, (where, item) in enumerate(read_items(name, root)):
        prompt = text(item, "prompt", where)
        right, wrong = responses(column(item, "responses", where), where)
        pairs += [Pair(prompt, right, w, f"{name}/{number}", source=where) for w in wrong]
    return Source(pairs)


def read_items(
    name: str, root: Path | None, limit: int | None = None
) -> list[tuple[str, Mapping[str, object]]]:
    """The items of `NAME/SPLIT` in file order, each after the place where it stands.

    Raises:
        DataError: no such distribution under `root`, or it is no list of items.
    """
    distribution, split = name_and_split("genies", name, "genies:truthful_qa/train")
    path = located(
        root,
        [f"{folder}/{distribution}/{split}.json" for folder in FOLDERS],
        f"genies:{name}",
        known(root),
    )
    items = json_value(read_text(path), str(path))
    if not isinstance(items, list):
        raise DataError(f"{path}: expected a list of items, given {shown(items)}")
    places = [f"{path}: item {number}" for number in range(len(items[:limit]))]
    return [(where, row_of(item, where)) for where, item in zip(places, items, strict=False)]


def responses(value: object, where: str) -> tuple[str, list[str]]:
    """The response marked 1.0 and those marked 0.0."""
    if not isinstance(value, Mapping) or any(
        isinstance(mark, bool) or mark not in (0, 1) for mark in value.values()
    ):
        raise DataError(
            f"{where}: column 'responses': expected {{text: 1.0 or 0.0}}, given {shown(value)}"
        )
    right = [answer for answer, mark in value.items() if mark == 1]
    wrong = [answer for answer, mark in value.items() if mark == 0]
    if len(right) != 1 or not wrong:
        raise DataError(
            f"{where}: column 'responses': expected exactly one response marked 1.0 and at least "
            f"one marked 0.0, given {len(right)} and {len(wrong)}"
        )
    return right[0], wrong


def known(root: Path | None) -> list[str]:
    """The distributions and splits that are there, as specs."""
    found = [p for folder in FOLDERS if root for p in (root / folder).glob("*/t*.json")]
    return sorted(f"genies:{p.parent.name}/{p.stem}" for p in found)
