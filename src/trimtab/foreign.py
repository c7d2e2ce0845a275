"""JSON and YAML that others wrote: parsed within bounds, or refused in one line.

What `json` and `yaml` let through and nobody means: a key given twice (the last would win), halves of
characters that no file can hold again, whole numbers beyond any use, nesting that ends the interpreter,
aliases that unfold to more than memory holds.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Hashable, Iterable
from typing import Any

import yaml

MOST_DIGITS = 400
"""Digits of a whole number: one more than the largest float has."""
MOST_NODES = 1_000_000
"""Values of a YAML file, its aliases unfolded."""
DEEPEST = 200
"""Objects and lists within one another."""
_HALF = re.compile("[\ud800-\udfff]")
_ESCAPED = re.compile(r"\\u[dD][89a-fA-F]")


class Malformed(ValueError):
    """A text that is none of its format; `line` counts from 1 within it, 0 where no line is to blame."""

    def __init__(self, why: str, line: int = 0, column: int = 0):
        super().__init__(why)
        self.line, self.column = line, column

    def at(self, file: Any) -> str:
        """`file:line`, or the file alone."""
        return f"{file}:{self.line}" if self.line else f"{file}"


def parse_json(text: str | bytes, *, finite: bool = False) -> Any:
    """JSON values.

    Args:
        finite: refuse `NaN` and `Infinity`, which Python writes and JSON does not have.

    Raises:
        Malformed: no JSON, not UTF-8, or what stands at the head of this file.
    """
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        known: dict[str, Any] = {"parse_constant": _no_number} if finite else {}
        hooks: dict[str, Any] = {"parse_int": _whole, "parse_float": _held}
        value = json.loads(text, object_pairs_hook=_once, **hooks, **known)
        if _ESCAPED.search(text) or _HALF.search(text):
            _no_halves(value)
    except json.JSONDecodeError as error:
        raise Malformed(error.msg, error.lineno, error.colno) from None
    except UnicodeDecodeError as error:
        raise Malformed(f"not UTF-8 text at byte {error.start}") from None
    except RecursionError:
        raise Malformed("nested too deep") from None
    return value


def parse_yaml(text: str | bytes) -> Any:
    """YAML values of the plain kinds.

    Raises:
        Malformed: no YAML, or what stands at the head of this file.
    """
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        value = yaml.load(text, _Loader)  # a SafeLoader
        _unfolded(value, {}, 0)
    except UnicodeDecodeError as error:
        raise Malformed(f"not UTF-8 text at byte {error.start}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = (mark.line + 1, mark.column + 1) if mark else ()
        why = " ".join(filter(None, (error.context, error.problem)))
        raise Malformed(why or "not YAML", *place) from None
    except Malformed:
        raise
    # A value that is none of its tag is many things to yaml.
    except (yaml.YAMLError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise Malformed(" ".join(str(error).split())[:200]) from None
    except RecursionError:
        raise Malformed("nested too deep") from None
    return value


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = list(pairs)
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Malformed(f"the key {twice[:60]!r} is given twice")
    return found


def _no_number(text: str) -> float:
    raise Malformed(f"{text} is no number")


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise Malformed(f"a whole number of {len(digits)} digits")
    return int(digits)


def _held(text: str) -> float:
    if math.isinf(value := float(text)):
        raise Malformed(f"{text[:60]} is larger than any number that is held")
    return value


def _no_halves(value: Any) -> None:
    """Raise where a text holds a lone half of a surrogate pair."""
    if isinstance(value, str) and _HALF.search(value):
        raise Malformed("half of a character (a lone surrogate) in a text")
    if isinstance(value, dict | list):
        for inner in [*value, *value.values()] if isinstance(value, dict) else value:
            _no_halves(inner)


def _unfolded(value: Any, known: dict[int, int], depth: int) -> int:
    """How many values there are, aliases counted each time."""
    if not isinstance(value, dict | list | tuple | set):
        _no_halves(value)
        if isinstance(value, int) and abs(value) >= 10**MOST_DIGITS:
            raise Malformed("a whole number beyond any use")
        return 1
    if depth > DEEPEST:
        raise Malformed("nested too deep")
    if id(value) not in known:
        inner = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_unfolded(v, known, depth + 1) for v in inner)
    if known[id(value)] > MOST_NODES:
        raise Malformed(f"its aliases unfold to more than {MOST_NODES:,} values")
    return known[id(value)]


class _Loader(yaml.SafeLoader):
    """Refuses keys that are given twice; `<<` may be overridden, as YAML has it."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            if name in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {str(key.value)[:60]!r} is given twice", key.start_mark
                )
            seen.add(name) if name else None
        return super().construct_mapping(node, deep)
