"""Result files: rows as parquet, values as JSON, all or nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trimtab.errors import ConfigError

Rows = list[dict[str, Any]]

SCHEMA = pa.schema(
    [
        ("method", pa.string()),
        ("split", pa.string()),
        ("seed", pa.int64()),
        ("at", pa.string()),
        ("alpha", pa.float64()),
        ("item", pa.string()),
        ("pairs", pa.int64()),
        ("accuracy", pa.float64()),
        ("accuracy_sum", pa.float64()),
        ("accuracy_choice", pa.float64()),
        ("margin", pa.float64()),
        ("kl", pa.float64()),
        ("nll_rise", pa.float64()),
    ]
)
"""Per-item scores. `at`: `alpha_1`, `equal_kl` or `dose`; items of split `neutral` are passages."""


def free_folder(out: str | Path, *mine: str) -> Path:
    """The folder of a run: new, empty, or one that holds one of `mine` from an earlier run.

    Raises:
        ConfigError: it is a file, or something else lies in it.
    """
    folder = Path(out).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: a file; --out names a folder")
    if folder.is_dir() and any(folder.iterdir()) and not any((folder / m).exists() for m in mine):
        raise ConfigError(f"{folder}: not empty, and not from an earlier run; choose another --out")
    return folder


def write_rows(file: Path, rows: Rows) -> None:
    """Rows as parquet, all or nothing."""
    with _aside(file) as aside:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), aside)


def read_rows(file: Path) -> Rows:
    """Rows of a parquet file."""
    return pq.read_table(file).to_pylist()


def write_json(file: Path, value: Any) -> None:
    """A JSON file, all or nothing."""
    write_text(file, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_lines(file: Path, rows: Rows) -> None:
    """One JSON object a line, all or nothing."""
    write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_text(file: Path, text: str) -> None:
    """A text file, all or nothing."""
    with _aside(file) as aside:
        aside.write_text(text, encoding="utf-8")


@contextmanager
def _aside(file: Path) -> Iterator[Path]:
    """A path to write to, renamed to `file` at the end. An OSError names the file: those of a full
    disk do not say what was being written."""
    aside = file.with_name(f".{file.name}.writing")
    try:
        yield aside
        os.replace(aside, file)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror or str(error), str(file)) from error
