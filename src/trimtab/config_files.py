"""YAML files of keys and values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from trimtab.errors import ConfigError


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
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not YAML: {' '.join(str(error).split())}") from error
    if empty and not values:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: {expected}")
    return values
