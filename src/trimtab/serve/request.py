"""What is asked of the engine, what it answers token by token, and how a token is drawn."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Reason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class Request:
    """One continuation of one prompt.

    Attributes:
        ids: the prompt.
        alphas: the strength of each dial that is turned, by its name.
        ends: ids that end an answer.
        max_tokens: longest continuation.
        temperature: 0 takes the likeliest token each time.
        top_p: draw from the likeliest tokens that hold this probability.
        seed: of the draws, which depend on nothing else; None for others each time.
        stop: texts before which the answer ends.
        top: how many of the likeliest tokens are told beside each that is taken; None for no log-probs.
        shift: tell by how much the dials moved the log-prob of each token: a second row of the batch,
            with every dial at 0, is fed the same tokens.
    """

    ids: Sequence[int]
    alphas: Mapping[str, float] = field(default_factory=dict)
    ends: frozenset[int] = frozenset()
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top: int | None = None
    shift: bool = False


@dataclass(frozen=True)
class Token:
    """A token of an answer.

    Attributes:
        id: which, or None where only text that was held back is handed out.
        text: what may be shown from now on: nothing while a character is not whole, or the text may
            begin a stop text.
        logprob: of the model with its dials, before temperature; None unless asked for.
        top: the likeliest tokens and their log-probs.
        shift: log-prob less that of the bare model.
    """

    id: int | None
    text: str
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    shift: float | None = None


@dataclass(frozen=True)
class Begun:
    """The prompt was read. `fired` says of each dial with a condition over prompts whether it acts."""

    fired: Mapping[str, bool]


@dataclass(frozen=True)
class End:
    """The answer is done."""

    reason: Reason
    tokens: int
    error: str = ""


Event = Begun | Token | End


def seed_of(seed: int, index: int) -> int:
    """A seed for each answer of a request."""
    return int(
        np.random.SeedSequence([abs(seed), int(seed < 0), index]).generate_state(1, np.uint64)[0]
    )


class Draw:
    """Tokens from logits, by a seed of their own: what shares the batch changes no draw."""

    def __init__(self, request: Request):
        self.request = request
        seed = secrets.randbits(63) if request.seed is None else request.seed
        self.generator = torch.Generator().manual_seed(seed % 2**63)

    def __call__(self, logits: Tensor) -> int:
        """The next token, by one number from the generator where it is drawn."""
        r = self.request
        if r.temperature == 0:
            return int(logits.argmax())
        p = (logits.double() / r.temperature).softmax(-1)
        u = torch.rand(1, generator=self.generator, dtype=torch.float64)
        order = torch.arange(len(p))
        if r.top_p < 1:
            p, order = p.sort(descending=True, stable=True)
            p = p * (p.cumsum(-1) - p < r.top_p)  # those that the likelier ones leave room for
        sums = p.cumsum(-1)
        at = int(torch.searchsorted(sums, u * sums[-1], right=True))
        return int(order[min(at, int(p.nonzero()[-1]))])


class Said:
    """The text of an answer as its tokens come, up to the first of its stop texts."""

    def __init__(self, tokenizer: Any, stop: Sequence[str]):
        self.tokenizer, self.stop = tokenizer, [s for s in stop if s]
        self.ids: list[int] = []
        self.sent, self.stopped = "", False

    def add(self, token: int) -> str:
        """What may be shown after one more token."""
        self.ids.append(token)
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True)
        found = [at for s in self.stop if (at := text.find(s)) >= 0]
        if found:
            self.stopped, text = True, text[: min(found)]
        else:
            text = text.rstrip("\ufffd")  # a character of which the rest is to come
            held = max((_begun(text, s) for s in self.stop), default=0)
            text = text[: len(text) - held]
        return self._new(text)

    def rest(self) -> str:
        """What was held back, at the end."""
        if self.stopped:
            return ""
        return self._new(self.tokenizer.decode(self.ids, skip_special_tokens=True))

    def _new(self, text: str) -> str:
        if not text.startswith(self.sent):  # a tokenizer that writes earlier text anew
            return ""
        new, self.sent = text[len(self.sent) :], text
        return new


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of a text a stop text may begin with."""
    return next(
        (n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0
    )
