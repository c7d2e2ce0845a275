"""Panel files: a property a name, its kind and settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab.config_files import read_yaml
from trimtab.errors import ConfigError, near
from trimtab.panel.properties import PROPERTIES, Property

BUILT_IN = Path(__file__).parent / "data" / "panel.yaml"
"""The panel that is used unless another is named."""


def read_panel(file: str | Path | None = None) -> list[Property]:
    """Properties of a YAML file, the built-in ones without one.

    Raises:
        ConfigError: no properties, an unknown kind or setting, or a value of another type.
    """
    file = Path(file or BUILT_IN).expanduser()
    found = read_yaml(file, "expected properties by name, each with its kind")
    if not found:
        raise ConfigError(f"{file}: no properties")
    return [_property(str(name), value, f"{file}: {name}") for name, value in found.items()]


def _property(name: str, value: Any, where: str) -> Property:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: expected `kind` and settings, given {value!r}")
    settings = {str(k): v for k, v in value.items()}
    kind = settings.pop("kind", None)
    if not isinstance(kind, str) or kind not in PROPERTIES:
        raise ConfigError(
            f"{where}: kind {kind!r}{near(str(kind), PROPERTIES)} ({', '.join(PROPERTIES)})"
        )
    cls = PROPERTIES[kind]
    known = {f.name: f for f in dataclasses.fields(cls) if f.name != "name"}
    given: dict[str, Any] = {}
    for key, new in settings.items():
        if key not in known:
            raise ConfigError(f"{where}: no setting {key!r}{near(key, known)} ({', '.join(known)})")
        usual = known[key].default
        if isinstance(usual, tuple):
            texts = [new] if isinstance(new, str) else new
            if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
                raise ConfigError(f"{where}: {key}: expected a list of texts, given {new!r}")
            new = tuple(texts)
        elif type(new) is not type(usual):
            raise ConfigError(f"{where}: {key}: expected a {type(usual).__name__}, given {new!r}")
        given[key] = new
    return cls(name, **given)
