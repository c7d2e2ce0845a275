"""TRL preference data: `prompt`, `chosen`, `rejected` as plain text or as chat messages.

The prompt may be implicit (both answers begin with it). `tools` and `chat_template_kwargs` act row by
row as in TRL; `system` goes before the messages. Two more columns are ours: `item`, the name that
pairs of one multi-response item share, and `concept`. These are the user's own files, so an empty
answer or one that equals the other is an error at its line, never left out in silence; what is
unusual and can be read all the same is said (`notes`).

Contrasts come the same way: `positive` and `negative`, whole sequences without a prompt, or what the
user asks where there is a `suffix`, the beginning of the answer that both go on with.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import DataError
from ..foreign import Malformed, parse_json
from .files import (
    column,
    digest_of,
    implicit_prompt,
    is_empty,
    plain,
    shown,
    text_of,
)
from .pair import Messages, Pair, Text
from .personas import contrast_row

COLUMNS = ("prompt", "chosen", "rejected", "item", "concept")
CONTRAST = ("positive", "negative", "suffix")
SETTING = ("system", "tools", "chat_template_kwargs")


def without_prompt(pair: Pair) -> Pair | None:
    """The pair with its prompt once, where both answers begin with it, or with its last turns."""
    prompt, chosen, rejected = pair.prompt, pair.chosen, pair.rejected
    if isinstance(prompt, str) or isinstance(chosen, str) or isinstance(rejected, str):
        texts = prompt, chosen, rejected
        if not prompt or not all(isinstance(t, str) and t.startswith(str(prompt)) for t in texts):
            return None
        cut = len(prompt)
    else:
        # Of a chat the answers may repeat the last turns alone (the system text left out).
        same = (
            n
            for n in range(len(prompt), 0, -1)
            if prompt[-n:] == chosen[:n] == rejected[:n]
            and any(m["role"] == "user" for m in chosen[:n])
        )
        cut = next(same, 0)
    rest = replace(pair, chosen=chosen[cut:], rejected=rejected[cut:])
    return None if not cut or is_empty(rest.chosen) or is_empty(rest.rejected) else rest


def to_pair(row: Mapping[str, object], where: str, number: int) -> Pair:
    """One row as a pair; `number` names the item where the prompt is empty."""
    setting = setting_of(row, where)
    if "positive" in row and "chosen" not in row:
        negative = column(row, "negative", where)
        pair = contrast_row(row["positive"], negative, row.get("suffix"), where)
        return _checked(replace(pair, **setting))
    chosen = answer(column(row, "chosen", where), "chosen", where)
    rejected = answer(column(row, "rejected", where), "rejected", where)
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise DataError(f"{where}: one answer is plain text, the other chat messages")
    for name, text in (("chosen", chosen), ("rejected", rejected)):
        if is_empty(text):
            raise DataError(f"{where}: column {name!r} is an empty answer")
    if chosen == rejected:
        raise DataError(f"{where}: chosen equals rejected ({shown(text_of(chosen))})")

    prompt: Text
    given = row.get("prompt")
    if given is None:
        prompt, chosen, rejected = implicit_prompt(chosen, rejected)
    elif isinstance(chosen, str):
        prompt = plain(given, "prompt", where)
    elif not isinstance(given, str):
        prompt = chat(given, "prompt", where)
    else:
        # As TRL does: a plain prompt beside whole dialogues only repeats their first turn.
        prompt, chosen, rejected = implicit_prompt(chosen, rejected)
        if given.strip() and not prompt:
            raise DataError(
                f"{where}: the prompt is plain text while the answers are chat messages that do "
                "not begin with it; give the prompt as messages too"
            )

    concept = row.get("concept")
    pair = Pair(
        prompt,
        chosen,
        rejected,
        item="",
        concept=None if concept is None else plain(concept, "concept", where),
        source=where,
        **setting,
    )
    item = row.get("item")
    if item is None:
        item = f"row {number}"
        if prompt:
            item = digest_of(prompt) if not pair.setting else digest_of(pair.setting + repr(prompt))
    elif isinstance(item, bool) or not isinstance(item, str | int):
        raise DataError(f"{where}: column 'item': expected text or an integer, given {shown(item)}")
    return _checked(replace(pair, item=str(item)))


def _checked(pair: Pair) -> Pair:
    """The pair, if its roles are in their places."""
    where = pair.source
    if isinstance(pair.chosen, str) or isinstance(pair.rejected, str):
        if pair.system and not pair.prompt:
            raise DataError(f"{where}: column 'system' beside plain text without a prompt")
        return pair
    for name, found in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        whole = (*pair.prompt, *found) if not isinstance(pair.prompt, str) else found
        if pair.system and whole[0]["role"] == "system":
            if whole[0]["content"] != pair.system:
                raise DataError(
                    f"{where}: column 'system' and the system message of the chat differ; give one"
                )
            return _checked(replace(pair, system=None))
        # Whole sequences (no prompt) may be all of the user's.
        ends = {0: found[0]["role"], len(found) - 1: found[-1]["role"]} if pair.prompt else {}
        for at, role in ends.items():
            if role in ("user", "system") and not _repeats(pair, at):
                raise DataError(
                    f"{where}: column {name!r}, message {at + 1} has the role {role!r}: an answer "
                    "begins and ends with the assistant's messages"
                )
    return pair


def _repeats(pair: Pair, at: int) -> bool:
    """Whether the answers' first message repeats the prompt, which is cut later."""
    return at == 0 and without_prompt(pair) is not None


def answer(value: object, name: str, where: str) -> Text:
    """Plain text or chat messages."""
    return value if isinstance(value, str) else chat(value, name, where)


def chat(value: object, name: str, where: str) -> Messages:
    """Chat messages: a list of objects with `role` and `content`, both text.

    Keys without a value (a data set with several kinds of messages fills them in) are dropped; a
    message that calls tools may have no content.
    """
    if not isinstance(value, list | tuple):
        raise DataError(
            f"{where}: column {name!r}: expected text or a list of chat messages, "
            f"given {shown(value)}"
        )
    found = []
    for i, message in enumerate(value, 1):
        calls = isinstance(message, Mapping) and message.get("tool_calls")
        if not isinstance(message, Mapping) or not {"role", "content"} <= (
            set(message) | ({"content"} if calls else set())
        ):
            raise DataError(
                f"{where}: column {name!r}, message {i}: expected an object with 'role' and "
                f"'content', given {shown(message)}"
            )
        fields = {k: v for k, v in message.items() if v is not None or k in ("role", "content")}
        if calls:
            said = {"role": fields["role"], "content": fields.get("content") or ""}
            fields = said | {k: v for k, v in fields.items() if k not in said}
        for key in ("role", "content"):
            if not isinstance(fields[key], str):
                raise DataError(
                    f"{where}: column {name!r}, message {i}: expected text as {key!r}, "
                    f"given {shown(fields[key])}"
                )
        found.append(fields)
    return tuple(found)


def setting_of(row: Mapping[str, object], where: str) -> dict[str, Any]:
    """System text, tools and values for the chat template, by the names that pairs have for them: the
    latter two also as their JSON text."""
    system = row.get("system")
    if isinstance(system, str) and not system.strip():
        system = None
    return {
        "system": None if system is None else plain(system, "system", where),
        "tools": _parsed(row, "tools", (list, Mapping, "a list of schemas"), where),
        "chat_template_kwargs": _parsed(
            row, "chat_template_kwargs", (Mapping, str, "an object"), where
        ),
    }


def _parsed(
    row: Mapping[str, object], name: str, kinds: tuple[type, type, str], where: str
) -> Any | None:
    """A column's value, or that of its JSON text; None where there is none.

    Args:
        kinds: what it is to be, and each of what it holds; and both in words.
    """
    given: Any = row.get(name)
    value, (outer, inner, words) = given, kinds
    if isinstance(given, str):
        with contextlib.suppress(Malformed):
            value = parse_json(given) if given.strip() else None
    if not value:
        return None
    if not isinstance(value, outer) or not all(isinstance(each, inner) for each in value):
        raise DataError(f"{where}: column {name!r}: expected {words}, given {shown(given)}")
    return dict(value) if isinstance(value, Mapping) else value
