"""The three renderings of a page's blocks: Markdown with a figure beside it, HTML, the console."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text as RichText

from trimtab import files
from trimtab.errors import TrimtabError
from trimtab.report import svg
from trimtab.report.blocks import Figure, On, Page, Section, Table, Text, plain, walked
from trimtab.report.html import bare, html, interval_of

WIDTH = 100
"""Columns of the console that tables take at most."""

STYLES = {"better": "green", "worse": "red", "cannot tell": "dim"}


def write(page: Page, path: Path, to: On = On.MARKDOWN) -> Path:
    """Write a page as Markdown, with its figure as `NAME.svg` beside it, or as HTML.

    Same page, same bytes. Files are written aside and renamed.

    Raises:
        TrimtabError: it cannot be written; what was there stays.
    """
    if to == On.HTML:
        _write(path, html(page))
        return path
    path = path if path.suffix == ".md" else path.with_name(f"{path.name}.md")
    drawn = [b for b in walked(page.blocks, On.MARKDOWN) if isinstance(b, Figure)]
    if drawn:
        panels = [panel for figure in drawn for panel in figure.panels]
        _write(path.with_suffix(".svg"), svg.sheet(panels, drawn[0].columns))
    _write(path, markdown(page, path.with_suffix(".svg").name))
    return path


def _write(path: Path, text: str) -> None:
    try:
        files.write_text(path, text)
    except OSError as error:
        raise TrimtabError(f"{path}: cannot be written ({error.strerror or error})") from error


# ---- Markdown -----------------------------------------------------------------------------------


def markdown(page: Page, figure: str) -> str:
    """A page as Markdown; `figure` is the name of the file beside it."""
    parts, drawn = [f"# {page.title}"], False
    for block in walked(page.blocks, On.MARKDOWN):
        if isinstance(block, Section):
            parts.append(f"{'#' * block.level} {block.title}")
        elif isinstance(block, Figure):
            file = figure.replace(" ", "%20")
            shown = [] if drawn else [f"![{block.about}]({file})"]
            parts += [*shown, *([block.caption] if block.caption else [])]
            drawn = True
        else:
            parts.append(block.words if isinstance(block, Text) else _table(block))
    return "\n\n".join(parts) + "\n"


def _table(table: Table) -> str:
    """A Markdown table whose columns line up in the source, too."""
    rows = [[plain(cell) for cell in row] if table.words else row for row in table.rows]
    cells = [[plain(h.partition("\n")[0]) for h in table.header], *rows]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(table.header))]
    rule = [f"{'-' * (w - 1)}:" if i in table.figures else "-" * w for i, w in enumerate(widths)]
    lines = []
    for row in [cells[0], rule, *cells[1:]]:
        padded = [
            text.rjust(width) if i in table.figures else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"| {' | '.join(padded)} |")
    return "\n".join(lines)


# ---- the console --------------------------------------------------------------------------------


def console(page: Page) -> RenderableType:
    """A page's tables and what goes with them, at most `WIDTH` columns wide."""
    parts: list[RenderableType] = []
    for block in walked(page.blocks, On.CONSOLE):
        if isinstance(block, Section):
            parts.append(RichText(bare(block.title), "bold"))
        elif isinstance(block, Text):
            parts.append(RichText(bare(block.words), "" if block.lead else "dim"))
        elif isinstance(block, Table):
            parts.append(_OnConsole(block))
    return Group(*parts)


@dataclass(frozen=True)
class _OnConsole:
    """A table, in as many pieces as the console is narrow."""

    table: Table

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        yield from _pieces(self.table, min(WIDTH, options.max_width))


def _pieces(table: Table, room: int) -> Iterator[RenderableType]:
    """As many tables as the width takes: each begins with the column of names."""
    rows = [[bare(cell) for cell in row] for row in table.rows]
    short = [[cell.replace(" in this run", "*") for cell in row] for row in rows]
    widths = [
        max(map(len, [*(row[i] for row in short), *table.header[i].split("\n")]))
        for i in range(len(table.header))
    ]
    names = min(2 if table.grouped else 1, len(widths) - 1)
    widths[:names] = [min(width, 24) for width in widths[:names]]
    start = names
    while start < len(widths):
        stop, used = start, sum(widths[:names]) + 2 * names
        while stop < len(widths) and (stop == start or used + widths[stop] + 2 <= room):
            used += widths[stop] + 2
            stop += 1
        yield _piece(table, short, [*range(names), *range(start, stop)], widths)
        start = stop
    if short != rows:
        yield RichText("* in this run: fewer than 5 seeds say nothing about other seeds", "dim")


def _piece(
    table: Table, rows: Sequence[Sequence[str]], columns: Sequence[int], widths: Sequence[int]
) -> RichTable:
    piece = RichTable(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False, header_style="")
    for i in columns:
        name, _, under = table.header[i].partition("\n")
        head = RichText(name).append(f"\n{under}" if under else "", "dim")
        justify = "right" if i in table.figures else "left"
        piece.add_column(head, justify=justify, no_wrap=True, max_width=widths[i])
    before = ""
    for row in rows:
        cells = [_on_console_cell(row[i]) for i in columns]
        if table.grouped and row[0] == before:
            cells[0] = RichText("")
        before = row[0]
        piece.add_row(*cells)
    return piece


def _on_console_cell(cell: str) -> RichText:
    style = STYLES.get(cell.rstrip("*"))
    value, interval = interval_of(cell)
    if style or not interval:
        return RichText(cell, style or "")
    return RichText(value).append(f" [{interval}]", "dim")
