"""What a whole run says about how chats become text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date as Day
from typing import Any, Literal

from trimtab.errors import ConfigError
from trimtab.foreign import parse_json

PromptStyle = Literal["plain", "chat"]

PINNED = "2025-01-01"
"""The date that templates are told unless another one is asked for: any day gives the same bytes."""


RESERVED = {
    *("conversation", "messages", "tools", "documents", "add_generation_prompt", "tokenize"),
    *("continue_final_message", "padding", "truncation", "max_length", "return_tensors"),
    *("return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "processor_kwargs"),
}
"""Arguments of `apply_chat_template` that are the renderer's own."""


def check_variables(names: Iterable[str]) -> None:
    """Raise ConfigError where a variable of the chat template is an argument of what runs it."""
    if taken := sorted(RESERVED.intersection(names)):
        raise ConfigError(
            f"chat template variables: {taken[0]!r} says how a template is run, which follows from the "
            "messages; leave it out" + (" (tools have a column)" if taken[0] == "tools" else "")
        )


@dataclass(frozen=True)
class Rendering:
    """How chats become text, for a whole run."""

    system_role: Literal["template", "fold"] = "template"
    """What becomes of a system message that the chat template refuses or leaves out: an error, or
    `fold`: its text goes before the first user message, with an empty line between."""
    template_kwargs: str = "{}"
    """Variables of the chat template, as JSON: '{"enable_thinking": false}'. A row's own
    chat_template_kwargs come on top."""
    date: str = PINNED
    """The date that a chat template is told, as 2025-01-01, or `today`."""

    def __post_init__(self) -> None:
        given: Any = self.template_kwargs
        try:
            found = dict(given) if isinstance(given, Mapping) else parse_json(given or "{}")
            text = json.dumps(found, sort_keys=True, ensure_ascii=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"template_kwargs {given!r}: not JSON ({error})") from None
        if not isinstance(found, dict):
            raise ConfigError(f"template_kwargs {given!r}: expected an object of names and values")
        check_variables(found)
        object.__setattr__(self, "template_kwargs", text)
        try:
            day = Day.today() if self.date == "today" else Day.fromisoformat(self.date)
        except (TypeError, ValueError):
            raise ConfigError(f"date {self.date!r}: expected one like {PINNED}, or today") from None
        object.__setattr__(self, "date", day.isoformat())
        if self.system_role not in ("template", "fold"):
            raise ConfigError(f"system_role {self.system_role!r}: expected template or fold")

    @property
    def kwargs(self) -> dict[str, Any]:
        """The variables of the chat template."""
        return json.loads(self.template_kwargs)

    def record(self) -> dict[str, Any]:
        """What differs from the default, for files that say how they were made."""
        mine = {"system_role": self.system_role, "date": self.date, "template_kwargs": self.kwargs}
        usual = {"system_role": "template", "date": PINNED, "template_kwargs": {}}
        return {k: v for k, v in mine.items() if v != usual[k]}


USUAL = Rendering()
