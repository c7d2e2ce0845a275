"""One content-addressed store of what was read from a frozen model.

An entry's address is a digest of everything it depends on: the model's own digest, dtype and
attention kernel, the token ids, and what was read. An entry is a folder of safetensors shards and
a manifest with the digest of each. Shards are written aside and renamed, the folder becomes an
entry only once complete, and a half-filled one is continued. A damaged entry is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trimtab import models
from trimtab.batching import Contrast, Encoded, batches_of, layout_of
from trimtab.errors import CacheError
from trimtab.readout import Pool, TokenMap
from trimtab.sites import Site
from trimtab.states import Readings, read

FORMAT = 2
SHARD_BYTES = 64 << 20
Progress = Callable[[int, int], None]
"""Called with (answers done, answers in all)."""


class Store:
    """A folder of entries. `root` defaults to the `readings` folder of the cache."""

    def __init__(self, root: Path | str | None = None):
        self.root = Path(root) if root is not None else models.cache_root() / "readings"

    def folder(self, what: dict[str, Any]) -> Path:
        """The folder of the entry that holds `what` (JSON values)."""
        text = json.dumps({"format": FORMAT, **what}, sort_keys=True)
        return self.root / hashlib.sha256(text.encode()).hexdigest()[:32]

    def get(self, what: dict[str, Any]) -> dict[str, Tensor] | None:
        """The tensors of an entry, shards joined along the first axis; None where there is none.

        Raises:
            CacheError: the entry is truncated, damaged, or of another format.
        """
        folder = self.folder(what)
        if not (folder / "manifest.json").is_file():
            return None
        remedy = f"delete {folder} to have it made again"
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
            parts = [
                _checked(folder / n, digest, remedy) for n, digest in manifest["shards"].items()
            ]
        except (ValueError, KeyError, TypeError, AttributeError, OSError, SafetensorError) as error:
            raise CacheError(f"{folder}/manifest.json: damaged ({error!r}); {remedy}") from error
        return {key: torch.cat([p[key] for p in parts]) for key in parts[0]}

    def put(self, what: dict[str, Any], shards: Sequence[Callable[[], dict[str, Tensor]]]) -> None:
        """Write an entry, shard by shard. A shard that an interrupted run left complete is kept,
        and so is an entry that another process wrote meanwhile.

        Raises:
            CacheError: the disk is full or cannot be written; complete shards stay for next time.
        """
        folder = self.folder(what)
        aside = folder.with_name(f".{folder.name}.partial")
        try:
            aside.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.root / ".lock"):
                if (folder / "manifest.json").is_file():
                    return
                aside.mkdir(exist_ok=True)
                digests: dict[str, str] = {}
                for number, make in enumerate(shards):
                    name = f"{number + 1:05d}-of-{len(shards):05d}.safetensors"
                    if not (aside / name).is_file():
                        _write(make(), aside / name)
                    digests[name] = _sha(aside / name)
                manifest: dict[str, Any] = {"format": FORMAT, "what": what, "shards": digests}
                manifest["sha256"] = _digest(manifest)
                (aside / "manifest.json").write_text(json.dumps(manifest, indent=1))
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(aside, folder)
        except (OSError, SafetensorError) as error:
            raise CacheError(
                f"{aside}: cannot be written ({error}); free some space or set TRIMTAB_CACHE"
            ) from error


def _write(tensors: dict[str, Tensor], file: Path) -> None:
    """A shard that is there at all is whole."""
    aside = file.with_suffix(".writing")
    try:
        save_file(tensors, aside)
        with aside.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(aside, file)
    finally:
        aside.unlink(missing_ok=True)


def _checked(file: Path, digest: str, remedy: str) -> dict[str, Tensor]:
    if not file.is_file():
        raise CacheError(f"{file}: missing; {remedy}")
    if _sha(file) != digest:
        raise CacheError(f"{file}: its content is not what was written; {remedy}")
    return load_file(file)


def _sha(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


# ---- readings of a whole data set ---------------------------------------------------------------


def collect(
    model: nn.Module,
    encoded: Encoded | Contrast,
    *,
    logps: bool = False,
    sites: Sequence[Site] = (),
    pool: Pool = "completion",
    sinks: bool = True,
    token_map: TokenMap = "none",
    budget: int = 2048,
    progress: Progress | None = None,
) -> Readings:
    """Read a whole encoded set, without gradients: entries in the order of its answers."""
    layout = layout_of(model)
    device = next(model.parameters()).device
    parts: list[Readings] = []
    places: list[Tensor] = []
    done = 0
    with torch.no_grad():
        for batch in batches_of(encoded, budget, layout):
            batch = batch.to(device)
            parts.append(
                read(
                    model,
                    batch,
                    logps=logps,
                    sites=sites,
                    pool=pool,
                    sinks=sinks,
                    token_map=token_map,
                )
            )
            places.append(batch.answer_ids)
            done += batch.n_answers
            if progress:
                progress(done, encoded.n_answers)
    back = torch.cat(places).argsort()

    def join(tensors: list[Any]) -> Tensor:
        return torch.cat(tensors)[back].cpu()

    return Readings(
        logps=join([p.logps for p in parts]) if logps else None,
        tokens=join([p.tokens for p in parts]) if logps else None,
        states={s: join([p.states[s] for p in parts]) for s in sites},
        norms={s: join([p.norms[s] for p in parts]) for s in sites},
    )


def reference(
    model: nn.Module,
    encoded: Encoded | Contrast,
    *,
    logps: bool = False,
    sites: Sequence[Site] = (),
    pool: Pool = "completion",
    sinks: bool = True,
    token_map: TokenMap = "none",
    store: Store | None = None,
    budget: int = 2048,
    progress: Progress | None = None,
) -> Readings:
    """`collect` through the store: log-probs and states of the bare model, read at most once.

    Log-probs and states are entries of their own, so that methods which need one or the other
    share them; what is missing of both is read in one pass.
    """
    store = store or Store()
    base = {
        "model": models.source_of(model).digest,
        "dtype": str(next(model.parameters()).dtype),
        "attention": str(getattr(models.text_config(model), "_attn_implementation", "")),
        "device": next(model.parameters()).device.type,
        "layout": layout_of(model),
        "tokens": encoded.digest,
        "budget": budget,  # batch shapes reach the last bits, and those what is trained on them
    }
    logps_key = {**base, "read": "logps"}
    states_key = {**base, "read": "states", "pool": pool, "token_map": token_map}
    if not sinks:
        states_key["sinks"] = False
    have = store.get(logps_key) if logps else None
    stored = {site: store.get({**states_key, "site": site}) for site in sites}
    missing = tuple(site for site, tensors in stored.items() if tensors is None)
    if (logps and have is None) or missing:
        found = collect(
            model,
            encoded,
            logps=logps and have is None,
            sites=missing,
            pool=pool,
            sinks=sinks,
            token_map=token_map,
            budget=budget,
            progress=progress,
        )
        if found.logps is not None and found.tokens is not None:
            have = {"logps": found.logps, "tokens": found.tokens}
            store.put(logps_key, _shards(have))
        for site in missing:
            tensors = {"states": found.states[site], "norms": found.norms[site]}
            store.put({**states_key, "site": site}, _shards(tensors))
            stored[site] = tensors
    return Readings(
        logps=have["logps"] if have else None,
        tokens=have["tokens"] if have else None,
        states={s: t["states"] for s, t in stored.items() if t},
        norms={s: t["norms"] for s, t in stored.items() if t},
    )


def _shards(tensors: dict[str, Tensor]) -> list[Callable[[], dict[str, Tensor]]]:
    """Cut tensors along the first axis into parts of at most SHARD_BYTES."""
    n = len(next(iter(tensors.values())))
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    step = max(1, n * SHARD_BYTES // max(size, 1))
    return [
        lambda a=a: {k: t[a : a + step].contiguous() for k, t in tensors.items()}
        for a in range(0, n, step)
    ]
