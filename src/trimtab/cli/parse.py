"""Flags from dataclasses: attribute docstrings are the help, a YAML file may hold the same keys."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import shlex
import sys
import typing
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from trimtab.bounds import check, described, hints
from trimtab.cli import help
from trimtab.config_files import read_yaml
from trimtab.errors import ConfigError, near
from trimtab.progress import warn

T = TypeVar("T")

OLD = {
    "alphas": "alpha",
    "chat": "prompt_style",
    "drawing.n": "best_of",
    "max_tokens": "max_new_tokens",
    "n": "limit",
    "new_tokens": "max_new_tokens",
    "runs": "out",
    "steps": "max_new_tokens",
    "test_items": "test_limit",
    "train_items": "train_limit",
}
"""What flags of earlier versions are called now, where a verb has no flag of the old name."""

PLACES = {"calibrate": "dial", "export": "dial"}
"""Verbs whose one word without a flag was what this flag is."""

_checking: ContextVar[bool] = ContextVar("checking", default=False)
_describing: ContextVar[bool] = ContextVar("describing", default=False)


class Checked(Exception):
    """A command line that makes sense, and that was only to be checked."""


class Described(Exception):
    """What a verb says of itself, which was all that was asked."""

    def __init__(self, entry: help.Entry):
        super().__init__(entry)
        self.entry = entry


@contextlib.contextmanager
def _set(flag: ContextVar[bool]) -> Iterator[None]:
    token = flag.set(True)
    try:
        yield
    finally:
        flag.reset(token)


def checking() -> contextlib.AbstractContextManager[None]:
    """Within it `parse` raises `Checked` where it would have handed a verb its flags."""
    return _set(_checking)


def describing() -> contextlib.AbstractContextManager[None]:
    """Within it `parse` raises `Described`, whatever the words."""
    return _set(_describing)


def parse(
    kind: type[T],
    words: Sequence[str],
    *,
    verb: str,
    about: str,
    default: T | None = None,
    beside: Sequence[str] = (),
    agree: Callable[[T], None] | None = None,
) -> T:
    """A `kind` from `--config FILE` (if given) and the flags, which have precedence.

    Args:
        beside: keys of the file that are no flags; the verb reads them itself.
        agree: raises ConfigError where flags do not go together.

    Raises:
        ConfigError: the file cannot be read or has a key that is no flag; a flag is unknown,
            missing, or has a value of the wrong kind.
    """
    words, file = _config_flag(list(words))
    known = dict(_flags(kind, default))
    words = _spelled_now(verb, _trust(known, words), known)
    given: dict[str, Any] = {"registry": _RANGES, "config": (tyro.conf.DisallowNone,)}
    if default is not None:
        given["default"] = default
    if _describing.get() or any(word in help.ASKED for word in words):
        entry = help.describe(kind, about, **given)
        if _describing.get():
            raise Described(entry)
        print(help.page(verb, entry))
        sys.exit(0)
    if file is not None:
        words = [*_words_of(file, known, words, beside), *words]
    with _one_line(f"trimtab {verb}"):
        found = tyro.cli(kind, prog=f"trimtab {verb}", args=words, **given)
    check(found, "--{}")
    if agree is not None:
        agree(found)
    if _checking.get():
        raise Checked
    return found


def with_settings(base: type[T], **kinds: type) -> type[T]:
    """A dataclass of flags whose fields hold settings of these kinds, flags without a prefix."""
    notes = {name: Annotated[kind, tyro.conf.arg(name="")] for name, kind in kinds.items()}
    made: Any = type("Args", (base,), {"__annotations__": notes, "__doc__": base.__doc__})
    return dataclass(frozen=True, kw_only=True)(made)


_RANGES = tyro.constructors.ConstructorRegistry()
_plainly: ContextVar[bool] = ContextVar("plainly", default=False)


@_RANGES.struct_rule
def _with_ranges(
    info: tyro.constructors.StructTypeInfo,
) -> tyro.constructors.StructConstructorSpec | None:
    """tyro's own reading of a dataclass, with each field's range behind its help."""
    if _plainly.get() or not dataclasses.is_dataclass(info.type):
        return None
    with _set(_plainly):
        spec: Any = tyro.constructors.ConstructorRegistry.get_struct_spec(info)
    known = hints(info.type)

    def help_of(text: Any, limits: str) -> str:
        said = str((text() if callable(text) else text) or "")
        return f"{said} ({limits})" if limits not in said else said

    fields = tuple(
        dataclasses.replace(f, helptext=partial(help_of, f.helptext, limits))
        if (limits := described(known[f.name]).removeprefix("a number "))
        else f
        for f in spec.fields
    )
    return dataclasses.replace(spec, fields=fields)


TRUST = "--trust-remote-code"


def _trust(known: Iterable[str], words: list[str]) -> list[str]:
    """Take the flag that lets a model's own Python code run from the words of any verb that loads one.
    It is no key of a file: whoever hands over a file is not to be able to ask for it. Processes that
    this one starts inherit it."""
    if not {"model", "models"} & set(known):
        return words
    kept = [word for word in words if word.replace("_", "-") != TRUST]
    if len(kept) < len(words):
        os.environ["TRIMTAB_TRUST_REMOTE_CODE"] = "1"
    return kept


def one_of(
    words: list[str], verb: str, about: str, parts: Mapping[str, Callable[[list[str]], None]]
) -> None:
    """Run one of the parts of a verb, or say what they are.

    Args:
        parts: what follows the verb, as it is shown (`run NAME`), to what runs it.

    Raises:
        ConfigError: no such part.
    """
    runs = {shown.split()[0]: run for shown, run in parts.items()}
    if not words or words[0] in help.ASKED:
        print(f"usage: trimtab {verb} ({' | '.join(parts)}) [flags]\n\n{about}")
        print(f"Flags of each: trimtab {verb} run NAME --help")
    elif words[0] in runs:
        runs[words[0]](words[1:])
    else:
        known = ", ".join(runs)
        raise ConfigError(f"{verb}: unknown {words[0]!r}{near(words[0], runs)} (known: {known})")


def command(verb: str, words: Sequence[str]) -> str:
    """What was typed, for the record."""
    return shlex.join(["trimtab", *verb.split(), *words])


def beside_flags(words: Sequence[str], name: str) -> tuple[list[str], str | None]:
    """Words without `--NAME VALUE`, and the value, the last one typed or that of `--config FILE`: of a flag
    that decides which others there are.

    Raises:
        ConfigError: it has no value.
    """
    rest: list[str] = []
    found: str | None = None
    given = iter(words)
    for word in given:
        typed, equals, value = word.partition("=")
        if typed.replace("_", "-") != f"--{name}":
            rest.append(word)
        elif (found := value if equals else next(given, None)) is None:
            raise ConfigError(f"--{name}: expected a value")
    if found is None and (file := config_file(words)) is not None:
        values = read_yaml(file, "expected keys and values, as in `seed: 1`", empty=True)
        values = values.get("flags") or {} if is_recipe(values) else values
        found = dict(_leaves(values)).get(name)
    return rest, found


def config_file(words: Sequence[str]) -> Path | None:
    """The file of `--config`, if it was typed."""
    return _config_flag(list(words))[1]


# ---- the YAML file ------------------------------------------------------------------------------


def _config_flag(words: list[str]) -> tuple[list[str], Path | None]:
    for i, word in enumerate(words):
        if word == "--config":
            if i + 1 == len(words):
                raise ConfigError("--config: expected a YAML file")
            return words[:i] + words[i + 2 :], Path(words[i + 1])
        if word.startswith("--config="):
            return words[:i] + words[i + 1 :], Path(word.partition("=")[2])
    return words, None


def _words_of(
    file: Path, known: Mapping[str, Any], typed: Sequence[str], beside: Sequence[str]
) -> list[str]:
    """A file's keys and values as flags, without those that were also typed."""
    values = read_yaml(file, "expected keys and values, as in `seed: 1`", empty=True)
    if is_recipe(values):
        values = {**(values.get("flags") or {}), "out": values["out"]}
    values = {key: value for key, value in values.items() if key not in beside}
    names = {_plain(word.partition("=")[0]) for word in typed if word.startswith("--")}
    words: list[str] = []
    for key, value in _leaves(values):
        if key in beside:
            continue
        flag = _now(key.replace("-", "_"), known)
        if flag not in known:
            inner = [k for k in known if k.startswith(f"{flag}.")]
            hint = f"; it has {', '.join(inner)}" if inner else near(flag, known)
            raise ConfigError(f"{file}: unknown key {key!r}{hint} (known: {', '.join(known)})")
        if value is not None and flag not in names:
            words += _flag_words(file, flag, value, known[flag])
    return words


def is_recipe(values: dict[str, Any]) -> bool:
    """Whether a file of keys is one for `trimtab recipe`: a verb, where it writes, its flags."""
    return {"run", "out"} <= set(values) <= {"run", "out", "flags"}


def _flag_words(file: Path, flag: str, value: Any, markers: tuple[Any, ...]) -> list[str]:
    """One key as command line words."""
    several = value if isinstance(value, list) else [value]
    if any(isinstance(v, (dict, list)) for v in several):
        raise ConfigError(f"{file}: {flag}: expected a value or a list of values, given {value}")
    texts = [str(v) for v in several]
    if tyro.conf.Positional in markers:
        return texts
    if isinstance(value, bool):
        group, dot, name = flag.rpartition(".")
        return [f"--{flag}" if value else f"--{group}{dot}no_{name}"]
    if isinstance(value, list) and tyro.conf.UseAppendAction not in markers:
        return [f"--{flag}", *texts]
    return [f"--{flag}={text}" for text in texts]


def _leaves(values: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`train.epochs`, value; from nested mappings or from keys with dots."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _flags(kind: type, value: Any, prefix: str = "") -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Names of a dataclass's flags, nested ones with dots, with their tyro markers."""
    hints = typing.get_type_hints(
        kind, include_extras=True, localns=vars(sys.modules[kind.__module__])
    )
    for field in dataclasses.fields(kind):
        inner = getattr(value, field.name, dataclasses.MISSING)
        if inner is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
            inner = field.default_factory()
        markers = getattr(hints.get(field.name), "__metadata__", ())
        said = next((m for m in markers if isinstance(m, type(_NAMED))), _NAMED)
        name = field.name if said.name is None else said.name
        name = name if said.prefix_name is False else f"{prefix}{name}"
        if dataclasses.is_dataclass(inner) and not isinstance(inner, type):
            yield from _flags(type(inner), inner, f"{name}." if said.name != "" else prefix)
        else:
            yield name, (hints.get(field.name), *markers)


_NAMED: Any = tyro.conf.arg()


# ---- earlier spellings --------------------------------------------------------------------------


def _now(flag: str, known: Container[str]) -> str:
    """What a flag is called now, which is said where it is given by an earlier name."""
    group, dot, name = flag.rpartition(".")
    found = OLD.get(flag) or f"{group}{dot}{OLD.get(name, name)}"
    if flag in known or found not in known:
        return flag
    warn(f"--{flag.replace('_', '-')} is --{found.replace('_', '-')} now")
    return found


def _spelled_now(verb: str, words: Sequence[str], known: Mapping[str, Any]) -> list[str]:
    """Words with flags as they are called now."""
    found: list[str] = []
    value = False
    for word in words:
        if word.startswith("--"):
            typed, equals, given = word.partition("=")
            flag = _now(_plain(typed), known)
            if flag == "prompt_style" and _plain(typed) == "chat":
                typed, equals, given = "--prompt-style", "=", "plain" if "no-" in word else "chat"
            elif flag != _plain(typed):
                typed = f"--{flag}"
            word = f"{typed}{equals}{given}"
            value = not equals and known.get(flag, " ")[0] is not bool
        elif verb in PLACES and not value and not word.startswith("-"):
            warn(f"trimtab {verb} {word}: the dial is --{PLACES[verb]} {word} now")
            found.append(f"--{PLACES[verb]}")
        else:
            value = False
        found.append(word)
    return found


def _plain(flag: str) -> str:
    """`--train.no-rslora` as `train.rslora`."""
    return re.sub(r"(^|\.)no_", r"\1", flag[2:].replace("-", "_"))


# ---- what tyro says of a wrong command line -----------------------------------------------------


@contextlib.contextmanager
def _one_line(prog: str) -> Iterator[None]:
    """Say in one line, as every other error, what tyro says in a box.

    Raises:
        ConfigError: where tyro would have exited with 2.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            yield
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError(f"{_gist(said.getvalue())} (see {prog} --help)") from None


def _gist(box: str) -> str:
    """The text of a box down to its first rule, and the flags that it finds similar."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    # Below the box's title, which has a rule of hyphens of its own where no box can be drawn.
    lines = [line.strip("│ ") for line in plain.splitlines()[1 if plain.startswith("╭") else 2 :]]
    end = next((i for i, x in enumerate(lines) if x and not x.strip("─-╰╯")), len(lines))
    gist = " ".join(filter(None, lines[:end])) or " ".join(plain.split())
    gist = re.sub(r"no type matching .* Got errors: - <class '\w+'>: ", "", gist)
    similar = [x.split()[0].strip(",") for x in lines[end:] if x.startswith("--") and x.strip("-")]
    if "Unrecognized" in gist and similar:
        gist += f"; did you mean {', '.join(similar)}?"
    return gist
