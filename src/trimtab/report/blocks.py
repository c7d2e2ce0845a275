"""What a page is made of. A page is written once, as blocks; `render` shows it as Markdown, as HTML, on
the console.

Words are Markdown; whatever comes from results or from users goes through `plain` or `code` first, so
that it stands as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Flag
from pathlib import Path

from trimtab.report.looks import Look
from trimtab.report.svg import Panel


class On(Flag):
    """Renderings that show a block."""

    MARKDOWN = 1
    HTML = 2
    CONSOLE = 4
    PAGES = MARKDOWN | HTML
    ALL = MARKDOWN | HTML | CONSOLE


@dataclass(frozen=True)
class Text:
    """Paragraphs, lists or code in Markdown."""

    words: str
    on: On = On.PAGES
    lead: bool = False
    """Set large: the answer."""


@dataclass(frozen=True)
class Table:
    """A row a line. A cell is Markdown; HTML sets what stands in brackets at its end beneath it."""

    header: Sequence[str]
    """Plain text; of two lines, HTML and the console show both."""
    rows: Sequence[Sequence[str]]
    numeric: tuple[int, int | None] = (1, None)
    """Columns of figures: from, and up to (not included)."""
    on: On = On.ALL
    words: bool = False
    """Cells are plain text at length, such as answers of models."""
    grouped: bool = False
    """Rows with the same first cell belong together."""

    def __post_init__(self) -> None:
        if not self.header or any(len(row) != len(self.header) for row in self.rows):
            raise ValueError("a table whose rows are not as long as its header")

    @property
    def figures(self) -> range:
        """The columns of figures."""
        start, stop = self.numeric
        return range(start, len(self.header) if stop is None else stop)


@dataclass(frozen=True)
class Figure:
    """Panels side by side. In Markdown all figures of a page are one file, shown where the first is."""

    panels: Sequence[Panel]
    about: str = ""
    """What it shows, for who cannot see it."""
    caption: str = ""
    columns: int = 3
    legend: Sequence[str] = ()
    """Names of `Page.looks`."""
    on: On = On.PAGES


@dataclass(frozen=True)
class Section:
    """Blocks under a heading."""

    title: str
    blocks: Sequence[Block]
    on: On = On.ALL
    folded: bool = False
    """HTML opens it on demand."""
    level: int = 2


Block = Text | Table | Figure | Section


@dataclass(frozen=True)
class Page:
    """A page. `looks` gives names in tables and lists their colour and marker."""

    title: str
    blocks: Sequence[Block]
    kicker: str = ""
    looks: Mapping[str, Look] = field(default_factory=dict)


def shown(blocks: Sequence[Block], on: On) -> Iterator[Block]:
    """The blocks of a rendering; a section, figure or table without anything in it is none."""
    for block in blocks:
        filled = not isinstance(block, Section) or any(True for _ in shown(block.blocks, on))
        empty = (isinstance(block, Figure) and not block.panels) or (
            isinstance(block, Table) and not block.rows
        )
        if block.on & on and filled and not empty:
            yield block


def walked(blocks: Sequence[Block], on: On) -> Iterator[Block]:
    """The blocks of a rendering in reading order: a section, then what is in it."""
    for block in shown(blocks, on):
        yield block
        if isinstance(block, Section):
            yield from walked(block.blocks, on)


def plain(text: str) -> str:
    """Text that Markdown shows as it stands, on one line."""
    for character in "\\`*_<>|":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.replace("](", "\\](").split())


def code(text: str) -> str:
    """A text on one line as code, whatever backticks it has."""
    text = " ".join(text.split())
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    if not longest:
        return f"`{text}`"
    return f"{'`' * (longest + 1)} {text} {'`' * (longest + 1)}"


def fenced(text: str) -> str:
    """A text as a block of code."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"


def listed(lines: Sequence[str]) -> Text:
    """A list."""
    return Text("\n".join(f"- {line}" for line in lines))


def reading(page: str) -> Text:
    """How to read the tables of a page: a text that no result changes, in `reading_PAGE.md`."""
    file = Path(__file__).with_name(f"reading_{page}.md")
    return Text(file.read_text(encoding="utf-8").rstrip())
