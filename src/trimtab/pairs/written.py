"""What was written down for this project: data files beside the code, read when they are first asked for."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent / "data"


@cache
def written(name: str) -> Any:
    """The values of `data/NAME.yaml`: not to be changed."""
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))


def cells(lines: str) -> list[list[str]]:
    """Lines of `a | b | …` as lists of texts."""
    return [[cell.strip() for cell in line.split(" | ")] for line in lines.strip().splitlines()]
