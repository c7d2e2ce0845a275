"""A prompt and an answer as text, with the places of what the answer consists of.

The prompt is what a model is given when it is to answer: the chat up to the answer, rendered with the
generation prompt. Where that is how the whole rendering begins, the whole rendering is taken as it
is. Where it is not (a template that ties the system text to the last user message, opens a thinking
part, or writes history anew once an answer follows), the answer is put behind the prompt as the model
would write it: generation prompt + content + end. No rule covers an answer of several messages that a
template alters; it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from trimtab.errors import DataError
from trimtab.rendering.probes import WORD
from trimtab.rendering.template import Message, Template, content_of, reasoning_of

AS_AT_INFERENCE = (
    "the prompt alone is rendered otherwise than before an answer: put together as at inference, "
    "generation prompt + answer + end"
)
OPEN_THINKING = (
    "the generation prompt opens a thinking part, and the answer has none: it stands in it"
)
EARLIER_REASONING = "the chat template leaves out the reasoning of earlier turns"
OWN_REASONING = "the chat template leaves out the reasoning that stands beside the answer"
CONTROLS = "a message holds control tokens of the chat template as text: they are read as such"
FOLDED = "system message folded into the first user message"
REPEATED = "the answer repeated the prompt's messages: taken once"
PREFILLED = (
    "the prompt ends with an assistant's message: the answer is a message of its own behind it"
)


class Part(NamedTuple):
    """A turn of an answer, as places in a text: its content, where what ends it is over, and where
    what the template puts before the content begins (behind the turn's header)."""

    start: int
    stop: int
    over: int
    first: int


class Written(NamedTuple):
    """A prompt and an answer as text.

    Attributes:
        head: what a model is given to answer.
        text: prompt and answer together.
        parts: the turns of the answer that are its own (a user's in between are not).
        notes: what is to be said of it.
    """

    head: str
    text: str
    parts: tuple[Part, ...]
    notes: frozenset[str]


def write(
    template: Template, turns: Sequence[Message], reply: Sequence[Message], where: str | None
) -> Written:
    """A chat and the messages that answer it.

    Raises:
        DataError: a message that the template leaves out, or an answer that it alters.
        ModelError: the template does not take the messages.
    """
    notes: set[str] = set()
    turns, reply = list(turns), list(reply)
    apart = turns[1:] if turns and turns[0].get("role") == "system" else turns
    for repeated in (turns, apart):  # the system text may have been given apart
        if repeated and len(reply) > len(repeated) and reply[: len(repeated)] == repeated:
            reply = reply[len(repeated) :]
            notes.add(REPEATED)
            break
    roles = [m.get("role") for m in reply]
    role = "assistant" if "assistant" in roles else roles[-1]
    first = roles.index(role)
    turns, reply = [*turns, *reply[:first]], reply[first:]
    if role == "assistant" and turns and turns[-1].get("role") == "assistant":
        notes.add(PREFILLED)
    given, turns = turns, template.folded(turns, where)
    if len(turns) < len(given):
        notes.add(FOLDED)
    chat = [*turns, *reply]

    head = head_of(template, turns, reply[0], where)
    notes |= check_prompt(template, turns, head, where)
    whole = template.text(chat, opened=False, where=where)
    around = template.around(chat)
    before = around.before[len(turns) :] if around else (None,) * len(reply)
    after = around.after[len(turns) :] if around else (None,) * len(reply)
    after = tuple(None if a and WORD.search(a) else a for a in after)  # it repeats a content
    usual = template.answered()[1]
    calls = [called(m) for m in reply]
    if len(reply) == 1 and calls[0] and after[0] is None and not content_of(reply[0]).strip():
        after = (usual or None,)  # the calls stand in the content's place
    places = _places(whole, reply, before, after, template.opening())
    if any(reasoning_of(m) and not _squashed(reasoning_of(m), whole) for m in reply):
        notes.add(OWN_REASONING)

    for n, place in enumerate(places):
        if place is not None and calls[n]:
            check_calls(reply[n], whole[len(head) :] if whole.startswith(head) else whole, where)
            until = template.text([*turns, *reply[: n + 1]], opened=False, where=where)
            shared = common_length(whole, until)
            places[n] = _with_calls(template, whole, place, calls[n], shared)
    # Where an empty content stands is known by what is around it alone.
    begun = places[0]
    loose = whole.startswith(head) and not content_of(reply[0]).strip()
    if begun and loose and (begun.start < len(head) or (calls[0] and before[0] is None)):
        places[0] = Part(len(head), max(begun.stop, len(head)), begun.over, len(head))

    found = [p for p in places if p is not None]
    start = len(head)
    if template.written_in(reply):
        notes.add(CONTROLS)
    if len(reply) == 1 and found and _thinks_twice(template, whole, reply[0], found[0]):
        found = []
    if len(found) == len(reply) and whole.startswith(head) and found[0].start >= len(head):
        text = whole
    elif len(found) == len(reply):
        notes.add(AS_AT_INFERENCE)
        cut = _cut(template, whole, reply[0], found[0].start, head)
        found[0] = found[0]._replace(start=max(found[0].start, cut))
        text, shift = head + whole[cut:], len(head) - cut
        found = [Part(*(place + shift for place in p)) for p in found]
    elif len(reply) == 1 and after[0] is not None:
        notes.add(AS_AT_INFERENCE)
        content = content_of(reply[0]).strip()
        if template.begun(head):
            assert template.thinking is not None
            content = content.removeprefix(template.thinking.open.strip()).lstrip()
        text = head + content + after[0]
        stop = start + len(content)
        found = [Part(start, stop, len(text), start)]
    else:
        place = f"{where}: " if where else ""
        raise DataError(
            f"{place}the chat template alters the answer ({', '.join(str(m.get('role')) for m in reply)})"
            "; give it as one assistant message, or use plain text"
        )
    if template.begun(head) and not _closes(template, text[start : found[0].over]):
        notes.add(OPEN_THINKING)
    parts = [p for p, m in zip(found, reply, strict=True) if m.get("role") == role]
    parts[0] = parts[0]._replace(first=start)
    return Written(head, text, tuple(parts), frozenset(notes))


def head_of(
    template: Template, turns: Sequence[Message], answer: Message | None, where: str | None
) -> str:
    """The text that stands before an answer.

    With messages before an assistant's, it is the generation prompt's rendering; before the message
    of another role, or with nothing before it, it is what the template puts before such a message.
    """
    if turns and (answer is None or answer.get("role") == "assistant"):
        return template.text(turns, opened=True, where=where)
    role = answer.get("role") if answer is not None else "assistant"
    word = "qzxheadjvkw"
    text = template.text([*turns, {"role": role, "content": word}], opened=False, where=where)
    return text[: text.rfind(word)] if word in text else ""


def check_prompt(
    template: Template, turns: Sequence[Message], head: str, where: str | None
) -> set[str]:
    """That every message of a prompt stands in its rendering; what is to be said of it.

    Raises:
        DataError: one does not.
    """
    notes: set[str] = {CONTROLS} if template.written_in(turns) else set()
    text, at = _squash(head), 0
    probed = template.around(turns, opened=True) if turns else None
    for number, message in enumerate(turns, 1):
        content = _squash(content_of(message))
        if probed is not None and probed.before[number - 1] is None and content:
            _missing(template, message, number, where)
        if called(message):
            check_calls(message, head, where)
        if message.get("role") == "system":  # some put it elsewhere
            if content not in text:
                _missing(template, message, number, where)
            continue
        found = text.find(content, at)
        if found < 0 and message.get("role") == "assistant":
            content = _squash(_unreasoned(content_of(message)))
            found = text.find(content, at)
            if found >= 0:
                notes.add(EARLIER_REASONING)
        if found < 0 and message.get("role") not in ("user", "assistant"):
            continue  # a tool's result is written anew by many
        if found < 0:
            _missing(template, message, number, where)
        at = found + len(content)
        reasoning = reasoning_of(message)
        if message.get("role") == "assistant" and reasoning and not _squashed(reasoning, head):
            notes.add(EARLIER_REASONING)
    return notes


def called(message: Message) -> list[str]:
    """Names of the functions that a message calls."""
    calls = message.get("tool_calls") or ()
    named = [c.get("function") or c for c in calls if isinstance(c, Mapping)]
    return [str(f["name"]) for f in named if isinstance(f, Mapping) and f.get("name")]


def check_calls(message: Message, text: str, where: str | None) -> None:
    """Raise DataError unless what a message calls stands in its rendering."""
    place = f"{where}: " if where else ""
    for name in called(message):
        if name not in text:
            raise DataError(
                f"{place}the chat template leaves out the tool calls of a message ({name}); write "
                "them as text, or use a model whose template has tools"
            )


def _with_calls(
    template: Template, whole: str, place: Part, names: Sequence[str], shared: int
) -> Part:
    """The place of a content with the calls that stand beside it, which are the answer, too: up to the
    usual end of a turn, else to the mark that ends this one, if ends are marked at all. `shared` is
    how much of the text is the same without the messages behind it."""
    before = whole[place.first : place.start]
    if any(name in before for name in names):
        thought = template.thinking.close.strip() if template.thinking else ""
        skipped = before.rfind(thought) + len(thought) if thought and thought in before else 0
        place = place._replace(start=place.first + skipped)
    last = max(whole.find(name, place.stop, place.over) for name in names)
    if last < 0:
        return place
    usual = template.answered()[1].strip()
    stop = whole.find(usual, last, place.over) if usual else -1
    if stop < 0:
        over = min(place.over, shared) if shared > last else place.over
        stop = len(whole[:over].rstrip())
        stop -= len(template.ending_mark(whole[last:stop])) if usual else 0
        place = place._replace(over=over)
    return place._replace(stop=stop)


def _missing(template: Template, message: Message, number: int, where: str | None) -> None:
    place = f"{where}: " if where else ""
    role, content = message.get("role"), content_of(message)
    shown = content if len(content) <= 60 else f"{content[:57]}…"
    advice = "take it out, or use plain text"
    if role == "system":
        advice = "--system-role fold puts its text into the first user message"
    raise DataError(
        f"{place}the chat template leaves out or alters message {number} ({role}: {shown!r}); {advice}"
    )


def _places(
    whole: str,
    reply: Sequence[Message],
    before: Sequence[str | None],
    after: Sequence[str | None],
    opening: str,
) -> list[Part | None]:
    """Where each message of an answer stands in the whole rendering, from the last one back."""
    limit = len(whole)
    places: list[Part | None] = []
    for message, lead, trail in zip(
        reversed(reply), reversed(before), reversed(after), strict=True
    ):
        place = _place(whole, limit, content_of(message), lead, trail)
        if place is not None and opening and lead and lead.startswith(opening):
            more = lead[len(opening) :]  # an empty thinking part, the rest of a header
            if whole[: place.start].endswith(more):
                place = place._replace(first=place.start - len(more))
        places.append(place)
        limit = place.start if place is not None else limit
    return places[::-1]


def _place(
    whole: str, limit: int, content: str, before: str | None, after: str | None
) -> Part | None:
    """Where a content stands that is followed by `after` up to `limit`; None where it does not."""
    if after is None or not whole[:limit].endswith(after):
        return None
    stop = limit - len(after)
    core = content.strip()
    inner = len(whole[:stop].rstrip()) if core else stop
    start = inner - len(core)
    if start >= 0 and whole[start:inner] == core:
        # Of the blanks around it, those that the template kept.
        blank = content[: len(content) - len(content.lstrip())]
        for n in range(len(blank), 0, -1):
            if whole[start - n : start] == blank[-n:] and whole[: start - n].endswith(before or ""):
                start -= n
                break
        tail = content[len(content.rstrip()) :] if core else ""
        stop = stop if tail.startswith(whole[inner:stop]) else inner
        return Part(start, stop, limit, start)
    back = _back(whole, stop, core)
    return None if back is None else Part(back, inner, limit, back)


def _back(whole: str, stop: int, content: str) -> int | None:
    """Where a content begins that ends at `stop`, blanks apart."""
    at = stop
    for letter in reversed(_squash(content)):
        while at and whole[at - 1].isspace():
            at -= 1
        if not at or whole[at - 1] != letter:
            return None
        at -= 1
    return at


def _cut(template: Template, whole: str, answer: Message, start: int, head: str) -> int:
    """Where in the whole rendering the answer begins that goes behind `head`: its content, or the
    reasoning that was given beside it."""
    reasoning = reasoning_of(answer).strip()
    at = whole.rfind(reasoning, 0, start) if reasoning else -1
    if at < 0 and template.begun(head):
        assert template.thinking is not None
        opened = template.thinking.open.strip()  # stands there already
        rest = whole[start:].removeprefix(opened)
        return start if len(rest) == len(whole) - start else len(whole) - len(rest.lstrip())
    if at < 0 or template.thinking is None:
        return start
    if template.begun(head):
        return at
    opened = whole.rfind(template.thinking.open.strip(), 0, at)
    return start if opened < 0 else opened


def _thinks_twice(template: Template, whole: str, answer: Message, place: Part) -> bool:
    """Whether the template puts a thinking part of its own before the one that an answer has."""
    tags = template.thinking
    if tags is None or not content_of(answer).lstrip().startswith(tags.open.strip()):
        return False
    return whole[: place.start].rstrip().endswith(tags.close.strip())


def _closes(template: Template, answer: str) -> bool:
    return template.thinking is not None and template.thinking.close.strip() in answer


def _unreasoned(content: str) -> str:
    """What follows the reasoning that a content begins with, whatever its closing tag is called."""
    tag = re.search(r"(?s).*(?:</[\w:|]+>|\[/\w+\]|◁/\w+▷|<\|END_\w+\|>)", content)
    return content[tag.end() :] if tag else content


def _squash(text: str) -> str:
    return "".join(text.split())


def _squashed(part: str, text: str) -> bool:
    return _squash(part) in _squash(text)


def common_length(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Length of the common prefix."""
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n
