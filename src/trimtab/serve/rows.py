"""Rows that are decoded together: each prompt is read apart, joins between tokens, leaves when done.

Keys and values of all rows lie in one cache, aligned at the right: the newest token of every row is
the last column, and shorter rows have zeros before them, which the mask leaves out. The distance of two
tokens of a row stays what it was, so that a sliding window holds; where it is the position itself that
counts, every row is told its own. No prompt is ever padded while it is read, so that the states of a
recurrence, which have no place for padding, join as they are.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.cache_utils import (
    DummyLayer,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

from trimtab import models
from trimtab.batching.forward import forget_lengths
from trimtab.batching.probes import thresholds
from trimtab.batching.spans import one_line, prompts
from trimtab.dials.contexts import paused
from trimtab.errors import ModelError
from trimtab.evaluation.cache_proof import Decoded, Way, plain_logits, way_of
from trimtab.proofs import proven

JOIN = (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    DummyLayer,
    LinearAttentionLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
)
"""What a layer of a cache may be for its rows to join those of another."""


class Rows:
    """Rows of one batch, and the logits of the token that comes next in each.

    Attributes:
        ids: the tokens of each row so far.
        logits: of the next token, `[row, vocab]`, float32.
    """

    def __init__(
        self,
        model: Any,
        ids: Sequence[Sequence[int]],
        way: Way = "batch",
        piece: int | None = None,
    ):
        """Read prompts of one length.

        Args:
            way: one cache for all rows, one a row, or none: by a whole pass a token.
            piece: read only so many of their tokens for now, and the rest by `read_on`.
        """
        self.model, self.way, self.ids = model, way, [[] for _ in ids]
        self.unread = torch.tensor([list(row) for row in ids])
        self.starts = [len(row) for row in ids]  # where each row's completion begins
        self.device = next(model.parameters()).device
        caches = {"batch": 1, "rows": len(self.ids), "plain": 0}[way]
        self.caches = [DynamicCache(config=model.config) for _ in range(caches)]
        takes = inspect.signature(model.forward).parameters
        self._keep = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        self._told = "position_ids" in takes
        self.logits: Float[Tensor, "row vocab"]
        self.read_on(piece)

    def read_on(self, piece: int | None = None) -> None:
        """The next tokens of prompts that are not read to their end."""
        new, self.unread = self.unread[:, :piece], self.unread[:, piece or self.unread.shape[1] :]
        for row, tokens in zip(self.ids, new.tolist(), strict=True):
            row += tokens
        self.logits = self._run(new)

    def feed(self, tokens: Sequence[int]) -> None:
        """A token a row."""
        for row, token in zip(self.ids, tokens, strict=True):
            row.append(int(token))
        self.logits = self._run(torch.tensor(tokens)[:, None])

    def join(self, other: Rows) -> None:
        """Take in the rows of another batch, which is used up."""
        if self.way == "batch":
            width = max(self._width(), other._width())
            (mine,), (theirs,) = self.caches, other.caches
            for layer, more in zip(mine.layers, theirs.layers, strict=True):
                _join(layer, more, width)
        else:
            self.caches += other.caches
        self.ids, self.starts = self.ids + other.ids, self.starts + other.starts
        self.logits = torch.cat([self.logits, other.logits])

    def select(self, rows: Sequence[int]) -> None:
        """Some of the rows, in this order, a row more than once where it is named so."""
        if list(rows) == list(range(len(self.ids))):
            return
        self.ids, self.starts = [list(self.ids[r]) for r in rows], [self.starts[r] for r in rows]
        self.logits = self.logits[list(rows)]
        if self.way == "batch":
            chosen: Any = torch.tensor(rows, device=self.device)
            self.caches[0].reorder_cache(chosen)
            for layer in self.caches[0].layers:
                _fit(layer, self._width())
        elif self.way == "rows":
            again = [r in rows[:n] for n, r in enumerate(rows)]
            self.caches = [
                copy.deepcopy(self.caches[r]) if known else self.caches[r]
                for r, known in zip(rows, again, strict=True)
            ]

    def _width(self) -> int:
        """Columns of the cache: the tokens of the longest row.

        Raises:
            ModelError: a cache holds what cannot be joined.
        """
        for layer in self.caches[0].layers:
            if type(layer) not in JOIN:
                raise ModelError(f"its cache has a {type(layer).__name__}, whose rows do not join")
        return max(map(len, self.ids))

    @torch.no_grad()
    def _run(self, new: Tensor) -> Tensor:
        """The logits after some new tokens a row (they are the last of `ids` already)."""
        forget_lengths(self.model)
        with models.reading(self.model):
            if self.way == "batch":
                with prompts(self.starts):
                    return self._pass(new, self.caches[0], self._padding())
            found = []
            for n, row in enumerate(self.ids):
                with one_line(n, len(self.ids)), prompts(self.starts[n : n + 1]):
                    if self.way == "plain":
                        found.append(plain_logits(self.model, row))
                    else:
                        found.append(self._pass(new[n : n + 1], self.caches[n], {}))
            return torch.cat(found)

    def _pass(self, new: Tensor, cache: DynamicCache, padding: dict[str, Tensor]) -> Tensor:
        out = self.model(
            input_ids=new.to(self.device),
            past_key_values=cache,
            use_cache=True,
            **self._keep,
            **padding,
        )
        return out.logits[:, -1].float()

    def _padding(self) -> dict[str, Tensor]:
        """Mask and positions where rows differ in length; what a model takes for granted else."""
        lengths = torch.tensor([len(row) for row in self.ids], device=self.device)[:, None]
        width = int(lengths.max())
        if not (lengths < width).any():
            return {}
        at = torch.arange(width, device=self.device)
        told = {"position_ids": lengths - 1} if self._told else {}
        return {"attention_mask": (at >= width - lengths).long(), **told}


def _holds(layer: Any) -> bool:
    """Whether a layer holds keys and values of tokens."""
    return isinstance(layer, DynamicLayer) and layer.is_initialized


def _join(mine: Any, theirs: Any, width: int) -> None:
    """One layer's rows behind the other's, both as wide as `width` tokens."""
    if hasattr(mine, "recurrent_states"):
        for name in ("conv_states", "recurrent_states"):
            for n, state in getattr(mine, name).items():
                if state is not None:
                    getattr(mine, name)[n] = torch.cat([state, getattr(theirs, name)[n]])
    if _holds(mine):
        _fit(mine, width)
        _fit(theirs, width)
        mine.keys = torch.cat([mine.keys, theirs.keys])
        mine.values = torch.cat([mine.values, theirs.values])


def _fit(layer: Any, width: int) -> None:
    """Make a layer as wide as `width` tokens: zeros come or go on the left. One with a sliding window
    holds the last `window - 1` of them."""
    if not _holds(layer):
        return
    held = width
    if layer.is_sliding:
        layer.cumulative_length = width
        held = min(width, layer.sliding_window - 1)
    more = held - layer.keys.shape[-2]
    layer.keys, layer.values = (
        nn.functional.pad(x, (0, 0, more, 0)) for x in (layer.keys, layer.values)
    )


def way_to_serve(model: Any, reach: int) -> Way:
    """How rows of up to `reach` tokens may be decoded: joined, one by one, or without a cache.

    Raises:
        ModelError: they are more than the model has learned positions for.
    """
    return way_of(model, "serve 1", reach, _decoded)


def reads_in_pieces(model: Any, way: Way, piece: int, reach: int) -> bool:
    """Whether prompts of up to `reach` tokens may be read `piece` tokens at a time: whether that leaves
    the logits and the cache that one pass leaves. (Some recurrences forget what they have read when
    they are given more than one further token.)"""
    if way == "plain":
        return False
    if reach <= piece:
        return True
    found = proven(
        model, "pieces 1", [way, piece, reach], lambda: _in_pieces(model, way, piece, reach)
    )
    if found["why"]:
        name = type(model).__name__
        warnings.warn(
            f"{name}: reading a prompt in pieces is not reading it whole ({found['why']}): long "
            "prompts are read whole, and answers under way wait for them",
            stacklevel=2,
        )
    return not found["why"]


def _in_pieces(model: Any, way: Way, piece: int, reach: int) -> dict[str, Any]:
    """What differs where a row is read in pieces: just past the first, past the second, and past the
    last length at which the model's config may change what it computes."""
    draw = torch.Generator().manual_seed(0)
    vocabulary = min(models.text_config(model).vocab_size, 1000)
    half = next(p.dtype for p in model.parameters() if p.is_floating_point()).itemsize < 4
    with paused():
        last = max((n for n in thresholds(model) if n < reach), default=0)
        tried = (piece + 2, 2 * piece + 1, last + piece + 1)
        for length in sorted({min(n, reach) for n in tried}):
            ids = torch.randint(2, vocabulary, (1, length), generator=draw).tolist()
            whole = _left(Rows(model, ids, way))
            try:
                rows = Rows(model, ids, way, piece)
                while rows.unread.shape[1]:
                    rows.read_on(piece)
                pairs = zip(whole, _left(rows), strict=True)
                error = max(float((a - b).norm() / a.norm().clamp(min=1e-9)) for a, b in pairs)
            except Exception as problem:  # whatever a model does not take
                return {"why": f"{type(problem).__name__}: {str(problem).splitlines()[0][:100]}"}
            if not error <= (0.1 if half else 1e-3):
                return {"why": f"states differ by {error:.2g} of their size"}
    return {"why": ""}


def _left(rows: Rows) -> list[Tensor]:
    """What reading has left: the logits, and all tensors of the caches."""
    held = [
        value for cache in rows.caches for layer in cache.layers for value in vars(layer).values()
    ]
    flat = [v for value in held for v in (value.values() if isinstance(value, dict) else [value])]
    return [
        rows.logits,
        *(v.float() for v in flat if isinstance(v, Tensor) and v.is_floating_point()),
    ]


def _decoded(model: Any) -> Decoded:
    """Rows that join and leave one after the other, continued by given tokens."""

    def decoded(rows: list[list[int]], forced: Tensor) -> Tensor:
        seen: list[list[Tensor]] = [[] for _ in rows]
        waiting = [*range(1, len(rows)), 0]  # the shortest row last
        lanes: list[int] = []
        batch: Rows | None = None
        while waiting or lanes:
            if waiting:
                lanes.append(waiting.pop(0))
                new = Rows(model, [rows[lanes[-1]]])
                batch = batch.join(new) or batch if batch else new
            assert batch is not None
            for lane, logits in zip(lanes, batch.logits, strict=True):
                seen[lane].append(logits)
            stay = [k for k, lane in enumerate(lanes) if len(seen[lane]) < forced.shape[1]]
            lanes = [lanes[k] for k in stay]
            if lanes:
                batch.select(stay)
                batch.feed([int(forced[lane, len(seen[lane]) - 1]) for lane in lanes])
            else:
                batch = None
        return torch.stack([torch.stack(steps) for steps in seen]).log_softmax(-1).cpu()

    return decoded
