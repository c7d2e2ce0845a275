"""The result files of `trimtab dose`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.errors import TrimtabError

RANDOM, PROMPT = "random", "prompt"
"""Cells that are controls."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Doses:
    """The result files of one trait."""

    folder: Path
    about: Row
    results: list[Row]
    comparisons: list[Row]
    curves: list[Row]
    generations: list[Row]

    @property
    def trait(self) -> str:
        """Its name."""
        return self.about["trait"]

    def row(self, name: str) -> Row | None:
        """A cell's figures."""
        return next((r for r in self.results if r["name"] == name), None)

    def against(self, name: str, rival: str) -> Row | None:
        """A cell's difference from another."""
        return next(
            (c for c in self.comparisons if (c["name"], c["against"]) == (name, rival)), None
        )

    @property
    def methods(self) -> list[Row]:
        """Whole methods: neither halves nor controls."""
        return [r for r in self.results if not r["half"] and r["method"] not in (RANDOM, PROMPT)]

    @property
    def best(self) -> Row | None:
        """The method with the steepest slope per unit damage."""
        known = [r for r in self.methods if r["per_damage"] is not None]
        return max(known, key=lambda r: r["per_damage"], default=None)


def read_doses(folder: Path) -> Doses:
    """The result files of a trait.

    Raises:
        TrimtabError: one is missing or malformed.
    """
    try:
        about = json.loads((folder / "dose.json").read_text(encoding="utf-8"))
        lines = [
            [
                json.loads(x)
                for x in (folder / f"{n}.jsonl").read_text(encoding="utf-8").splitlines()
            ]
            for n in ("results", "comparisons", "curves", "generations")
        ]
        found = Doses(folder, about, *lines)
        _ = found.trait, found.best
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrimtabError(
            f"{folder}: its result files cannot be read ({type(error).__name__}: {error}); the same "
            "`trimtab dose` writes them again"
        ) from error
    return found
