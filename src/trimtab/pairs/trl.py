"""TRL preference data: `prompt`, `chosen`, `rejected` as plain text or as chat messages.

The prompt may be implicit (both answers begin with it). Two optional columns are ours: `item`, the
name that pairs of one multi-response item share, and `concept`. These are the user's own files, so
an empty answer or one that equals the other is an error at its line, never left out in silence.

Contrasts come the same way: `positive` and `negative`, whole sequences without a prompt, or what the
user asks where there is a `suffix`, the beginning of the answer that both go on with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ..errors import DataError
from .files import (
    Source,
    column,
    csv_rows,
    digest_of,
    implicit_prompt,
    is_empty,
    json_lines,
    json_value,
    plain,
    read_text,
    row_of,
    shown,
    text_of,
)
from .pair import Messages, Pair, Text
from .personas import contrast_row


def read_jsonl(name: str, root: Path | None, option: str | None) -> Source:
    """`jsonl:FILE`: one object a line; `.gz` is unpacked."""
    return from_rows(json_lines(Path(name).expanduser()))


def read_json(name: str, root: Path | None, option: str | None) -> Source:
    """`json:FILE`: one list of objects."""
    path = Path(name).expanduser()
    value = json_value(read_text(path), str(path))
    if not isinstance(value, list):
        raise DataError(f"{path}: expected a list of objects, given {shown(value)}")
    return from_rows((f"{path}: row {i}", row) for i, row in enumerate(value, 1))


def read_csv(name: str, root: Path | None, option: str | None) -> Source:
    """`csv:FILE`: a header line with the column names, then one pair a record."""
    return from_rows(csv_rows(Path(name).expanduser()))


def read_parquet(name: str, root: Path | None, option: str | None) -> Source:
    """`parquet:FILE`: one pair a row."""
    import pyarrow
    import pyarrow.parquet

    path = Path(name).expanduser()
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable parquet file ({error})") from None
    return from_rows((f"{path}: row {i}", row) for i, row in enumerate(rows, 1))


def read_hub(name: str, root: Path | None, option: str | None) -> Source:
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
    return from_rows(numbered(data, f"hub:{identity}"))


def numbered(rows: Iterable[object], name: str) -> Iterator[tuple[str, object]]:
    """`(name: row i, row)`, counted from 1."""
    return ((f"{name}: row {i}", row) for i, row in enumerate(rows, 1))


def from_rows(rows: Iterable[tuple[str, object]]) -> Source:
    """Pairs from `(where, row)`, one each, in order."""
    return Source([to_pair(row_of(row, where), where, i) for i, (where, row) in enumerate(rows, 1)])


def to_pair(row: Mapping[str, object], where: str, number: int) -> Pair:
    """One row as a pair; `number` names the item where the prompt is empty."""
    if "positive" in row and "chosen" not in row:
        negative = column(row, "negative", where)
        return contrast_row(row["positive"], negative, row.get("suffix"), where)
    chosen = answer(column(row, "chosen", where), "chosen", where)
    rejected = answer(column(row, "rejected", where), "rejected", where)
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise DataError(f"{where}: one answer is plain text, the other chat messages")
    for name, text in (("chosen", chosen), ("rejected", rejected)):
        if is_empty(text):
            raise DataError(f"{where}: column {name!r} is an empty answer")
    if chosen == rejected:
        raise DataError(f"{where}: chosen equals rejected ({shown(text_of(chosen))})")

    prompt: Text
    given = row.get("prompt")
    if given is None:
        prompt, chosen, rejected = implicit_prompt(chosen, rejected)
    elif isinstance(chosen, str):
        prompt = plain(given, "prompt", where)
    elif not isinstance(given, str):
        prompt = chat(given, "prompt", where)
    else:
        # As TRL does: a plain prompt beside whole dialogues only repeats their first turn.
        prompt, chosen, rejected = implicit_prompt(chosen, rejected)
        if given.strip() and not prompt:
            raise DataError(
                f"{where}: the prompt is plain text while the answers are chat messages that do "
                "not begin with it; give the prompt as messages too"
            )

    item = row.get("item")
    if item is None:
        item = digest_of(prompt) if prompt else f"row {number}"
    elif isinstance(item, bool) or not isinstance(item, str | int):
        raise DataError(f"{where}: column 'item': expected text or an integer, given {shown(item)}")
    concept = row.get("concept")
    return Pair(
        prompt,
        chosen,
        rejected,
        item=str(item),
        concept=None if concept is None else plain(concept, "concept", where),
        source=where,
    )


def answer(value: object, name: str, where: str) -> Text:
    """Plain text or chat messages."""
    return value if isinstance(value, str) else chat(value, name, where)


def chat(value: object, name: str, where: str) -> Messages:
    """Chat messages: a list of objects with `role` and `content`, both text.

    Keys without a value (a data set with several kinds of messages fills them in) are dropped.
    """
    if not isinstance(value, list | tuple):
        raise DataError(
            f"{where}: column {name!r}: expected text or a list of chat messages, "
            f"given {shown(value)}"
        )
    found = []
    for i, message in enumerate(value, 1):
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise DataError(
                f"{where}: column {name!r}, message {i}: expected an object with 'role' and "
                f"'content', given {shown(message)}"
            )
        fields = {k: v for k, v in message.items() if v is not None or k in ("role", "content")}
        for key, text in fields.items():
            if not isinstance(text, str):
                raise DataError(
                    f"{where}: column {name!r}, message {i}: expected text as {key!r}, "
                    f"given {shown(text)}"
                )
        found.append(fields)
    return tuple(found)
