"""Text of others on a terminal: shown, never obeyed."""

from __future__ import annotations

import unicodedata

KEPT = "\n\t\u200c\u200d"
"""Line breaks, tabs, and what joins letters and emoji."""


def visible(text: str) -> str:
    """Text with its control and formatting characters written out (`\\u001b`), so that none of them
    moves the cursor, changes colours or turns the direction of writing."""
    return "".join(
        f"\\u{ord(c):04x}" if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c not in KEPT else c
        for c in text
    )
