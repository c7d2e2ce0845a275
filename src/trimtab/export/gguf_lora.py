"""A dial at one alpha as a LoRA of llama.cpp, written straight onto the tensors of its own base file.

A GGUF file may hold a layer's rows in another order (llama's rotary heads), in several tensors (fused
projections) or stacked (experts). Where they lie is read off the base file by the rows themselves,
so that no table of architectures is needed and what does not fit is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from trimtab import models
from trimtab.dials import AdapterDial, Dial
from trimtab.dials.dial import members
from trimtab.dials.linear import dense_weight
from trimtab.errors import DialError
from trimtab.export.facts import told_on
from trimtab.export.gguf import written

BASE_FILE = "base.gguf"
HEAD, EMBEDDING = "output.weight", "token_embd.weight"
SCALES = (1.0, 0.5, -0.5)
"""At which llama.cpp's check is made, where the dial is linear in alpha."""


class Change(NamedTuple):
    """W + B A of one weight: A `[E, r, in]`, B `[E, out, r]`, W `[E, out, in]`; E is 1 for a layer."""

    weight: Tensor
    A: Tensor
    B: Tensor


def export_gguf_lora(
    dial: Dial, model: nn.Module, alpha: float, folder: Path, base_gguf: Path
) -> list[str]:
    """Write `adapter.gguf`, and `base.gguf` where the LM head changes and the base has none of its own.
    Returns what is not carried over.

    Raises:
        DialError: the dial is no low-rank change of weights, or the base file does not hold these
            weights row by row (quantised, scaled, of another model).
    """
    import gguf

    reader = gguf.GGUFReader(base_gguf)
    changes = changes_of(dial, model, alpha)
    head = next((p for p in changes if model.get_submodule(_owner(p)) is models.head(model)), None)
    paths = frozenset(map(_owner, changes))
    lines = told_on("gguf-lora", model, paths, head=head is not None, bias=False)
    named = {t.name: t for t in reader.tensors if len(t.shape) > 1}
    rest = {name: t for name, t in named.items() if name != EMBEDDING}
    folder.mkdir(parents=True)
    writer = _writer(gguf, folder / "adapter.gguf", reader)
    rank = max(change.A.shape[1] for change in changes.values())
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))
    for path, change in changes.items():
        own = {HEAD: named.get(HEAD, named[EMBEDDING])} if path == head else rest
        for name, order in _places(path, change.weight, own):
            A, B = change.A, change.B[:, order] * (change.A.shape[1] / rank)  # its own over rank
            if len(A) == 1:
                A, B = A[0], B[0]
            writer.add_tensor(f"{name}.lora_a", np.ascontiguousarray(A.numpy()))
            writer.add_tensor(f"{name}.lora_b", np.ascontiguousarray(B.numpy()))
    written(writer)
    if head is not None and HEAD not in named:
        _untied(gguf, reader, folder / BASE_FILE)
        lines.append(
            f"the tied base: the adapter is for {BASE_FILE}, which has an LM head of its own"
        )
    near = (
        "" if is_linear(dial, model, alpha) else " only near s = 1, since it is not linear in alpha"
    )
    return [
        f"alpha: scale 1 is the dial at {alpha:g}; scale s is it at {alpha:g} s{near}",
        "data, seed and measured range of the dial",
        *lines,
    ]


def run_lines(base: Path, folder: Path, own_base: bool) -> list[str]:
    """How to run it: on the command line, for all requests of a server, and a request at a time."""
    model, lora = folder / BASE_FILE if own_base else base, folder / "adapter.gguf"
    return [
        f"llama-cli -m {model} --lora-scaled {lora}:1.0",
        f"llama-server -m {model} --lora {lora} --lora-init-without-apply",
        'POST /lora-adapters [{"id": 0, "scale": 0.5}]',
        'POST /completion {"prompt": "...", "lora": [{"id": 0, "scale": 0.5}]}',
    ]


def is_linear(dial: Dial, model: nn.Module, alpha: float) -> bool:
    """Whether half the adapter is the dial at half of alpha."""
    whole, half = (changes_of(dial, model, a) for a in (alpha, alpha / 2))
    return all(
        torch.allclose(half[p].B @ half[p].A, c.B @ c.A / 2, rtol=1e-4, atol=1e-7)
        for p, c in whole.items()
    )


@torch.no_grad()
def changes_of(dial: Dial, model: nn.Module, alpha: float) -> dict[str, Change]:
    """The low-rank change of every weight, by its path; several of one weight are one of higher rank.

    Raises:
        DialError: part of the dial is no such change.
    """
    found: dict[str, Change] = {}
    for part, weight in members(dial):
        for path, change in _of_part(part, model, weight * alpha):
            A, B = change.A.detach().cpu().float(), change.B.detach().cpu().float()
            if path in found:
                A, B = torch.cat([found[path].A, A], 1), torch.cat([found[path].B, B], 2)
            found[path] = Change(change.weight, A, B)
    return found


def _of_part(part: Dial, model: nn.Module, alpha: float) -> Iterator[tuple[str, Change]]:
    stacks = part._stacks(model) if isinstance(part, AdapterDial) else []
    low = part._low_rank(alpha) if isinstance(part, AdapterDial) else part.low_rank(model, alpha)
    for path, (A, B) in low.items():
        weight = dense_weight(model.get_submodule(path)).detach().cpu().float()
        yield f"{path}.weight", Change(weight[None], A[None], B[None])
    for stack, A, B, scale in stacks:
        W = stack.module.get_parameter(stack.name).detach().cpu().float()
        W = W[None] if W.ndim == 2 else W.mT if getattr(stack.module, "is_transposed", False) else W
        left = A.reshape(stack.experts, -1, A.shape[1])  # E r in
        right = B.reshape(len(B), -1, stack.experts).permute(2, 0, 1)  # E out r
        yield stack.path, Change(W, left, alpha * scale * right)


def _owner(path: str) -> str:
    return path.rpartition(".")[0]


def _rows(tensor: Any, rows: int | None = None) -> np.ndarray:
    """A tensor of a GGUF file as float32 `[E, out, in]`, or its first rows alone."""
    import gguf

    data = tensor.data.reshape(-1, *tensor.data.shape[-2:])
    part = data if rows is None else data[:1, :rows]
    return gguf.quants.dequantize(part, tensor.tensor_type).astype(np.float32, copy=False)


def _places(path: str, weight: Tensor, tensors: dict[str, Any]) -> list[tuple[str, list[int]]]:
    """The tensors that hold a weight's rows, each with its rows' numbers in the weight.

    Raises:
        DialError: they do not hold all of them, each once.
    """
    experts, n_out, n_in = weight.shape
    firsts = {
        name: _rows(t, 1)[0, 0].tobytes()
        for name, t in tensors.items()
        if t.shape[0] == n_in and (t.shape[2] if len(t.shape) > 2 else 1) == experts
    }
    for kind in (torch.float32, torch.float16, torch.bfloat16):
        W = weight.to(kind).float().numpy()
        at: dict[bytes, list[int]] = {}
        for i, row in enumerate(W[0]):
            at.setdefault(row.tobytes(), []).append(i)
        found: list[tuple[str, list[int]]] = []
        for name in (name for name, first in firsts.items() if first in at):
            held, left = _rows(tensors[name]), {key: list(numbers) for key, numbers in at.items()}
            order = [(left.get(row.tobytes()) or [-1]).pop(0) for row in held[0]]
            if min(order) >= 0 and np.array_equal(W[:, order], held):
                found.append((name, order))
        if sorted(i for _, order in found for i in order) == list(range(n_out)):
            return found
    raise DialError(
        f"{path}: the base file has no tensor with these rows (it is quantised, holds them scaled or "
        "of another model, or no LoRA can act there); give the F32, F16 or BF16 file of this base"
    )


def _writer(gguf: Any, file: Path, reader: Any) -> Any:
    architecture = reader.get_field("general.architecture").contents()
    return gguf.GGUFWriter(file, architecture)


def _untied(gguf: Any, reader: Any, file: Path) -> None:
    """The base file with a copy of its embedding as the LM head."""
    writer = _writer(gguf, file, reader)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kind, *inner = field.types
        writer.add_key_value(
            field.name, field.contents(), kind, sub_type=inner[-1] if inner else None
        )
    for tensor in reader.tensors:
        for name in (tensor.name, HEAD) if tensor.name == EMBEDDING else (tensor.name,):
            writer.add_tensor(name, tensor.data, raw_dtype=tensor.tensor_type)
    written(writer)
