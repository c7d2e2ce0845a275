"""Digests of tensors by what they hold, whatever they are stored in.

A tensor that bfloat16 holds exactly has one digest as bfloat16, float16 or float32, and a set of
tensors has one digest in one file or in several: so a checkpoint is known again after it was loaded
in another precision that loses nothing, saved, and sharded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

BLOCK = 1 << 22
"""Entries that are looked at at a time."""
_WORDS = {"F32": np.uint32, "F16": np.float16, "BF16": np.uint16, "F64": np.float64}
NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of dtypes in safetensors files."""


def raw_bytes(tensor: Tensor) -> np.ndarray:
    """A tensor's bytes, on the CPU."""
    plain = tensor.detach().cpu().contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy()


def dtype_name(tensor: Tensor) -> str:
    """A tensor's dtype as safetensors files name it."""
    return NAMES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))


def value_digest(data: np.ndarray, kind: str) -> tuple[str, bool]:
    """Digest of a tensor's values, and whether all of them are finite; a single number may be
    infinite: a bound that is none (Gemma 4's clipped layers).

    Args:
        data: its bytes.
        kind: its dtype, as safetensors files name it.
    """
    sha, finite = hashlib.sha256(), True
    words = _WORDS.get(kind)
    if words is None:  # integers, codes of a quantised tensor: as they are
        sha.update(kind.encode())
        sha.update(data.data)
        return sha.hexdigest(), True
    entries = data.view(words)
    for start in range(0, len(entries), BLOCK):
        block = entries[start : start + BLOCK]
        if words is np.float64:
            finite = finite and bool(np.isfinite(block).all())
            with np.errstate(all="ignore"):
                short = block.astype(np.float32)
            if not np.array_equal(short.astype(np.float64), block, equal_nan=True):
                sha.update(b"d")
                sha.update(np.ascontiguousarray(block).data)
                continue
            block = short.view(np.uint32)
        elif words is np.float16:
            block = block.astype(np.float32).view(np.uint32)
        if block.dtype == np.uint32:
            finite = finite and bool(np.isfinite(block.view(np.float32)).all())
            # One that is no bfloat16 mostly shows at once.
            if (block[:256] & 0xFFFF).any() or (block & 0xFFFF).any():
                sha.update(b"f")
                sha.update(np.ascontiguousarray(block).data)
                continue
            block = (block >> 16).astype(np.uint16)
        else:
            finite = finite and not bool(((block & 0x7F80) == 0x7F80).any())
        sha.update(b"b")
        sha.update(np.ascontiguousarray(block).data)
    return sha.hexdigest(), finite or (len(entries) == 1 and _infinite(entries))


def _infinite(entries: np.ndarray) -> bool:
    """Whether the first entry is infinite, and not NaN."""
    if entries.dtype == np.uint16:
        return int(entries[0]) & 0x7FFF == 0x7F80
    return bool(np.isinf(entries.view(np.float32) if entries.dtype == np.uint32 else entries)[0])


def joined(tensors: Iterable[tuple[str, Any, str]]) -> str:
    """One digest over `(name, shape, digest)` of all tensors, in any order."""
    sha = hashlib.sha256()
    for name, shape, digest in sorted(tensors):
        sha.update(f"{name} {list(shape)} {digest}\n".encode())
    return sha.hexdigest()
