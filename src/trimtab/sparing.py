"""What the backward pass needs and is cheap to compute again is not kept for it.

Norms, gates, activations, copies of keys and values for the heads that share them: most of what a decoder
layer keeps are products, entry by entry, of tensors that it keeps as well. Within `sparing` such a tensor
is kept as the operations that made it, and these run again, on the same inputs, where the backward pass
asks for it. They give the same bits, so that no gradient changes, and nothing need be known of the
architecture.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

LEAST = 1 << 14
"""Tensors of fewer bytes are kept as they are."""

_aten = torch.ops.aten
CHEAP = frozenset(
    {
        *(_aten.mul.Tensor, _aten.mul.Scalar, _aten.clone.default, _aten._to_copy.default),
        *(_aten.silu.default, _aten.gelu.default, _aten.relu.default, _aten.sigmoid.default),
        *(_aten.tanh.default, _aten.pow.Tensor_Scalar, _aten.native_layer_norm.default),
    }
)
"""Operations on each entry alone (or on a row), without chance and side effects."""
_KINDS: dict[Any, int] = {}
"""1 for cheap operations, 2 for those that write to what they are given, 0 for all others."""


@dataclass
class _Made:
    """How a storage was filled: an operation on tensors (`_Given`) and other values."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def again(self) -> Tensor:
        """The tensor, computed again."""
        args = (arg.again() if isinstance(arg, _Given) else arg for arg in self.args)
        out = self.func(*args, **self.kwargs)
        return out[0] if isinstance(out, tuple) else out


@dataclass
class _Given:
    """A tensor by its place in a storage: one that somebody else keeps, or one that can be filled again."""

    form: tuple[Any, ...]
    """Size, stride and offset."""
    made: _Made | None
    storage: StorageWeakRef
    dtype: torch.dtype
    written: int
    """How often the storage had been written to."""
    seen: weakref.ref[Tensor]
    version: int
    holds: torch.UntypedStorage | None = None

    def again(self) -> Tensor:
        """The tensor."""
        if self.made is not None:
            return self.made.again().as_strided(*self.form)
        assert self.holds is not None
        seen = self.seen()
        if seen is not None and seen._version != self.version:
            raise RuntimeError(
                f"a tensor of {tuple(seen.shape)} was written to between forward and backward pass"
            )
        size, stride, offset = self.form
        empty = torch.empty(0, dtype=self.dtype, device=self.holds.device)
        return empty.set_(self.holds, offset, size, stride)

    def sources(self) -> Iterator[_Given]:
        """The tensors that it is computed from."""
        if self.made is None:
            yield self
        else:
            for arg in self.made.args:
                if isinstance(arg, _Given):
                    yield from arg.sources()


class _Sparing(TorchDispatchMode):
    """Sees the operations of a forward pass, remembers the cheap ones, packs what autograd keeps."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__()
        self.made: dict[int, tuple[StorageWeakRef, _Made]] = {}
        self.written: dict[int, tuple[StorageWeakRef, int]] = {}
        refs = [StorageWeakRef(p.untyped_storage()) for p in parameters]
        self.kept = {ref.cdata: ref for ref in refs}
        self.bytes = 0
        self.busy = False

    def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (kind := _KINDS.get(func)) is None:
            kind = _KINDS[func] = 1 if func in CHEAP else 2 if func._schema.is_mutable else 0
        if not kind or self.busy:
            return out
        if kind == 1:
            storage = (out[0] if isinstance(out, tuple) else out).untyped_storage()
            if storage.nbytes() >= LEAST:
                given = (self._given(a) if isinstance(a, Tensor) else a for a in args)
                ref = StorageWeakRef(storage)
                self.made[ref.cdata] = (ref, _Made(func, tuple(given), kwargs or {}))
        else:
            for value in (*args, *(kwargs or {}).values()):
                if isinstance(value, Tensor):  # one that is only read counts, too: no harm
                    ref = StorageWeakRef(value.untyped_storage())
                    self.made.pop(ref.cdata, None)
                    self.written[ref.cdata] = (ref, self._writes(ref) + 1)
        return out

    def _writes(self, ref: StorageWeakRef) -> int:
        return self.written.get(ref.cdata, (ref, 0))[1]

    def _given(self, t: Tensor) -> _Given:
        ref = StorageWeakRef(t.untyped_storage())
        made = self.made.get(ref.cdata, (ref, None))[1]
        form = (t.size(), t.stride(), t.storage_offset())
        return _Given(form, made, ref, t.dtype, self._writes(ref), weakref.ref(t), t._version)

    def pack(self, t: Tensor) -> Tensor | _Given:
        """What is kept in a tensor's place: how to compute it where that keeps less."""
        self.busy = True
        try:
            storage = t.untyped_storage()
            found = self._given(t)
            if found.made is not None and found.storage.cdata not in self.kept:
                sources = list(found.sources())
                new = {s.storage.cdata: s for s in sources if s.storage.cdata not in self.kept}
                alive = [self._alive(s) for s in sources]
                if all(alive) and sum(s.nbytes() for s in map(self._alive, new.values()) if s) <= (
                    storage.nbytes()
                ):
                    for source, held in zip(sources, alive, strict=True):
                        source.holds = held
                        self._keep(source.storage, held)
                    return found
            self._keep(found.storage, storage)
            return t
        finally:
            self.busy = False

    def _alive(self, source: _Given) -> torch.UntypedStorage | None:
        """The storage of a source, if it is still there as it was."""
        if self._writes(source.storage) != source.written or source.storage.expired():
            return None
        return torch.UntypedStorage._new_with_weak_ptr(source.storage.cdata)

    def _keep(self, ref: StorageWeakRef, storage: torch.UntypedStorage | None) -> None:
        if ref.cdata not in self.kept and storage is not None:
            self.kept[ref.cdata] = ref
            self.bytes += storage.nbytes()


def _unpack(kept: Tensor | _Given) -> Tensor:
    with torch.no_grad():
        return kept.again() if isinstance(kept, _Given) else kept


@contextmanager
def sparing(parameters: Iterable[Tensor] = ()) -> Iterator[_Sparing]:
    """Within it a forward pass keeps less for its backward pass, which may be outside. What it gives
    says how many `bytes` are kept beside the parameters."""
    mode = _Sparing(parameters)
    try:
        with saved_tensors_hooks(mode.pack, _unpack), mode:
            yield mode
    finally:  # what is noted holds what it is made of
        mode.made, mode.written, mode.kept = {}, {}, {}
