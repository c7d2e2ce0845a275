"""A tokenizer's chat template: messages in, text out, and what its renderings have in common.

No table of models: what stands before and after a message is found by rendering messages whose
contents are words that occur nowhere else (`Template.around`).
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from datetime import date as Day
from typing import Any
from weakref import WeakKeyDictionary, ref

from trimtab.errors import ConfigError, DataError, ModelError
from trimtab.rendering.probes import (
    Around,
    Tags,
    around_in,
    clock,
    same_draws,
    tags_written,
    words_for,
)
from trimtab.rendering.settings import Rendering, check_variables

Message = Mapping[str, Any]

REMEMBERED = 256
"""Templates (with their variables and tools) of which probes are kept, a tokenizer."""
USUAL_CHATS = (("user",), ("system", "user"))
"""Roles of chats that are to be answered, of which a template takes one at least."""


def content_of(message: Message) -> str:
    """A message's text; that of its parts where it has several."""
    content = message.get("content")
    if isinstance(content, list | tuple):
        return "".join(str(p.get("text", "")) for p in content if isinstance(p, Mapping))
    return "" if content is None else str(content)


def reasoning_of(message: Message) -> str:
    """A message's reasoning, by any of the names that it goes by."""
    names = ("reasoning_content", "reasoning", "thinking")
    return next((str(message[n]) for n in names if message.get(n)), "")


class Template:
    """A chat template with the variables and tools that it is given."""

    def __init__(
        self,
        tokenizer: Any,
        rendering: Rendering,
        kwargs: Mapping[str, Any] | None = None,
        tools: Sequence[Any] | None = None,
    ):
        """
        Raises:
            ModelError: the tokenizer has no chat template.
        """
        if not getattr(tokenizer, "chat_template", None):
            raise ModelError(
                "chat messages (or --prompt-style chat), and the tokenizer has no chat template; "
                "give plain text"
            )
        self._tokenizer, self.rendering = ref(tokenizer), rendering
        self.tools = list(tools) if tools else None
        self.kwargs = {**rendering.kwargs, **(kwargs or {})}
        check_variables(self.kwargs)
        self.source = _source(tokenizer, self.kwargs.pop("chat_template", None), self.tools)
        self.kwargs["chat_template"] = self.source
        if "strftime_now" in self.source:
            self.kwargs["chat_template"] = clock(Day.fromisoformat(rendering.date)) + self.source
        self._around: dict[str, Around | None] = {}
        self._takes_system: bool | None = None
        self._forms: tuple[bool, bool] | None = None
        self._marks: set[int] | None = None
        self._controls: re.Pattern[str] | None = None
        self._thinking: Tags | bool | None = False

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, which is not kept alive by what is remembered of it."""
        return self._tokenizer()

    # ---- rendering ------------------------------------------------------------------------------

    def text(self, messages: Sequence[Message], *, opened: bool, where: str | None = None) -> str:
        """Messages as text; `opened` begins an answer behind them.

        Raises:
            ModelError: the template does not take them.
        """
        place = f"{where}: " if where else ""
        for number, message in enumerate(messages, 1):
            if other := _other_part(message.get("content")):
                raise DataError(f"{place}message {number} holds {other}; only text is read")
        try:
            return self._apply(messages, opened)
        except Exception as error:  # templates raise what they like, mostly about roles
            reason = str(error).strip().splitlines() or [type(error).__name__]
            remedy = self._remedy(messages)
            if reason[0].endswith("is undefined"):
                remedy = "give it with --template-kwargs, or use plain text"
            raise ModelError(
                f"{place}the chat template does not take these messages ({reason[0]}); {remedy}"
            ) from error

    def _apply(self, messages: Sequence[Message], opened: bool) -> str:
        return self._run(
            [{**m, "content": self._formed(m.get("content"))} for m in messages], opened
        )

    def _formed(self, content: Any) -> Any:
        """A content as the template takes it: text, or a list of parts."""
        if self._forms is None:
            (word,) = words_for(1)
            found = []
            for form in (word, [{"type": "text", "text": word}]):
                try:
                    text = self._run([{"role": "user", "content": form}], True)
                except Exception:  # whatever a template raises
                    text = ""
                found.append(word in text and "'text'" not in text and '"text"' not in text)
            self._forms = found[0], found[1]
        takes_text, takes_parts = self._forms
        if isinstance(content, str) and takes_parts and not takes_text:
            return [{"type": "text", "text": content}]
        if isinstance(content, list | tuple) and not takes_parts:
            return content_of({"content": content})
        return content

    def _run(self, messages: list[dict[str, Any]], opened: bool) -> str:
        with same_draws() if "random" in self.source else nullcontext():
            return self.tokenizer.apply_chat_template(
                messages,
                add_generation_prompt=opened,
                tokenize=False,
                **({"tools": self.tools} if self.tools else {}),
                **self.kwargs,
            )

    def _remedy(self, messages: Sequence[Message]) -> str:
        roles = [m.get("role") for m in messages]
        if any(m.get("tool_calls") for m in messages):
            return "some want the arguments of tool calls as an object, some as its JSON text"
        if "system" in roles and not self._shows_system(messages):
            return "--system-role fold puts the system text into the first user message"
        if any(a == b for a, b in itertools.pairwise(roles)):
            return "join messages of one role that follow each other, or use plain text"
        return f"change the roles ({', '.join(map(str, roles)) or 'none'}), or use plain text"

    @property
    def takes_system(self) -> bool:
        """Whether a system message before a user's appears in the rendering."""
        if self._takes_system is None:
            texts = words_for(2)
            chat = [
                {"role": r, "content": t} for r, t in zip(("system", "user"), texts, strict=True)
            ]
            try:
                self._takes_system = texts[0] in self._apply(chat, True)
            except Exception:  # whatever a template raises
                self._takes_system = False
        return self._takes_system

    @property
    def marks(self) -> set[int]:
        """Ids of tokens that stand for no text: what ends a turn is the first of them."""
        if self._marks is None:
            added = self.tokenizer.get_added_vocab()
            self._marks = {i for text, i in added.items() if text.strip()}
            self._marks |= set(self.tokenizer.all_special_ids)
            ends = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
            if self.tokenizer.unk_token_id not in ends:  # it stands for text
                self._marks.discard(self.tokenizer.unk_token_id)
        return self._marks

    def ending_mark(self, text: str) -> str:
        """The longest token that stands for no text at the end of a text; empty for none."""
        known = self.tokenizer.convert_ids_to_tokens(sorted(self.marks))
        return max((str(t) for t in known if text.endswith(str(t))), key=len, default="")

    def written_in(self, messages: Sequence[Message]) -> bool:
        """Whether a message's text holds one of the template's special tokens, but for the tags of
        reasoning: the tokenizer knows no difference."""
        if self._controls is None:
            special = [str(t) for t in self.tokenizer.all_special_tokens]
            added = self.tokenizer.added_tokens_decoder.values()
            special += [str(t) for t in added if getattr(t, "special", False)]
            tags = [t.strip() for t in self.thinking or ()]
            ends = (self.tokenizer.bos_token, self.tokenizer.eos_token)
            own = {t for t in special if t.strip() and (t in self.source or t in ends)} - {*tags}
            self._controls = re.compile("|".join(map(re.escape, sorted(own))) or "(?!)")
        return any(self._controls.search(content_of(m)) for m in messages)

    @property
    def told_the_date(self) -> bool:
        """Whether the template asks for the date."""
        return "strftime_now" in self.source

    def folded(self, messages: Sequence[Message], where: str | None) -> list[Message]:
        """The messages of a prompt, their system text within the first user message where that is
        asked for and needed.

        Raises:
            DataError: there is no user message.
        """
        if self.rendering.system_role != "fold" or self._shows_system(messages):
            return list(messages)
        system = [content_of(m) for m in messages if m.get("role") == "system"]
        others: list[Message] = [m for m in messages if m.get("role") != "system"]
        first = next((n for n, m in enumerate(others) if m.get("role") == "user"), None)
        if first is None:
            place = f"{where}: " if where else ""
            raise DataError(f"{place}a system message, and no user message to fold it into")
        text = "\n\n".join([*system, content_of(others[first])])
        others[first] = {**others[first], "content": text}
        return others

    def _shows_system(self, messages: Sequence[Message]) -> bool:
        """Whether each system message of a chat appears in its rendering."""
        places = [n for n, m in enumerate(messages) if m.get("role") == "system"]
        if not places or not self.takes_system:
            return not places
        around = self.around(messages, opened=True) if places != [0] else None
        return places == [0] or (around is not None and all(around.before[n] for n in places))

    # ---- probes ---------------------------------------------------------------------------------

    def around(self, messages: Sequence[Message], *, opened: bool = False) -> Around | None:
        """What stands around each message of a chat with these roles, found by rendering it with
        other contents; None where the template does not take those."""
        shape = [{k: v for k, v in m.items() if k != "content"} for m in messages]
        key = json.dumps([opened, shape], sort_keys=True, default=repr)
        if key not in self._around:
            words = words_for(len(shape))
            try:
                text = self._apply(
                    [{**m, "content": w} for m, w in zip(shape, words, strict=True)], opened
                )
            except Exception:  # whatever a template raises
                self._around[key] = None
            else:
                self._around[key] = around_in(text, words)
        return self._around[key]

    def opening(self) -> str:
        """What begins an answer behind a user message: the end of the generation prompt. Empty
        where the template takes no such chat."""
        for before in USUAL_CHATS:
            words = words_for(len(before))
            chat = [{"role": r, "content": w} for r, w in zip(before, words, strict=True)]
            try:
                return self._apply(chat, True).rpartition(words[-1])[2]
            except Exception:  # whatever a template raises
                continue
        return ""

    def answered(self) -> tuple[str, str]:
        """What stands before and after an answer to a user message (before: from the message on)."""
        for before, role in itertools.product(USUAL_CHATS, ("assistant", "model")):
            found = self.around([{"role": r} for r in (*before, role)])
            if found is not None and found.before[-1] is not None and found.after[-1] is not None:
                return found.before[-1], found.after[-1]
        return "", ""

    @property
    def thinking(self) -> Tags | None:
        """What opens and closes reasoning: seen in the rendering of an answer that has some, else
        in the template's own text or the vocabulary; None for a model that does not reason."""
        if isinstance(self._thinking, bool):
            self._thinking = self._probed_thinking() or tags_written(
                self.source, self.tokenizer.get_vocab()
            )
        return self._thinking

    def _probed_thinking(self) -> Tags | None:
        asked, reasoning, answer = words_for(3)
        chat = [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": answer, "reasoning_content": reasoning},
        ]
        try:
            text = self._apply(chat, False)
        except Exception:  # whatever a template raises
            return None
        at = text.find(reasoning)
        if at < 0 or text.find(answer) < at:
            return None
        close = text[at + len(reasoning) : text.find(answer)]
        before = text[text.find(asked) + len(asked) : at]
        opened = before.removeprefix(self.opening()) if before.startswith(self.opening()) else ""
        written = tags_written(self.source, self.tokenizer.get_vocab())
        if not close.strip() or not (opened.strip() or written):
            return None
        return Tags(opened if opened.strip() else f"{written.open.strip()}\n", close)  # type: ignore[union-attr]

    def begun(self, head: str) -> bool | None:
        """Whether the end of a generation prompt leaves reasoning open (True), closes it (False), or
        does neither."""
        found = self.thinking
        if found is None:
            return None
        tail = head[-len(self.opening()) :] if self.opening() else ""
        opened, closed = tail.rfind(found.open.strip()), tail.rfind(found.close.strip())
        return None if opened == closed == -1 else opened > closed


def _source(tokenizer: Any, given: Any, tools: Any) -> str:
    """The text of the chat template: what was given as a variable of that name, else the tokenizer's,
    which may have several.

    Raises:
        ModelError: it has several, and none is the usual one.
    """
    if not isinstance(given, str | None):
        raise ConfigError(f"chat_template {given!r}: expected the text of a template, or a name")
    found = given or tokenizer.chat_template
    if isinstance(found, str) and not isinstance(tokenizer.chat_template, Mapping):
        return found
    several = tokenizer.chat_template if isinstance(tokenizer.chat_template, Mapping) else {}
    if isinstance(found, str):
        return str(several.get(found, found))
    name = "tool_use" if tools and "tool_use" in several else "default"
    if name not in several:
        raise ModelError(
            f"the tokenizer has several chat templates ({', '.join(several)}) and none called default; "
            """name one: --template-kwargs '{"chat_template": "NAME"}'"""
        )
    return str(several[name])


def _other_part(content: Any) -> str:
    """What a content holds beside text; empty for nothing."""
    if not isinstance(content, list | tuple):
        return ""
    for part in content:
        kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            return f"a part of the kind {kind!r}"
    return ""


_templates: WeakKeyDictionary[Any, dict[str, Template]] = WeakKeyDictionary()


def template_of(
    tokenizer: Any,
    rendering: Rendering,
    kwargs: Mapping[str, Any] | None = None,
    tools: Sequence[Any] | None = None,
) -> Template:
    """A tokenizer's chat template, with what was found out about it before.

    Raises:
        ModelError: there is none.
    """
    special = getattr(tokenizer, "special_tokens_map", None)
    key = json.dumps(
        [str(tokenizer.chat_template), special, vars(rendering), kwargs, tools],
        sort_keys=True,
        default=repr,
    )
    known = _templates.setdefault(tokenizer, {})
    if key not in known:
        if len(known) >= REMEMBERED:
            known.clear()
        known[key] = Template(tokenizer, rendering, kwargs, tools)
    return known[key]


def record_of(tokenizer: Any, rendering: Rendering) -> dict[str, Any]:
    """What of a run's rendering is not as usual, and the date where the template asks for it: for
    files that say how they were made."""
    asked = (
        bool(getattr(tokenizer, "chat_template", None))
        and template_of(tokenizer, rendering).told_the_date
    )
    return {**rendering.record(), **({"date": rendering.date} if asked else {})}
