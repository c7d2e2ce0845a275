"""Which model a figure belongs to: the name that it was asked by, the digest of its weights."""

from __future__ import annotations

import hashlib
import weakref
from dataclasses import dataclass

import torch
from torch import nn

from trimtab.models.plain import own_tensors


@dataclass(frozen=True)
class Source:
    """Where a model came from: the name it was asked by and the digest of its source tensors."""

    name: str
    digest: str


_sources: weakref.WeakKeyDictionary[nn.Module, Source] = weakref.WeakKeyDictionary()


def source_of(model: nn.Module) -> Source:
    """Name and digest of a model. One not loaded by `load` is hashed from its parameters, once."""
    if model not in _sources:
        name = str(getattr(getattr(model, "config", None), "_name_or_path", "") or "unnamed")
        _sources[model] = Source(name, digest_of_parameters(model))
    return _sources[model]


def known_source(model: nn.Module) -> Source | None:
    """Name and digest of a model that `load` made or `source_of` has hashed; else None."""
    return _sources.get(model)


def digest_of_parameters(model: nn.Module) -> str:
    """For a model made in memory: every parameter's name, shape and bytes."""
    sha = hashlib.sha256()
    for name, p in sorted(own_tensors(model), key=lambda pair: pair[0]):
        data = p.detach().cpu().contiguous()
        sha.update(f"{name} {data.dtype} {list(data.shape)}\n".encode())
        sha.update(memoryview(data.reshape(-1).view(torch.uint8).numpy()))
    return sha.hexdigest()
