"""What was found by trying on a model, remembered: no proof is made twice.

A shortcut (rows of several answers, decoding in batches) is tried on the model that it is used on.
What was found is kept with the model object, and under the model's identity as a small JSON file in
the cache folder, so that another process on the same model need not try again.
"""

from __future__ import annotations

import contextlib
import json
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from trimtab import models
from trimtab.files import write_text
from trimtab.provenance import digest

_found: weakref.WeakKeyDictionary[nn.Module, dict[str, dict[str, Any]]] = (
    weakref.WeakKeyDictionary()
)


def proven(
    model: nn.Module, what: str, on: Any, make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """What `make` finds on a model, made at most once.

    Args:
        what: the proof's name, with a number that rises when it begins to look at other things.
        on: JSON values that it depends on beside the model, its dtype, device and attention kernel,
            and the versions of torch and transformers: a digest of rows, settings.
        make: tries, and gives JSON values. What it raises is not remembered.
    """
    key = digest([_conditions(model), what, on])
    name = key[:32]
    known = _found.setdefault(model, {})
    if name not in known:
        file = models.cache_root() / "proofs" / f"{name}.json"
        known[name] = _read(file) or _written(file, make())
    return known[name]


def _conditions(model: nn.Module) -> dict[str, str]:
    """All that a proof on a model depends on, whatever it is about."""
    import transformers

    some = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return {
        "model": models.source_of(model).in_memory,
        "dtype": str(some.dtype),
        "device": some.device.type,
        "attention": str(getattr(models.text_config(model), "_attn_implementation", "")),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _read(file: Any) -> dict[str, Any] | None:
    """A remembered proof; None where there is none, or none that can be read."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _written(file: Any, found: dict[str, Any]) -> dict[str, Any]:
    """Keep what was found, written aside and renamed; a folder that cannot be written keeps nothing."""
    with contextlib.suppress(OSError):
        write_text(file, json.dumps(found))
    return found
