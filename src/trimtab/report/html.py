"""A page as HTML: self-contained, no script, no request, both themes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import jinja2
from markdown_it import MarkdownIt

from trimtab.report import svg
from trimtab.report.blocks import Block, Figure, On, Page, Table, Text, shown
from trimtab.report.looks import MARKERS, Look

HERE = Path(__file__).parent
MARKDOWN = MarkdownIt("commonmark", {"html": False})
"""Tags in a text are text."""

JUDGED = {"better": "better", "worse": "worse", "cannot tell": "open"}
JUDGED |= {"pass": "better", "fail": "worse", "missed": "open"}
"""Verdicts, and how they are set."""
LINE = "M-6-1h12v2h-12Z"
"""Stands for a line without markers."""
INTERVAL = re.compile(r"(?P<bold>\*\*)?(?P<value>.+?) \[(?P<ends>[^\[\]]+)\](?(bold)\*\*)")


def html(page: Page) -> str:
    """A page as one HTML file. Every text is escaped."""

    def blocks(of: Sequence[Block]) -> str:
        return "\n".join(block(b) for b in shown(of, On.HTML))

    def block(b: Block) -> str:
        if isinstance(b, Text):
            made = _chips(MARKDOWN.render(b.words), page.looks)
            return made.replace("<p>", '<p class="lead">', 1) if b.lead else made
        if isinstance(b, Table):
            return _words(b, page.looks) if b.words else _table(b, page.looks)
        if isinstance(b, Figure):
            return _figure(b, page.looks)
        title = MARKDOWN.renderInline(b.title)
        if b.folded:
            return f"<details>\n<summary>{title}</summary>\n{blocks(b.blocks)}\n</details>"
        inner = f"<h{b.level}>{title}</h{b.level}>\n{blocks(b.blocks)}"
        return f"<section>\n{inner}\n</section>" if b.level == 2 else inner

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.html").render(
        title=bare(page.title),
        kicker=page.kicker,
        main=blocks(page.blocks),
        css=(HERE / "page.css").read_text(encoding="utf-8"),
        light=svg.variables(svg.LIGHT),
        dark=svg.variables(svg.DARK),
        sans=svg.SANS,
    )


def bare(text: str) -> str:
    """Markdown of one line without its marks."""
    tokens = MARKDOWN.parseInline(text)[0].children or []
    return "".join(" " if t.type == "softbreak" else t.content for t in tokens)


def interval_of(cell: str) -> tuple[str, str]:
    """`81.2 [70.0–90.0]` is `81.2` and its interval; a cell without one has none."""
    found = INTERVAL.fullmatch(cell)
    if not found:
        return cell, ""
    bold = found["bold"] or ""
    return f"{bold}{found['value']}{bold}", found["ends"]


def _chip(look: Look) -> str:
    own = look.colour.startswith("#")  # a colour itself, not a method's: black and white show, too
    fill = f'{look.colour}" stroke="var(--muted)' if own else f"var(--{look.colour})"
    path = f'<path d="{MARKERS.get(look.marker, LINE)}" fill="{fill}"/>'
    return f'<svg class="chip" viewBox="-6 -6 12 12" aria-hidden="true">{path}</svg>'


def _name(name: str, looks: Mapping[str, Look]) -> str:
    """A plain name, with its marker where it has one."""
    if name not in looks:
        return escape(name)
    return f'<span class="name">{_chip(looks[name])}{escape(name)}</span>'


def _chips(made: str, looks: Mapping[str, Look]) -> str:
    """Markers before the names that items of a list begin with."""
    if not looks:
        return made
    names = "|".join(re.escape(escape(n)) for n in sorted(looks, key=len, reverse=True))
    known = {escape(name): name for name in looks}
    return re.sub(rf"<li>({names})(?=[ :,;])", lambda m: f"<li>{_name(known[m[1]], looks)}", made)


def _head(table: Table) -> str:
    cells = []
    for i, name in enumerate(table.header):
        first, _, under = name.partition("\n")
        kind = "" if i in table.figures or i == 0 else ' class="text"'
        small = f"<small>{escape(under)}</small>" if under else ""
        cells.append(f'<th scope="col"{kind}>{escape(first)}{small}</th>')
    return f"<thead><tr>{''.join(cells)}</tr></thead>"


def _table(table: Table, looks: Mapping[str, Look]) -> str:
    lines, before = [], None
    for row in table.rows:
        name = bare(row[1 if table.grouped else 0])
        if table.grouped and row[0] != before:
            group = MARKDOWN.renderInline(row[0])
            wide = f'<th scope="rowgroup" colspan="{len(table.header) - 1}">{group}</th>'
            lines.append(f'<tr class="group">{wide}</tr>')
            before = row[0]
        start = 2 if table.grouped else 1
        first = row[start - 1]
        head = _name(name, looks) if name in looks else MARKDOWN.renderInline(first)
        cells = [_cell(row[i], i in table.figures) for i in range(start, len(row))]
        lines.append(f'<tr><th scope="row">{head}</th>{"".join(cells)}</tr>')
    shown = table
    if table.grouped:
        start, stop = table.numeric
        shown = Table(table.header[1:], (), (start - 1, stop and stop - 1))
    body = "\n".join(lines)
    return (
        f'<div class="scroll"><table class="figures">\n{_head(shown)}\n<tbody>\n{body}\n</tbody>'
        "</table></div>"
    )


def _cell(cell: str, figure: bool) -> str:
    value, interval = interval_of(cell)
    judged, _, run = bare(cell).partition(" in this run")
    kind = "" if figure else ' class="text"'
    if judged in JUDGED:
        more = "<small>in this run</small>" if bare(cell) != judged else ""
        return f'<td{kind}><span class="verdict {JUDGED[judged]}">{judged}</span>{more}{escape(run)}</td>'
    small = f"<small>{MARKDOWN.renderInline(interval)}</small>" if interval and figure else ""
    return f"<td{kind}>{MARKDOWN.renderInline(value if small else cell)}{small}</td>"


def _words(table: Table, looks: Mapping[str, Look]) -> str:
    """Long texts: on a narrow screen each under its column's name."""
    lines = []
    for row in table.rows:
        cells = [
            f'<td data-column="{escape(column)}">{escape(cell)}</td>'
            for column, cell in zip(table.header[1:], row[1:], strict=True)
        ]
        lines.append(f'<tr><th scope="row">{_name(row[0], looks)}</th>{"".join(cells)}</tr>')
    head = "".join(
        f'<th scope="col"{" class=narrow" if i in table.figures else ""}>{escape(column)}</th>'
        for i, column in enumerate(table.header)
    )
    body = "\n".join(lines)
    return (
        f'<table class="words">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>'
    )


def _figure(figure: Figure, looks: Mapping[str, Look]) -> str:
    names = " ".join(_name(name, looks) for name in figure.legend)
    legend = f'<p class="legend">{names}</p>\n' if names else ""
    panels = "\n".join(
        f'<div class="panel" style="max-width:{int(p.width * 1.25)}px">{p.svg}</div>'
        for p in figure.panels
    )
    caption = (
        f"\n<figcaption>{MARKDOWN.renderInline(figure.caption)}</figcaption>"
        if figure.caption
        else ""
    )
    kind = {2: "two", 3: "three"}[figure.columns]
    return f'<figure>\n{legend}<div class="panels {kind}">\n{panels}\n</div>{caption}\n</figure>'
