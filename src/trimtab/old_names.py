"""Module names of earlier versions: they go on working, and say once what the new one is."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

MOVED: dict[str, str | tuple[str, ...]] = {
    "trimtab.fit": "trimtab.training",
    "trimtab.training.head_recipes": "trimtab.training.recipes",
    "trimtab.fit.training": "trimtab.training.adapters",
    "trimtab.training.heads": (
        "trimtab.training.head",
        "trimtab.training.alignment_head",
        "trimtab.training.reward_head",
    ),
    "trimtab.evaluate": "trimtab.evaluation",
    "trimtab.cache": ("trimtab.store", "trimtab.readings"),
    "trimtab.dials.kinds": "trimtab.dials.saved",
    "trimtab.anchor": "trimtab.anchoring",
}
"""Old name to new, or to those that a module was parted into; what lies inside a package moves with
it."""


def new_names(name: str) -> list[str]:
    """What a module is called today, if its name is an old one; empty where it is none."""
    inside: list[str] = []
    while name not in MOVED:
        name, dot, last = name.rpartition(".")
        if not dot:
            return []
        inside.insert(0, last)
    new = MOVED[name]
    return [".".join([n, *inside]) for n in ([new] if isinstance(new, str) else new)]


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules by their old names: the module itself, not a copy.

    `trimtab.fit` and `trimtab.evaluate` are functions, and were packages, too: as a package such a
    name is the function, which has what the room has.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith("trimtab.") or not new_names(fullname):
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=fullname in MOVED)

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__
        new = new_names(old)
        parts = [importlib.import_module(n) for n in new]
        found: Any = parts[0]
        package, _, name = old.rpartition(".")
        function = getattr(sys.modules[package], name, None) if package == "trimtab" else None
        if function is not None:
            shown = {k: v for k, v in vars(found).items() if not k.startswith("__")}
            vars(function).update(shown, __path__=[], __spec__=module.__spec__)
            found = function
        if len(parts) > 1:
            for part in parts:
                vars(module).update({k: v for k, v in vars(part).items() if k[:2] != "__"})
        else:
            sys.modules[old] = found
        if old in MOVED:
            from trimtab.progress import warn

            warn(f"{old} is {' and '.join(new)} now")


def install() -> None:
    """Let old names be imported."""
    sys.meta_path.insert(0, Finder())
