"""HTML pages from their templates, in the one frame and with the two themes that all of them have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from trimtab.report import figures, wording

HERE = Path(__file__).parent


def render(template: str, **values: Any) -> str:
    """A template of this folder, which extends `frame.html`. Every text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["label"] = wording.label
    return environment.get_template(template).render(
        css=(HERE / "page.css").read_text(encoding="utf-8"),
        light=figures.variables(figures.LIGHT),
        dark=figures.variables(figures.DARK),
        sans=figures.SANS,
        adjusted=wording.ADJUSTED,
        **values,
    )
