"""Who said what: chats in the spellings that people have, as messages of `role` and `content`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..errors import DataError
from .files import shown

ROLES = {
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bot", "model", "bing", "bard"), "assistant"),
    "system": "system",
    **dict.fromkeys(("tool", "observation", "function_response", "function"), "tool"),
}
"""Who speaks in ShareGPT's files, by a template's names."""
PARTS = {"text", "input_text", "output_text"}
MARK = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def key(name: object) -> str:
    """A column's name without case, with `_` for blanks."""
    return re.sub(r"\s+", "_", str(name).strip().lstrip("\ufeff").casefold())


def chat_of(value: Any, name: str, where: str) -> tuple[Any, str]:
    """A value with its chats as lists of `role` and `content`, and what was taken for what; anything
    that is no chat comes back as it is.

    Raises:
        DataError: a speaker that is not known, or content that is no text.
    """
    if isinstance(value, Mapping):
        inner = next((n for n in ("messages", "conversations", "conversation") if n in value), None)
        if inner:
            return chat_of(value[inner], name, where)
        if not ({"role", "content"} <= value.keys() or {"from", "value"} <= value.keys()):
            return value, ""
        value = [value]
    if not isinstance(value, list | tuple) or not all(isinstance(m, Mapping) for m in value):
        return value, ""
    if value and all("text" in m and "role" not in m and "from" not in m for m in value):
        return text_of_parts(value, f"{where}: column {name!r}"), ""
    found, said = [], ""
    for number, message in enumerate(value, 1):
        place = f"{where}: column {name!r}, message {number}"
        if "from" in message and "value" in message and "role" not in message:
            role = ROLES.get(str(message["from"]).casefold())
            if role is None:
                raise DataError(
                    f"{place}: from {shown(message['from'])}: expected one of {', '.join(ROLES)}"
                )
            message, said = {"role": role, "content": message["value"]}, "chats are ShareGPT's"
        if isinstance(message.get("content"), list | tuple):
            message = {**message, "content": text_of_parts(message["content"], place)}
        found.append(message)
    return found, said


def text_of_parts(value: Any, place: str = "") -> Any:
    """Content in parts (`[{"type": "text", "text": ...}]`) as one text; other values as they are.

    Raises:
        DataError: a part that is no text (an image, a sound).
    """
    if not isinstance(value, list | tuple):
        return value
    texts = []
    for part in value:
        text = part.get("text") if isinstance(part, Mapping) else part
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        if not isinstance(kind, str) or kind not in PARTS or not isinstance(text, str):
            raise DataError(f"{place}: content: expected parts of text, given {shown(part)}")
        texts.append(text)
    return "".join(texts)


def turns_of(text: str) -> list[dict[str, str]]:
    """A prompt in plain text as messages: the turns that HelpSteer (`<extra_id_1>User`) or HH
    (`\\n\\nHuman:`) mark in it, or one message of the user."""
    if MARK.search(text):
        first, *rest = MARK.split(text)
        turns = [("User", first), *zip(rest[::2], rest[1::2], strict=True)]
    elif text.lstrip().startswith("Human:"):
        _, *rest = TURN.split(text if text.startswith("\n\n") else text.lstrip())
        turns = [(w, said.strip()) for w, said in zip(rest[::2], rest[1::2], strict=True)]
    else:
        turns = [("User", text)]
    while turns and not turns[-1][1].strip() and len(turns) > 1:
        turns.pop()
    return [
        {"role": "assistant" if who == "Assistant" else "user", "content": said}
        for who, said in turns
        if said.strip() or len(turns) == 1
    ]
