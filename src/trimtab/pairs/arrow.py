"""Rows of Arrow tables (parquet, `datasets`), so that a text stays the text that it was.

`datasets` stores a column (or a field within) whose values are of several kinds as JSON text (its
`Json` feature, Arrow's `arrow.json`). Texts that happen to be JSON are stored as they stand there, and
what comes back of "007" is 7, of "null" nothing. The stored text knows better: in columns that hold
text or chats, what is no chat is the text itself. (A text that stands in double quotes as a whole is
stored like the same text without them: that one cannot be told.)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

from ..foreign import Malformed, parse_json

BATCH = 1000
STRUCTURED = {"tools", "chat_template_kwargs", "tool_calls"}
"""Columns and keys whose values are no texts: what Arrow fills in where a row lacks a key goes."""

Mend = Callable[[Any], Any]


def table_rows(table: Any) -> Iterator[dict[str, Any]]:
    """The rows of a `pyarrow.Table` as Python values."""
    mends = _mends(table.schema)
    for batch in table.to_batches(BATCH):
        for row in batch.to_pylist():
            yield {k: mends[k](v) if k in mends else v for k, v in row.items()}


def dataset_rows(rows: Iterable[Any]) -> Iterable[Any]:
    """The rows of a `datasets` object, from its storage; any other iterable as it is."""
    datasets, data = sys.modules.get("datasets"), cast(Any, rows)
    if datasets is None:
        return rows
    stored = isinstance(data, datasets.Dataset) and data.format["type"] != "custom"
    if not stored and not (
        isinstance(data, datasets.IterableDataset) and "Json(" in repr(data.features)
    ):
        return rows
    return (row for table in data.with_format("arrow").iter(BATCH) for row in table_rows(table))


def chat_in(text: str) -> list[Any] | None:
    """The messages of a chat that was written as JSON text; None where it is none."""
    value = _parsed(text) if text.lstrip().startswith("[") else None
    return value if isinstance(value, list) and _is_chat(value) else None


def _mends(schema: Any) -> dict[str, Mend]:
    """What has to be done to the values of a column, for those where something has."""
    features: Any = {}
    if b'"Json"' in (schema.metadata or {}).get(b"huggingface", b""):
        try:
            features = parse_json(schema.metadata[b"huggingface"])["info"]["features"]
        except (ValueError, KeyError, TypeError):
            features = {}
    found = {f.name: _mend(f.type, f.name in STRUCTURED, features.get(f.name)) for f in schema}
    return {name: mend for name, mend in found.items() if mend is not None}


def _mend(kind: Any, structured: bool, feature: Any) -> Mend | None:
    import pyarrow as pa

    coded = isinstance(feature, dict) and feature.get("_type") == "Json"
    if coded or isinstance(kind, getattr(pa, "JsonType", ())):
        return _value if structured else _text_or_chat
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = feature.get("feature") if isinstance(feature, dict) else None
        each = _mend(kind.value_type, structured, inner)
        return None if each is None else (lambda v: v if v is None else [each(x) for x in v])
    if not pa.types.is_struct(kind):
        return None
    fields = {}
    for field in kind:
        inner = feature.get(field.name) if isinstance(feature, dict) else None
        if mend := _mend(field.type, structured or field.name in STRUCTURED, inner):
            fields[field.name] = mend
    if not fields and not structured:
        return None

    def mended(value: Any) -> Any:
        if value is None:
            return None
        known = {k: fields[k](v) if k in fields else v for k, v in value.items()}
        return {k: v for k, v in known.items() if v is not None} if structured else known

    return mended


def _value(text: Any) -> Any:
    value = _parsed(text) if isinstance(text, str) else text
    return text if value is None and text != "null" else value


def _text_or_chat(text: Any) -> Any:
    value = _parsed(text) if isinstance(text, str) else text
    if isinstance(value, str) or _is_chat(value if isinstance(value, list) else [value]):
        return value
    return text


def _parsed(text: str) -> Any:
    """A value of JSON text; None where it is not JSON."""
    try:
        return parse_json(text)
    except Malformed:
        return None


def _is_chat(value: list[Any]) -> bool:
    """Whether a list holds messages, or parts of the content of one."""
    return bool(value) and all(
        isinstance(m, dict) and ("role" in m or {"type", "text"} <= m.keys()) for m in value
    )
