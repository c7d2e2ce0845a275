"""trimtab: preference pairs in, a dial out.

The public names are loaded on first use, so that `import trimtab` (and `trimtab --help`) does not
import torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.anchor.callback import Anchors
    from trimtab.batching import make_contrast
    from trimtab.dials import Dial
    from trimtab.evaluation import generate
    from trimtab.models import load
    from trimtab.pairs import Pair, PairSet, read_pairs
    from trimtab.study import evaluate
    from trimtab.training import fit

__version__ = "0.1.0"

_HOME = {
    "Anchors": "trimtab.anchor.callback",
    "Dial": "trimtab.dials",
    "Pair": "trimtab.pairs",
    "PairSet": "trimtab.pairs",
    "evaluate": "trimtab.study",
    "fit": "trimtab.fit",
    "generate": "trimtab.evaluate",
    "load": "trimtab.models",
    "make_contrast": "trimtab.batching",
    "read_pairs": "trimtab.pairs",
}

__all__ = [
    "Anchors",
    "Dial",
    "Pair",
    "PairSet",
    "evaluate",
    "fit",
    "generate",
    "load",
    "make_contrast",
    "read_pairs",
]


class _Package(ModuleType):
    """`trimtab.fit` and `trimtab.evaluate` are rooms and functions at once. Importing a room binds
    the module to its name here; public names keep meaning the functions all the same. These carry
    the room's modules, which `import trimtab.training.recipes as recipes` looks for on them."""

    def __getattribute__(self, name: str) -> Any:
        home = super().__getattribute__("__dict__").get("_HOME", {}).get(name)
        if not home:
            return super().__getattribute__(name)
        value = getattr(importlib.import_module(home), name)
        room = sys.modules.get(f"{__name__}.{name}")
        if room:
            inside = {k: m for k, m in vars(room).items() if isinstance(m, ModuleType)}
            vars(value).update(inside)
        return value


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
