"""Reading a model: log-probs of answers and pooled hidden states at sites, in one pass.

Nothing more is computed than is read: the LM head runs on the positions that predict a scored
token, and a pass without log-probs stops right after the deepest site. Reading goes through
hooks, so dials that are attached are seen, and gradients flow where they are wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from trimtab import models
from trimtab.batching import (
    Batch,
    Positions,
    Trunk,
    Where,
    forward,
    pooled_tokens,
    token_positions,
)
from trimtab.batching.forward import Stop, prefix_of, stop_after
from trimtab.batching.spans import one_line
from trimtab.errors import ConfigError
from trimtab.logprobs import at_head, gathered, has_plain_head, head_logps, token_logps
from trimtab.models.heads import head_site
from trimtab.models.places import (
    available_layers,
    depth,
    expand_sites,
    find_sites,
    input_of,
    module_at,
    seeing,
)
from trimtab.readout import Asked, Needs, Readout, TokenMap
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
    spaces: Mapping[Site, Callable[[Tensor], Tensor]] | None = None,
    keep_logits: bool = False,
    against: Tensor | None = None,
    trunk: Trunk | None = None,
    **asked: Unpack[Asked],
) -> Readings:
    """One pass over a batch, as deep as is asked for.

    Args:
        spaces: maps of each token's state before `token_map`, by site.
        keep_logits: along with log-probs, the logits of the scored tokens.
        against: another model's such logits, to take the KL divergence from.
        trunk: states from which the layers above its block start; sites below are not there then.
        asked: what is read, see `Needs`: log-probs, which take every block and the LM head; hidden
            states at sites.

    Raises:
        DataError: an answer has no token at the pooled positions.
        ConfigError: a site that the model does not have, or does not compute.
    """
    if batch.layout == "alone" and len(batch.input_ids) > 1:
        lines, parts = batch.token_row[batch.token_scored], []
        same: Any = {"spaces": spaces, "keep_logits": keep_logits, "trunk": trunk, **asked}
        for n, line in each_line(batch):
            other = None if against is None else against[lines == n]
            parts.append(read(model, line, against=other, **same))
        return _joined(parts, batch)
    needs = Needs(**asked)  # type: ignore[arg-type]
    logps, sites = needs.logps, needs.sites
    found = Readings()
    count = models.n_layers(model)
    deepest = count if logps else max((depth(model, s) for s in sites), default=-1)
    run = partial(
        forward, model, batch, prefix_of(model, batch, min(deepest, count - 1), trunk), trunk=trunk
    )
    with ExitStack() as stack:
        if sites:
            where = pooled_tokens(batch, needs.pool)
            for site in sites:
                space = spaces.get(site) if spaces else None
                tap = partial(_pool, site, batch, where, needs, space, found)
                stack.enter_context(seeing(model, site, tap))
        if logps:
            whole = needs.confidence or keep_logits or against is not None
            token, found.logits = _at_scored(model, batch, run, whole=whole)
            _score(batch, token, found.logits, found, needs.confidence, against)
            found.logits = found.logits if keep_logits else None
        elif sites:
            stack.enter_context(stop_after(model, deepest))
            with suppress(Stop):
                run()
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
        lines = each_line(batch)
        parts = [read_tokens(model, line, sites, where, logps=logps) for _, line in lines]
        states, counts, parts_read = zip(*parts, strict=True)
        return torch.cat(states), torch.cat(counts), _joined(parts_read, batch)
    tokens = token_positions(batch, where)
    found: dict[Site, Tensor] = {}
    readings = Readings()
    run = partial(forward, model, batch, prefix_of(model, batch, models.n_layers(model) - 1))
    with ExitStack() as stack:
        for site in sites:

            def see(h: Tensor, site: Site = site) -> None:
                h = by_row(h, batch, site)[tokens.row, tokens.at]  # M d
                found[site] = h if h.dtype == torch.float64 else h.float()

            stack.enter_context(seeing(model, site, see))
        if logps:
            token, _ = _at_scored(model, batch, run, whole=False)
            _score(batch, token, None, readings, False, None)
        else:
            stack.enter_context(stop_after(model, max(depth(model, s) for s in sites)))
            with suppress(Stop):
                run()
    if missing := [site for site in sites if site not in found]:
        raise ConfigError(f"site {missing[0]!r}: the model computes nothing there")
    return torch.stack([found[site] for site in sites], 1), tokens.count, readings


def pair_up(
    readings: Readings,
    batch: Batch,
    floor: dict[Site, float] | None = None,
    direction: dict[Site, Tensor] | None = None,
) -> Readout:
    """Readings of a batch's answers (C) as a readout of its pairs (P)."""
    poles = {"chosen": batch.pair_chosen, "rejected": batch.pair_rejected}
    each: dict[str, Any] = {
        f"{pole}_{name}": None if (value := getattr(readings, name)) is None else value[answers]
        for pole, answers in poles.items()
        for name in ("logps", "tokens", "confidence", "kl")
    }
    for pole, answers in poles.items():
        each[pole] = {site: h[answers] for site, h in readings.states.items()}
    answers = torch.stack(list(poles.values()))
    more: dict[str, Any] = {"floor": floor or {}, "direction": direction or {}}
    if batch.layout != "shared":
        line = torch.zeros_like(batch.answer_ids)
        line[batch.token_answer] = batch.token_row
        more["prompt_tokens"] = (batch.segments == 0).sum(-1)[line][batch.pair_chosen]
    return Readout(**each, answers=answers, **more)


def each_line(batch: Batch) -> Iterator[tuple[int, Batch]]:
    """Lines that must not run together, each as a batch that is alone meanwhile."""
    for n in range(len(batch.input_ids)):
        with one_line(n, len(batch.input_ids)):
            yield n, batch.line(n)


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


def _at_scored(
    model: nn.Module, batch: Batch, run: Callable[[], Any], *, whole: bool
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
            raise Stop
        return (states[0][None], *args[1:])

    handle = head.register_forward_pre_hook(gather)
    gathered[head] = (row, at)
    try:
        with suppress(Stop):
            logits = run().logits[0]  # M V
    finally:
        handle.remove()
        del gathered[head]
    if alone:
        return head_logps(head, states[0], ids), None  # type: ignore[arg-type]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return token_logps(logits, ids), logits if whole else None


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


def _pool(
    site: Site,
    batch: Batch,
    where: Positions,
    needs: Needs,
    space: Callable[[Tensor], Tensor] | None,
    found: Readings,
    h: Tensor,
) -> None:
    """Pool the states at a site as they pass by; whole sequences are not kept."""
    tokens = by_row(h, batch, site)[where.row, where.at]
    found.norms[site], found.states[site] = pooled(tokens, where, needs, space)


def pooled(
    tokens: Tensor, where: Positions, needs: Needs, space: Callable[[Tensor], Tensor] | None = None
) -> tuple[Float[Tensor, "answer"], Float[Tensor, "answer d"]]:
    """Of states `[T, d]` at some positions, by answer: their mean length, and their mean as asked for."""
    tokens = tokens if tokens.dtype == torch.float64 else tokens.float()
    length = tokens.detach().norm(dim=-1)
    ordinary = length <= SINK_RATIO * _median(length, where)
    mapped = _MAPS[needs.token_map](tokens if space is None else space(tokens))
    return _mean(length, where, ordinary), _mean(mapped, where, None if needs.sinks else ordinary)


_MAPS: dict[TokenMap, Callable[[Tensor], Tensor]] = {
    "none": lambda h: h,
    "l2": lambda h: nn.functional.normalize(h, dim=-1),
    "softmax": lambda h: h.softmax(-1),
    "log_softmax": lambda h: h.log_softmax(-1),
}


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


def _median(length: Tensor, where: Positions) -> Tensor:
    """For every token the (lower) median length of its answer's tokens."""
    order = length.argsort()
    order = order[where.answer[order].argsort(stable=True)]  # by answer, within it by length
    first = where.count.cumsum(0) - where.count
    return length[order[first + (where.count - 1) // 2]][where.answer]


def _mean(values: Tensor, where: Positions, keep: Tensor | None = None) -> Tensor:
    """Mean per answer of values per token (over all tokens of an answer where none is kept)."""
    total = values.new_zeros(len(where.count), *values.shape[1:])
    shape = (-1, *[1] * (values.ndim - 1))
    if keep is None:
        count = where.count.view(shape).to(values)
        return total.index_add(0, where.answer, values) / count
    count = torch.bincount(where.answer[keep], minlength=len(where.count)).view(shape)
    kept = total.index_add(0, where.answer[keep], values[keep]) / count.clamp(min=1).to(values)
    return torch.where(count > 0, kept, _mean(values, where))
