"""Prompts and answers as token ids, with the spans of what an answer consists of."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from trimtab.errors import DataError
from trimtab.pairs.pair import Text
from trimtab.rendering.answers import (
    FOLDED,
    Part,
    check_prompt,
    common_length,
    head_of,
    write,
)
from trimtab.rendering.settings import USUAL, PromptStyle, Rendering
from trimtab.rendering.template import Message, Template, template_of

Ids = tuple[int, ...]


class Turn(NamedTuple):
    """A turn of an answer, as places among its tokens.

    Scored is start..stop, pooled content..end, and the marker is the last of end..trail.
    """

    start: int
    """The first that is scored: the content's, or of what the template puts before it."""
    content: int
    """The first of the content."""
    end: int
    """Past the content: here the end-of-turn mark begins."""
    trail: int
    """Past the mark, which is empty where a template has none."""
    stop: int
    """Past what trails behind it."""

    @property
    def marker(self) -> int:
        """The token that ends the turn; `trail` where there is none."""
        return self.trail - 1 if self.trail > self.end else self.trail

    def moved(self, by: int) -> Turn:
        """The same turn where `by` tokens less stand before it."""
        return Turn(*(max(0, n - by) for n in self))


class Rendered(NamedTuple):
    """A prompt and an answer as token ids.

    Attributes:
        prompt: ids of the prompt alone: what a model is given to answer.
        ids: ids of prompt and answer; they part from the prompt's where the answer begins.
        turns: turns of the answer, as places in `ids`, in order.
        notes: what is to be said of the rendering.
    """

    prompt: Ids
    ids: Ids
    turns: tuple[Turn, ...]
    notes: frozenset[str] = frozenset()

    def opened(self) -> Rendered:
        """The same up to where the content of its last turn ends: what ends it is not there."""
        *before, last = self.turns
        last = last._replace(trail=last.end, stop=last.end)
        return self._replace(ids=self.ids[: last.end], turns=(*before, last))


class RenderedText(str):
    """Text that a chat template made: no BOS belongs before it but its own. It remembers its parts,
    which are tokenised one by one."""

    parts: tuple[str, ...]

    def __new__(cls, *parts: str) -> RenderedText:
        """The parts joined."""
        made = super().__new__(cls, "".join(parts))
        made.parts = parts
        return made


# ---- plain text ---------------------------------------------------------------------------------


def plain_ids(text: str, tokenizer: Any) -> Ids:
    """Token ids of text as it stands: one BOS where the tokenizer adds one, and no EOS but the text's
    own. Text that a chat template made (it begins with the BOS, or is a `RenderedText`) gets neither."""
    if isinstance(text, RenderedText):
        return tuple(i for part in text.parts if part for i in ids_of(part, tokenizer))
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    rendered = bool(bos) and text.startswith(bos)
    ids = list(tokenizer(text, add_special_tokens=not rendered)["input_ids"])
    if eos and ids and ids[-1] == tokenizer.eos_token_id and not rendered:
        own = tokenizer(text, add_special_tokens=False)["input_ids"]
        if _ends(own, ids[-1]) < _ends(ids, ids[-1]):
            ids.pop()
    return tuple(ids)


def by_eos(answer: Sequence[int], eos: int | None) -> tuple[Turn, ...]:
    """The one turn of an answer that ends with its last EOS, or with its last token without one."""
    end = max((n for n, t in enumerate(answer) if t == eos), default=len(answer))
    return (Turn(0, 0, end, min(end + 1, len(answer)), len(answer)),)


def _ends(ids: Sequence[int], token: int) -> int:
    """How many of a token stand at the end."""
    return next((n for n, t in enumerate(reversed(ids)) if t != token), len(ids))


def _plain(prompt: str, answer: str, tokenizer: Any) -> Rendered:
    eos = tokenizer.eos_token or ""
    text = prompt + answer
    if eos and not text.endswith(eos):
        text += eos
    ids, before = plain_ids(text, tokenizer), plain_ids(prompt, tokenizer)
    shared = common_length(before, ids)
    (turn,) = by_eos(ids[shared:], tokenizer.eos_token_id)
    return Rendered(before, ids, (turn.moved(-shared),))


# ---- prompts ------------------------------------------------------------------------------------


def prompt_ids(
    prompt: Text,
    tokenizer: Any,
    style: Literal["auto", "plain", "chat"] = "auto",
    *,
    rendering: Rendering = USUAL,
    system: str | None = None,
    tools: Sequence[Any] | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    where: str | None = None,
) -> Ids:
    """Token ids of what is to be continued: plain text, or a chat up to where the answer begins.

    Args:
        style: `chat` wraps a plain prompt as a user message; `auto` does so where the tokenizer has
            a chat template. Chat messages always go through it.
        system: a system text before the messages.
        tools, template_kwargs: what the template is given beside the messages.
        where: where the prompt was read, for errors.

    Raises:
        DataError: the prompt is empty, ends with an assistant's message, or the template leaves a
            message out.
        ModelError: no chat template where one is needed, or it does not take the messages.
    """
    if not (prompt.strip() if isinstance(prompt, str) else prompt):
        raise DataError(f"{where}: the prompt is empty" if where else "a prompt is empty")
    has = bool(getattr(tokenizer, "chat_template", None))
    if isinstance(prompt, str) and (style == "plain" or (style == "auto" and not has)):
        return plain_ids(f"{system}\n\n{prompt}" if system else prompt, tokenizer)
    template = template_of(tokenizer, rendering, template_kwargs, tools)
    turns = messages_of(prompt, system)
    if turns[-1].get("role") == "assistant":
        raise DataError(
            f"{f'{where}: ' if where else ''}the chat ends with an assistant's message; expected one "
            "that is to be answered (what begins an answer goes into a plain text)"
        )
    head, _ = head_text(template, turns, where)
    return ids_of(head, tokenizer)


def head_text(
    template: Template, turns: Sequence[Message], where: str | None = None, *, opened: bool = True
) -> tuple[str, set[str]]:
    """A chat as text, up to where its answer begins (or its end, where none is `opened`), and what is
    to be said of it.

    Raises:
        DataError, ModelError: as `prompt_ids`.
    """
    chat = template.folded(turns, where)
    notes = {FOLDED} if len(chat) < len(turns) else set()
    head = (
        head_of(template, chat, None, where)
        if opened
        else template.text(chat, opened=False, where=where)
    )
    return head, notes | check_prompt(template, chat, head, where)


def messages_of(prompt: Text, system: str | None = None) -> list[Message]:
    """A prompt as chat messages, the system text first."""
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt or ())
    if isinstance(prompt, str) and not prompt:
        turns = []
    return [*([{"role": "system", "content": system}] if system else []), *turns]


def ids_of(text: str, tokenizer: Any) -> Ids:
    """Token ids of rendered text: the template wrote the special tokens."""
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def end_ids(
    tokenizer: Any,
    rendering: Rendering = USUAL,
    template_kwargs: Mapping[str, Any] | None = None,
    tools: Sequence[Any] | None = None,
) -> Ids:
    """The ids that end an answer by the chat template: one, or none without a template or where
    the template's end is no token of its own."""
    if not getattr(tokenizer, "chat_template", None):
        return ()
    template = template_of(tokenizer, rendering, template_kwargs, tools)
    after = ids_of(template.answered()[1], tokenizer)
    return next(((t,) for t in after if t in template.marks), ())


def lead_ids(
    prompt: Text, tokenizer: Any, *, rendering: Rendering = USUAL, where: str | None = None
) -> Ids:
    """Token ids of a chat up to where the content of an answer begins: the prompt, and what the
    template puts before the content."""
    answer = ({"role": "assistant", "content": "word"},)
    one = render_answer(prompt, answer, tokenizer, "chat", rendering=rendering, where=where)
    return one.ids[: one.turns[0].content]


# ---- answers ------------------------------------------------------------------------------------


def render_answer(
    prompt: Text,
    answer: Text,
    tokenizer: Any,
    style: PromptStyle = "plain",
    *,
    rendering: Rendering = USUAL,
    system: str | None = None,
    tools: Sequence[Any] | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    where: str | None = None,
) -> Rendered:
    """A prompt and an answer to it as token ids. Arguments as `prompt_ids`; the prompt may be empty.

    Raises:
        DataError: a chat before a plain answer in style `plain`, a message that the template leaves
            out, or an answer that it alters.
        ModelError: no chat template where one is needed, or it does not take the messages.
    """
    if isinstance(answer, str) and style == "plain":
        if not isinstance(prompt, str):
            raise DataError(f"{where}: the prompt is chat messages, the answers are plain text")
        return _plain(f"{system}\n\n{prompt}" if system else prompt, answer, tokenizer)
    template = template_of(tokenizer, rendering, template_kwargs, tools)
    reply = (
        [{"role": "assistant", "content": answer.strip()}]
        if isinstance(answer, str)
        else list(answer)
    )
    written = write(template, messages_of(prompt, system), reply, where)
    before = ids_of(written.head, tokenizer)
    ids, outside, inside = _indexed(written.text, tokenizer)
    shared = common_length(before, ids)

    # A token that stands for no text and takes the blanks beside it is no part of a content.
    def begins(at: int) -> int:
        n = outside(at)
        return n + (n < inside(at) and ids[n] in template.marks)

    def ends(at: int) -> int:
        n = inside(at)
        return n - (n > outside(at) and ids[n - 1] in template.marks)

    def end_of(part: Part, begin: int, limit: int) -> int:
        """Past the mark that ends a turn, if there is one."""
        mark = next((n for n in range(begin, limit) if ids[n] in template.marks), None)
        if mark is not None:
            return mark + 1
        words = written.text[part.stop : part.over].rstrip()
        return inside(part.stop + len(words)) if words else begin

    turns: list[Turn] = []
    ended = written.text[written.parts[-1].stop :].strip() != ""
    for number, part in enumerate(written.parts):
        end = ends(part.stop)
        content = max(shared, min(begins(part.start), end))
        end = max(content, end)
        if number == len(written.parts) - 1:
            trail, stop = end_of(part, end, len(ids)), len(ids)
        else:  # behind its mark the next turn's header begins
            trail = stop = end_of(part, end, inside(part.over)) if ended else end
        start = min(content, begins(part.first)) if number else shared
        turns.append(Turn(start, content, end, trail, stop))
    return Rendered(before, ids, tuple(turns), written.notes)


def _indexed(text: str, tokenizer: Any) -> tuple[Ids, Callable[[int], int], Callable[[int], int]]:
    """Token ids of rendered text; how many lie wholly before a character, and how many begin
    before it."""
    if not getattr(tokenizer, "is_fast", False):
        ids = ids_of(text, tokenizer)

        def before(at: int) -> int:
            return common_length(ids_of(text[:at], tokenizer), ids)

        return ids, before, before
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    starts, ends = zip(*found["offset_mapping"], strict=True) if found["input_ids"] else ((), ())
    return (
        tuple(found["input_ids"]),
        lambda at: bisect_right(ends, at),
        lambda at: bisect_left(starts, at),
    )
