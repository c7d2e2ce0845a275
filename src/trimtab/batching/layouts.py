"""How rows are laid out in batches: one layout for all, or one for each range of lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trimtab.batching.tokens import Row

BatchLayout = Literal["shared", "packed", "padded", "alone"]
"""`packed`: a line of a batch holds a prompt and all its answers; `shared`: it holds several such
rows, and what all prompts of a batch begin with is computed once for all of them; `padded`: a line a
prompt and answer; `alone`: the same, but every line runs by itself, as a plain forward pass."""


@dataclass(frozen=True)
class Arrangement:
    """Layouts by length, for models on which rows of some lengths must not share a batch.

    Attributes:
        parts: `(length, layout)`, by rising length: up to how many tokens, prompt and answer
            together, rows are laid out so. The last length is None: all longer ones.
    """

    parts: tuple[tuple[int | None, BatchLayout], ...]

    def part_of(self, row: Row) -> int | None:
        """Which part a row belongs to; None where its answers belong to different ones."""
        lengths = {self._part(len(row.prompt) + len(answer)) for answer in row.answers}
        return lengths.pop() if len(lengths) == 1 else None

    def _part(self, length: int) -> int:
        return next(n for n, (end, _) in enumerate(self.parts) if end is None or length <= end)

    def __str__(self) -> str:
        return ", ".join(f"{layout} up to {end}" for end, layout in self.parts)


Layout = BatchLayout | Arrangement
"""What a model's proof allows for rows (`layout_of`)."""


def layout_of_rows(layout: Layout, rows: Sequence[Row]) -> BatchLayout:
    """The layout of a batch of these rows. Rows of several parts go alone."""
    if not isinstance(layout, Arrangement):
        return layout
    parts = {layout.part_of(row) for row in rows}
    part = parts.pop() if len(parts) == 1 else None
    return "alone" if part is None else layout.parts[part][1]


def unshared(layout: Layout) -> Layout:
    """The layout with a line of its own for every row: `packed` where it says `shared`."""
    if isinstance(layout, Arrangement):
        return Arrangement(
            tuple((end, "packed" if kind == "shared" else kind) for end, kind in layout.parts)
        )
    return "packed" if layout == "shared" else layout
