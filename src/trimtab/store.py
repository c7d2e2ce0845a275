"""One content-addressed store of what was read from a frozen model.

An entry's address is a digest of everything it depends on: the model's weights, config and
quantisation, dtype and attention kernel, the token ids, and what was read. An entry is a folder of
safetensors shards and a manifest with the digest of each. Shards are written aside and renamed, the
folder becomes an entry only once complete, and a half-filled one is continued. A damaged entry is
refused.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from trimtab import models
from trimtab.errors import CacheError
from trimtab.files import aside, sha256
from trimtab.provenance import digest as _digest

FORMAT = 2
SHARD_BYTES = 64 << 20


class Store:
    """A folder of entries. `root` defaults to the `readings` folder of the cache. With `trunk` it takes
    states below a dial, too, from which passes then start (`trimtab.trunk`)."""

    def __init__(self, root: Path | str | None = None, *, trunk: bool = True):
        self.root = Path(root) if root is not None else models.cache_root() / "readings"
        self.trunk = trunk

    def folder(self, what: dict[str, Any]) -> Path:
        """The folder of the entry that holds `what` (JSON values)."""
        return self.root / _digest({"format": FORMAT, **what})[:32]

    def get(self, what: dict[str, Any]) -> dict[str, Tensor] | None:
        """The tensors of an entry, shards joined along the first axis; None where there is none.

        Raises:
            CacheError: the entry is truncated, damaged, or of another format.
        """
        parts = self.open(what)
        if parts is None:
            return None
        try:
            return {key: torch.cat([p[key] for p in parts]) for key in parts[0]}
        except (RuntimeError, KeyError) as error:
            raise CacheError(f"{self.folder(what)}: damaged ({error}); delete it") from error

    def open(self, what: dict[str, Any], command: str = "") -> list[dict[str, Tensor]] | None:
        """The shards of an entry, each checked against its digest and mapped into memory: pages are
        read when they are touched. None where there is none.

        Args:
            command: what makes the entry again, for error messages.

        Raises:
            CacheError: the entry is truncated, damaged, or of another format.
        """
        folder = self.folder(what)
        if not (folder / "manifest.json").is_file():
            return None
        remedy = f"delete {folder} to have it made again" + (f" ({command})" if command else "")
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
            if manifest["format"] != FORMAT:
                raise CacheError(
                    f"{folder}: format {manifest['format']}, expected {FORMAT}; {remedy}"
                )
            if manifest.pop("sha256") != _digest(manifest):
                raise CacheError(f"{folder}/manifest.json: not as it was written; {remedy}")
            if manifest["what"] != what:
                raise CacheError(f"{folder}: made for other data or another model; {remedy}")
            if not manifest["shards"]:
                raise CacheError(f"{folder}/manifest.json: names no shards; {remedy}")
            return [
                _checked(folder / n, digest, remedy) for n, digest in manifest["shards"].items()
            ]
        except (
            *(ValueError, KeyError, TypeError, AttributeError, OSError),
            *(RuntimeError, SafetensorError),  # views that do not fit, nesting without end
        ) as error:
            raise CacheError(f"{folder}/manifest.json: damaged ({error!r}); {remedy}") from error

    def check(self, command: str) -> None:
        """Raise CacheError where the folder holds something else than a store of this format, with
        the command that makes one."""
        if not self.root.exists():
            return
        if not self.root.is_dir():
            raise CacheError(f"{self.root}: a file; a store is a folder. Make one: {command}")
        manifests = list(self.root.glob("[!.]*/manifest.json"))
        for file in manifests:
            try:
                made = json.loads(file.read_text()).get("format")
            except (ValueError, OSError, AttributeError, RecursionError) as error:
                raise CacheError(
                    f"{file}: damaged ({error}); delete {file.parent} and run: {command}"
                ) from error
            if made != FORMAT:
                raise CacheError(
                    f"{file}: format {made}, expected {FORMAT}; delete {file.parent} and run: {command}"
                )
        foreign = [p.name for p in self.root.iterdir() if not p.name.startswith(".")]
        if foreign and not manifests:
            raise CacheError(
                f"{self.root}: holds {foreign[0]}, no store of trimtab's; choose another folder "
                f"and run: {command}"
            )

    def put(self, what: dict[str, Any], shards: Sequence[Callable[[], dict[str, Tensor]]]) -> None:
        """Write an entry, shard by shard. A shard that an interrupted run left complete is kept,
        and so is an entry that another process wrote meanwhile.

        Raises:
            CacheError: the disk is full or cannot be written; complete shards stay for next time.
        """
        folder = self.folder(what)
        partial = self._partial(folder)
        try:
            partial.parent.mkdir(parents=True, exist_ok=True)
            (self.root / ".locks").mkdir(exist_ok=True)
            with FileLock(self.root / ".locks" / folder.name):  # one may take hours, others minutes
                if (folder / "manifest.json").is_file():
                    return
                partial.mkdir(exist_ok=True)
                digests: dict[str, str] = {}
                for number, make in enumerate(shards):
                    name = f"{number + 1:05d}-of-{len(shards):05d}.safetensors"
                    if not (partial / name).is_file():
                        _write(make(), partial / name)
                    digests[name] = sha256(partial / name)
                manifest: dict[str, Any] = {"format": FORMAT, "what": what, "shards": digests}
                manifest["sha256"] = _digest(manifest)
                (partial / "manifest.json").write_text(json.dumps(manifest, indent=1))
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(partial, folder)
        except (OSError, SafetensorError) as error:
            raise CacheError(
                f"{partial}: cannot be written ({error}); free some space or set TRIMTAB_CACHE"
            ) from error

    @staticmethod
    def _partial(folder: Path) -> Path:
        """Where an entry is written."""
        return folder.with_name(f".{folder.name}.partial")

    def forget(self, what: dict[str, Any]) -> None:
        """Delete an entry, with what was written of it."""
        for folder in (self.folder(what), self._partial(self.folder(what))):
            shutil.rmtree(folder, ignore_errors=True)

    def room(self, need: int, what: str, say: Callable[[str], None] | None = None) -> None:
        """Say how much room something needs; raise CacheError where the disk has not so much."""
        folder = self.root
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        if say:
            say(f"{what}: {_size(need)} in {self.root} ({_size(free)} free)")
        if need > free:
            raise CacheError(
                f"{self.root}: {what} need {_size(need)}, the disk has {_size(free)} free; "
                "name another folder (--store DIR, TRIMTAB_CACHE) or fewer pairs (--limit)"
            )


def _write(tensors: dict[str, Tensor], file: Path) -> None:
    """A shard that is there at all is whole."""
    with aside(file) as writing:
        save_file(tensors, writing)


def _checked(file: Path, digest: str, remedy: str) -> dict[str, Tensor]:
    if not file.is_file():
        raise CacheError(f"{file}: missing; {remedy}")
    if sha256(file) != digest:
        raise CacheError(f"{file}: its content is not what was written; {remedy}")
    return _mapped(file)


_KINDS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
}


def _mapped(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, mapped into memory (safetensors' own reader copies them)."""
    data = torch.from_file(str(file), shared=False, size=file.stat().st_size, dtype=torch.uint8)
    start = 8 + int.from_bytes(bytes(data[:8].tolist()), "little")
    header = json.loads(bytes(data[8:start].tolist()))
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        low, high = entry["data_offsets"]
        part = data[start + low : start + high]
        found[name] = part.view(_KINDS[entry["dtype"]]).view(entry["shape"])
    return found


def cut(tensors: dict[str, Tensor]) -> list[Callable[[], dict[str, Tensor]]]:
    """Cut tensors along the first axis into parts of at most SHARD_BYTES."""
    n = len(next(iter(tensors.values())))
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    step = max(1, n * SHARD_BYTES // max(size, 1))
    return [
        lambda a=a: {k: t[a : a + step].contiguous() for k, t in tensors.items()}
        for a in range(0, n, step)
    ]


def _size(n: int) -> str:
    return f"{n / 2**30:.1f} GiB" if n >= 2**30 else f"{n / 2**20:.1f} MiB"
