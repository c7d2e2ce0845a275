"""Files that are whole or not there: written aside, then renamed."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import lock_descriptor


@contextmanager
def aside(file: Path) -> Iterator[Path]:
    """A path to write to, which becomes `file` at the end; where that fails, what was there stays.

    Raises:
        OSError: the file cannot be written. It names the file: those of a full disk do not say what was
            being written.
    """
    file = Path(os.path.realpath(file))  # a link stays one
    writing = file.with_name(f".{file.name}.{os.getpid()}.writing")
    lock = -1
    try:
        with _of(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            for left in file.parent.glob(f".{glob.escape(file.name)}.*.writing"):
                _clear_if_nobodys(left)
            lock = os.open(writing, os.O_RDWR | os.O_CREAT, 0o666)
            with suppress(OSError):  # a file system without locks
                lock_descriptor(lock, blocking=False)
            yield writing
            with writing.open("rb") as stream:
                os.fsync(stream.fileno())
            os.replace(writing, file)
    finally:
        writing.unlink(missing_ok=True)
        if lock >= 0:
            os.close(lock)


def _clear_if_nobodys(left: Path) -> None:
    """Remove what a killed writer left: the kernel has let its lock go."""
    with suppress(OSError):
        stream = os.open(left, os.O_RDWR)
        try:
            if lock_descriptor(stream, blocking=False):
                left.unlink()
        finally:
            os.close(stream)


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """An empty folder beside `target` to make it in, gone at the end. What a killed run left there, the next
    one clears away: whoever calls this holds `target` (`trimtab.holding`). What lies at the target is moved
    to `old` within, before the new takes its place: where that does not come about, it is put back.

    Raises:
        OSError: it cannot be written; names the target.
    """
    stage = _stage(target)
    with _of(target):
        clear_left(target)
        stage.mkdir(parents=True)
        try:
            yield stage
        finally:
            clear_left(target)


def clear_left(target: Path) -> None:
    """Clear away what a killed `staged` left, and put back what it took. Hold the target."""
    stage = _stage(target)
    if (stage / "old").exists() and not target.exists():
        (stage / "old").rename(target)
    shutil.rmtree(stage, ignore_errors=True)


def _stage(target: Path) -> Path:
    return target.with_name(f".{target.name}.making")


@contextmanager
def _of(place: Path) -> Iterator[None]:
    """Errors of writing name the place. Those of safetensors, whose kind is none of the system's, do as
    well."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(place)) from error
    except Exception as error:
        code = re.search(r"\b(?:code: |os error )(\d+)", str(error))
        if type(error).__name__ != "SafetensorError" or code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(place)) from error


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
