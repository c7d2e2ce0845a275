"""States after a decoder layer, read once for what is done again and again above it.

A dial leaves the layers below it as they are. What they give is kept in the store, in the model's own
dtype, for a data set, model and depth; epochs, seeds, methods and strengths start from there. On each
model it is tried first, and where it does not hold, does not pay or does not fit, it is left out.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trimtab import models
from trimtab.batching import Batch, Encoded, Layout, Trunk, collate, layout_of, plan_batches, probes
from trimtab.batching.forward import Stop, forward, prefix_of, stop_after
from trimtab.batching.proof import quiet
from trimtab.batching.spans import HELD, first_edited
from trimtab.errors import CacheError, ModelError
from trimtab.models.above import watching_forms
from trimtab.models.places import before
from trimtab.proofs import proven
from trimtab.sites import Site
from trimtab.states import Readings, by_row, each_line, read, seeing
from trimtab.store import SHARD_BYTES, Store

RATE = 5e8
"""Bytes a second that keeping states and reading them is counted with: it pays where computing them
takes several times as long, at the rate that proofs count on."""
PAYS = 4
MEMORY = 1 << 30
"""Without a store states are held in memory, up to this size."""
PASSES = 12
"""How often the proof computes a row, more or less."""
KEPT = 4
"""Trunks of a model that stay open."""

_kept: weakref.WeakKeyDictionary[nn.Module, dict[str, Trunk]] = weakref.WeakKeyDictionary()


def trunk_of(
    model: nn.Module,
    encoded: Encoded,
    store: Store | None,
    *,
    block: int | None = None,
    sites: Sequence[Site] = (),
    layout: Layout | None = None,
    budget: int = 2048,
) -> Trunk | None:
    """The trunk of an encoded set below what is done to the model's states; None where there is nothing
    below it, or where it does not hold, does not pay or does not fit.

    Args:
        store: where it is kept; None holds it in memory.
        block: it ends after this block at the latest, whatever is attached to the model.
        sites: where the passes that start from it read states.
        layout, budget: of the batches in which it is read; by default what the model's proof allows.
    """
    ends = [end for end in (block, first_edited(model)) if end is not None]
    if not ends or (store is not None and not store.trunk):
        return None
    block = min(*ends, before(model, sites))
    source = models.source_of(model)
    if block < 0 or not source.lasting:
        return None
    layout = layout or layout_of(model, encoded)
    if not (found := _proof(model, encoded, block, layout))["holds"]:
        return None
    size = encoded.places[-1] * found["bytes"]
    if not _pays(model, block, encoded.places[-1], size):
        return None
    batches = plan_batches(encoded, budget, layout)
    runs = _runs(encoded, batches, found["bytes"])
    makes = [partial(_shard, model, encoded, run, block, layout) for run in runs]
    make = partial(Trunk, block, found["forms"], at=_places(encoded, batches))
    if store is None:
        return make([make_shard()["states"] for make_shard in makes]) if size <= MEMORY else None
    what = {**conditions(model, source, encoded, budget), "read": "trunk", "block": block}
    known = _kept.setdefault(model, {})
    name = str(store.folder(what))
    if name not in known:
        shards = _stored(store, what, makes, size)
        if shards is None or sum(map(len, shards)) != encoded.places[-1]:
            return None
        while len(known) >= KEPT:
            del known[next(iter(known))]
        known[name] = make(shards)
    return known[name]


def conditions(
    model: nn.Module, source: models.Source, encoded: Any, budget: int
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
        **({"held": held} if (held := HELD.get()) else {}),
    }


def _pays(model: nn.Module, block: int, tokens: int, size: int) -> bool:
    """Whether reading states is several times faster than computing them. No clock: what is read in
    which way must not depend on what else the machine is doing."""
    weights = sum(
        p.numel() for layer in models.layers(model)[: block + 1] for p in layer.parameters()
    )
    rate = probes.RATE.get(next(model.parameters()).device.type, probes.RATE["cpu"])
    return 2 * weights * tokens / rate >= PAYS * size / RATE


# ---- reading it ---------------------------------------------------------------------------------


def _stored(
    store: Store, what: dict[str, Any], makes: Sequence[Callable[[], Any]], size: int
) -> list[Tensor] | None:
    """The shards through the store. An entry that is damaged, or another's, is made again; None where
    there is no room for it (twice over, for a disk is not filled for speed) or it cannot be written."""
    for _ in range(2):
        try:
            if (shards := store.open(what)) is not None:
                return [shard["states"] for shard in shards]
        except (CacheError, KeyError):
            store.forget(what)
        try:
            store.room(2 * size, "the states below a dial")
            store.put(what, makes)
        except CacheError:
            store.forget(what)
            return None
    return None


def _runs(
    encoded: Encoded, batches: Sequence[Sequence[int]], token_bytes: int
) -> list[list[Sequence[int]]]:
    """Consecutive batches, a run a shard."""
    runs: list[list[Sequence[int]]] = []
    size = SHARD_BYTES
    for batch in batches:
        if size >= SHARD_BYTES:
            runs.append([])
            size = 0
        runs[-1].append(batch)
        size += sum(encoded.rows[n].packed_length for n in batch) * token_bytes
    return runs


def _order(encoded: Encoded, rows: Sequence[int]) -> Tensor:
    """Places of the tokens of rows, by row."""
    return torch.cat([torch.arange(*encoded.places[n : n + 2]) for n in sorted(rows)])


def _places(encoded: Encoded, batches: Sequence[Sequence[int]]) -> Tensor:
    """Where each token lies when batches are kept one behind the other."""
    return torch.cat([_order(encoded, rows) for rows in batches]).argsort()


def _shard(
    model: nn.Module,
    encoded: Encoded,
    batches: Sequence[Sequence[int]],
    block: int,
    layout: Layout,
) -> dict[str, Tensor]:
    with quiet(model):
        return {"states": torch.cat([_read(model, encoded, b, block, layout) for b in batches])}


def _read(
    model: nn.Module, encoded: Encoded, rows: Sequence[int], block: int, layout: Layout
) -> Float[Tensor, "n d"]:
    """States of a batch of rows after a block, in the order of their tokens' places."""
    whole = collate(encoded, rows, layout).to(next(model.parameters()).device)
    lines = [line for _, line in each_line(whole)] if whole.layout == "alone" else [whole]
    places: list[Tensor] = []
    states: list[Tensor] = []
    for batch in lines:
        seen: list[Tensor] = []
        with seeing(model, block, seen.append):
            past = prefix_of(model, batch, block)
            if batch.prefix is not None:  # each row's own, from here on
                (before_all,) = seen.pop()
                for n in rows:
                    start = encoded.places[n]
                    places.append(torch.arange(start, start + len(before_all)))
                    states.append(before_all.cpu())
            try:
                with stop_after(model, block):
                    forward(model, batch, past)
            except Stop:
                pass
        assert batch.places is not None
        places.append(batch.places.flatten().cpu())
        states.append(by_row(seen.pop(), batch, block).flatten(0, 1).cpu())
    at, order = torch.cat(places), _order(encoded, rows)
    by_place = at.argsort(stable=True)  # a prompt that stands before several answers counts once
    at = at[by_place]
    first = torch.cat([at.new_ones(1).bool(), at[1:] != at[:-1]]) & (at >= 0)
    if not torch.equal(at[first], order):
        raise ModelError("a token of the rows has no state")
    return torch.cat(states)[by_place[first]]


# ---- whether it holds ---------------------------------------------------------------------------


def _proof(model: nn.Module, encoded: Encoded, block: int, layout: Layout) -> dict[str, Any]:
    """Whether passes from a trunk are the whole model's, found on two rows of the set."""
    return proven(
        model,
        "trunk 1",
        [block, str(layout), encoded.digest],
        lambda: try_trunk(model, encoded, block, layout),
    )


def try_trunk(model: nn.Module, encoded: Encoded, block: int, layout: Layout) -> dict[str, Any]:
    """Log-probs of a few rows from their states after a block, which were read row by row, against
    those of the whole model: bare, and with a step after the block, whose gradient is compared, too.
    States of the token before must not do as well.
    """
    order = sorted(encoded.rows, key=lambda row: row.packed_length)
    most = probes.affordable(model, encoded.rows) / 5
    rows = [order[0], *[row for row in order[1:] if PASSES * row.packed_length <= most][-1:]]
    if len(rows) > 1 and len(rows[1].prompt) > 1:
        rows.append(probes.changed(rows[-1]))
    few = probes.encoded(rows)
    device = next(model.parameters())
    half = device.dtype in (torch.bfloat16, torch.float16)
    tolerance, share = (0.2, 0.25) if half else (1e-3, 0.01)
    batches = [collate(few, n, layout) for n in plan_batches(few, 2048, layout)]
    if len(rows) > 2:  # they begin alike
        batches.append(collate(few, [1, 2], layout, share_least=1))
    gap, leak, slope = 0.0, float("inf"), 0.0
    try:
        with quiet(model):
            with watching_forms(model, block) as forms:
                states = [_read(model, few, [n], block, layout) for n in range(len(rows))]
            trunk = Trunk(block, forms, states, torch.arange(few.places[-1]))
            wrong = replace(trunk, at=trunk.at.roll(1))
            for batch in (batch.to(device.device) for batch in batches):
                whole, parted = (_tried(model, batch, t, block, states[0]) for t in (None, trunk))
                gap = max(gap, *(_gap(a, b) for a, b in zip(whole[:2], parted[:2], strict=True)))
                slope = max(slope, _gap(whole[2], parted[2]) / float(whole[2].abs().max()))
                leak = min(leak, _gap(whole[0], _each(read(model, batch, trunk=wrong, logps=True))))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever the layers above read beside these states
        return {"holds": False, "why": f"{type(error).__name__}: {str(error)[:120]}"}
    why = f"log-probs differ by {gap:.2g} nats a token, their slopes by {slope:.2g} of them"
    holds = gap <= min(tolerance, share * leak) and slope <= 10 * share
    size = states[0].shape[-1] * states[0].element_size()
    return {"holds": bool(holds), "why": "" if holds else why, "bytes": size, "forms": forms}


def _tried(
    model: nn.Module, batch: Batch, trunk: Trunk | None, block: int, like: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean log-probs of a batch's answers, those with a step after a block, and its gradient."""
    draw = torch.Generator().manual_seed(0)
    step = torch.randn(like.shape[-1], generator=draw).to(batch.input_ids.device, like.dtype)
    step = (step / step.norm() * like.norm(dim=-1).mean() / 10).requires_grad_()

    def add(_: nn.Module, __: Any, out: Any) -> Any:
        if isinstance(out, Tensor):
            return out + step
        return type(out)([out[0] + step, *out[1:]])

    bare = _each(read(model, batch, trunk=trunk, logps=True))
    handle = models.layers(model)[block].register_forward_hook(add)
    try:
        with torch.enable_grad(), models.differentiable(model):
            moved = _each(read(model, batch, trunk=trunk, logps=True))
            (slope,) = torch.autograd.grad(moved.sum(), step)
    finally:
        handle.remove()
    return bare, moved.detach(), slope


def _each(found: Readings) -> Tensor:
    """Mean log-prob of each answer's tokens."""
    assert found.logps is not None
    assert found.tokens is not None
    return found.logps / found.tokens.clamp(min=1)


def _gap(a: Tensor, b: Tensor) -> float:
    gap = float((a - b).abs().max())
    return gap if gap == gap else float("inf")
