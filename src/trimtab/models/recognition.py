"""Whether a model in memory is the one that certain files hold."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trimtab.models.digests import content_of, read_tensor
from trimtab.models.tensors import canonical, is_packed, stored, tied_names
from trimtab.models.values import NAMES

_DTYPES = {name: dtype for dtype, name in NAMES.items()}


def files_named(model: nn.Module) -> Path | None:
    """The folder of safetensors files that a model says it was loaded from, if it is on this disk."""
    config: Any = getattr(model, "config", None)
    name = str(getattr(config, "_name_or_path", "") or "")
    if not name:
        return None
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if folder.is_absolute() or name.count("/") > 1:
            return None
        from huggingface_hub import snapshot_download

        try:
            revision = getattr(config, "_commit_hash", None)
            folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
        except Exception:  # not in the cache, or no id at all
            return None
    return folder if any(folder.glob("*.safetensors")) else None


def is_of(model: nn.Module, folder: Path) -> bool:
    """Whether every tensor of the model is the one in the folder's files, cast to the model's dtype.
    Packed weights of a quantised model are not compared, its other ones are."""
    where: dict[str, Path] = {}
    tensors: dict[str, tuple[list[int], str]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, entry in content_of(file).tensors.items():
            where[name], tensors[name] = file, entry
    known = canonical(type(model), tensors)
    packed, tied = is_packed(model), tied_names(type(model))
    mine = dict(stored(model))
    names = canonical(type(model), {n: (list(t.shape), str(t.data_ptr())) for n, t in mine.items()})
    compared = 0
    for name, (own, shape, _) in names.items():
        tensor = mine[own]
        there = known.get(name) or known.get(tied.get(name, ""))  # tied there, a copy here
        if packed and (there is None or type(tensor) is not Tensor or shape != there[1]):
            continue
        if there is None or shape != there[1] or tensor.device.type == "meta":
            return False
        if not _same(tensor, where[there[0]], there[0]):
            return False
        compared += 1
    prefix = f"{getattr(type(model), 'base_model_prefix', '')}."
    for long, tensor in model.named_parameters(remove_duplicate=False):  # shared, but not there
        name = long.removeprefix(prefix)
        there = None if packed or name in names else known.get(name)
        if there and not _same(tensor.detach(), where[there[0]], there[0]):
            return False
    return compared > 0


def _same(tensor: Tensor, file: Path, name: str) -> bool:
    data, kind, shape = read_tensor(file, name)
    if kind not in _DTYPES:
        return False
    with contextlib.suppress(RuntimeError):
        plain = torch.from_numpy(np.array(data)).view(_DTYPES[kind]).reshape(shape)
        return torch.equal(plain.to(tensor.dtype), tensor.cpu())
    return False
