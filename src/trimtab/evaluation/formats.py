"""In which format a model with a dial is given its prompts: the one that the dial was fitted in.

A dial fitted on plain text and used behind a chat template (or the other way round) acts on states
that it has never seen: a condition then fires where it should rest, a reward head ranks by chance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from trimtab.dials import Dial
from trimtab.dials.dial import members
from trimtab.pairs.pair import Pair, Text
from trimtab.pairs.prompts import Prompt
from trimtab.rendering import USUAL, Ids, Rendering, end_ids, prompt_ids

Style = Literal["auto", "plain", "chat"]
"""Plain text as it stands, a user message of the chat template, or that where there is one."""


@dataclass(frozen=True)
class Format:
    """How prompts are written, and what is to be said of it.

    Attributes:
        said: why, where a dial decides; empty where somebody asked for it or nobody did.
    """

    style: Style = "auto"
    rendering: Rendering = USUAL
    said: str = ""

    def templated(self, tokenizer: Any, prompt: Text | Prompt | Pair) -> bool:
        """Whether a prompt goes through the chat template."""
        has = bool(getattr(tokenizer, "chat_template", None))
        text = Prompt.of(prompt).text
        return not isinstance(text, str) or self.style == "chat" or (self.style == "auto" and has)

    def marker(self, tokenizer: Any, prompt: Text | Prompt | Pair) -> int | None:
        """The id that ends an answer in this format, as where rewards were learned: the template's end
        of turn, or EOS."""
        ends = self.ends(tokenizer, prompt) if self.templated(tokenizer, prompt) else ()
        return ends[0] if ends else tokenizer.eos_token_id

    def ends(self, tokenizer: Any, prompt: Text | Prompt | Pair) -> Ids:
        """The ids that end an answer by the chat template (see `rendering.end_ids`)."""
        p = Prompt.of(prompt)
        return end_ids(tokenizer, self.rendering, p.chat_template_kwargs, p.tools)

    def ids(self, tokenizer: Any, prompt: Text | Prompt | Pair) -> list[int]:
        """Token ids of a prompt, up to where the answer begins (see `rendering.prompt_ids`)."""
        p = Prompt.of(prompt)
        return list(
            prompt_ids(
                p.text,
                tokenizer,
                self.style,
                rendering=self.rendering,
                system=p.system,
                tools=p.tools,
                template_kwargs=p.chat_template_kwargs,
                where=p.source,
            )
        )


def format_for(
    dials: Sequence[Dial | None], style: Style | None = None, rendering: Rendering | None = None
) -> Format:
    """The format for a model with some dials: what is asked for, else what the first of them was
    fitted in, conditions before dials (a row that is judged wrongly is lost whole), else `auto`."""
    found = [(name, *known) for name, known in _records(dials)]
    name, fitted, made = next(iter(found), ("", None, USUAL))
    said = ""
    if fitted is not None and style is None:
        what = "through the chat template" if fitted == "chat" else "as plain text"
        said = f"prompts go in {what}, as {name} was fitted (--prompt-style to change)"
        if other := [n for n, s, _ in found if s != fitted]:
            said += f"; {', '.join(other)} was fitted otherwise"
    return Format(style or fitted or "auto", rendering or made, said)


def _records(
    dials: Sequence[Dial | None],
) -> Iterator[tuple[str, tuple[Style, Rendering]]]:
    """What conditions and dials say of the format they were fitted in, by name."""
    each = [d for dial in dials if dial is not None for d, _ in members(dial)]
    for dial in each:
        condition = getattr(dial, "condition", None)
        if condition is not None and condition.prompt_style:
            made = Rendering(**condition.rendering)
            yield f"the condition of {_name(dial)}", (condition.prompt_style, made)
    for dial in each:
        config = dial.info.config
        style = config.get("read_as") or config.get("prompt_style")
        if style in ("plain", "chat"):
            yield _name(dial), (cast(Style, style), Rendering(**config.get("rendering", {})))
        elif dial.info.method:  # from before it was written down
            yield _name(dial), ("plain", USUAL)


def _name(dial: Dial) -> str:
    return f"the dial {dial.info.method or dial.kind}"
