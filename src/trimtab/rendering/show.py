"""A rendered pair for the eye: prompt, answer, end and trailing parts marked."""

from __future__ import annotations

from typing import Any, NamedTuple

from trimtab.pairs import Pair
from trimtab.rendering.settings import USUAL, PromptStyle, Rendering
from trimtab.rendering.tokens import Rendered, render_answer
from trimtab.terminal import visible

STYLES = {
    "prompt": "dim",
    "first": "yellow",
    "content": "green",
    "end": "bold magenta",
    "trailing": "cyan",
    "not scored": "dim",
}
"""Parts of a rendered answer, and their colours: `first` is what the template puts before the content,
`not scored` are the turns of others within an answer."""


class Part(NamedTuple):
    """A stretch of a rendering: its name in `STYLES`, its text and its tokens."""

    name: str
    text: str
    tokens: int


def parts_of(found: Rendered, tokenizer: Any) -> list[Part]:
    """A rendered answer cut into its parts, in order; those without tokens are left out."""
    cuts: list[tuple[str, int, int]] = [("prompt", 0, found.turns[0].start)]
    for turn in found.turns:
        cuts += [
            ("not scored", cuts[-1][2], turn.start),
            ("first", turn.start, turn.content),
            ("content", turn.content, turn.end),
            ("end", turn.end, turn.trail),
            ("trailing", turn.trail, turn.stop),
        ]
    return [
        Part(name, tokenizer.decode(list(found.ids[a:b]), skip_special_tokens=False), b - a)
        for name, a, b in cuts
        if b > a
    ]


def rendered_pair(
    pair: Pair,
    tokenizer: Any,
    style: PromptStyle = "plain",
    rendering: Rendering = USUAL,
) -> Any:
    """A pair as tokens, for `rich`: a line a part, with how many tokens it has.

    Raises:
        DataError, ModelError: as `render_answer`.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    tables: list[Any] = []
    notes: set[str] = set()
    for name, answer in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        found = render_answer(
            pair.prompt,
            answer,
            tokenizer,
            style,
            rendering=rendering,
            system=pair.system,
            tools=pair.tools,
            template_kwargs=pair.chat_template_kwargs,
            where=pair.source,
        )
        found = found.opened() if pair.open else found
        notes |= found.notes
        table = Table.grid(padding=(0, 1))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(justify="right", style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for part in parts_of(found, tokenizer):
            if part.name == "prompt" and tables:
                continue  # the same as before
            shown = visible(part.text).replace("\n", "↵\n").removesuffix("\n")
            table.add_row(part.name, str(part.tokens), Text(shown, style=STYLES[part.name]))
        tables += ["", Text(name, style="bold underline"), table]
    scored = "scored is what follows the prompt, pooled the content, the marker the last of the end"
    return Group(*tables[1:], "", Text(scored, style="dim"), *(Text(n) for n in sorted(notes)))
