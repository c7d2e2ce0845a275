"""Reading a model: log-probs of answers and pooled hidden states at sites, in one pass.

Nothing more is computed than is read: the LM head runs on the positions that predict a scored
token, and a pass without log-probs stops right after the deepest site. Reading goes through
hooks, so dials that are attached are seen, and gradients flow where they are wanted.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from trimtab import models
from trimtab.batching import Batch, attention_mask
from trimtab.errors import ConfigError, DataError
from trimtab.readout import Pool, Readout, TokenMap
from trimtab.sites import Site, block_index

Where = Literal["predicting", "answer", "all"]
"""Which token positions of an answer: those that predict its scored tokens; its own tokens, EOS
included; the prompt's and its own."""

SINK_RATIO = 10.0
"""A token whose state is longer than this many times the median of its answer is an attention sink.
The median is the answer's own, so that what else is in the batch makes no difference."""


# ---- sites in a model ---------------------------------------------------------------------------


def module_at(model: nn.Module, site: Site) -> tuple[nn.Module, bool]:
    """The module at a site, and whether the site is its input (else its output).

    Raises:
        ConfigError: no such block or module path.
    """
    if isinstance(site, int):
        return models.layers(model)[block_index(site, models.n_layers(model))], False
    if site == "embed":
        return models.embed(model), False
    if site == "final":
        return models.final_norm(model), False
    path, _, side = site.rpartition(":")
    if not path or side not in ("in", "out"):
        raise ConfigError(
            f"site {site!r}: expected a block, 'embed', 'final', "
            "'module.path:in' or 'module.path:out'"
        )
    try:
        return model.get_submodule(path), side == "in"
    except AttributeError:
        raise ConfigError(f"site {site!r}: the model has no module {path!r}") from None


def input_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden states that a module is called with, by position or by name."""
    if args:
        return args[0]
    if "hidden_states" in kwargs:
        return kwargs["hidden_states"]
    return next(value for value in kwargs.values() if isinstance(value, Tensor))


def depth(model: nn.Module, site: Site) -> int:
    """The block after which a site has been computed; -1 before the first, N past the last."""
    if isinstance(site, int):
        return block_index(site, models.n_layers(model))
    if site == "embed":
        return -1
    module = site.rpartition(":")[0]
    for k, path in enumerate(models.layer_paths(model)):
        if module == path or module.startswith(path + "."):
            return k
    return models.n_layers(model)


# ---- reading ------------------------------------------------------------------------------------


@dataclass
class Readings:
    """What was read, an entry an answer (C of them), in float32 or the model's float64.

    Attributes:
        logps: summed log-prob of each answer's scored tokens, in nats.
        tokens: how many were scored.
        states: pooled hidden states, a tensor a site.
        norms: mean L2 norm of the pooled tokens, attention sinks left out.
    """

    logps: Float[Tensor, "answer"] | None = None
    tokens: Int[Tensor, "answer"] | None = None
    states: dict[Site, Float[Tensor, "answer d"]] = field(default_factory=dict)
    norms: dict[Site, Float[Tensor, "answer"]] = field(default_factory=dict)


def read(
    model: nn.Module,
    batch: Batch,
    *,
    logps: bool = False,
    sites: Sequence[Site] = (),
    pool: Pool = "completion",
    token_map: TokenMap = "none",
) -> Readings:
    """One pass over a batch, as deep as is asked for.

    Args:
        logps: read log-probs, which takes every block and the LM head.
        sites: where to read hidden states.
        pool: the answer positions to average.
        token_map: a map of each token's state before averaging.

    Raises:
        DataError: an answer has no token at the pooled positions.
        ConfigError: a site that the model does not have, or does not compute.
    """
    found = Readings()
    with ExitStack() as stack:
        if sites:
            where = _pooled_tokens(batch, pool)
            for site in sites:
                stack.enter_context(_tap(model, site, batch, where, token_map, found))
        if logps:
            found.logps, found.tokens = stack.enter_context(_at_scored(model, batch))(
                lambda: forward(model, batch)
            )
        elif sites:
            stack.enter_context(_stop_after(model, max(depth(model, s) for s in sites)))
            with suppress(_Stop):
                forward(model, batch)
    for site in sites:
        if site not in found.states:
            raise ConfigError(f"site {site!r}: the model computes nothing there before its LM head")
    return found


def read_tokens(
    model: nn.Module, batch: Batch, sites: Sequence[Site], where: Where, *, logps: bool = False
) -> tuple[Float[Tensor, "token site d"], Int[Tensor, "answer"], Readings]:
    """The states of single tokens, answer after answer in the batch's order, and the tokens of each;
    the readings hold log-probs where they are asked for. Gradients flow, and dials are seen.

    Raises:
        ConfigError: a site that the model does not have, or does not compute.
    """
    tokens = token_positions(batch, where)
    found: dict[Site, Tensor] = {}
    readings = Readings()
    with ExitStack() as stack:
        for site in sites:

            def see(h: Tensor, site: Site = site) -> None:
                h = h[tokens.row, tokens.at]  # M d
                found[site] = h if h.dtype == torch.float64 else h.float()

            stack.enter_context(seeing(model, site, see))
        if logps:
            readings.logps, readings.tokens = stack.enter_context(_at_scored(model, batch))(
                lambda: forward(model, batch)
            )
        else:
            stack.enter_context(_stop_after(model, max(depth(model, s) for s in sites)))
            with suppress(_Stop):
                forward(model, batch)
    if missing := [site for site in sites if site not in found]:
        raise ConfigError(f"site {missing[0]!r}: the model computes nothing there")
    return torch.stack([found[site] for site in sites], 1), tokens.count, readings


def token_positions(batch: Batch, where: Where) -> Tokens:
    """Where the tokens that `where` names stand in a batch, grouped by answer."""
    keep = batch.token_scored if where == "predicting" else torch.ones_like(batch.token_scored)
    row, answer = batch.token_row[keep], batch.token_answer[keep]
    at = (batch.token_from if where == "predicting" else batch.token_at)[keep]
    if where == "all":
        first = torch.cat([answer.new_ones(1).bool(), answer[1:] != answer[:-1]])
        lines = row[first]  # of each answer
        prompt = (batch.segments == 0).sum(1)[lines]
        before = torch.arange(batch.n_answers, device=row.device).repeat_interleave(prompt)
        start = (prompt.cumsum(0) - prompt).repeat_interleave(prompt)
        place = torch.arange(len(before), device=row.device) - start
        order = torch.cat([before, answer]).argsort(stable=True)
        row = torch.cat([lines.repeat_interleave(prompt), row])[order]
        at, answer = torch.cat([place, at])[order], torch.cat([before, answer])[order]
    return Tokens(row, at, answer, torch.bincount(answer, minlength=batch.n_answers))


def head_site(model: nn.Module) -> str:
    """The input of the LM head, as a site."""
    head = models.head(model)
    return next(name for name, module in model.named_modules() if module is head) + ":in"


def forward(model: nn.Module, batch: Batch) -> Any:
    """The model's own output for a batch, with the mask and positions of its layout."""
    extra = {"position_ids": batch.positions} if batch.layout == "packed" else {}
    return model(
        input_ids=batch.input_ids,
        attention_mask=attention_mask(batch, model),
        use_cache=False,
        **extra,
    )


def pair_up(readings: Readings, batch: Batch, floor: dict[Site, float] | None = None) -> Readout:
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
    )


class _Stop(Exception):
    """Ends a forward pass once everything asked for has been read."""


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


@contextmanager
def _at_scored(
    model: nn.Module, batch: Batch
) -> Iterator[Callable[[Callable[[], Any]], tuple[Tensor, Tensor]]]:
    """Let the LM head see only the positions that predict a scored token.

    The head's input is gathered in a pre-hook, so that whatever the model does to its logits
    (scaling, soft-capping) stays its own business.
    """
    keep = batch.token_scored
    row, at = batch.token_row[keep], batch.token_from[keep]
    head = models.head(model)
    handle = head.register_forward_pre_hook(lambda _, args: (args[0][row, at][None], *args[1:]))
    _gathered[head] = (row, at)

    def run(call: Callable[[], Any]) -> tuple[Tensor, Tensor]:
        logits = call().logits[0]  # M V
        logits = logits if logits.dtype == torch.float64 else logits.float()
        token = _TokenLogps.apply(logits, batch.token_id[keep])
        answer = batch.token_answer[keep]
        total = token.new_zeros(batch.n_answers).index_add(0, answer, token)
        return total, torch.bincount(answer, minlength=batch.n_answers)

    try:
        yield run
    finally:
        handle.remove()
        del _gathered[head]


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


class _TokenLogps(torch.autograd.Function):
    """Log-probs of given tokens, `[M, V]` logits to `[M]`.

    torch's log-softmax on a CPU leaves a gradient of some 2e-5 relative error in float32 (measured on
    SmolLM2 against float64); exp(logits - logsumexp) leaves 5e-6, and keeps one [M, V] tensor less.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor) -> Tensor:
        total = logits.logsumexp(-1)
        ctx.save_for_backward(logits, total, ids)
        return logits.gather(-1, ids[:, None])[:, 0] - total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        logits, total, ids = ctx.saved_tensors
        (grad,) = grads
        down = (logits - total[:, None]).exp_().mul_(-grad[:, None])
        return down.scatter_add_(-1, ids[:, None], grad[:, None]), None


@dataclass
class Tokens:
    """Positions of a batch: T of them, each belonging to an answer, grouped by it."""

    row: Tensor
    at: Tensor
    answer: Tensor
    count: Tensor  # per answer


def _pooled_tokens(batch: Batch, pool: Pool) -> Tokens:
    keep = batch.token_marker if pool == "marker" else batch.token_body
    at = batch.token_at
    if pool == "predicting":
        keep, at = keep & batch.token_scored, batch.token_from
    elif pool == "last":
        after = torch.zeros_like(keep)  # the next kept token belongs to the same answer
        kept = keep.nonzero()[:, 0]
        after[kept[:-1]] = batch.token_answer[kept[:-1]] == batch.token_answer[kept[1:]]
        keep = keep & ~after
    answer = batch.token_answer[keep]
    count = torch.bincount(answer, minlength=batch.n_answers)
    if (count == 0).any():
        bare = batch.items[
            int(batch.token_row[batch.token_answer == (count == 0).nonzero()[0, 0]][0])
        ]
        raise DataError(f"item {bare}: an answer has no token to pool at {pool!r} positions")
    return Tokens(batch.token_row[keep], at[keep], answer, count)


@contextmanager
def _tap(
    model: nn.Module, site: Site, batch: Batch, where: Tokens, token_map: TokenMap, found: Readings
) -> Iterator[None]:
    """Pool the states at a site as they pass by; whole sequences are not kept."""

    def pool(h: Tensor) -> None:
        tokens = h[where.row, where.at]  # T d
        tokens = tokens if tokens.dtype == torch.float64 else tokens.float()
        length = tokens.detach().norm(dim=-1)
        found.norms[site] = _mean(length, where, length <= SINK_RATIO * _median(length, where))
        if token_map == "l2":
            tokens = nn.functional.normalize(tokens, dim=-1)
        found.states[site] = _mean(tokens, where)

    with seeing(model, site, pool):
        yield


@contextmanager
def seeing(model: nn.Module, site: Site, see: Callable[[Tensor], None]) -> Iterator[None]:
    """Call `see` with the hidden states `[B, T, d]` that pass a site, in every forward pass."""
    module, is_input = module_at(model, site)

    def at_input(_: nn.Module, args: Any, kwargs: Any) -> None:
        see(input_of(args, kwargs))

    def at_output(_: nn.Module, __: Any, out: Any) -> None:
        see(out[0] if isinstance(out, tuple) else out)

    if is_input:
        handle = module.register_forward_pre_hook(at_input, with_kwargs=True)
    else:
        handle = module.register_forward_hook(at_output)
    try:
        yield
    finally:
        handle.remove()


def _median(length: Tensor, where: Tokens) -> Tensor:
    """For every token the (lower) median length of its answer's tokens."""
    order = length.argsort()
    order = order[where.answer[order].argsort(stable=True)]  # by answer, within it by length
    first = where.count.cumsum(0) - where.count
    return length[order[first + (where.count - 1) // 2]][where.answer]


def _mean(values: Tensor, where: Tokens, keep: Tensor | None = None) -> Tensor:
    """Mean per answer of values per token (over all tokens of an answer where none is kept)."""
    total = values.new_zeros(len(where.count), *values.shape[1:])
    if keep is None:
        return total.index_add(0, where.answer, values) / where.count.view(
            -1, *[1] * (values.ndim - 1)
        ).to(values)
    count = torch.bincount(where.answer[keep], minlength=len(where.count))
    kept = total.index_add(0, where.answer[keep], values[keep]) / count.clamp(min=1)
    return torch.where(count > 0, kept, _mean(values, where))
