"""The studies, a folder each. What a folder's `__init__` says is known without importing torch: its
docstring, which is the study's line in lists; `STUDY`, the class; `PAGE`, the function that makes its page.
"""

from __future__ import annotations

import contextlib
import pkgutil
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from trimtab.errors import ConfigError, near

if TYPE_CHECKING:
    from trimtab.study.study import Study

STUDIES: dict[str, str] = {
    found.name: f"{__name__}.{found.name}"
    for found in pkgutil.iter_modules(__path__)
    if found.ispkg
}
"""The packages of the studies, by name."""


def package(name: str) -> ModuleType:
    """The package of a study by name: one of `STUDIES`, or any that Python finds and that has a `STUDY`.

    Raises:
        ConfigError: there is none.
    """
    found = None
    with contextlib.suppress(ImportError, ValueError):
        found = import_module(STUDIES.get(name, name))
    if found is None or not hasattr(found, "STUDY"):
        raise ConfigError(
            f"no study {name!r}{near(name, STUDIES)} (known: {', '.join(STUDIES)}; or a package of your "
            "own whose __init__.py has STUDY)"
        )
    return found


def about(name: str) -> str:
    """What a study is, in a line."""
    return (package(name).__doc__ or "").strip().partition("\n")[0]


def study(name: str) -> type[Study[Any]]:
    """The class of a study."""
    return named(package(name).STUDY)


def named(where: str) -> Any:
    """What `module:name` stands for."""
    module, _, name = where.partition(":")
    return getattr(import_module(module), name)
