"""YAML files of keys and values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trimtab.errors import ConfigError
from trimtab.foreign import Malformed, parse_yaml


def read_yaml(
    file: Path, expected: str = "expected keys and values", *, empty: bool = False
) -> dict[str, Any]:
    """A YAML file of keys and values.

    Args:
        expected: what an error says where it holds something else.
        empty: whether an empty file is one without keys.

    Raises:
        ConfigError: it cannot be read, or is something else.
    """
    try:
        values = parse_yaml(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error
    except Malformed as error:
        raise ConfigError(f"{error.at(file)}: not YAML: {error}") from error
    if empty and not values:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: {expected}")
    return values
