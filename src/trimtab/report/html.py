"""A page as HTML: self-contained, no script, no request, both themes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import jinja2
from markdown_it import MarkdownIt
from markupsafe import Markup

from trimtab.report import svg
from trimtab.report.blocks import On, Page, Table, Text, shown
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
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.tests["a"] = lambda block, kind: type(block).__name__ == kind
    environment.filters |= {
        "shown": partial(shown, on=On.HTML),
        "markdown": partial(_text, looks=page.looks),
        "inline": _inline,
        "name": partial(_name, looks=page.looks),
        "row": partial(_row, looks=page.looks),
    }
    return environment.get_template("page.html").render(
        page=page,
        title=bare(page.title),
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


def _whole(words: str) -> str:
    """No line ends between a number and its per cent, or within `α = 1`."""
    return re.sub(r"(?<=\d) (?=%)|(?<=α) (?==)|(?<=α =) ", "\u00a0", words)


def _inline(text: str) -> Markup:
    return Markup(MARKDOWN.renderInline(_whole(text)))


def _name(name: str, looks: Mapping[str, Look]) -> Markup:
    """A plain name, with its marker where it has one."""
    if name not in looks:
        return Markup(escape(name))
    look = looks[name]
    own = look.colour.startswith("#")  # a colour itself, not a method's: black and white show, too
    fill = f'{look.colour}" stroke="var(--muted)' if own else f"var(--{look.colour})"
    path = f'<path d="{MARKERS.get(look.marker, LINE)}" fill="{fill}"/>'
    chip = f'<svg class="chip" viewBox="-6 -6 12 12" aria-hidden="true">{path}</svg>'
    return Markup(f'<span class="name">{chip}{escape(name)}</span>')


def _text(text: Text, looks: Mapping[str, Look]) -> Markup:
    """Markdown, with markers before the names that items of a list begin with."""
    known = {escape(name): name for name in looks}
    names = "|".join(map(re.escape, sorted(known, key=len, reverse=True))) or "(?!)"
    made = MARKDOWN.render(_whole(text.words))
    made = re.sub(rf"<li>({names})(?=[ :,;])", lambda m: f"<li>{_name(known[m[1]], looks)}", made)
    return Markup(made.replace("<p>", '<p class="lead">', 1) if text.lead else made)


def _row(table: Table, row: list[str], looks: Mapping[str, Look]) -> dict[str, Any]:
    """The name of a row, and its cells: value, interval beneath it, verdict."""
    start = 1 if table.grouped else 0
    name, cells = bare(row[start]), []
    for i, cell in enumerate(row[start + 1 :], start + 1):
        figure = i in table.figures
        value, interval = interval_of(cell) if figure else (cell, "")
        judged, run, rest = bare(cell).partition(" in this run")
        known = {"judged": judged, "kind": JUDGED.get(judged), "run": run, "rest": rest}
        cells.append({"value": value, "interval": interval, "figure": figure, **known})
    return {"name": _name(name, looks) if name in looks else _inline(row[start]), "cells": cells}
