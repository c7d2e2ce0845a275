"""A request on its way: what it draws next, what it is told, how it ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from trimtab.serve.request import Draw, End, Event, Reason, Request, Said, Token

LEAST = -9999.0
"""A log-prob that stands for minus infinity, which JSON does not have."""


class Job:
    """A request on its way."""

    def __init__(self, request: Request, deliver: Callable[[Event], None], tokenizer: Any):
        self.request = request
        self.beside = request.shift and any(request.alphas.values())  # the bare model in a row
        self._deliver, self._draw = deliver, Draw(request)
        self._said = Said(tokenizer, request.stop)
        self._drawn, self.cancelled, self.ended = 0, False, False

    def cancel(self) -> None:
        """Give it up: its rows leave the batch before the next token."""
        self.cancelled = True

    def tell(self, event: Event) -> None:
        """Hand an event out; a request whose reader is gone is cancelled."""
        try:
            self._deliver(event)
        except Exception:
            self.cancelled = True

    def end(self, reason: Reason, error: str = "") -> None:
        """Say that it is done, once."""
        if not self.ended:
            self.ended = True
            if reason in ("stop", "length") and (rest := self._said.rest()):
                self.tell(Token(None, rest))
            self.tell(End(reason, self._drawn, error))

    def take(self, logits: Tensor, bare: Tensor | None) -> int | None:
        """The next token, told; None where that was the last one.

        Args:
            logits, bare: of the dialled and of the bare model, `[vocab]`.
        """
        r = self.request
        if self.cancelled:
            return self.end("cancelled")
        if logits.isnan().any() or logits.max() == float("inf"):
            return self.end("error", "the logits are not finite; try smaller alphas")
        token = self._draw(logits)
        self._drawn += 1
        if token in r.ends:
            return self.end("stop")
        logprob, shift, top = None, None, ()
        if r.top is not None or r.shift:
            logprobs = logits.log_softmax(-1).clamp(min=LEAST)
            logprob = float(logprobs[token])
            shift = 0.0 if r.shift else None
            if bare is not None:
                shift = logprob - max(LEAST, float(bare.log_softmax(-1)[token]))
            if r.top:
                best = logprobs.topk(min(r.top, len(logprobs)))
                top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        self.tell(Token(token, self._said.add(token), logprob, top, shift))
        if self._said.stopped:
            return self.end("stop")
        if self._drawn >= r.max_tokens:
            return self.end("length")
        return token
