"""Text of others on a terminal: shown, never obeyed."""

from __future__ import annotations

import contextlib
import sys
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

KEPT = "\n\t\u200c\u200d"
"""Line breaks, tabs, and what joins letters and emoji."""


def visible(text: str) -> str:
    """Text with its control and formatting characters written out (`\\u001b`), so that none of them
    moves the cursor, changes colours or turns the direction of writing."""
    return "".join(
        f"\\u{ord(c):04x}" if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c not in KEPT else c
        for c in text
    )


class _Shown:
    """A stream that writes text out visibly."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(visible(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """Whatever is printed while the block runs is shown, never obeyed."""
    before = sys.stdout
    if isinstance(before, _Shown):
        yield
        return
    sys.stdout = _Shown(before)  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout = before


def console() -> Console:
    """Rich's console on standard output: its colours are its own, texts within are shown."""
    from rich.console import Console

    class Showing(Console):
        def render(self, renderable: Any, options: Any = None) -> Any:
            for segment in super().render(renderable, options):
                if not segment.control:
                    segment = segment._replace(text=visible(segment.text))
                yield segment

    out = sys.stdout
    return Showing(file=out.stream if isinstance(out, _Shown) else None)
