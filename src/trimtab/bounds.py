"""What settings may be: a field's type says it once, the help shows it, making one checks it.

A dataclass of settings inherits from `Bounded`; its numbers have types such as `Positive` or `Count`.
A plain `float` is finite and a plain `int` whole, within what arithmetic bears.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from functools import cache
from numbers import Integral, Real
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from tyro.constructors import PrimitiveConstructorSpec

from trimtab.errors import ConfigError, near

MOST, MOST_INT = 1e6, 10**9
"""Beyond these a number is a slip: its products leave float32, or memory."""


@dataclasses.dataclass(frozen=True)
class Within:
    """A range; `ends` says which of its ends belong to it, as in `(]`."""

    low: float
    high: float = MOST
    ends: Literal["[]", "(]", "[)", "()"] = "[]"
    of: str = "a number"
    """What it is a range of."""

    def __contains__(self, value: float) -> bool:
        above = value >= self.low if self.ends[0] == "[" else value > self.low
        return above and (value <= self.high if self.ends[1] == "]" else value < self.high)

    def __str__(self) -> str:
        if self.ends[0] == "[" and self.of != "a number":
            return f"{self.of}, {dataclasses.replace(self, of='a number')}"
        low, high, few = f"{self.low:g}", f"{self.high:g}", self.high < MOST
        if self.ends == "()":
            return f"{self.of} between {low} and {high}"
        if self.ends == "[)":
            return f"{low} up to below {high}"
        if self.ends == "(]":
            return f"above {low}, at most {high}" if few else f"{self.of} above {low}"
        return f"{low} to {high}" if few else f"{low} or more"

    def told(self, value: float) -> str:
        """What was expected, where `value` was given."""
        return f"{self}, at most {self.high:g}" if MOST <= self.high < value else str(self)


Positive = Annotated[float, Within(0, MOST, "(]")]
NonNegative = Annotated[float, Within(0)]
Share = Annotated[float, Within(0, 1)]
"""0 and 1 included."""
BelowOne = Annotated[float, Within(0, 1, "[)")]
Smoothing = Annotated[float, Within(0, 0.5, "[)")]
"""Probability that a label is wrong."""
Endless = Annotated[float, Within(0, math.inf)]
"""Infinity means never."""
Rate = Annotated[float, Within(0, 1e30, "(]")]
"""A learning rate: any may be tried, a loss that is not finite ends the run."""
Count = Annotated[int, Within(1, MOST_INT)]
Whole = Annotated[int, Within(0, MOST_INT)]
Several = Annotated[int, Within(2, MOST_INT)]
"""2 or more: for what needs something to compare with."""
Seed = Annotated[int, Within(0, 2**32 - 1)]
Strength = Annotated[float, Within(-1e4, 1e4, of="finite")]
"""alpha."""


def _at_most_one(words: list[str]) -> str:
    if len(words) > 1:
        raise ValueError(f"expected one file at most, given {' '.join(words)}")
    return words[0] if words else ""


OptionalFile = Annotated[
    str | None,
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="[FILE]",
        instance_from_str=_at_most_one,
        is_instance=lambda value: value is None or isinstance(value, str),
        str_from_instance=lambda value: [value] if value else [],
    ),
]
"""Something that is done or not, by what a file says or in the usual way: a file, `""`, or None where the
flag is not given."""


class Bounded:
    """Settings whose fields are held to their types when they are made: a dataclass inherits it.

    `group` is what the command line puts before their names.

    Raises:
        ConfigError: a field is no value of its type; the text names it, what was given and expected.
    """

    group: ClassVar[str] = ""

    def __init_subclass__(cls, group: str | None = None, **rest: Any) -> None:
        super().__init_subclass__(**rest)
        if group is not None:
            cls.group = f"{group}."

    def __post_init__(self) -> None:
        check(self, f"{self.group}{{}} is")


def check(settings: Any, named: str) -> None:
    """Raise ConfigError for the first field of a dataclass that is no value of its type.

    Args:
        named: how the text begins, with the field's name at `{}`.
    """
    for name, hint in hints(type(settings)).items():
        value = getattr(settings, name)
        if _fits(value, hint):
            continue
        shown = name.replace("_", "-") if named.startswith("--") else name
        place, expected = named.format(shown), _expected(hint, value)
        if isinstance(value, tuple | list):
            given = " ".join(f"{v:g}" if isinstance(v, float) else f"{v}" for v in value)
            raise ConfigError(
                f"{place.removesuffix(' is')}: expected {expected}, given {given[:80]}"
            )
        shown = f"{value}" if isinstance(value, int | float) else repr(value)
        close = near(str(value), [v for v in _choices(hint) if isinstance(v, str)])
        if named.startswith("--"):
            shown = f"{value:g}" if isinstance(value, float) else shown
        after = ":" if named.startswith("--") and not close else ";"
        raise ConfigError(f"{place} {shown[:80]}{close}{after} expected {expected}")


@cache
def hints(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields, ranges included."""
    found = get_type_hints(kind, include_extras=True)
    return {f.name: found[f.name] for f in dataclasses.fields(kind)}


def described(hint: Any) -> str:
    """The range of a field, for its help; empty where its type has none."""
    return next((str(r) for r in _ranges(hint)), "")


def _parts(hint: Any) -> tuple[Any, ...]:
    """The members of a union; else the type alone."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _fits(value: Any, hint: Any, within: Within | None = None) -> bool:
    origin = get_origin(hint)
    if origin is Annotated:
        base, *notes = get_args(hint)
        return _fits(value, base, next((n for n in notes if isinstance(n, Within)), within))
    if origin in (Union, UnionType):
        return any(_fits(value, part, within) for part in get_args(hint))
    if origin is Literal:
        return any(value == v and type(value) is type(v) for v in get_args(hint))
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return False
        parts = get_args(hint)
        if len(parts) == 2 and parts[1] is Ellipsis:
            return all(_fits(v, parts[0], within) for v in value)
        return len(parts) == len(value) and all(map(_fits, value, parts))
    if hint in (float, int):
        kind: Any = Real if hint is float else Integral
        most = MOST if hint is float else MOST_INT
        return (
            isinstance(value, kind)
            and not isinstance(value, bool)
            and value == value  # no NaN
            and value in (within or Within(-most, most))
        )
    if hint in (bool, str, type(None)):
        return isinstance(value, hint)
    return True  # what no type here says is checked where it is used


def _expected(hint: Any, value: Any) -> str:
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else None
    texts = []
    for part in _parts(hint):
        ranges = list(_ranges(part))
        bare = get_args(part)[0] if get_origin(part) is Annotated else part
        if choices := [str(v) for v in get_args(bare)] if get_origin(bare) is Literal else []:
            texts.append(f"one of {', '.join(choices)}")
        elif get_origin(bare) is tuple:
            inner = get_args(bare)[0]
            base = get_args(inner)[0] if get_origin(inner) is Annotated else inner
            kind = {float: "finite numbers", int: "whole numbers", str: "texts"}.get(base, "a list")
            texts.append(", each ".join([kind, *(str(r).removeprefix("finite, ") for r in ranges)]))
        elif ranges and number is not None and number not in ranges[0]:
            texts.append(ranges[0].told(number))
        elif bare in _WORDS:
            texts.append(_WORDS[bare])
    return " or ".join(texts) or "another value"


_WORDS: dict[Any, str] = {
    float: "a finite number",
    int: "a whole number",
    bool: "true or false",
    str: "text",
    type(None): "none",
}


def _ranges(hint: Any) -> Iterator[Within]:
    """Ranges anywhere in a type."""
    if get_origin(hint) is Annotated:
        yield from (n for n in get_args(hint)[1:] if isinstance(n, Within))
        hint = get_args(hint)[0]
    if get_origin(hint) in (Union, UnionType, tuple):
        for part in get_args(hint):
            yield from _ranges(part)


def _choices(hint: Any) -> list[Any]:
    return [v for part in _parts(hint) if get_origin(part) is Literal for v in get_args(part)]
