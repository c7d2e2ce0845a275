"""The folder of a run, and its per-item scores as parquet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trimtab.errors import ConfigError, StudyError
from trimtab.files import aside

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
        *((score, pa.float64()) for score in ("accuracy", "accuracy_sum", "accuracy_choice")),
        *((score, pa.float64()) for score in ("margin", "preference", "kl", "nll_rise")),
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
    begun = [f for f in folder.iterdir() if f.suffix != ".writing"] if folder.is_dir() else []
    if begun and not any((folder / m).exists() for m in mine):
        raise ConfigError(f"{folder}: not empty, and not from an earlier run; choose another --out")
    return folder


def write_rows(file: Path, rows: Rows) -> None:
    """Rows as parquet, all or nothing."""
    with aside(file) as writing:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), writing)


def read_rows(file: Path) -> Rows:
    """Rows of a parquet file. Raises StudyError where it is damaged."""
    try:
        return pq.read_table(file).to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise StudyError(
            f"{file}: damaged ({error}); delete its folder to have it made again"
        ) from error
