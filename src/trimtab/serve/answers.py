"""Events of the engine as OpenAI's objects: whole answers and chunks of a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from trimtab.serve.request import Begun, End, Token


@dataclass
class Choice:
    """One answer as far as it has come."""

    texts: list[str] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    fired: dict[str, bool] = field(default_factory=dict)
    end: End | None = None

    def add(self, event: Begun | Token | End) -> None:
        """Take in an event."""
        if isinstance(event, Begun):
            self.fired = dict(event.fired)
        elif isinstance(event, End):
            self.end = event
        else:
            self.texts.append(event.text)
            if event.id is not None:
                self.tokens.append(event)

    @property
    def text(self) -> str:
        """All that may be shown."""
        return "".join(self.texts)


class Answer:
    """The objects of one request.

    Args:
        chat: messages, or text alone.
        told: whether log-probs were asked for.
        extra: fields beside OpenAI's: `dials`, and `warnings` where there are some.
    """

    def __init__(
        self, tokenizer: Any, model: str, *, chat: bool, told: bool, extra: dict[str, Any]
    ):
        self.tokenizer, self.chat, self.told, self.extra = tokenizer, chat, told, extra
        kind = "chat.completion" if chat else "text_completion"
        prefix = "chatcmpl" if chat else "cmpl"
        self.head = {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, choices: Sequence[Choice], prompt_tokens: int) -> dict[str, Any]:
        """An answer that is done."""
        found = []
        for index, choice in enumerate(choices):
            text: dict[str, Any] = {"text": choice.text}
            if self.chat:
                text = {"message": {"role": "assistant", "content": choice.text, "refusal": None}}
            found.append(self._choice(index, text, choice.tokens, choice))
        return {
            **self.head,
            "choices": found,
            "usage": usage(choices, prompt_tokens),
            **self.extra,
        }

    def chunk(self, index: int, choice: Choice, event: Begun | Token | End) -> dict[str, Any]:
        """What a stream tells of an event, which `choice` has taken in."""
        token = event if isinstance(event, Token) else None
        said = token.text if token else ""
        text: dict[str, Any] = {"text": said}
        if self.chat:
            text = {"delta": {"content": said} if token else {}}
            if isinstance(event, Begun):
                text = {"delta": {"role": "assistant", "content": ""}}
        drawn = [token] if token and token.id is not None else []
        found = self._choice(index, text, drawn, choice if isinstance(event, End | Begun) else None)
        return self._chunk([found], **(self.extra if isinstance(event, Begun) else {}))

    def last(self, choices: Sequence[Choice], prompt_tokens: int) -> dict[str, Any]:
        """What a stream says of its use, at the end."""
        return self._chunk([], usage=usage(choices, prompt_tokens))

    def _chunk(self, choices: list[Any], **more: Any) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {**self.head, "object": kind, "choices": choices, **more}

    def _choice(
        self, index: int, text: dict[str, Any], tokens: Sequence[Token], choice: Choice | None
    ) -> dict[str, Any]:
        found = {
            "index": index,
            **text,
            "logprobs": self._logprobs(tokens) if self.told and tokens else None,
            "finish_reason": choice.end.reason if choice and choice.end else None,
        }
        return {**found, "fired": choice.fired} if choice and choice.fired else found

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any]:
        if self.chat:
            return {"content": [self._entry(token) for token in tokens], "refusal": None}
        texts = [self._text(t.id) for t in tokens]
        found: dict[str, Any] = {
            "tokens": texts,
            "token_logprobs": [t.logprob for t in tokens],
            "top_logprobs": [{self._text(i): p for i, p in t.top} for t in tokens],
            "text_offset": [sum(map(len, texts[:n])) for n in range(len(texts))],
        }
        if any(t.shift is not None for t in tokens):
            found["shifts"] = [t.shift for t in tokens]
        return found

    def _entry(self, token: Token) -> dict[str, Any]:
        found = self._likely(token.id, token.logprob)
        found["top_logprobs"] = [self._likely(i, p) for i, p in token.top]
        return found if token.shift is None else {**found, "shift": token.shift}

    def _likely(self, token: int | None, logprob: float | None) -> dict[str, Any]:
        text = self._text(token)
        whole = "\ufffd" not in text  # of a part of a character nobody knows the bytes here
        return {"token": text, "logprob": logprob, "bytes": list(text.encode()) if whole else None}

    def _text(self, token: int | None) -> str:
        text = self.tokenizer.decode([token])
        space = str(self.tokenizer.convert_ids_to_tokens(token)).startswith("▁")
        return f" {text}" if space and not text.startswith(" ") else text


def usage(choices: Sequence[Choice], prompt_tokens: int) -> dict[str, int]:
    """Tokens that were read and drawn."""
    drawn = sum(choice.end.tokens for choice in choices if choice.end)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": drawn,
        "total_tokens": prompt_tokens + drawn,
    }
