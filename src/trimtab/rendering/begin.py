"""Where an answer begins behind a generation prompt: what a suffix that is put there stands behind."""

from __future__ import annotations

from typing import Literal

from trimtab.errors import ConfigError
from trimtab.rendering.template import Template
from trimtab.rendering.tokens import ids_of

Where = Literal["template", "inside", "after"]
"""Where a suffix stands in the answer of a reasoning model: wherever the chat template begins an
answer, inside the thinking part, or after an empty one."""


def begin_answer(template: Template, head: str, where: Where = "template") -> str:
    """Text between a generation prompt and a suffix: the rest of the answer's header where the prompt
    leaves it open (`<|start|>assistant` without a channel), and what `where` asks for.

    Raises:
        ConfigError: thinking is asked of a template without any, or of one whose generation prompt
            closes it.
    """
    rest = template.answered()[0]
    rest = rest.removeprefix(template.opening()) if rest.startswith(template.opening()) else ""
    tags, begun = template.thinking, template.begun(head)
    thinks = tags is not None and tags.close.strip() in rest
    marked = any(t in template.marks for t in ids_of(rest, template.tokenizer)) and not thinks
    if where == "template":
        return rest if marked and begun is None else ""
    if tags is None:
        raise no_thinking(where)
    if where == "inside":
        if begun is False:
            raise ConfigError(
                "thinking='inside': the chat template closes the thinking part itself"
            )
        return "" if begun else tags.open
    if begun is not None:
        return tags.close if begun else ""
    return rest if marked else tags.open + tags.close


def no_thinking(where: Where) -> ConfigError:
    """The error where there is no thinking part."""
    return ConfigError(
        f"thinking={where!r}: the model's chat template has no <think> part, or one of another name; "
        "leave it out for models that do not reason"
    )
