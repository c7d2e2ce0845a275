"""Pages are written whole, or the old one stays."""

from __future__ import annotations

from pathlib import Path

from trimtab import files
from trimtab.errors import TrimtabError


def write_text(path: Path, text: str) -> None:
    """Raises TrimtabError where the file cannot be written; what was there stays."""
    try:
        files.write_text(path, text)
    except OSError as error:
        raise TrimtabError(f"{path}: cannot be written ({error.strerror or error})") from error
