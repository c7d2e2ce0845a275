"""Where in a text an edit acts: which positions, and in which rows at all.

One meaning in cached decoding and in full passes. A model's output at a position produces the next
token. So `completion` is every position that produces a token of the completion: the prompt's last
one and the completion's own; `prompt` is every token of the prompt, its last one included; `last`
is that one alone, which produces the first new token. A set of token ids is wherever they stand.

The prompt is what the first pass over a row holds; in a pass over prompt and completion together,
what `batching.spans.prompts` says (the readings of pairs say it themselves).
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from trimtab import models
from trimtab.batching.spans import given_prompts
from trimtab.dials.contexts import hooked
from trimtab.dials.numbers import length, unit
from trimtab.errors import ConfigError, DialError
from trimtab.sites import Site
from trimtab.states import depth, input_of, module_at

Positions = Literal["all", "prompt", "completion", "last"] | tuple[int, ...]
"""Where an edit acts, or the ids of the tokens it acts at."""

NAMED = ("all", "prompt", "completion", "last")


def check_positions(positions: Any) -> Positions:
    """Positions as given in a file or by hand. Raises DialError where they are none."""
    if isinstance(positions, str) and positions in NAMED:
        return positions  # type: ignore[return-value]
    ids = tuple(positions) if isinstance(positions, list | tuple) else ()
    if not ids or not all(isinstance(i, int) and i >= 0 for i in ids):
        raise DialError(
            f"positions {positions!r}: expected {', '.join(NAMED)}, or a list of token ids"
        )
    return ids


@dataclass(frozen=True, eq=False)
class Condition:
    """Rows in which a dial acts: those whose score at a site passes a threshold.

    A token's score is the cosine of its state with a direction. Over `prompt` the prompt's tokens
    are averaged, over `last` its last one decides, and the row acts, or does not, from its first
    token to the end of its completion; over `token` each position decides for itself.

    Conditional activation steering (Lee et al. 2024, CAST), with a plain cosine, and for every row
    of a batch. The site must come before the first edit, so that a row is judged as the bare model
    read it.
    """

    site: Site
    direction: Float[Tensor, "d"]
    threshold: float
    over: Literal["prompt", "last", "token"] = "prompt"
    above: bool = True
    """Act where the score is above the threshold; else where it is below."""
    prompt_style: str | None = None
    """`plain` or `chat`: how the prompts that it was found on were written, where that is known."""
    rendering: dict[str, Any] = field(default_factory=dict)
    """What of the chat template's settings was not the default there."""

    def __post_init__(self) -> None:
        v, what = self.direction, f"the condition's direction at site {self.site!r}"
        scaled = unit(v, what)
        if not 1e-15 < length(v) < 1e15:  # its cosine would be none
            object.__setattr__(self, "direction", scaled)
        if not -1 <= self.threshold <= 1:
            raise DialError(f"condition threshold {self.threshold}: expected a cosine, -1 to 1")
        if self.over not in ("prompt", "last", "token"):
            raise DialError(f"condition over {self.over!r}: expected prompt, last or token")

    def scores(self, h: Float[Tensor, "... d"]) -> Float[Tensor, "..."]:
        """Cosine of states with the direction, in float32."""
        return nn.functional.cosine_similarity(
            h.float(), self.direction.to(h.device).float(), dim=-1
        )

    def passes(self, scores: Tensor) -> Bool[Tensor, "..."]:
        """Whether scores are on the acting side of the threshold."""
        return scores > self.threshold if self.above else scores < self.threshold


class Pass:
    """What a pass of a model looks at."""

    def __init__(self) -> None:
        self.ids: Tensor | None = None
        self.real = torch.ones(1, 1, dtype=torch.bool)
        self.index = torch.zeros(1, 1, dtype=torch.long)
        self.length: Tensor | None = None  # prompt tokens of each row
        self.mask: Tensor | None = None  # of the prompt, where it was given position by position
        self.begins = True
        self.gates: dict[int, Tensor] = {}

    def prompt(self) -> tuple[Tensor, Tensor]:
        """True at the prompt's tokens, and at its last one, `[B, T]` each."""
        if self.mask is not None:
            at = torch.arange(self.mask.shape[1], device=self.mask.device)
            final = torch.where(self.mask, at, -1).amax(-1, keepdim=True)
            return self.mask, self.mask & (at == final)
        assert self.length is not None
        length = _rows(self.length.to(self.index.device), len(self.index))[:, None]
        return (self.index < length) & self.real, (self.index == length - 1) & self.real


class Tracker:
    """What the current pass of a model looks at: which of its positions are prompt, and where each
    condition holds. Hooks on the decoder and at the conditions' sites keep it up to date, of each
    thread that runs the model."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.decoder = _decoder(model)
        self.names = list(inspect.signature(self.decoder.forward).parameters)
        self.passes: weakref.WeakKeyDictionary[threading.Thread, Pass] = weakref.WeakKeyDictionary()
        self.caches: weakref.WeakKeyDictionary[Any, Pass] = weakref.WeakKeyDictionary()
        self.last = Pass()

    @property
    def now(self) -> Pass:
        """This thread's pass; in a thread that runs none (backward, where a layer is recomputed) the
        last one."""
        return self.passes.get(threading.current_thread(), self.last)

    def register(self, stack: ExitStack, conditions: Sequence[Condition], first: float) -> None:
        """Hook into the model until the stack is closed.

        Args:
            first: `reach` of the first edit, before which every condition must be read.
        """
        stack.enter_context(hooked(self.decoder, self._look, before=True))
        stack.enter_context(hooked(self.decoder, self._keep))
        for condition in conditions:
            module, is_input = module_at(self.model, condition.site)
            if reach(self.model, condition.site) > first:
                raise ConfigError(
                    f"the condition is read at site {condition.site!r}, after the first edit: "
                    "expected a site before it"
                )
            judge = partial(self._at_input if is_input else self._at_output, condition)
            stack.enter_context(hooked(module, judge, before=is_input))

    def at(self, positions: Positions, condition: Condition | None) -> Tensor | None:
        """True `[B, T]` (or `[B, 1]`) where an edit acts in the current pass; None: everywhere."""
        now = self.now
        where: Tensor | None = None
        if isinstance(positions, tuple):
            if now.ids is None:
                raise ConfigError("positions by token id: the model was given no input_ids")
            where = torch.isin(now.ids, torch.tensor(positions, device=now.ids.device))
        elif positions != "all":
            prompt, last = now.prompt()
            where = {"prompt": prompt, "last": last, "completion": ~prompt | last}[positions]
            where = where & now.real
        if condition is not None:
            gate = now.gates.get(id(condition))
            if gate is None:
                raise ConfigError(
                    f"the condition's site {condition.site!r} is not passed between the model's start and "
                    "the dial's: expected a block before the dial, and input_ids where it is 'embed'"
                )
            where = gate if where is None else where & gate
        return where

    def _look(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        thread, now = threading.current_thread(), Pass()
        given = dict(zip(self.names, args, strict=False)) | kwargs
        now.ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
        tokens = now.ids if now.ids is not None else embeds
        assert tokens is not None
        rows, width = tokens.shape[:2]
        cache: Any = given.get("past_key_values")
        cache = cache if hasattr(cache, "get_seq_length") else None
        past = 0 if cache is None else int(cache.get_seq_length())
        mask = given.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] >= past + width:
            real = mask[:, : past + width].bool()
            now.real, now.index = real[:, past:], (real.long().cumsum(-1) - 1)[:, past:]
        else:
            at = past + torch.arange(width, device=tokens.device)
            now.index = at.expand(rows, width)
            now.real = torch.ones_like(now.index, dtype=torch.bool)
        # A pass without a past begins anew; so does the first one that is seen on a cache. Others go
        # on with what was read into their cache, whatever was run in between, and where.
        old = self.caches.get(cache, self.passes.get(thread)) if past else None
        if old is not None and (old.length is not None or old.mask is not None):
            now.begins, now.length, now.gates = False, old.length, old.gates
        self.last = self.passes[thread] = now
        where = given_prompts()
        if where is None:
            if now.begins:
                now.length = now.index.amax(-1) + 1
        elif where.ndim == 1:
            now.length = where
        else:
            if where.shape[1] != width or rows % len(where):
                raise ConfigError(
                    f"prompts of shape {tuple(where.shape)} for a pass over {rows} x {width} tokens"
                )
            now.mask = _rows(where.to(tokens.device), rows)

    def _keep(self, _: Any, kwargs: dict[str, Any], output: Any) -> None:
        """Remember what was read into which cache."""
        for cache in (kwargs.get("past_key_values"), getattr(output, "past_key_values", None)):
            if hasattr(cache, "get_seq_length"):
                self.caches[cache] = self.now

    def _at_input(
        self, condition: Condition, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._judge(condition, input_of(args, kwargs))

    def _at_output(self, condition: Condition, _: Any, __: Any, out: Any) -> None:
        self._judge(condition, out[0] if isinstance(out, tuple | list) else out)

    def _judge(self, condition: Condition, h: Tensor) -> None:
        now = self.now
        with torch.no_grad():
            scores = condition.scores(h)  # B T
        if condition.over == "token":
            now.gates[id(condition)] = condition.passes(scores)
            return
        if not now.begins and id(condition) in now.gates:
            return  # judged when the prompt was read
        prompt, last = now.prompt()
        weight = (last if condition.over == "last" else prompt).to(scores)
        mean = (scores * weight).sum(-1) / weight.sum(-1).clamp(min=1)
        now.gates[id(condition)] = condition.passes(mean)[:, None]


def heed_embeddings(model: nn.Module, sites: Iterable[Site], stack: ExitStack) -> None:
    """Where one of the sites is the embedding: until the stack is closed, raise ConfigError in a pass
    whose embeddings were made outside of it, since what acts, or is read, there would not see them."""
    if not any(
        not isinstance(site, int) and module_at(model, site)[0] is models.embed(model)
        for site in sites
    ):
        return
    decoder, made = _decoder(model), False
    names = list(inspect.signature(decoder.forward).parameters)

    def embedded(*_: Any) -> None:
        nonlocal made
        made = True

    def begin(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = dict(zip(names, args, strict=False)) | kwargs
        if given.get("inputs_embeds") is not None and not made:
            raise ConfigError(
                "the model was given inputs_embeds, and the dial acts at the embedding, which they do "
                "not pass: give input_ids, or embed them inside the dial's context, for each pass anew"
            )

    def end(*_: Any) -> None:
        nonlocal made
        made = False

    stack.enter_context(hooked(models.embed(model), embedded))
    stack.enter_context(hooked(decoder, begin, before=True))
    stack.enter_context(hooked(decoder, end))


def reach(model: nn.Module, site: Site) -> float:
    """How far a pass has come at a site: a block's output comes after all that is in the block."""
    return depth(model, site) + (0.5 if isinstance(site, int) else 0.0)


def needs_tracking(positions: Positions, condition: Condition | None) -> bool:
    """Whether an edit has to know what the current pass looks at."""
    return positions != "all" or condition is not None


def _rows(values: Tensor, rows: int) -> Tensor:
    """Each value for as many rows in a row as there are more rows than values (beams)."""
    repeat, rest = divmod(rows, len(values))
    if rest or not repeat:
        raise ConfigError(f"prompts are given for {len(values)} rows, the batch has {rows}")
    return values.repeat_interleave(repeat, 0)


def _decoder(model: nn.Module) -> nn.Module:
    """The module that is called with token ids, whether or not the LM head is run."""
    find: Callable[[], nn.Module] | None = getattr(model, "get_decoder", None)
    return find() if find else model
