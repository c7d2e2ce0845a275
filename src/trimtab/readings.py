"""Readings of a whole data set: log-probs and pooled states, and states of single tokens, through the
store."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from trimtab import models
from trimtab.batching import (
    Batch,
    Contrast,
    Encoded,
    Layout,
    Trunk,
    Where,
    batches_of,
    collate,
    layout_for,
    layout_of,
    plan_batches,
)
from trimtab.errors import CacheError, ModelError
from trimtab.progress import Update
from trimtab.readout import Asked, Needs
from trimtab.sites import Site
from trimtab.states import Readings, read, read_tokens
from trimtab.store import SHARD_BYTES, Store, cut
from trimtab.trunk import conditions, trunk_of

Progress = Callable[[int, int], None]
"""Called with (answers done, answers in all)."""


def collect(
    model: nn.Module,
    encoded: Encoded | Contrast,
    *,
    budget: int = 2048,
    progress: Progress | None = None,
    trunk: Trunk | None = None,
    **asked: Unpack[Asked],
) -> Readings:
    """Read a whole encoded set, without gradients: entries in the order of its answers.

    Args:
        trunk: the set's, from which passes start (`trunk_of`).
        asked: log-probs, states at sites (see `Needs`).

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
            parts.append(found := read(model, batch, trunk=trunk, **asked))
            places.append(batch.answer_ids)
            done += batch.n_answers
            if isinstance(progress, Update) and found.logps is not None:
                progress.tally(*_right(found, batch))
            if progress:
                progress(done, encoded.n_answers)
    back = torch.cat(places).argsort()

    def join(tensors: list[Any]) -> Tensor:
        return torch.cat(tensors)[back].cpu()

    found = Readings(
        logps=join([p.logps for p in parts]) if parts[0].logps is not None else None,
        tokens=join([p.tokens for p in parts]) if parts[0].tokens is not None else None,
        states={s: join([p.states[s] for p in parts]) for s in parts[0].states},
        norms={s: join([p.norms[s] for p in parts]) for s in parts[0].norms},
    )
    _check_finite(model, found)
    return found


def _right(found: Readings, batch: Batch) -> tuple[float, int]:
    """Of a batch's pairs, how many have the likelier answer a token chosen; ties count one half."""
    assert found.logps is not None
    assert found.tokens is not None
    mean = found.logps / found.tokens
    margin = mean[batch.pair_chosen] - mean[batch.pair_rejected]
    return float((margin > 0).sum() + (margin == 0).sum() / 2), len(margin)


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
    store: Store | None = None,
    budget: int = 2048,
    progress: Progress | None = None,
    block: int = -1,
    **asked: Unpack[Asked],
) -> Readings:
    """`collect` through the store: log-probs and states of the bare model, read at most once.

    Log-probs and states are entries of their own, so that methods which need one or the other
    share them; what is missing of both is read in one pass. Of a model in which code of others acts
    (`Source.lasting`) nothing is kept.

    Args:
        block: after which the set will be read again and again: the states there are kept, too, and
            read first.
    """
    source = models.source_of(model)
    if not source.lasting:
        return collect(model, encoded, budget=budget, progress=progress, **asked)
    store, needs = store or Store(), Needs(**asked)  # type: ignore[arg-type]
    base, trunk = conditions(model, source, encoded, budget), None
    if block >= 0 and isinstance(encoded, Encoded):
        trunk = trunk_of(model, encoded, store, block=block, sites=needs.sites, budget=budget)
    if trunk is not None:  # last bits may be others, and those of what is trained on them
        base["after"] = trunk.block
    logps_key = {**base, "read": "logps"}
    states_key = {**base, "read": "states", "pool": needs.pool, "token_map": needs.token_map}
    if not needs.sinks:
        states_key["sinks"] = False
    have = store.get(logps_key) if needs.logps else None
    stored = {site: store.get({**states_key, "site": site}) for site in needs.sites}
    missing = tuple(site for site, tensors in stored.items() if tensors is None)
    if (unread := needs.logps and have is None) or missing:
        asked |= {"logps": unread, "sites": missing}
        found = collect(model, encoded, budget=budget, progress=progress, trunk=trunk, **asked)
        if found.logps is not None and found.tokens is not None:
            have = {"logps": found.logps, "tokens": found.tokens}
            store.put(logps_key, cut(have))
        for site in missing:
            tensors = {"states": found.states[site], "norms": found.norms[site]}
            store.put({**states_key, "site": site}, cut(tensors))
            stored[site] = tensors
    return Readings(
        **(have or {}),
        states={s: t["states"] for s, t in stored.items() if t},
        norms={s: t["norms"] for s, t in stored.items() if t},
    )


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
        **conditions(model, source, encoded, budget),
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
        store.room(need, f"{int(counts.sum()):,} token states of {encoded.name}", say)
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
