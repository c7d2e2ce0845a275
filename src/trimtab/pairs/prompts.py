"""Prompts on their own: what a model is asked to continue."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import DataError
from .files import json_lines, json_value, read_text, shown
from .pair import Pair, Text
from .said import chat_of
from .trl import chat, setting_of

NAMED = ("prompt", "instruction", "question", "messages", "turns", "conversations")
"""Where an object of a file of prompts may hold its prompt."""

UIDS = ("uid", "question_id")
"""Where it may say what it is called."""


@dataclass(frozen=True)
class Prompt:
    """A text, or chat messages, and what the chat template is given beside them.

    Attributes: as those of a `Pair`.
    """

    text: Text
    system: str | None = None
    tools: list[Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    source: str | None = None
    uid: str | None = None
    """What its file calls it, so that answers can be joined with questions."""

    @classmethod
    def of(cls, given: Text | Prompt | Pair) -> Prompt:
        """A prompt from a text, a chat or a pair."""
        if isinstance(given, Pair):
            p = given
            return cls(p.prompt, p.system, p.tools, p.chat_template_kwargs, p.source)
        return given if isinstance(given, Prompt) else cls(given)

    def with_system(self, system: str | None) -> Prompt:
        """The prompt after a system text, unless it has one of its own."""
        own = self.system or (not isinstance(self.text, str) and self.text[0]["role"] == "system")
        return self if own or not system else replace(self, system=system)

    @property
    def shown(self) -> str:
        """The prompt as text: of a chat its only turn, or all turns with their roles."""
        if isinstance(self.text, str):
            return self.text
        if len(self.text) == 1:
            return self.text[0]["content"]
        return "\n\n".join(f"{m['role']}: {m['content']}" for m in self.text)


def prompts_of(pairs: Iterable[Pair]) -> list[Prompt]:
    """The prompts of pairs, each once."""
    return list({(repr(p.prompt), p.setting): Prompt.of(p) for p in pairs}.values())


def read_prompts(file: Path) -> list[Prompt]:
    """Prompts of a file: a text file has one a line; JSON a list, and JSON lines an object a line, of
    texts, of chats, or of objects that hold one as `prompt`, `instruction`, `question`, `messages`
    or `turns`, beside `system`, `tools` and `chat_template_kwargs`, as in files of pairs.

    Raises:
        DataError: it cannot be read, is not JSON, or an entry has no prompt; with file and line.
    """
    suffix = file.name.lower().removesuffix(".gz").rpartition(".")[2]
    if suffix not in ("json", "jsonl"):
        lines = enumerate(read_text(file).splitlines(), 1)
        found = [Prompt(line, source=f"{file}:{n}") for n, line in lines if line.strip()]
    else:
        found = [_prompt(entry, where) for where, entry in _entries(file, suffix)]
    if not found:
        raise DataError(
            f"{file}: there is no prompt in it; expected one a line (or give --prompt TEXT)"
        )
    return found


def _entries(file: Path, suffix: str) -> Iterator[tuple[str, object]]:
    if suffix == "jsonl":
        yield from json_lines(file)
        return
    value = json_value(read_text(file), str(file))
    if not isinstance(value, list):
        raise DataError(f"{file}: expected a list of prompts, given {shown(value)}")
    for number, entry in enumerate(value, 1):
        yield f"{file}: entry {number}", entry


def _prompt(entry: object, where: str) -> Prompt:
    row = entry if isinstance(entry, Mapping) else {}
    given = next((row[name] for name in NAMED if row.get(name) is not None), entry)
    if isinstance(given, list) and len(given) == 1 and isinstance(given[0], str):
        given = given[0]  # one turn
    given, _ = chat_of(given, "prompt", where)
    if isinstance(given, Mapping) and isinstance(given.get("content"), str):
        given = [{"role": "user", **given}]
    if isinstance(given, list) and given and all(isinstance(m, Mapping) for m in given):
        named = [{"role": "user", **m} if len(given) == 1 else m for m in given]
        text: Text = chat(named, "prompt", where)
        if text[-1]["role"] not in ("user", "tool"):
            raise DataError(
                f"{where}: the chat ends with a message of the {text[-1]['role']!r} role; expected "
                "one that is to be answered"
            )
        if not any(m["content"].strip() for m in text if m["role"] != "system"):
            raise DataError(f"{where}: the prompt is empty")
    elif isinstance(given, str) and given.strip():
        text = given
    else:
        raise DataError(
            f"{where}: expected a text, or an object with prompt, instruction, question, messages "
            f"or turns, given {json.dumps(given, ensure_ascii=False, default=str)[:60]}"
        )
    uid = next((row[n] for n in UIDS if isinstance(row.get(n), str | int)), None)
    prompt = Prompt(
        text, **setting_of(row, where), source=where, uid=None if uid is None else str(uid)
    )
    if prompt.system and not isinstance(text, str) and text[0]["role"] == "system":
        raise DataError(f"{where}: 'system' beside a chat that has a system message; give one")
    return prompt
