"""Errors that the user can mend. The command line prints their text alone and exits with 2."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


class TrimtabError(Exception):
    """Something the user gave cannot be used; the text says what was given, expected, and to do."""


class DataError(TrimtabError):
    """A data file or a spec string that cannot be read as preference pairs."""


class ModelError(TrimtabError):
    """A model that cannot be found, loaded or used as asked."""


class DialError(TrimtabError):
    """A saved dial that is damaged, foreign, or made for another base model."""


class CacheError(TrimtabError):
    """A store entry that is truncated, stale or damaged."""


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


def check_choices(settings: Any, prefix: str) -> None:
    """Raise ConfigError where a dataclass field is none of the values that its type lists; the
    command line checks them itself, Python does not."""
    hints = get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        hint, value = hints[field.name], getattr(settings, field.name)
        options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        known = [v for o in options if get_origin(o) is Literal for v in get_args(o)]
        if known and value not in known and not (value is None and type(None) in options):
            raise ConfigError(
                f"{prefix}.{field.name} is {value!r}{near(str(value), known)}; "
                f"expected one of {', '.join(known)}"
            )
