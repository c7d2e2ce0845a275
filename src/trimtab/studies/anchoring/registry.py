"""All experiments by name, as `experiments.yaml` has them: what each is. Nothing of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimtab.config_files import read_yaml
from trimtab.errors import ConfigError, near


@dataclass(frozen=True)
class Entry:
    """An experiment as lists have it."""

    name: str
    title: str
    about: str
    seeds: int = 10
    """Seeds where none are asked for."""
    kind: str = "colour"
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What is its own, of a colour model."""
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By title, the caption of each table, and its header where that is always the same."""

    def table(self, title: str, rows: Sequence[Any], *header: str, **more: Any) -> dict[str, Any]:
        """A table, ready to be shown."""
        given = self.tables[title]
        head = {"title": title, "caption": given["caption"], "header": header or given["header"]}
        return {**head, "rows": rows, **more}

    def said(self, seeds: int) -> str:
        """What it is about, of a run on so many seeds."""
        return self.about.replace("{seeds}", f"{seeds} seed{'' if seeds == 1 else 's'}")


def _entry(name: str, given: Mapping[str, Any]) -> Entry:
    seeds = 0 if given.get("kind") == "figure" else given.get("seeds", 10)
    known = {k: v for k, v in given.items() if k in ("title", "about", "kind", "tables")}
    rest = {k: v for k, v in given.items() if k not in (*known, "seeds")}
    return Entry(name, **known, seeds=seeds, settings=rest)


ENTRIES = {
    name: _entry(name, given)
    for name, given in read_yaml(Path(__file__).parent / "experiments.yaml").items()
    if not name.startswith(".")
}
"""In the order of the series; a figure has 0 seeds."""


def entry(name: str) -> Entry:
    """An experiment. Raises ConfigError where there is none of this name."""
    if name not in ENTRIES:
        raise ConfigError(
            f"unknown experiment {name!r}{near(name, ENTRIES)} (known: {', '.join(ENTRIES)})"
        )
    return ENTRIES[name]
