"""Rows of whatever shape as rows of our own columns: `prompt`, `chosen`, `rejected`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from ..errors import DataError, near
from .column_names import KNOWN, OWN
from .said import key
from .shapes import SHAPES, Row, Scored, Undecided, shortly


@dataclass
class Told:
    """What reading a source has found out: notes by text, and counts of what makes no pair."""

    notes: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)


def to_rows(
    given: Iterable[tuple[str, Mapping[str, object]]],
    columns: Mapping[str, str],
    told: Told,
    bad: Callable[[DataError], None] | None = None,
    *,
    ranked: bool = False,
) -> list[tuple[str, Row]]:
    """Rows of our own columns, in file order; several scored answers stand where the first stood.

    Args:
        given: `(where, row)`.
        columns: our name of a column to the source's own.
        told: is told what was taken for what.
        bad: takes the error of a row that cannot be read; without it the first one is raised.
        ranked: several scored answers are taken in their order (`chained`).

    Raises:
        DataError: a row fits no shape; the text says which is nearest and what is missing.
    """
    found: dict[Any, tuple[str, Row] | list[Scored]] = {}
    for number, (where, raw) in enumerate(given):
        try:
            row = renamed(dict(raw), columns, where, told)
            taken, said = take(row, where)
        except Undecided as reason:
            told.left_out[str(reason)] += 1
            continue
        except DataError as error:
            if bad is None:
                raise
            bad(error)
            continue
        if said:
            told.notes[said] += 1
        if not isinstance(taken, list):
            found[number] = where, taken
        elif len(taken) > 1:
            found[number] = taken
        else:
            for one in taken:
                name = repr((one.row.get("prompt"), one.row.get("system")))
                group = found.setdefault(name, [])
                assert isinstance(group, list)
                group.append(one)
    rows: list[tuple[str, Row]] = []
    for group in found.values():
        try:
            pair_up = chained if ranked else paired
            rows += [group] if isinstance(group, tuple) else pair_up(group, told)
        except DataError as error:
            if bad is None:
                raise
            bad(error)
    return rows


def chained(group: list[Scored], told: Told) -> list[tuple[str, Row]]:
    """The answers of one prompt, each against the next worse one.

    Raises:
        DataError: two of them have one score: neither comes first.
    """
    order = sorted(group, key=lambda one: -one.score)
    for one, other in pairwise(order):
        if one.score == other.score:
            raise DataError(
                f"{other.where}: two answers to one prompt have one score ({abs(other.score):g}): a tie has "
                "no order; without `ranked` the best is paired with each worse one"
            )
    told.left_out["answers whose prompt has no better or worse one"] += len(order) == 1
    return [
        (one.where, {**one.row, "chosen": one.answer, "rejected": other.answer})
        for one, other in pairwise(order)
    ]


def paired(group: list[Scored], told: Told) -> list[tuple[str, Row]]:
    """The best answers of one prompt against each that is worse; every answer is in a pair."""
    best = max(one.score for one in group)
    tops = [one for one in group if one.score == best]
    rest = [one for one in group if one.score < best and one.answer not in [t.answer for t in tops]]
    told.left_out["answers whose prompt has no better or worse one"] += 0 if rest else len(group)
    many = max(len(tops), len(rest)) if rest else 0
    couples = ((tops[i % len(tops)], rest[i % len(rest)]) for i in range(many))
    return [
        (top.where, {**top.row, "chosen": top.answer, "rejected": worse.answer})
        for top, worse in couples
    ]


def renamed(row: Row, columns: Mapping[str, str], where: str, told: Told) -> Row:
    """The row with its columns called as `columns` say, known ones in lower case."""
    for ours, theirs in columns.items():
        value: Any = row
        for part in [theirs] if theirs in row else theirs.split("."):
            if not isinstance(value, Mapping) or part not in value:
                there = ", ".join(map(str, row))
                raise DataError(
                    f"{where}: --columns {ours}={theirs}: there is no column {theirs!r}"
                    f"{near(theirs, map(str, row))} (the columns given are: {there})"
                )
            value = value[part]
        row = {**{k: v for k, v in row.items() if k != theirs}, ours: value}
    found, other = {}, {}
    known = OWN if {"chosen", "rejected"} <= row.keys() else KNOWN
    for name, value in row.items():
        lower = key(name)
        ours = lower if lower != name and lower in known and lower not in row else name
        if ours in found:
            ours = name
        if ours != name:
            other[name] = ours
        found[ours] = value
    if other:
        told.notes["headers " + ", ".join(f"{a!r} read as {b}" for a, b in other.items())] += 1
    return found


def take(row: Row, where: str) -> tuple[Row | list[Scored], str]:
    """A row as one of ours, or as scored answers; and what was taken for what."""
    for shape in SHAPES:
        if not shape.lacks(row):
            assert shape.read is not None
            return shape.read(row, where)
    fewest = min(SHAPES, key=lambda s: (len(s.lacks(row)), -len(s.needs)))
    if len(fewest.lacks(row)) == len(fewest.needs):
        fewest = SHAPES[0]
    missing = fewest.lacks(row)
    what = f"column {missing[0]!r} is" if len(missing) == 1 else f"columns {_named(missing)} are"
    there = ", ".join(map(str, row)) or "none"
    raise DataError(
        f"{where}: {what} missing; the columns given are: {there}. Nearest is the shape "
        f"{fewest.name!r} ({', '.join(map(shortly, fewest.needs))}); --columns "
        "prompt=…,chosen=…,rejected=… says which columns hold what"
    )


def _named(names: Iterable[str]) -> str:
    return " and ".join(repr(name) for name in names)
