"""What all studies share: cells and who runs them, suites, settings of methods, result files.

The studies themselves lie in `trimtab.studies`; their names are given here, too.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "Comparison": "studies.compare.grid",
    "compare": "studies.compare.comparison",
    "demo": "studies.compare.demo",
    "evaluate": "studies.compare.evaluation",
    **dict.fromkeys(("Suite", "read_suite", "suite_names"), "study.suite"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"trimtab.{_HOME[name]}"), name)
