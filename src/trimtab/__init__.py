"""trimtab: preference pairs in, a dial out.

The public names are loaded on first use, so that `import trimtab` (and `trimtab --help`) does not
import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from trimtab import old_names

if TYPE_CHECKING:
    from trimtab.anchoring.callback import Anchors
    from trimtab.batching import make_contrast
    from trimtab.dials import Dial
    from trimtab.evaluation import generate
    from trimtab.models import load
    from trimtab.pairs import Pair, PairSet, read_pairs
    from trimtab.studies.compare.evaluation import evaluate
    from trimtab.study.reading import results
    from trimtab.training import fit

__version__ = "0.1.0"

_HOME = {
    "Anchors": "trimtab.anchoring.callback",
    "Dial": "trimtab.dials",
    "Pair": "trimtab.pairs",
    "PairSet": "trimtab.pairs",
    "evaluate": "trimtab.studies.compare.evaluation",
    "fit": "trimtab.training",
    "generate": "trimtab.evaluation",
    "load": "trimtab.models",
    "make_contrast": "trimtab.batching",
    "read_pairs": "trimtab.pairs",
    "results": "trimtab.study.reading",
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
    "results",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


old_names.install()


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
