"""Reading a model: log-probs of answers and pooled hidden states at sites, in one pass.

Nothing more is computed than is read: the LM head runs on the positions that predict a scored
token, and a pass without log-probs stops right after the deepest site. Reading goes through
hooks, so dials that are attached are seen, and gradients flow where they are wanted.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from trimtab import models
from trimtab.batching import Batch, Where, forward, run_prefix, token_positions
from trimtab.batching.spans import one_line
from trimtab.errors import ConfigError, DataError
from trimtab.logprobs import has_plain_head, head_logps, token_logps
from trimtab.models.places import (
    available_layers,
    depth,
    expand_sites,
    find_sites,
    input_of,
    module_at,
)
from trimtab.readout import Pool, Readout, TokenMap, last_tokens
from trimtab.sites import Site

__all__ = [
    "Readings",
    "at_head",
    "available_layers",
    "by_row",
    "depth",
    "expand_sites",
    "find_sites",
    "head_site",
    "input_of",
    "module_at",
    "pair_up",
    "pooled_tokens",
    "read",
    "read_tokens",
    "seeing",
]

SINK_RATIO = 10.0
"""A token whose state is longer than this many times the median of its answer is an attention sink.
The median is the answer's own, so that what else is in the batch makes no difference."""

# ---- reading ------------------------------------------------------------------------------------


@dataclass
class Readings:
    """What was read, an entry an answer (C of them), in float32 or the model's float64.

    Attributes:
        logps: summed log-prob of each answer's scored tokens, in nats.
        tokens: how many were scored.
        states: pooled hidden states, a tensor a site.
        norms: mean L2 norm of the pooled tokens, attention sinks left out.
        confidence: mean over each answer's scored tokens of log p(token) - log(sum of squared
            probs), in nats.
        kl: mean over each answer's scored tokens of KL(this model || another), in nats.
        logits: of the scored tokens, `[M, V]`, where they were asked for.
    """

    logps: Float[Tensor, "answer"] | None = None
    tokens: Int[Tensor, "answer"] | None = None
    states: dict[Site, Float[Tensor, "answer d"]] = field(default_factory=dict)
    norms: dict[Site, Float[Tensor, "answer"]] = field(default_factory=dict)
    confidence: Float[Tensor, "answer"] | None = None
    kl: Float[Tensor, "answer"] | None = None
    logits: Float[Tensor, "M V"] | None = None


@models.uncompiled()
def read(
    model: nn.Module,
    batch: Batch,
    *,
    logps: bool = False,
    sites: Sequence[Site] = (),
    pool: Pool = "completion",
    sinks: bool = True,
    token_map: TokenMap = "none",
    spaces: Mapping[Site, Callable[[Tensor], Tensor]] | None = None,
    confidence: bool = False,
    keep_logits: bool = False,
    against: Tensor | None = None,
) -> Readings:
    """One pass over a batch, as deep as is asked for.

    Args:
        logps: read log-probs, which takes every block and the LM head.
        sites: where to read hidden states.
        pool: the answer positions to average.
        sinks: average attention sinks, too.
        token_map: a map of each token's state before averaging.
        spaces: maps of each token's state before that one, by site.
        confidence: along with log-probs, how sure the model was.
        keep_logits: along with log-probs, the logits of the scored tokens.
        against: another model's such logits, to take the KL divergence from.

    Raises:
        DataError: an answer has no token at the pooled positions.
        ConfigError: a site that the model does not have, or does not compute.
    """
    if batch.layout == "alone" and len(batch.input_ids) > 1:
        return _line_by_line(
            batch,
            against,
            lambda line, other: read(
                model,
                line,
                logps=logps,
                sites=sites,
                pool=pool,
                sinks=sinks,
                token_map=token_map,
                spaces=spaces,
                confidence=confidence,
                keep_logits=keep_logits,
                against=other,
            ),
        )
    found = Readings()
    count = models.n_layers(model)
    deepest = count if logps else max((depth(model, s) for s in sites), default=-1)
    past = _prefix_of(model, batch, min(deepest, count - 1))
    with ExitStack() as stack:
        if sites:
            where = pooled_tokens(batch, pool)
            for site in sites:
                change = _token_change(token_map, spaces.get(site) if spaces else None)
                stack.enter_context(_tap(model, site, batch, where, sinks, change, found))
        if logps:
            whole = confidence or keep_logits or against is not None
            token, found.logits = _at_scored(model, batch, past, whole=whole)
            _score(batch, token, found.logits, found, confidence, against)
            found.logits = found.logits if keep_logits else None
        elif sites:
            stack.enter_context(_stop_after(model, deepest))
            with suppress(_Stop):
                forward(model, batch, past)
    for site in sites:
        if site not in found.states:
            raise ConfigError(f"site {site!r}: the model computes nothing there before its LM head")
    return found


@models.uncompiled()
def read_tokens(
    model: nn.Module, batch: Batch, sites: Sequence[Site], where: Where, *, logps: bool = False
) -> tuple[Float[Tensor, "token site d"], Int[Tensor, "answer"], Readings]:
    """The states of single tokens, answer after answer in the batch's order, and the tokens of each;
    the readings hold log-probs where they are asked for. Gradients flow, and dials are seen.

    Raises:
        ValueError: prompts whose beginning was computed apart (layout `shared`, see `layout_for`).
        ConfigError: a site that the model does not have, or does not compute.
    """
    if batch.layout == "alone" and len(batch.input_ids) > 1:
        parts = []
        for n in range(len(batch.input_ids)):
            with one_line(n, len(batch.input_ids)):
                parts.append(read_tokens(model, batch.line(n), sites, where, logps=logps))
        states, counts, parts_read = zip(*parts, strict=True)
        return torch.cat(states), torch.cat(counts), _joined(parts_read, batch)
    tokens = token_positions(batch, where)
    found: dict[Site, Tensor] = {}
    readings = Readings()
    past = _prefix_of(model, batch, models.n_layers(model) - 1)
    with ExitStack() as stack:
        for site in sites:

            def see(h: Tensor, site: Site = site) -> None:
                h = by_row(h, batch, site)[tokens.row, tokens.at]  # M d
                found[site] = h if h.dtype == torch.float64 else h.float()

            stack.enter_context(seeing(model, site, see))
        if logps:
            token, _ = _at_scored(model, batch, past, whole=False)
            _score(batch, token, None, readings, False, None)
        else:
            stack.enter_context(_stop_after(model, max(depth(model, s) for s in sites)))
            with suppress(_Stop):
                forward(model, batch, past)
    if missing := [site for site in sites if site not in found]:
        raise ConfigError(f"site {missing[0]!r}: the model computes nothing there")
    return torch.stack([found[site] for site in sites], 1), tokens.count, readings


def head_site(model: nn.Module) -> str:
    """The input of the LM head, as a site."""
    head = models.head(model)
    modules = models.unwrapped(model).named_modules()
    return next(name for name, module in modules if module is head) + ":in"


def pair_up(
    readings: Readings,
    batch: Batch,
    floor: dict[Site, float] | None = None,
    direction: dict[Site, Tensor] | None = None,
) -> Readout:
    """Readings of a batch's answers (C) as a readout of its pairs (P)."""
    c, r = batch.pair_chosen, batch.pair_rejected
    return Readout(
        chosen_logps=None if readings.logps is None else readings.logps[c],
        rejected_logps=None if readings.logps is None else readings.logps[r],
        chosen_tokens=None if readings.tokens is None else readings.tokens[c],
        rejected_tokens=None if readings.tokens is None else readings.tokens[r],
        chosen={s: h[c] for s, h in readings.states.items()},
        rejected={s: h[r] for s, h in readings.states.items()},
        floor=floor or {},
        direction=direction or {},
        chosen_confidence=None if readings.confidence is None else readings.confidence[c],
        rejected_confidence=None if readings.confidence is None else readings.confidence[r],
        chosen_kl=None if readings.kl is None else readings.kl[c],
        rejected_kl=None if readings.kl is None else readings.kl[r],
    )


def _line_by_line(
    batch: Batch,
    against: Tensor | None,
    read_line: Callable[[Batch, Tensor | None], Readings],
) -> Readings:
    """Readings of a batch whose lines must not run together, as if they had."""
    lines = batch.token_row[batch.token_scored]
    parts = []
    for n in range(len(batch.input_ids)):
        with one_line(n, len(batch.input_ids)):
            other = None if against is None else against[lines == n]
            parts.append(read_line(batch.line(n), other))
    return _joined(parts, batch)


def _joined(parts: Sequence[Readings], batch: Batch) -> Readings:
    """Readings of every line as those of the batch, in its order of answers and tokens."""
    lines = range(len(parts))
    back = torch.cat([batch.token_answer[batch.token_row == n].unique() for n in lines]).argsort()

    def join(values: Sequence[Tensor | None], order: Tensor = back) -> Tensor | None:
        kept = [v for v in values if v is not None]
        return torch.cat(kept)[order] if kept else None

    row = batch.token_row[batch.token_scored]
    tokens = torch.cat([(row == n).nonzero()[:, 0] for n in lines]).argsort()
    first = parts[0]
    return Readings(
        logps=join([p.logps for p in parts]),
        tokens=join([p.tokens for p in parts]),
        states={s: torch.cat([p.states[s] for p in parts])[back] for s in first.states},
        norms={s: torch.cat([p.norms[s] for p in parts])[back] for s in first.norms},
        confidence=join([p.confidence for p in parts]),
        kl=join([p.kl for p in parts]),
        logits=join([p.logits for p in parts], tokens),
    )


class _Stop(Exception):
    """Ends a forward pass once everything asked for has been read."""


def _prefix_of(model: nn.Module, batch: Batch, block: int) -> DynamicCache | None:
    """Keys and values of a batch's shared prefix for its rows, as deep as they are needed."""
    if batch.prefix is None:
        return None
    past = DynamicCache()
    with _stop_after(model, block), suppress(_Stop):
        run_prefix(model, batch, past)
    past.batch_repeat_interleave(len(batch.input_ids))
    return past


@contextmanager
def _stop_after(model: nn.Module, block: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise _Stop

    if block >= models.n_layers(model):
        handle = models.head(model).register_forward_pre_hook(stop)
    else:
        stack = models.layers(model)
        handle = (
            stack[block].register_forward_hook(stop)
            if block >= 0
            else stack[0].register_forward_pre_hook(stop)
        )
    try:
        yield
    finally:
        handle.remove()


def _at_scored(
    model: nn.Module, batch: Batch, past: DynamicCache | None, *, whole: bool
) -> tuple[Float[Tensor, "M"], Float[Tensor, "M V"] | None]:
    """Log-probs of the M scored tokens, and with `whole` the logits that predict them.

    The head's input is gathered in a pre-hook, so that whatever a model does to its logits (scaling,
    soft-capping) stays its own business; where it does nothing, the head is not even run.
    """
    keep = batch.token_scored
    row, at, ids = batch.token_row[keep], batch.token_from[keep], batch.token_id[keep]
    head = models.head(model)
    states: list[Tensor] = []
    alone = not whole and has_plain_head(model)

    def gather(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        states.append(args[0][row, at])
        if alone:
            raise _Stop
        return (states[0][None], *args[1:])

    handle = head.register_forward_pre_hook(gather)
    _gathered[head] = (row, at)
    try:
        with suppress(_Stop):
            logits = forward(model, batch, past).logits[0]  # M V
    finally:
        handle.remove()
        del _gathered[head]
    if alone:
        return head_logps(head, states[0], ids), None  # type: ignore[arg-type]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return token_logps(logits, ids), logits if whole else None


_gathered: weakref.WeakKeyDictionary[nn.Module, tuple[Tensor, Tensor]] = weakref.WeakKeyDictionary()
"""Rows and positions at which `_at_scored` has an LM head compute."""


def at_head(
    model: nn.Module, h: Float[Tensor, "B T d"], like: Float[Tensor, "B t e"]
) -> Float[Tensor, "B t d"]:
    """States of another site, in the same pass, at the positions that the LM head computes (`like`
    is its input): all of them, the last ones, or those that predict a scored token."""
    if (gathered := _gathered.get(models.head(model))) is not None:
        return h[gathered][None]
    return h[:, -like.shape[1] :]


def _score(
    batch: Batch,
    token: Tensor,
    logits: Tensor | None,
    found: Readings,
    confidence: bool,
    against: Tensor | None,
) -> None:
    """Log-probs of the answers, and what else is asked of the logits of their tokens."""
    answer = batch.token_answer[batch.token_scored]

    def total(values: Tensor) -> Tensor:
        return values.new_zeros(batch.n_answers).index_add(0, answer, values)

    found.logps = total(token)
    found.tokens = torch.bincount(answer, minlength=batch.n_answers)
    if confidence and logits is not None:
        with torch.no_grad():
            squares = (2 * logits).logsumexp(-1) - 2 * logits.logsumexp(-1)
            found.confidence = total(token.detach() - squares) / found.tokens.clamp(min=1)
    if against is not None and logits is not None:
        own, other = logits.log_softmax(-1), against.log_softmax(-1)
        found.kl = total((own.exp() * (own - other)).sum(-1)) / found.tokens.clamp(min=1)


@dataclass
class PooledTokens:
    """Positions to average: T of them, each belonging to an answer."""

    row: Tensor
    at: Tensor
    answer: Tensor
    count: Tensor  # per answer


def pooled_tokens(batch: Batch, pool: Pool) -> PooledTokens:
    """The positions that `pool` averages. Raises DataError where an answer has none."""
    keep = batch.token_marker if pool == "marker" else batch.token_body
    at = batch.token_at
    if pool == "predicting":
        keep, at = keep & batch.token_scored, batch.token_from
    elif k := last_tokens(pool):
        after = torch.zeros_like(keep)  # the k-th kept token from here belongs to the same answer
        kept = keep.nonzero()[:, 0]
        after[kept[:-k]] = batch.token_answer[kept[:-k]] == batch.token_answer[kept[k:]]
        keep = keep & ~after
    answer = batch.token_answer[keep]
    count = torch.bincount(answer, minlength=batch.n_answers)
    if (count == 0).any():
        bare = batch.items[int((count == 0).nonzero()[0, 0])]
        raise DataError(f"item {bare}: an answer has no token to pool at {pool!r} positions")
    return PooledTokens(batch.token_row[keep], at[keep], answer, count)


def _token_change(
    token_map: TokenMap, space: Callable[[Tensor], Tensor] | None
) -> Callable[[Tensor], Tensor]:
    """What is done to each token's state before averaging: a space, then the map."""

    def change(tokens: Tensor) -> Tensor:  # T d
        tokens = tokens if space is None else space(tokens)
        if token_map == "l2":
            return nn.functional.normalize(tokens, dim=-1)
        if token_map == "softmax":
            return tokens.softmax(-1)
        return tokens.log_softmax(-1) if token_map == "log_softmax" else tokens

    return change


@contextmanager
def _tap(
    model: nn.Module,
    site: Site,
    batch: Batch,
    where: PooledTokens,
    sinks: bool,
    change: Callable[[Tensor], Tensor],
    found: Readings,
) -> Iterator[None]:
    """Pool the states at a site as they pass by; whole sequences are not kept."""

    def pool(h: Tensor) -> None:
        tokens = by_row(h, batch, site)[where.row, where.at]  # T d
        tokens = tokens if tokens.dtype == torch.float64 else tokens.float()
        length = tokens.detach().norm(dim=-1)
        ordinary = length <= SINK_RATIO * _median(length, where)
        found.norms[site] = _mean(length, where, ordinary)
        found.states[site] = _mean(change(tokens), where, None if sinks else ordinary)

    with seeing(model, site, pool):
        yield


@contextmanager
def seeing(model: nn.Module, site: Site, see: Callable[[Tensor], None]) -> Iterator[None]:
    """Call `see` with the hidden states `[B, T, d]` that pass a site, in every forward pass."""
    module, is_input = module_at(model, site)

    def at_input(_: nn.Module, args: Any, kwargs: Any) -> None:
        see(input_of(args, kwargs))

    def at_output(_: nn.Module, __: Any, out: Any) -> None:
        see(out[0] if isinstance(out, tuple | list) else out)

    if is_input:
        handle = module.register_forward_pre_hook(at_input, with_kwargs=True)
    else:
        handle = module.register_forward_hook(at_output)
    try:
        with models.uncompiled():
            yield
    finally:
        handle.remove()


def by_row(h: Tensor, batch: Batch, site: Site) -> Float[Tensor, "B T d"]:
    """States as a row of tokens a batch line; a router sees them in one line.

    Raises:
        ConfigError: the module does not give every token a state (an expert sees those routed to it).
    """
    lines = batch.input_ids.shape
    if h.ndim == 2 and h.shape[0] == lines.numel():
        return h.view(*lines, -1)
    if h.ndim != 3 or h.shape[:2] != lines:
        raise ConfigError(
            f"site {site!r}: gives {tuple(h.shape)} for {lines[0]} rows of {lines[1]} tokens, not a "
            "state a token; read the block around it"
        )
    return h


def _median(length: Tensor, where: PooledTokens) -> Tensor:
    """For every token the (lower) median length of its answer's tokens."""
    order = length.argsort()
    order = order[where.answer[order].argsort(stable=True)]  # by answer, within it by length
    first = where.count.cumsum(0) - where.count
    return length[order[first + (where.count - 1) // 2]][where.answer]


def _mean(values: Tensor, where: PooledTokens, keep: Tensor | None = None) -> Tensor:
    """Mean per answer of values per token (over all tokens of an answer where none is kept)."""
    total = values.new_zeros(len(where.count), *values.shape[1:])
    shape = (-1, *[1] * (values.ndim - 1))
    if keep is None:
        count = where.count.view(shape).to(values)
        return total.index_add(0, where.answer, values) / count
    count = torch.bincount(where.answer[keep], minlength=len(where.count)).view(shape)
    kept = total.index_add(0, where.answer[keep], values[keep]) / count.clamp(min=1).to(values)
    return torch.where(count > 0, kept, _mean(values, where))
