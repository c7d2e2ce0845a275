"""What cells of every study share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from trimtab import models


class Models:
    """The model that was loaded last; other suites on it need not load it again."""

    def __init__(self) -> None:
        self.last: tuple[tuple[str, str, str], tuple[Any, Any]] | None = None

    def get(self, name: str, dtype: str, device: str) -> tuple[Any, Any]:
        """Model and tokenizer."""
        key = (name, dtype, device)
        if self.last is None or self.last[0] != key:
            self.last = None  # two models may not fit in memory
            self.last = (key, models.load(name, dtype=dtype, device=device))
        return self.last[1]


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads of torch for as long as it lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
