"""Files that are whole or not there: written aside, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def aside(file: Path) -> Iterator[Path]:
    """A path to write to, which becomes `file` at the end; where that fails, what was there stays.

    Raises:
        OSError: the file cannot be written. It names the file: those of a full disk do not say what was
            being written.
    """
    writing = file.with_name(f".{file.name}.{os.getpid()}.writing")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield writing
        with writing.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(writing, file)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(file)) from error
    finally:
        writing.unlink(missing_ok=True)


def write_text(file: Path, text: str) -> Path:
    """A text file in UTF-8 with `\\n` line ends."""
    with aside(file) as writing:
        writing.write_text(text, encoding="utf-8", newline="\n")
    return file


def write_json(file: Path, value: Any) -> Path:
    """A JSON file."""
    return write_text(file, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_lines(file: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """One JSON object a line."""
    return write_text(file, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))


def sha256(file: Path) -> str:
    """The digest of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
