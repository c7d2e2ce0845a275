"""One content-addressed store of what was read from a frozen model.

An entry's address is a digest of everything it depends on: the model's weights, config and
quantisation, dtype and attention kernel, the token ids, and what was read. An entry is a folder of
safetensors shards and a manifest with the digest of each. Shards are written aside and renamed, the
folder becomes an entry only once complete, and a half-filled one is continued. A damaged entry is
refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from trimtab import models
from trimtab.batching import (
    Contrast,
    Encoded,
    Layout,
    Where,
    batches_of,
    collate,
    layout_for,
    layout_of,
    plan_batches,
)
from trimtab.errors import CacheError, ModelError
from trimtab.readout import Pool, TokenMap
from trimtab.sites import Site
from trimtab.states import Readings, read, read_tokens

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
        parts = self.open(what)
        if parts is None:
            return None
        return {key: torch.cat([p[key] for p in parts]) for key in parts[0]}

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
        except (ValueError, KeyError, TypeError, AttributeError, OSError, SafetensorError) as error:
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
            except (ValueError, OSError, AttributeError) as error:
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
        aside = folder.with_name(f".{folder.name}.partial")
        try:
            aside.parent.mkdir(parents=True, exist_ok=True)
            (self.root / ".locks").mkdir(exist_ok=True)
            with FileLock(self.root / ".locks" / folder.name):  # one may take hours, others minutes
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
    """Read a whole encoded set, without gradients: entries in the order of its answers.

    Raises:
        ModelError: a log-prob or a state is not finite.
    """
    layout = layout_of(model, encoded)
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

    found = Readings(
        logps=join([p.logps for p in parts]) if logps else None,
        tokens=join([p.tokens for p in parts]) if logps else None,
        states={s: join([p.states[s] for p in parts]) for s in sites},
        norms={s: join([p.norms[s] for p in parts]) for s in sites},
    )
    _check_finite(model, found)
    return found


def _check_finite(model: nn.Module, found: Readings) -> None:
    """Raise ModelError where something read is no finite number: a mean over it would say nothing."""
    read = {f"states at site {site}": states for site, states in found.states.items()}
    if found.logps is not None:
        read["log-probs"] = found.logps
    for what, values in read.items():
        bad = int((~values.reshape(len(values), -1).isfinite().all(-1)).sum())
        if bad:
            dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
            raise ModelError(
                f"{type(model).__name__}: the {what} of {bad} of {len(values)} answers are not finite: "
                f"numbers overflow in {dtype} (try --dtype float32), or a dial is turned too far"
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
    share them; what is missing of both is read in one pass. Of a model in which code of others acts
    (`Source.lasting`) nothing is kept.
    """
    settings: dict[str, Any] = {"pool": pool, "sinks": sinks, "token_map": token_map}
    settings |= {"budget": budget, "progress": progress}
    source = models.source_of(model)
    if not source.lasting:
        return collect(model, encoded, logps=logps, sites=sites, **settings)
    store = store or Store()
    base = _base(model, source, encoded, budget)
    logps_key = {**base, "read": "logps"}
    states_key = {**base, "read": "states", "pool": pool, "token_map": token_map}
    if not sinks:
        states_key["sinks"] = False
    have = store.get(logps_key) if logps else None
    stored = {site: store.get({**states_key, "site": site}) for site in sites}
    missing = tuple(site for site, tensors in stored.items() if tensors is None)
    if (logps and have is None) or missing:
        found = collect(model, encoded, logps=logps and have is None, sites=missing, **settings)
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


def _base(
    model: nn.Module, source: models.Source, encoded: Encoded | Contrast, budget: int
) -> dict[str, Any]:
    """What every reading depends on."""
    return {
        "model": source.in_memory,
        "dtype": str(next(model.parameters()).dtype),
        "attention": str(getattr(models.text_config(model), "_attn_implementation", "")),
        "device": next(model.parameters()).device.type,
        "layout": str(layout_of(model, encoded)),
        "tokens": encoded.digest,
        "budget": budget,  # batch shapes reach the last bits, and those what is trained on them
    }


# ---- states of single tokens --------------------------------------------------------------------

SHARD_POSITIONS = 1 << 15
"""A shard of token states ends after this many computed positions, or at SHARD_BYTES: what a kill
costs at most."""


class Features:
    """States of the tokens of an encoded set's answers, mapped into memory.

    A state is kept as float16 with a power of two a token, so that its largest entry lies in
    [2^14, 2^15): 2 d + 1 bytes. That loses nothing of a half-precision model's states (float16 has
    more digits than bfloat16, the power of two its range), and 2^-11 an entry of a float32 one's.
    """

    def __init__(self, shards: Sequence[dict[str, Tensor]], sites: Sequence[Site]):
        self.sites = tuple(sites)
        self.shards = shards
        self.counts = torch.cat([s["counts"].long() for s in shards])
        """Tokens of each answer, in the order of the encoded set's answers."""
        self._place: list[tuple[int, int]] = []  # shard, first token in it
        for number, shard in enumerate(shards):
            counts = shard["counts"].long()
            starts = counts.cumsum(0) - counts
            self._place += [(number, start) for start in starts.tolist()]

    @property
    def nbytes(self) -> int:
        """Bytes on disk, without headers."""
        return sum(t.numel() * t.element_size() for s in self.shards for t in s.values())

    def take(
        self, answers: Int[Tensor, "answer"]
    ) -> tuple[Float[Tensor, "token site d"], Int[Tensor, "answer"]]:
        """States of some answers' tokens in float32, answer after answer, and the tokens of each."""
        counts = self.counts[answers]
        values, powers = [], []
        for answer, count in zip(answers.tolist(), counts.tolist(), strict=True):
            number, start = self._place[answer]
            shard = self.shards[number]
            values.append(shard["values"][start : start + count])
            powers.append(shard["powers"][start : start + count])
        return _unpacked(torch.cat(values), torch.cat(powers)), counts


def features(
    model: nn.Module,
    encoded: Encoded,
    sites: Sequence[Site],
    where: Where,
    *,
    store: Store | None = None,
    budget: int = 2048,
    command: str = "",
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> Features:
    """The token states of a whole encoded set through the store: read from the bare model once,
    shard by shard, and from where an interrupted run stopped.

    Args:
        command: what makes the entry again, for error messages.
        say: is told the disk need before anything is read.

    Raises:
        CacheError: the entry is damaged or of another format, or the disk has no room for it.
    """
    store = store or Store()
    source = models.source_of(model)
    what = {
        **_base(model, source, encoded, budget),
        "read": "tokens",
        "sites": list(sites),
        "where": where,
        "kept": "float16 with a power of two a token",
        **({} if source.lasting else {"once": uuid.uuid4().hex}),
    }
    counts = torch.tensor(_counts(encoded, where))
    shards = store.open(what, command)
    if shards is None:
        layout = layout_for(model, where, encoded)
        width = models.text_config(model).hidden_size
        runs = _runs(encoded, counts, len(sites) * (2 * width + 1))
        need = int(counts.sum()) * len(sites) * (2 * width + 1) + 4 * len(counts) + 4096 * len(runs)
        _room(store, need, say, f"{int(counts.sum()):,} token states of {encoded.name}")
        done = 0

        def make(run: range) -> dict[str, Tensor]:
            nonlocal done
            part = replace(encoded, rows=encoded.rows[run.start : run.stop])
            made = _read_shard(model, part, sites, where, budget, layout)
            done += part.n_answers
            if progress:
                progress(done, encoded.n_answers)
            return made

        store.put(what, [partial(make, run) for run in runs])
        shards = store.open(what, command)
    if shards is None or not torch.equal(torch.cat([s["counts"].long() for s in shards]), counts):
        raise CacheError(f"{store.folder(what)}: not the tokens of {encoded.name}; delete it")
    if not source.lasting:  # what is mapped stays until it is let go
        shutil.rmtree(store.folder(what), ignore_errors=True)
    return Features(shards, sites)


def _counts(encoded: Encoded, where: Where) -> list[int]:
    """States of each answer."""
    return [
        len(answer)
        + (len(row.prompt) if where == "all" else 0)
        - (where == "predicting" and not row.prompt)
        for row in encoded.rows
        for answer in row.answers
    ]


def _runs(encoded: Encoded, counts: Tensor, token_bytes: int) -> list[range]:
    """Consecutive rows, a run a shard."""
    runs, start, size, positions = [], 0, 0, 0
    for index, row in enumerate(encoded.rows):
        a, b = encoded.answer_offsets[index], encoded.answer_offsets[index + 1]
        size += int(counts[a:b].sum()) * token_bytes
        positions += row.packed_length
        if size >= SHARD_BYTES or positions >= SHARD_POSITIONS:
            runs.append(range(start, index + 1))
            start, size, positions = index + 1, 0, 0
    return [*runs, range(start, len(encoded.rows))] if start < len(encoded.rows) else runs


def _read_shard(
    model: nn.Module,
    part: Encoded,
    sites: Sequence[Site],
    where: Where,
    budget: int,
    layout: Layout,
) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    counts = torch.tensor(_counts(part, where))
    ends = counts.cumsum(0)
    values: Tensor | None = None
    powers = torch.zeros(int(ends[-1]), len(sites), dtype=torch.int8)
    with torch.no_grad():
        for rows in plan_batches(part, budget, layout):
            batch = collate(part, rows, layout).to(device)
            states, _, _ = read_tokens(model, batch, sites, where)
            packed, power = _packed(states.cpu())
            if values is None:
                values = torch.empty(int(ends[-1]), *packed.shape[1:], dtype=torch.float16)
            ids = batch.answer_ids.cpu()
            n = counts[ids]
            first = (ends[ids] - n) - (n.cumsum(0) - n)
            at = torch.arange(len(packed)) + first.repeat_interleave(n)
            values[at], powers[at] = packed, power
    assert values is not None
    return {"values": values, "powers": powers, "counts": counts.int()}


def _packed(states: Tensor) -> tuple[Tensor, Tensor]:
    """float16 values and the power of two, a token and site, that they were divided by."""
    largest = states.abs().amax(-1).double()
    if not torch.isfinite(largest).all():
        raise CacheError("a hidden state is not finite; use another --dtype")
    power = (torch.frexp(largest).exponent - 15).clamp(-127, 127)  # largest in [2^14, 2^15)
    return torch.ldexp(states, -power[..., None]).half(), power.to(torch.int8)


def _unpacked(values: Tensor, powers: Tensor) -> Tensor:
    return torch.ldexp(values.float(), powers[..., None].int())


def _room(store: Store, need: int, say: Callable[[str], None] | None, what: str) -> None:
    """Announce a disk need; raise CacheError where the disk has no room."""
    folder = store.root
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if say:
        say(f"{what}: {_size(need)} in {store.root} ({_size(free)} free)")
    if need > free:
        raise CacheError(
            f"{store.root}: {what} need {_size(need)}, the disk has {_size(free)} free; "
            "name another folder (--store DIR, TRIMTAB_CACHE) or fewer pairs (--limit)"
        )


def _size(n: int) -> str:
    return f"{n / 2**30:.1f} GiB" if n >= 2**30 else f"{n / 2**20:.1f} MiB"


def _shards(tensors: dict[str, Tensor]) -> list[Callable[[], dict[str, Tensor]]]:
    """Cut tensors along the first axis into parts of at most SHARD_BYTES."""
    n = len(next(iter(tensors.values())))
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    step = max(1, n * SHARD_BYTES // max(size, 1))
    return [
        lambda a=a: {k: t[a : a + step].contiguous() for k, t in tensors.items()}
        for a in range(0, n, step)
    ]
