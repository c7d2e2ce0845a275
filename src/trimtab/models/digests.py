"""Digests of files, each read once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.errors import ModelError
from trimtab.files import write_text
from trimtab.models.values import value_digest

FRESH_SECONDS = 3.0
"""A file that was touched so lately may change again within one tick of its clock."""
HEADER_BYTES = 100 << 20
"""Safetensors headers beyond this are no headers."""


def cache_root() -> Path:
    """Where converted models and cached readings lie: `TRIMTAB_CACHE` or `~/.cache/trimtab`."""
    return Path(os.environ.get("TRIMTAB_CACHE") or Path.home() / ".cache" / "trimtab")


@dataclass(frozen=True)
class Content:
    """What a file of tensors holds."""

    digest: str
    """Over names, dtypes, shapes and bytes, sorted by name."""
    tensors: dict[str, tuple[list[int], str]]
    """Shape and digest of the values of each (`values.value_digest`)."""
    strange: list[str]
    """Tensors with values that are not finite."""


def content_of(file: Path) -> Content:
    """What a safetensors file holds. Raises ModelError where it is damaged."""

    def compute() -> dict[str, Any]:
        try:
            return vars(_content(file))
        except (ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
            raise ModelError(
                f"{file}: damaged, not a readable safetensors file ({error})"
            ) from error

    found = remembered(file, "safetensors 2", compute)
    tensors = {name: (shape, digest) for name, (shape, digest) in found["tensors"].items()}
    return Content(found["digest"], tensors, found["strange"])


def _content(file: Path) -> Content:
    header, data = _opened(file)
    sha = hashlib.sha256()

    def add(name: str) -> None:
        entry = header[name]
        sha.update(f"{name} {entry['dtype']} {entry['shape']}\n".encode())
        start, end = entry["data_offsets"]
        if not 0 <= start <= end <= len(data):
            raise ValueError("it ends early")
        sha.update(data[start:end].data)

    def values(name: str) -> tuple[str, bool]:
        start, end = header[name]["data_offsets"]
        return value_digest(data[start:end], header[name]["dtype"])

    names = sorted(header)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        values_of = pool.map(values, names)
        for name in names:
            add(name)
        found = dict(zip(names, values_of, strict=True))
    return Content(
        sha.hexdigest(),
        {name: (header[name]["shape"], found[name][0]) for name in names},
        [name for name in names if not found[name][1]],
    )


def _opened(file: Path) -> tuple[dict[str, Any], np.ndarray]:
    """Header and data of a safetensors file, mapped into memory."""
    size = file.stat().st_size
    if size < 8:
        raise ValueError("it ends early")
    mapped = np.memmap(file, dtype=np.uint8, mode="r")
    length = int.from_bytes(bytes(mapped[:8]), "little")
    if length > min(size - 8, HEADER_BYTES):
        raise ValueError("its header ends early")
    header = json.loads(bytes(mapped[8 : 8 + length]))
    header.pop("__metadata__", None)
    return header, mapped[8 + length :]


def read_tensor(file: Path, name: str) -> tuple[np.ndarray, str, list[int]]:
    """Bytes, dtype and shape of one tensor of a safetensors file."""
    header, data = _opened(file)
    entry = header[name]
    return data[slice(*entry["data_offsets"])], entry["dtype"], entry["shape"]


def digest_of_folder(folder: Path) -> str | None:
    """Digest over a folder's safetensors files; None where there are none."""
    parts = [content_of(file).digest for file in sorted(folder.glob("*.safetensors"))]
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()


@dataclass(frozen=True)
class GgufContent:
    """What a GGUF file holds."""

    digest: str
    """Over its tensors as they are stored."""
    metadata: str
    """Over all metadata, its name among them."""
    behaviour: str
    """Over the metadata that describes more than where the file comes from."""


def content_of_gguf(file: Path) -> GgufContent:
    """What a GGUF file holds. Raises ModelError where it is damaged."""
    return GgufContent(**remembered(file, "gguf 1", lambda: vars(_gguf(file))))


def open_gguf(file: Path) -> Any:
    """A reader of a GGUF file. Raises ModelError: it is damaged."""
    import gguf

    try:
        return gguf.GGUFReader(str(file))
    except Exception as error:
        raise ModelError(f"{file}: not a readable GGUF file: {error}") from error


def _gguf(file: Path) -> GgufContent:
    reader = open_gguf(file)
    sha, everything, behaviour = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    for tensor in sorted(reader.tensors, key=lambda t: t.name):
        sha.update(
            f"{tensor.name} {tensor.tensor_type.name} {[int(n) for n in tensor.shape]}\n".encode()
        )
        sha.update(memoryview(tensor.data).cast("B") if tensor.data.size else b"")
    for name in sorted(reader.fields):
        if name.startswith("GGUF."):  # the header: version, counts
            continue
        field = reader.fields[name]
        value = b"".join(field.parts[index].tobytes() + b"\0" for index in field.data)
        line = f"{name} {[kind.name for kind in field.types]} {len(value)}\n".encode() + value
        everything.update(line)
        if not name.startswith("general."):
            behaviour.update(line)
    return GgufContent(sha.hexdigest(), everything.hexdigest(), behaviour.hexdigest())


def digest_of_bytes(file: Path) -> str:
    """sha256 of a small file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def remembered(file: Path, what: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was computed of a file, kept in the cache folder under the file's device, inode, size and
    times. Of these only the time of change cannot be put back by whoever edits the file.

    Raises:
        ModelError: the file was changed while it was read.
    """
    before = _mark(file)
    key = hashlib.sha256(f"{what} {before}".encode()).hexdigest()
    note = cache_root() / "digests" / f"{key}.json"
    with contextlib.suppress(OSError, ValueError):
        return json.loads(note.read_text())
    found = compute()
    if _mark(file) != before:
        raise ModelError(f"{file}: changed while it was read; run it again once it is written")
    if abs(time.time() - file.stat().st_ctime) > FRESH_SECONDS:
        with contextlib.suppress(OSError):
            write_text(note, json.dumps(found))
    return found


def _mark(file: Path) -> str:
    s = file.stat()
    return f"{s.st_dev} {s.st_ino} {s.st_size} {s.st_mtime_ns} {s.st_ctime_ns}"
