"""With which versions the cells of a study were made."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trimtab.progress import Progress

VERSIONS = "versions"
"""Key of a cell's file that names them. Cells of earlier forms lack it."""


def made_with(cells: Iterable[tuple[str, Mapping[str, str]]]) -> tuple[dict[str, str], list[str]]:
    """The versions that a study may claim, and what is to be said where its cells are of several.

    Args:
        cells: each cell's label and versions, by package.

    Returns:
        Versions by package, several of one joined, and caveats.
    """
    by_package: dict[str, dict[str, list[str]]] = {}
    for label, versions in cells:
        for package, version in versions.items():
            by_package.setdefault(package, {}).setdefault(version, []).append(label)
    said = [
        f"{package} " + ", ".join(f"{v} ({_some(labels)})" for v, labels in found.items())
        for package, found in by_package.items()
        if len(found) > 1
    ]
    mixed = [f"Not all was made with the same versions: {'; '.join(said)}."] if said else []
    return {package: ", ".join(found) for package, found in by_package.items()}, mixed


def _some(labels: list[str]) -> str:
    return labels[0] if len(labels) == 1 else f"{labels[0]} and {len(labels) - 1} more"


def say_older(files: Iterable[Path], progress: Progress) -> None:
    """A line where cells of an earlier form lie in a study's folder: their names know neither config
    nor tokenizer of the model, so that they are not used again."""
    older = [file for file in files if VERSIONS not in _read(file)]
    if older:
        progress.say(
            f"{older[0].parent}{' and others' if len(older) > 1 else ''}: {len(older)} done by an "
            "earlier version of trimtab, which did not tell models apart by config, tokenizer and "
            "template: not used again"
        )


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {VERSIONS: {}}  # being written, or damaged: no matter of age
    return found if isinstance(found, dict) else {}
