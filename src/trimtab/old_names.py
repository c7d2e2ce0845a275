"""Module names of earlier versions: they go on working, and say once what the new one is."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

MOVED = {
    "trimtab.fit": "trimtab.training",
    "trimtab.training.head_recipes": "trimtab.training.recipes",
    "trimtab.fit.training": "trimtab.training.adapters",
    "trimtab.evaluate": "trimtab.evaluation",
    "trimtab.dials.kinds": "trimtab.dials.saved",
    "trimtab.anchor": "trimtab.anchoring",
}
"""Old name to new; what lies inside a package moves with it."""


def new_name(name: str) -> str | None:
    """What a module is called today, if its name is an old one."""
    inside: list[str] = []
    while name not in MOVED:
        name, dot, last = name.rpartition(".")
        if not dot:
            return None
        inside.insert(0, last)
    return ".".join([MOVED[name], *inside])


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules by their old names: the module itself, not a copy.

    `trimtab.fit` and `trimtab.evaluate` are functions, and were packages, too: as a package such a
    name is the function, which has what the room has.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith("trimtab.") or new_name(fullname) is None:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=fullname in MOVED)

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__
        new = new_name(old)
        assert new
        found: Any = importlib.import_module(new)
        package, _, name = old.rpartition(".")
        function = getattr(sys.modules[package], name, None) if package == "trimtab" else None
        if function is not None:
            shown = {k: v for k, v in vars(found).items() if not k.startswith("__")}
            vars(function).update(shown, __path__=[], __spec__=module.__spec__)
            found = function
        sys.modules[old] = found
        if old in MOVED:
            from trimtab.progress import warn

            warn(f"{old} is {new} now")


def install() -> None:
    """Let old names be imported."""
    sys.meta_path.insert(0, Finder())
