"""Dataclasses from JSON files: every complaint names the file, the line and the field."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from trimtab.errors import TrimtabError
from trimtab.foreign import Malformed, parse_json

Line = TypeVar("Line")


def read_json(file: Path) -> Any:
    """A JSON file. Raises TrimtabError where it is none."""
    try:
        return parse_json(file.read_bytes())
    except Malformed as error:
        raise TrimtabError(f"{error.at(file)}: not JSON ({error})") from error
    except OSError as error:
        raise TrimtabError(f"{file}: cannot be read ({error.strerror or error})") from error


def read_lines(file: Path, *, needed: bool = False) -> Iterator[tuple[str, Any]]:
    """The objects of a JSON-lines file, each with its place; none where there is no file."""
    if not file.is_file():
        if needed:
            raise TrimtabError(f"{file}: missing; a finished run writes {file.name}")
        return
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TrimtabError(f"{file}: not UTF-8 text ({error.reason})") from error
    # Not splitlines(): a generated text may hold U+2028, which JSON does not escape.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield f"{file}:{number}", parse_json(line)
        except Malformed as error:
            raise TrimtabError(
                f"{file}:{number}: not a JSON object ({error}); was the file cut short?"
            ) from error


def made(kind: type[Line], given: Iterable[tuple[str, Any]]) -> Iterator[Line]:
    for where, value in given:
        yield one(kind, where, value)


def one(kind: type[Line], where: str, value: Any) -> Line:
    """A dataclass from JSON values; keys that are no fields are passed over."""
    if not isinstance(value, dict):
        raise TrimtabError(f"{where}: expected a JSON object, got {_kind(value)}")
    made = {}
    for name, (hint, required) in fields_of(kind).items():
        if name in value:
            made[name] = _checked(hint, value[name], where, name)
        elif required:
            known = ", ".join(value) or "none"
            raise TrimtabError(f"{where}: field {name!r} is missing; it has {known}")
    return kind(**made)


@cache
def fields_of(kind: type) -> dict[str, tuple[Any, bool]]:
    hints = typing.get_type_hints(kind)
    none = dataclasses.MISSING
    return {
        f.name: (hints[f.name], f.default is none and f.default_factory is none)
        for f in dataclasses.fields(kind)
    }


_WORDS = {str: "text", int: "a whole number", bool: "true or false", float: "a number"}


def _checked(hint: Any, value: Any, where: str, name: str) -> Any:
    """A JSON value as the field has it. Null for a number that has to be there is NaN."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)

    def wrong(expected: str) -> TrimtabError:
        return TrimtabError(f"{where}: {name!r} should be {expected}, got {_kind(value)}")

    if origin in (types.UnionType, typing.Union):
        return None if value is None else _checked(inner[0], value, where, name)
    if origin is Literal:
        if value not in inner:
            raise wrong(" or ".join([", ".join(inner[:-1]), inner[-1]]))
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise wrong("a list")
        return tuple(_checked(inner[0], v, where, name) for v in value)
    if origin is dict:
        if not isinstance(value, dict):
            raise wrong("an object")
        return {k: _checked(inner[1], v, f"{where}: {name} {k!r}", k) for k, v in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return one(hint, f"{where}: {name}", value)
    if hint is float and value is None:
        return math.nan
    kinds: Any = (int, float) if hint is float else hint
    if hint is not Any and (
        not isinstance(value, kinds) or (isinstance(value, bool) and hint is not bool)
    ):
        raise wrong(_WORDS[hint])
    return float(value) if hint is float else value


def _kind(value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= 40 else f"{shown[:37]}…"
