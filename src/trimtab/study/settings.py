"""Methods with other settings than their own: from JSON values, and from YAML files.

A file of settings has entries by name:

    settings:
      dpo:                       # a method, with other settings
        train: {learning_rate: 2.0e-4}
      innerdpo-low:              # another name, so that both can be compared
        method: innerdpo
        objective: {sites: "0.1..0.5"}

What is not said stays as the method has it. `trimtab tune` writes such files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab.config_files import read_yaml
from trimtab.errors import ConfigError, near
from trimtab.training import METHODS, Method, method
from trimtab.training.recipes import Recipe, on_dial
from trimtab.training.settings import DIALS, plain


def configured(value: Any, settings: Mapping[str, Any], where: str) -> Any:
    """A dataclass (a recipe, or a part of one) with the given fields set, nested ones by mapping.

    Keys with dots reach into parts, too: `train.learning_rate`.

    Raises:
        ConfigError: a key that is no field, or a value of another kind than the field's; the text
            begins with `where`.
    """
    changes: dict[str, Any] = {}
    nested = _nested(settings, where)
    if (
        isinstance(value, Recipe)
        and isinstance(dial := nested.get("dial"), Mapping)
        and "kind" in dial
    ):
        value = on_dial(value, str(dial["kind"]))
        nested["dial"] = {k: v for k, v in dial.items() if k != "kind"}
    for key, new in nested.items():
        known = [f.name for f in dataclasses.fields(value)]
        name = str(key).replace("-", "_")
        if name not in known:
            raise ConfigError(
                f"{where}: no setting {key!r}{near(name, known)} (there are: {', '.join(known)})"
            )
        old, place = getattr(value, name), f"{where}: {name}"
        if dataclasses.is_dataclass(old) and not isinstance(old, type):
            if not isinstance(new, Mapping):
                raise ConfigError(f"{place}: expected settings, given {new!r}")
            changes[name] = configured(old, new, place)
        else:
            changes[name] = _like(old, new, place)
    try:
        return dataclasses.replace(value, **changes)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error


def _nested(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`train.epochs: 1` as `train: {epochs: 1}`."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        first, dot, rest = str(key).partition(".")
        if not dot:
            found[first] = (
                {**found.get(first, {}), **value} if isinstance(value, Mapping) else value
            )
            continue
        if not isinstance(found.setdefault(first, {}), dict):
            raise ConfigError(f"{where}: {first} is given twice")
        found[first] = {**found[first], rest: value}
    return found


def _like(old: Any, new: Any, where: str) -> Any:
    """A JSON or YAML value as the field takes it. YAML reads 1e-4 (no dot) as text."""
    if isinstance(old, float) and isinstance(new, str):
        try:
            new = float(new)
        except ValueError:
            raise ConfigError(f"{where}: expected a number, given {new!r}") from None
    if isinstance(old, float) and isinstance(new, int) and not isinstance(new, bool):
        return float(new)
    if isinstance(old, str) and isinstance(new, int | float) and not isinstance(new, bool):
        return str(new)  # sites: 0.5
    if isinstance(old, tuple) and isinstance(new, list):
        return tuple(new)
    if old is not None and new is not None and type(old) is not type(new):
        expected = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
        raise ConfigError(
            f"{where}: expected {expected.get(type(old), type(old).__name__)}, given {new!r}"
        )
    return new


# ---- a method as JSON, for workers ---------------------------------------------------------------


def as_json(wanted: Method) -> dict[str, Any]:
    """A method as JSON values, from which `from_json` makes it again.

    Raises:
        ConfigError: its recipe is no variation of a known method's.
    """
    settings = plain(wanted.recipe)
    dial = getattr(wanted.recipe, "dial", None)
    own = METHODS.get(wanted.name)
    for known in ([own] if own else []) + list(METHODS.values()):
        if type(known.recipe) is type(wanted.recipe):
            if type(getattr(known.recipe, "dial", None)) is not type(dial):
                if getattr(dial, "kind", "") not in DIALS:
                    continue
                settings["dial"]["kind"] = dial.kind  # type: ignore[union-attr]
            try:
                same = configured(known.recipe, settings, known.name) == wanted.recipe
            except ConfigError:
                continue
            if same:
                return {"name": wanted.name, "method": known.name, "settings": settings}
    raise ConfigError(f"{wanted.name}: a {type(wanted.recipe).__name__}, of no known method")


def from_json(value: Mapping[str, Any]) -> Method:
    """The method that `as_json` wrote."""
    return varied(value["name"], value["method"], value["settings"], value["name"])


def varied(name: str, base: str, settings: Mapping[str, Any], where: str) -> Method:
    """The method `base` with other settings, under a name of its own."""
    known = method(base)
    return dataclasses.replace(known, name=name, recipe=configured(known.recipe, settings, where))


# ---- files ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Settings:
    """What files say of methods: each under its name, and how many trials chose its settings."""

    methods: dict[str, Method] = dataclasses.field(default_factory=dict)
    trials: dict[str, int] = dataclasses.field(default_factory=dict)

    def method(self, name: str) -> Method:
        """The method of that name: a file's, else a built-in one."""
        if name in self.methods:
            return self.methods[name]
        if name not in METHODS:
            known = [*METHODS, *self.methods]
            raise ConfigError(
                f"unknown method {name!r}{near(name, known)} (`trimtab methods` lists them all)"
            )
        return METHODS[name]


def read_settings(files: Sequence[str | Path]) -> Settings:
    """The methods that files of settings describe.

    Raises:
        ConfigError: a file cannot be read, lacks the key `settings`, names a method or setting that
            does not exist, or two files describe the same name.
    """
    found, trials = {}, {}
    for file in files:
        content = read_yaml(Path(file))
        entries, tuned = content.get("settings"), content.get("tuned") or {}
        if not isinstance(entries, dict):
            raise ConfigError(
                f"{file}: expected the key settings, with a method's name: its settings"
            )
        for name, values in entries.items():
            values = {} if values is None else values
            if not isinstance(values, dict):
                raise ConfigError(f"{file}: settings: {name}: expected settings, given {values!r}")
            if name in found:
                raise ConfigError(f"{file}: settings: {name} is described by another file, too")
            base = str(values.get("method", name))
            rest = {k: v for k, v in values.items() if k != "method"}
            where = f"{file}: settings: {name}"
            if base not in METHODS:
                raise ConfigError(
                    f"{where}: no method {base!r}{near(base, METHODS)}; a name of your own needs "
                    "the key method"
                )
            if not name or set(str(name)) - set(NAME):
                raise ConfigError(f"{where}: a name is made of letters, digits, '-', '_' and '.'")
            found[str(name)] = varied(str(name), base, rest, where)
            known = tuned.get(name) if isinstance(tuned, dict) else None
            if isinstance(known, dict) and isinstance(n := known.get("trials"), int):
                trials[str(name)] = n
    return Settings(found, trials)


NAME = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."
"""Characters of a name: it becomes a part of a folder's."""
