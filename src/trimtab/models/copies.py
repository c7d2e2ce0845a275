"""What a converted copy says of the file that it was made from."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trimtab.files import write_text
from trimtab.models.digests import cache_root, content_of, digest_of_bytes

NOTE = "trimtab.json"


def write_note(folder: Path, digest: str, metadata: str, said: list[str]) -> None:
    """Say in a copy's folder which file it is of, and which files make up the copy.

    Args:
        said: lines for whoever loads it.
    """
    files = {f.name: _digest(f) for f in sorted(folder.iterdir()) if f.name != NOTE}
    note = {"source_digest": digest, "metadata": metadata, "files": files, "said": said}
    (folder / NOTE).write_text(json.dumps(note, indent=1))


def read_note(folder: Path) -> dict[str, Any]:
    """A copy's note, believed or not; empty where there is none."""
    try:
        note = json.loads((folder / NOTE).read_text())
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def believe(digest: str, values: str) -> None:
    """Note what values the tensors of a source have, by which older notes, without a list of files,
    are believed."""
    known = _values_file(digest)
    if known.is_file():
        return
    with contextlib.suppress(OSError):
        write_text(known, values)


def carried(folder: Path, values: Callable[[], str]) -> dict[str, Any]:
    """What a folder's note says of its source, as long as the folder's files are those that it was
    written for; else nothing.

    Args:
        values: gives the digest of the values of the folder's tensors.
    """
    note = read_note(folder)
    try:
        digest, files = note["source_digest"], note.get("files")
        if files is None:  # of an earlier version: it holds for the same values
            known = _values_file(digest)
            return {"source_digest": digest} if known.read_text() == values() else {}
        tensors = {f.name for f in folder.glob("*.safetensors")}
        same = tensors <= files.keys() and all(_digest(folder / n) == d for n, d in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return note if same else {}


def _digest(file: Path) -> str:
    return content_of(file).digest if file.suffix == ".safetensors" else digest_of_bytes(file)


def _values_file(digest: str) -> Path:
    return cache_root() / "digests" / f"{digest}.values"
