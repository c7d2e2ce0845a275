"""Errors that the user can mend. The command line prints their text alone and exits with 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST = 3000
"""Characters of an error's text: what was given may be of any size."""


class TrimtabError(Exception):
    """Something the user gave cannot be used; the text says what was given, expected, and to do."""

    def __str__(self) -> str:
        text = super().__str__()
        left = len(text) - LONGEST
        return f"{text[:1000]} … ({left} characters) … {text[-2000:]}" if left > 0 else text


class DataError(TrimtabError):
    """A data file or a spec string that cannot be read as preference pairs."""


class ModelError(TrimtabError):
    """A model that cannot be found, loaded or used as asked."""


class DialError(TrimtabError):
    """A saved dial that is damaged, foreign, or made for another base model."""


class CacheError(TrimtabError):
    """A store entry that is truncated, stale or damaged."""


class BusyError(TrimtabError):
    """A file or folder that another process is writing."""


class ConfigError(TrimtabError):
    """A setting, method, suite or flag that does not exist or makes no sense."""


class TrainingError(TrimtabError):
    """A run that had to stop, for example at a loss that is not finite."""


class JudgeError(TrimtabError):
    """A judge of answers that cannot be reached, or refuses."""


class StudyError(TrimtabError):
    """Cells of a comparison that failed; those that did not are kept."""


def near(name: str, known: Iterable[str], n: int = 3) -> str:
    """`"; did you mean 'a', 'b'?"` for the nearest known names, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=n, cutoff=0.5)
    return f"; did you mean {', '.join(map(repr, close))}?" if close else ""
