"""llama.cpp's control vectors: written, and read whatever a file may hold.

A file of architecture `controlvector` holds 1-D F32 tensors `direction.K`; llama.cpp adds, times a
strength, `direction.K` to the residual stream after block K, at every position. It never reads a
layer 0. repeng's files are the same (and may hold one).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from trimtab import models
from trimtab.dials import Composed, Dial, VectorDial
from trimtab.dials.dial import members
from trimtab.errors import DialError
from trimtab.export.facts import told_on
from trimtab.files import aside
from trimtab.sites import block_index

ARCHITECTURE = "controlvector"
LARGEST = 1 << 31
"""Bytes beyond which a file is no control vector."""


class ControlVector(NamedTuple):
    """A file's content: a direction a layer, and the model type that it was made for."""

    directions: dict[int, Float[Tensor, "d"]]
    model_hint: str


def write_control_vector(
    file: str | Path, directions: Mapping[int, Float[Tensor, "d"]], model_hint: str
) -> Path:
    """Write directions by layer, in float32; the file is there whole or not at all.

    Args:
        directions: what is added after each block at strength 1. llama.cpp takes none at 0.
        model_hint: the model type, such as `llama`.

    Raises:
        DialError: no directions; a layer below 0; widths that differ; values that are not finite.
    """
    import gguf

    file = Path(file)
    if not directions or len({tuple(v.shape) for v in directions.values()}) != 1:
        raise DialError("a control vector needs directions, all of one width")
    for layer, v in directions.items():
        if not isinstance(layer, int) or layer < 0:
            raise DialError(f"layer {layer!r}: a control vector's layers are block numbers")
        if v.ndim != 1 or not torch.isfinite(v).all():
            raise DialError(f"the direction of layer {layer} is no vector of finite numbers")
    try:
        with aside(file) as writing:
            writer = gguf.GGUFWriter(writing, ARCHITECTURE)
            writer.add_string(f"{ARCHITECTURE}.model_hint", model_hint)
            writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(directions))
            for layer, v in sorted(directions.items()):
                array = v.detach().cpu().float().numpy()
                writer.add_tensor(f"direction.{layer}", np.ascontiguousarray(array))
            written(writer)
    except OSError as error:
        raise DialError(f"{file}: cannot be written ({error})") from error
    return file


def written(writer: Any) -> None:
    """Have a writer of the package `gguf` write its file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_control_vector(file: str | Path, width: int | None = None) -> ControlVector:
    """Read a control vector: llama.cpp's, repeng's, or ours.

    Every length is checked against the file before it is believed, so that a damaged file is told
    at once and takes neither time nor memory.

    Args:
        width: hidden size of the model that it must fit.

    Raises:
        DialError: no such file; truncated or damaged; another architecture; a tensor that is no
            1-D F32 `direction.K`; widths that differ, or not `width`.
    """
    file = Path(file)
    try:
        if file.stat().st_size > LARGEST:
            raise DialError(f"{file}: larger than any control vector ({file.stat().st_size} bytes)")
        data = file.read_bytes()
    except OSError as error:
        raise DialError(f"{file}: cannot be read ({error.strerror})") from error
    try:
        found = _parse(_Bytes(data))
    except (_Broken, UnicodeDecodeError) as error:
        raise DialError(f"{file}: not a readable control vector: {error}") from error
    sizes = {len(v) for v in found.directions.values()}
    if len(sizes) > 1:
        raise DialError(f"{file}: directions of different widths ({min(sizes)}, {max(sizes)})")
    if width is not None and sizes != {width}:
        raise DialError(
            f"{file}: its directions have {sizes.pop()} entries, the model's hidden states {width}"
        )
    return found


def one_vector(dial: Dial) -> VectorDial:
    """A dial that adds vectors, or a sum of such, as one. Raises DialError for any other."""
    parts = members(dial)
    for part, _ in parts:
        if not isinstance(part, VectorDial):
            raise DialError(f"a {part.kind} dial is no vector that is added to hidden states")
    first, weight = parts[0]
    assert isinstance(first, VectorDial)
    if not isinstance(dial, Composed):
        return first
    total = first.times(weight)
    for part, weight in parts[1:]:
        assert isinstance(part, VectorDial)
        total = total.plus(part, weight)
    return total


def added_steps(dial: Dial, model: nn.Module, what: str) -> dict[int, Float[Tensor, "d"]]:
    """What a dial adds after each block at alpha = 1, at every position and for every row.

    Raises:
        DialError: it does anything else, with the reason.
    """
    vector = one_vector(dial)
    reasons = [
        (vector.operator != "add", f"the operator {vector.operator}"),
        (vector.keep_norm, "norms that are kept"),
        (vector.positions != "all", f"positions ({vector.positions})"),
        (vector.condition is not None, "a condition"),
    ]
    for true, reason in reasons:
        if true:
            raise DialError(f"{what} cannot say {reason}: it adds one vector at every position")
    steps = {}
    for site in vector.sites:
        if not isinstance(site, int):
            raise DialError(f"{what} cannot say site {site!r}: its vectors are added after blocks")
        steps[block_index(site, models.n_layers(model))] = vector.step(site)
    return steps


def export_gguf(dial: Dial, model: Any, alpha: float, file: Path, what: str) -> list[str]:
    """Write a dial at `alpha` as a control vector for strength 1. Returns what is not carried over.

    Raises:
        DialError: what the format cannot say.
    """
    steps = added_steps(dial, model, what)
    if what == "llama.cpp" and 0 in steps:
        raise DialError("llama.cpp cannot say site 0: it takes no control vector for its layer 0")
    model_type = models.text_config(model).model_type
    to = "gguf" if what == "llama.cpp" else "repeng"
    known = told_on(to, model, frozenset(), head=False, bias=False)
    write_control_vector(file, {k: alpha * v for k, v in steps.items()}, model_type)
    return [
        f"alpha: strength 1 is the dial at {alpha:g}, strength s the dial at s x {alpha:g}",
        "alphas of their own for the rows of a batch",
        "the check that the base model is the one the dial was made for",
        "data, seed and measured range of the dial",
        *known,
    ]


# ---- reading ------------------------------------------------------------------------------------


class _Broken(Exception):
    """A file that is not what it says."""


class _Bytes:
    """Bytes read from the front, never beyond their end."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise _Broken(f"truncated: {size} bytes wanted at {self.at}, of {len(self.data)}")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, form: str) -> Any:
        return struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8")

    def count(self, least: int) -> int:
        """A number of things of at least so many bytes each."""
        n = self.number("Q")
        if n * least > len(self.data) - self.at:
            raise _Broken(f"truncated: {n} entries announced at {self.at}")
        return n


_SCALARS = dict(enumerate("BbHhIif?", 0)) | {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY, _F32 = 8, 9, 0


def _value(bytes_: _Bytes, kind: int, depth: int = 0) -> Any:
    if kind in _SCALARS:
        return bytes_.number(_SCALARS[kind])
    if kind == _STRING:
        return bytes_.text()
    if kind == _ARRAY and depth < 4:
        inner = bytes_.number("I")
        size = struct.calcsize(f"<{_SCALARS[inner]}") if inner in _SCALARS else 8
        return [_value(bytes_, inner, depth + 1) for _ in range(bytes_.count(size))]
    raise _Broken(f"metadata of unknown type {kind}")


def _parse(bytes_: _Bytes) -> ControlVector:
    if bytes_.take(4) != b"GGUF":
        raise _Broken("it does not begin with GGUF")
    version = bytes_.number("I")
    if version not in (2, 3):
        raise _Broken(f"GGUF version {version}; expected 2 or 3, little-endian")
    n_tensors, n_values = bytes_.number("Q"), bytes_.number("Q")
    left = len(bytes_.data) - bytes_.at
    if n_tensors * 24 > left or n_values * 13 > left:
        raise _Broken(f"truncated: {n_tensors} tensors and {n_values} values announced")
    note: dict[str, Any] = {}
    for _ in range(n_values):
        key = bytes_.text()
        note[key] = _value(bytes_, bytes_.number("I"))
    architecture = note.get("general.architecture", "no architecture")
    if architecture != ARCHITECTURE:
        raise _Broken(f"its architecture is {architecture!r:.60}; expected {ARCHITECTURE!r}")
    infos = []
    for _ in range(n_tensors):
        name = bytes_.text()
        n_dims = bytes_.number("I")
        if n_dims > 4:
            raise _Broken(f"{name!r:.60} has {n_dims} dimensions")
        dims = [bytes_.number("Q") for _ in range(n_dims)]
        infos.append((name, dims, bytes_.number("I"), bytes_.number("Q")))
    alignment = note.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 16:
        raise _Broken(f"alignment {alignment!r:.60}")
    start = -(-bytes_.at // alignment) * alignment
    directions: dict[int, Tensor] = {}
    for name, dims, kind, offset in infos:
        head, _, number = name.partition(".")
        if head != "direction" or not number.isascii() or not number.isdigit() or len(number) > 6:
            raise _Broken(f"a tensor {name!r:.60}; expected direction.K")
        if kind != _F32 or len(dims) != 1 or not dims[0]:
            raise _Broken(f"{name} is no vector of F32 (type {kind}, shape {dims})")
        if int(number) in directions:
            raise _Broken(f"{name} is there twice")
        bytes_.at = start + offset
        if bytes_.at > len(bytes_.data):
            raise _Broken(f"truncated: {name} begins behind the end")
        values = torch.frombuffer(bytearray(bytes_.take(4 * dims[0])), dtype=torch.float32)
        if not torch.isfinite(values).all():
            raise _Broken(f"{name} has values that are not finite")
        directions[int(number)] = values
    if not directions:
        raise _Broken("it has no directions")
    hint = note.get(f"{ARCHITECTURE}.model_hint", "")
    return ControlVector(dict(sorted(directions.items())), hint if isinstance(hint, str) else "")
