"""Tables of the user's own: files, data sets and rows in memory, whatever shape they have, as pairs."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError
from .arrow import chat_in, dataset_rows, table_rows
from .files import Source, csv_rows, json_lines, json_value, read_text, row_of, shown
from .pair import Pair
from .rows import Told, to_rows
from .trl import COLUMNS, CONTRAST, SETTING, to_pair, without_prompt


@dataclass(frozen=True)
class Reading:
    """How a table of the user's own is read."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """Our names of columns to the file's own."""
    skip_bad: bool = False
    """Leave out rows that cannot be read, and say which."""
    ranked: bool = False
    """Of several scored answers to a prompt pair each with the next worse one, and not the best with all."""


AS_IT_IS = Reading()


def read_jsonl(name: str, how: Reading = AS_IT_IS) -> Source:
    """`jsonl:FILE`: one object a line; `.gz` is unpacked. A list of objects is read, too."""
    path = Path(name).expanduser()
    text = read_text(path)
    if text.lstrip().startswith("["):
        return from_rows(_table(json_value(text, str(path)), str(path)), how)
    bad: list[str] = []
    return from_rows(json_lines(path, bad if how.skip_bad else None), how, bad)


def read_json(name: str, how: Reading = AS_IT_IS) -> Source:
    """`json:FILE`: a list of objects, also as the only list of an object; an object of columns; or one
    object a line."""
    path = Path(name).expanduser()
    text = read_text(path)
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) > 1 and all(line.lstrip().startswith("{") for line in lines):
        return read_jsonl(name, how)
    return from_rows(_table(json_value(text, str(path)), str(path)), how)


def _table(value: object, name: str) -> Iterator[tuple[str, object]]:
    """The rows of a JSON file's value.

    Raises:
        DataError: neither a list of rows, nor columns of one length.
    """
    if isinstance(value, Mapping):
        lists = {k: v for k, v in value.items() if isinstance(v, list)}
        tables = {k: v for k, v in lists.items() if v and all(isinstance(r, Mapping) for r in v)}
        if len(tables) > 1:
            given = ", ".join(map(str, tables))
            raise DataError(f"{name}: expected one list of objects, given {given}")
        columns = {k: list(v.values()) for k, v in value.items() if isinstance(v, Mapping)} or lists
        if len(value) > 1 and columns.keys() == value.keys():  # as pandas writes a table
            if len(sizes := {len(c) for c in columns.values()}) == 1:
                rows = zip(*columns.values(), strict=True)
                return numbered((dict(zip(columns, row, strict=True)) for row in rows), name)
            raise DataError(f"{name}: expected columns of one length, given {sorted(sizes)}")
        if len(tables) == 1:
            ((inner, value),) = tables.items()
            return numbered(value, f"{name}: {inner}")
    if not isinstance(value, list):
        raise DataError(f"{name}: expected a list of objects, given {shown(value)}")
    return numbered(value, name)


def read_csv(name: str, how: Reading = AS_IT_IS) -> Source:
    """`csv:FILE`: a header line with the column names, then one pair a record; commas, semicolons or
    tabs between."""
    bad: list[str] = []
    path = Path(name).expanduser()
    return from_rows(csv_rows(path, None, bad if how.skip_bad else None), how, bad)


def read_parquet(name: str, how: Reading = AS_IT_IS) -> Source:
    """`parquet:FILE`: one pair a row."""
    import pyarrow
    import pyarrow.parquet

    path = Path(name).expanduser()
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    try:
        rows = list(table_rows(pyarrow.parquet.read_table(path)))
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # a name that is no text, too
        raise DataError(f"{path}: not a readable parquet file ({error})") from None
    return from_rows(numbered(rows, str(path)), how)


def read_hub(name: str, how: Reading = AS_IT_IS) -> Source:
    """`hub:ID/SPLIT` or `hub:ID:CONFIG/SPLIT`: a data set on the Hugging Face Hub, or its cache."""
    identity, _, split = name.rpartition("/")
    identity, _, config = identity.partition(":")
    if not identity or not split:
        raise DataError(f"hub:{name}: expected hub:ID/SPLIT, for example hub:org/data/train")
    import datasets

    try:
        data = datasets.load_dataset(identity, config or None, split=split)
    except Exception as error:  # the hub client raises many kinds, all of them about the given name
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"
        raise DataError(
            f"hub:{name}: the data set cannot be loaded ({reason}); "
            "offline, only data sets that are already in the local cache can be read"
        ) from error
    return from_rows(numbered(data, f"hub:{identity}"), how)


def numbered(rows: Iterable[object], name: str) -> Iterator[tuple[str, object]]:
    """`(name: row i, row)`, counted from 1."""
    return ((f"{name}: row {i}", row) for i, row in enumerate(dataset_rows(rows), 1))


REPEATED = "repeat the prompt in both answers: it is read once"
TURNS = "have turns of the user within an answer: they are read and not scored (TRL scores them)"
WRITTEN = "have chats that are written as JSON text: they are read as chats"
PLAIN = "are plain text: their tools and chat_template_kwargs act behind --prompt-style chat alone"

SHOWN = 20
"""Rows that are left out are listed up to so many."""
SURE = 16
"""Characters of a plain prompt that two answers do not both begin with by chance."""


def from_rows(
    rows: Iterable[tuple[str, object]], how: Reading = AS_IT_IS, bad: list[str] | None = None
) -> Source:
    """Pairs from `(where, row)`, in order, whatever shape the rows have (`shapes`).

    Args:
        bad: what could not even be read as rows.
    """
    said: Counter[str] = Counter()
    told = Told()
    skipped: list[str] = bad if bad is not None else []

    def skip(error: DataError) -> None:
        skipped.append(str(error))

    aside = skip if how.skip_bad else None
    raw = []
    for where, value in rows:
        try:
            raw.append((where, _read(row_of(value, where), where, said)))
        except DataError as error:
            if aside is None:
                raise
            aside(error)
    total = len(raw)
    given = to_rows(raw, how.columns, told, aside, ranked=how.ranked)
    prompted = any(row.get("prompt") is not None for _, row in given)
    columns = dict.fromkeys(str(name) for _, row in given for name in row)
    pairs = []
    for number, (where, row) in enumerate(given, 1):
        try:
            if prompted and "prompt" in row and row["prompt"] is None:
                raise DataError(
                    f"{where}: column 'prompt' is null, and other rows have a prompt; give \"\" where "
                    "there is none, or leave the column out where the answers begin with it"
                )
            pairs.append(to_pair(row, where, number))
        except DataError as error:
            if aside is None:
                raise
            aside(error)
    pairs = _once(pairs, said)
    for pair in pairs:
        said[TURNS] += bool(pair.prompt) and any(m["role"] == "user" for m in _turns(pair))
        said[PLAIN] += not pair.conversational and bool(pair.tools or pair.chat_template_kwargs)
    notes = [f"{n} of {total} rows: {what}" for what, n in told.notes.items()]
    notes += [f"{n} of {len(pairs)} pairs {what}" for what, n in said.items() if n]
    if unused := [c for c in columns if c not in (*COLUMNS, *CONTRAST, *SETTING)]:
        notes.append(f"columns that are not used: {', '.join(unused)}")
    left_out = {what: n for what, n in told.left_out.items() if n}
    if skipped:
        left_out["bad rows"] = len(skipped)
        notes += [f"left out: {text}" for text in skipped[:SHOWN]]
        if len(skipped) > SHOWN:
            notes.append(f"left out: and {len(skipped) - SHOWN} more")
    return Source(pairs, left_out, notes)


def _read(row: Mapping[str, object], where: str, said: Counter[str]) -> dict[str, Any]:
    """A row whose chats are lists, also where they were written as text (as in a CSV file)."""
    found = dict(row)
    for name in ("prompt", "chosen", "rejected"):
        value = found.get(name)
        if not isinstance(value, str):
            continue
        if (chat := chat_in(value)) is not None:
            found[name] = chat
        elif value.startswith(("[{'role'", "[{'content'")):  # what str() makes of a chat
            try:
                found[name] = ast.literal_eval(value)
            except (ValueError, SyntaxError, RecursionError):
                raise DataError(
                    f"{where}: column {name!r} is a chat as Python prints it; write it as JSON"
                ) from None
    said[WRITTEN] += any(found[name] is not row[name] for name in row)
    return found


def _turns(pair: Pair) -> list[dict[str, Any]]:
    return [
        m for answer in (pair.chosen, pair.rejected) if not isinstance(answer, str) for m in answer
    ]


def _once(pairs: list[Pair], said: Counter[str]) -> list[Pair]:
    """The pairs, a prompt that both answers repeat taken out of them. Of plain text both answers may
    begin with a short prompt by chance; unless all pairs of a source do."""
    found = [without_prompt(pair) for pair in pairs]
    sure = all(found)
    for i, pair in enumerate(found):
        if pair and (sure or pair.conversational or len(str(pair.prompt).strip()) >= SURE):
            said[REPEATED] += 1
            pairs[i] = pair
    return pairs
