"""Module names of earlier versions: they go on working, and say once what the new one is."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from functools import partial
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
    "trimtab.evaluation.damage": "trimtab.damage",
    "trimtab.cache": ("trimtab.store", "trimtab.readings"),
    "trimtab.dials.kinds": "trimtab.dials.saved",
    "trimtab.anchor": "trimtab.anchoring",
    "trimtab.anchor.experiments": "trimtab.studies.anchoring",
    "trimtab.report.page": "trimtab.report.compare",
    "trimtab.report.markdown": "trimtab.report.compare",
    "trimtab.report.table": "trimtab.report.compare",
    "trimtab.study.compare": "trimtab.studies.compare.comparison",
    "trimtab.study.compare_heads": "trimtab.studies.heads.study",
    "trimtab.study.compare_rewards": "trimtab.studies.rewards.study",
    "trimtab.study.cell": "trimtab.studies.compare.cell",
    "trimtab.study.demo": "trimtab.studies.compare.demo",
    "trimtab.study.evaluation": "trimtab.studies.compare.evaluation",
    "trimtab.study.grid": "trimtab.studies.compare.grid",
    "trimtab.study.measure": "trimtab.studies.compare.measure",
    "trimtab.study.output": "trimtab.studies.compare.output",
    "trimtab.study.steering": "trimtab.studies.steering.study",
    "trimtab.study.steering_cells": "trimtab.studies.steering.trait",
    "trimtab.study.steering_plan": "trimtab.studies.steering.plan",
    "trimtab.study.steering_tables": "trimtab.studies.steering.tables",
    "trimtab.study.tables": "trimtab.studies.compare.tables",
}
"""Old name to new, or to those that a module was parted into; what lies inside a package moves with
it."""


ELSEWHERE = {
    "trimtab.dials.attach": {
        "check_bare": "trimtab.dials.contexts",
        "paused": "trimtab.dials.contexts",
    },
    "trimtab.dials.dial": {"card": "trimtab.dials.saved", "load_finite": "trimtab.dials.saved"},
    "trimtab.dials.linear": {"linear_modules": "trimtab.dials.targets"},
    "trimtab.dials.tuners": {
        "DeloraDial": "trimtab.dials.low_rank",
        "LowRankDial": "trimtab.dials.low_rank",
        "VeraDial": "trimtab.dials.low_rank",
    },
    "trimtab.export.gguf": {"control_vector_dial": "trimtab.export.importing"},
    "trimtab.report.anchoring": {"Gate": "trimtab.studies.anchoring.gates"},
    "trimtab.report.claim": {"holm": "trimtab.statistics"},
    "trimtab.report.results": {
        "Published": "trimtab.study.results",
        "Split": "trimtab.study.results",
        "is_grid": "trimtab.study.reading",
    },
    "trimtab.study.files": dict.fromkeys(
        ("write_json", "write_lines", "write_text"), "trimtab.files"
    ),
}
"""Names that have left a module which is still there, and where they are."""


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
        if fullname in ELSEWHERE:
            spec = importlib.machinery.PathFinder.find_spec(fullname, path)
            if spec is not None and spec.loader is not None:
                vars(spec.loader)["exec_module"] = partial(_with_old, spec.loader.exec_module)
            return spec
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


def _with_old(run: Callable[[ModuleType], None], module: ModuleType) -> None:
    """Run a module, which then knows where names went that have left it."""
    run(module)

    def moved(name: str) -> Any:
        if name not in ELSEWHERE[module.__name__]:
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        from trimtab.progress import warn

        new = ELSEWHERE[module.__name__][name]
        warn(f"{module.__name__}.{name} is {new}.{name} now")
        found = vars(module)[name] = getattr(importlib.import_module(new), name)
        return found

    vars(module)["__getattr__"] = moved


def install() -> None:
    """Let old names be imported."""
    sys.meta_path.insert(0, Finder())
