"""Digests of the tensors in files, each file read once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from trimtab.errors import ModelError


def cache_root() -> Path:
    """Where converted models and cached readings lie: `TRIMTAB_CACHE` or `~/.cache/trimtab`."""
    return Path(os.environ.get("TRIMTAB_CACHE") or Path.home() / ".cache" / "trimtab")


def digest_of_gguf(file: Path) -> str:
    import gguf

    try:
        reader = gguf.GGUFReader(str(file))
    except Exception as error:
        raise ModelError(f"{file}: not a readable GGUF file: {error}") from error
    sha = hashlib.sha256()
    for tensor in sorted(reader.tensors, key=lambda t: t.name):
        sha.update(
            f"{tensor.name} {tensor.tensor_type.name} {[int(n) for n in tensor.shape]}\n".encode()
        )
        sha.update(memoryview(tensor.data).cast("B"))  # type: ignore[arg-type]
    return sha.hexdigest()


def digest_of_folder(folder: Path) -> str | None:
    """Digest over a folder's safetensors; one carried from a source file has precedence."""
    carried = folder / "trimtab.json"
    if carried.is_file():
        return json.loads(carried.read_text())["source_digest"]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return None
    parts = [remembered(file, lambda file=file: _of_safetensors(file)) for file in files]
    return parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()


def _of_safetensors(file: Path) -> str:
    try:
        return _of_tensors(file)
    except (ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise ModelError(f"{file}: damaged, not a readable safetensors file ({error})") from error


def _of_tensors(file: Path) -> str:
    sha = hashlib.sha256()
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        for name in sorted(header):
            entry = header[name]
            sha.update(f"{name} {entry['dtype']} {entry['shape']}\n".encode())
            start, end = entry["data_offsets"]
            stream.seek(8 + length + start)
            while start < end:
                block = stream.read(min(1 << 24, end - start))
                if not block:
                    raise ValueError("it ends early")
                sha.update(block)
                start += len(block)
    return sha.hexdigest()


def remembered(file: Path, compute: Any) -> str:
    """A file's digest, kept in the cache folder under its path, size and modification time."""
    stat = file.stat()
    mark = f"2 {file.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    note = cache_root() / "digests" / hashlib.sha256(mark.encode()).hexdigest()
    if note.is_file():
        return note.read_text()
    digest = compute()
    with contextlib.suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        aside = note.with_name(f"{note.name}.{os.getpid()}")
        aside.write_text(digest)
        aside.rename(note)
    return digest
