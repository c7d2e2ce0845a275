"""The tensors of a model in memory, as `save_pretrained` would write them, and signs of a change."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.errors import ModelError
from trimtab.models.plain import own_tensors
from trimtab.models.quantised import is_quantised
from trimtab.models.values import dtype_name, joined, raw_bytes, value_digest

SMALL = 4096
"""Tensors of fewer entries are compared whole to see a change, of others a sample."""
_ALWAYS = (r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$")
"""Buffers of old checkpoints that transformers passes over whatever the model."""


def stored(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Names and tensors as `save_pretrained` would write them, tied ones once."""
    if is_packed(model):  # asking some quantisers for their state changes it
        return sorted(dict(own_tensors(model)).items())
    state = {k: t for k, t in model.state_dict().items() if isinstance(t, Tensor)}
    for name in getattr(model, "_keys_to_ignore_on_save", None) or ():
        state.pop(name, None)
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    seen: dict[Any, str] = {}
    for name in sorted(state, key=lambda n: (n in tied, n)):  # what others are tied to comes first
        t = state[name]
        place = (t.device, t.data_ptr(), t.shape, t.stride()) if t.numel() else name
        if t.device.type == "meta":
            place = name
        if seen.setdefault(place, name) != name:
            del state[name]
    return sorted(_original(model, state).items())


def _original(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Under the names, and cut as, the checkpoints of the model's kind have them."""
    try:
        from transformers.core_model_loading import revert_weight_conversion

        return revert_weight_conversion(model, state)  # type: ignore[arg-type]
    except Exception:  # no model of transformers', or one that was changed: its own names, then
        return state


def is_packed(model: nn.Module) -> bool:
    """Whether some weights are packed codes, or lie elsewhere than in the model."""
    return any(p.is_meta for p in model.parameters()) or any(map(is_quantised, model.modules()))


def canonical(
    kind: Any, tensors: dict[str, tuple[list[int], str]]
) -> dict[str, tuple[str, list[int], str]]:
    """Stored tensors by a name that does not depend on how they were saved: without the prefix of
    the base model, without what the class ignores, tied weights once.

    Args:
        kind: the model's class, or None.
        tensors: shape and digest by stored name.

    Returns:
        `(stored name, shape, digest)` by that name.
    """
    prefix = f"{getattr(kind, 'base_model_prefix', '')}."
    ignored = [*_ALWAYS, *(getattr(kind, "_keys_to_ignore_on_load_unexpected", None) or ())]
    unread = re.compile("|".join(f"({pattern})" for pattern in ignored))
    found = {
        name.removeprefix(prefix): (name, shape, digest)
        for name, (shape, digest) in tensors.items()
        if not unread.search(name)
    }
    for target, source in tied_names(kind).items():
        if target in found and source not in found:
            found[source] = found.pop(target)
        elif target in found and found[target][1:] == found[source][1:]:
            del found[target]
    return found


def tied_names(kind: Any) -> dict[str, str]:
    """Canonical names that a class can tie, with what they are tied to."""
    prefix = f"{getattr(kind, 'base_model_prefix', '')}."
    tied = getattr(kind, "_tied_weights_keys", None)
    pairs = tied.items() if isinstance(tied, dict) else ()
    return {target.removeprefix(prefix): source.removeprefix(prefix) for target, source in pairs}


def digests(model: nn.Module) -> tuple[str, str]:
    """Digests of a model in memory: as the one file that `save_pretrained` would write
    (`digests.Content.digest`), and of its values.

    Raises:
        ModelError: a weight is not finite.
    """
    sha = hashlib.sha256()
    values: dict[str, tuple[list[int], str]] = {}
    for name, tensor in stored(model):
        data, kind = raw_bytes(tensor), dtype_name(tensor)
        digest, finite = value_digest(data, kind)
        if not finite and tensor.is_floating_point():
            raise ModelError(f"{name}: has weights that are not finite")
        sha.update(f"{name} {kind} {list(tensor.shape)}\n".encode())
        sha.update(data.data)
        values[name] = (list(tensor.shape), digest)
    return sha.hexdigest(), joined(canonical_lines(type(model), values))


def canonical_lines(
    kind: Any, tensors: dict[str, tuple[list[int], str]]
) -> list[tuple[str, list[int], str]]:
    """`(name, shape, digest)` of canonical tensors, for `values.joined`."""
    return [(name, shape, sha) for name, (_, shape, sha) in canonical(kind, tensors).items()]


def old_digest(model: nn.Module) -> str:
    """As models in memory were named before their tied weights and dtypes were told apart from
    those of files: every entry of the state, by name."""
    sha = hashlib.sha256()
    for name, p in sorted(own_tensors(model), key=lambda pair: pair[0]):
        data = p.detach().cpu().contiguous()
        sha.update(f"{name} {data.dtype} {list(data.shape)}\n".encode())
        sha.update(raw_bytes(data).data)
    return sha.hexdigest()


# ---- signs of a change ---------------------------------------------------------------------------


def mark(model: nn.Module) -> str:
    """A sign that changes with the weights: versions, places and dtypes of all tensors, and, for
    writes through `.data` raise no version, their sums as integers, row by row, and a sample of their
    values. That is one pass over the weights at the speed of memory: 20 ms of 135M parameters.

    Not seen is a change through `.data` that keeps every row's sum and every sampled value.
    """
    about, sampled = [], []
    for name, part in _looked_at(model):
        about.append((name, part.data_ptr(), part._version, str(part.dtype), tuple(part.shape)))
        if part.numel() > SMALL:
            sampled.append(_sums(part))
        if part.numel():
            flat = part.reshape(-1) if part.is_contiguous() else part.flatten()
            n = flat.numel()
            step = 1 if n <= SMALL else (n // min(max(n >> 12, 256), SMALL)) | 1
            sampled.append(flat[::step])
    sha = hashlib.sha256(json.dumps(about).encode())
    groups: dict[Any, list[Tensor]] = {}
    for part in sampled:
        groups.setdefault((part.dtype, part.device), []).append(part)
    for group in groups.values():
        sha.update(raw_bytes(torch.cat(group)).data)
    return sha.hexdigest()


def _sums(part: Tensor) -> Tensor:
    """The sum of every row's bits, read as integers of 64 bits where rows are whole numbers of them."""
    rows = part.contiguous().view(-1, part.shape[-1]) if part.ndim else part.view(1, 1)
    size = rows.shape[1] * part.element_size()
    if size % 8 == 0 and part.storage_offset() * part.element_size() % 8 == 0:
        return rows.view(torch.int64).sum(-1)
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return rows.view(kinds[part.element_size()]).sum(-1)


def _looked_at(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors in which a change would show."""
    if is_packed(model):
        yield from own_tensors(model)
        return
    for name, p in model.named_parameters():
        yield name, p.detach()
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{path}.{name}", buffer
