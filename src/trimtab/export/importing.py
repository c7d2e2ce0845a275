"""Dials from elsewhere: control vectors, directions by layer, PEFT folders, checked on their model.

Nothing is unpickled: torch files are read with `weights_only=True`, numpy's without objects.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from trimtab import models
from trimtab.batching import Encoded, Row
from trimtab.dials import AdapterDial, Dial, DialInfo, VectorDial
from trimtab.dials.numbers import length
from trimtab.errors import DialError
from trimtab.export.gguf import read_control_vector
from trimtab.export.steering_vectors import FILE
from trimtab.files import sha256
from trimtab.pairs.neutral import NEUTRAL
from trimtab.provenance import versions
from trimtab.readings import collect
from trimtab.rendering import prompt_ids
from trimtab.sites import Site, block_index

LARGEST = 1 << 31
"""Bytes beyond which a file holds no directions."""
PASSAGES = 4
USUAL = (0.01, 1.0)
"""Lengths, as shares of the states' mean length, outside of which a vector is likely meant otherwise."""
LAYER = re.compile(r"(?:.*[._ ])?(?:layers?|blocks?|directions?|h)[._ ]?(\d+)(?:[._].*)?|(\d+)")


class Imported(NamedTuple):
    """A dial that was taken in, and lines on what it is and how it sits on the model."""

    dial: Dial
    said: list[str]


def import_dial(
    path: str | Path,
    model: nn.Module,
    tokenizer: Any,
    *,
    layer: int | None = None,
    first: int = 0,
) -> Imported:
    """A dial from a file or folder of another tool.

    Args:
        path: a control vector (`.gguf`, llama.cpp's and repeng's); directions by layer as `.safetensors`,
            `.pt`, `.npz`, `.npy`, `.csv`, or a folder with steering-vectors' layer activations; a PEFT
            folder.
        layer: the block after which a single direction is added.
        first: the number that the file gives to what comes after the first block: 0, or 1 where it counts
            as `hidden_states` does.

    Raises:
        DialError: nothing there, another format, a pickle; widths or layers that the model does not have.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise DialError(f"{path}: nothing is there")
    if (path / "adapter_config.json").is_file() or (path / "dial.json").is_file():
        return _adapter(path, model)
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise DialError(
            f"{path}: a folder with neither adapter_config.json (PEFT) nor {FILE} (steering-vectors)"
        )
    found = read_directions(file, models.n_layers(model) + first)
    dial = _vector(found, model, file, layer, first)
    return Imported(dial, _said_of(dial, model, tokenizer))


def control_vector_dial(file: str | Path, model: nn.Module) -> VectorDial:
    """A control vector file as a dial of a model: alpha is the file's strength.

    Raises:
        DialError: as `read_control_vector`, or a layer that the model does not have.
    """
    found = read_control_vector(file, models.text_config(model).hidden_size)
    return _vector(found.directions, model, Path(file), None, 0)


def _vector(
    found: Mapping[Any, Tensor], model: nn.Module, file: Path, layer: int | None, first: int
) -> VectorDial:
    steps = placed(found, model, str(file), layer, first)
    dial = VectorDial(steps, {site: length(v) for site, v in steps.items()}).eval()
    dial.info = _info(model, file)
    return dial


def read_directions(file: Path, rows: int | None = None) -> dict[int | None, Float[Tensor, "d"]]:
    """Directions of a file by its own layer numbers; a table of rows counts them from 0, and a single
    direction without a layer has None.

    Args:
        rows: how many rows a table must have: one a layer.

    Raises:
        DialError: no such format, damaged, not finite, or it holds objects.
    """
    if file.stat().st_size > LARGEST:
        raise DialError(f"{file}: larger than any directions ({file.stat().st_size} bytes)")
    kind = file.suffix.lower()
    if kind == ".gguf":
        return {k: v for k, v in read_control_vector(file).directions.items()}
    if kind not in READERS:
        known = ", ".join([".gguf", *READERS])
        raise DialError(f"{file}: expected {known}, or a folder (PEFT, steering-vectors)")
    try:
        value = READERS[kind](file)
    except DialError:
        raise
    except Exception as error:  # of many kinds: zip's, numpy's, its parser's
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DialError(f"{file}: cannot be read ({reason[:200]})") from error
    found = _by_layer(value, str(file), rows)
    for name, v in found.items():
        if v.ndim != 1 or not len(v) or not torch.isfinite(v).all():
            raise DialError(
                f"{file}: layer {name}: expected a vector of finite numbers, given {list(v.shape)}"
            )
    return found


def _read_torch(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the refusal of objects has no name of its own in torch
        if type(error).__name__ != "UnpicklingError":
            raise
        raise DialError(
            f"{file}: holds Python objects, which are not loaded, since that would run whatever they "
            "say; where it was made, save its tensors by layer: "
            "safetensors.torch.save_file({str(k): v for k, v in vector.layer_activations.items()}, …)"
        ) from None


def _read_npz(file: Path) -> Any:
    with np.load(file, allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def _read_csv(file: Path) -> Any:
    """Numbers in rows, one a layer; a header may name a column `layer`."""
    rows = [row for row in csv.reader(file.read_text("utf-8-sig").splitlines()) if row]
    if not rows:
        raise DialError(f"{file}: it is empty")
    named = None
    if any(not _is_number(cell) for cell in rows[0]):
        header = [cell.strip().casefold() for cell in rows.pop(0)]
        named = header.index("layer") if "layer" in header else None
    table = [[float(cell) for cell in row] for row in rows]
    if len({len(row) for row in table}) != 1:
        raise DialError(f"{file}: rows of different lengths")
    if named is None:
        found = np.array(table)
        return found[:, 0] if found.shape[1] == 1 else found
    return {str(int(row[named])): np.array(row[:named] + row[named + 1 :]) for row in table}


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


READERS: dict[str, Any] = {
    ".safetensors": load_file,
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".bin": _read_torch,
    ".npz": _read_npz,
    ".npy": lambda file: np.load(file, allow_pickle=False),
    ".csv": _read_csv,
}


def _by_layer(value: Any, name: str, rows: int | None) -> dict[int | None, Tensor]:
    """Directions by layer of what a file holds: a mapping of layers, a table, or a single vector."""
    if isinstance(value, Mapping):
        inner = next((value[k] for k in ("layer_activations", "directions") if k in value), None)
        if inner is not None:
            return _by_layer(inner, name, rows)
        single = {"layer", "direction", "vector", "strength", "norm", "coeff"}
        if {"layer"} < value.keys() <= single:
            (key,) = value.keys() & {"direction", "vector"}
            return {int(value["layer"]): _tensor(value[key], name)}
        found: dict[int | None, Tensor] = {}
        for key, v in value.items():
            match = LAYER.fullmatch(str(key))
            number = int(match[1] or match[2]) if match else None
            if number is None and len(value) > 1:
                raise DialError(
                    f"{name}: {str(key)[:60]!r}: expected names that end in a layer's number, as "
                    "12, layer.12 or direction.12"
                )
            if number in found:
                raise DialError(f"{name}: layer {number} is there twice")
            found[number] = _tensor(v, name)
        if not found:
            raise DialError(f"{name}: no directions in it")
        return found
    table = _tensor(value, name)
    if table.ndim == 2 and len(table) > 1:
        if rows is not None and len(table) != rows:
            raise DialError(
                f"{name}: a table of {len(table)} rows; expected {rows}, one a layer (zeros where nothing "
                "is added), or a file that names its layers"
            )
        return dict(enumerate(table))
    return {None: table.reshape(-1)}


def _tensor(value: Any, name: str) -> Tensor:
    try:
        found = torch.as_tensor(np.asarray(value) if not isinstance(value, Tensor) else value)
    except (TypeError, ValueError) as error:
        raise DialError(f"{name}: expected numbers ({error})") from error
    if not found.is_floating_point() and found.dtype not in (torch.int64, torch.int32):
        raise DialError(f"{name}: expected numbers, given {found.dtype}")
    return found.float().squeeze() if found.ndim > 1 and found.shape[0] == 1 else found.float()


def placed(
    found: Mapping[int | None, Tensor], model: nn.Module, name: str, layer: int | None, first: int
) -> dict[Site, Tensor]:
    """Directions by site of a model, zero ones left out.

    Raises:
        DialError: a layer or width that the model does not have; a single direction without a layer.
    """
    count, width = models.n_layers(model), models.text_config(model).hidden_size
    if layer is not None and len(found) > 1:
        raise DialError(f"{name}: --layer {layer}: it holds {len(found)} layers; leave --layer out")
    steps: dict[Site, Tensor] = {}
    for number, v in found.items():
        if not v.any():
            continue
        if layer is not None:
            site = block_index(layer, count)
        elif number is None:
            raise DialError(
                f"{name}: a single direction; --layer K says after which block it is added"
            )
        else:
            site = number - first
        if not 0 <= site < count:
            raise DialError(
                f"{name}: a direction at layer {number}, which is block {site} where counting begins at "
                f"{first}; the model has 0 to {count - 1}"
            )
        if len(v) != width:
            raise DialError(
                f"{name}: directions of {len(v)} entries, the model's states have {width}"
            )
        steps[site] = v
    if not steps:
        raise DialError(f"{name}: all of its directions are zero")
    return steps


def _info(model: nn.Module, file: Path) -> DialInfo:
    source = models.source_of(model)
    return DialInfo(
        method="import",
        base_model=source.name,
        base_digest=source.digest,
        base=source.parts,
        config={"file": file.name, "sha256": sha256(file)},
        versions=versions(),
    )


def _said_of(dial: VectorDial, model: nn.Module, tokenizer: Any) -> list[str]:
    """How long its vectors are beside the states that they are added to."""
    rows = tuple(
        Row(f"passage {i}", (), (prompt_ids(text, tokenizer, "plain"),), (), ())
        for i, text in enumerate(NEUTRAL[:PASSAGES], 1)
    )
    found = collect(model, Encoded(rows, 0, None, "neutral"), sites=list(dial.sites))
    shares = {site: dial.scales[site] / found.norms[site].mean().item() for site in dial.sites}
    low, high = min(shares.values()), max(shares.values())
    span = f"{low:.2g}" if f"{low:.2g}" == f"{high:.2g}" else f"{low:.2g} to {high:.2g}"
    where = f"{len(shares)} site{'s' * (len(shares) > 1)} ({', '.join(map(str, dial.sites))})"
    said = [
        f"a vector at {where}; alpha 1 adds it as it is: {span} of the mean length of the states there "
        "(dials of our own add 0.1)"
    ]
    if low < USUAL[0] or high > USUAL[1]:
        said.append(
            f"warning: alpha {0.1 / high:.2g} would add a tenth; that is far from 1: is it for this model, "
            "and meant at strength 1?"
        )
    return said


def _adapter(path: Path, model: nn.Module) -> Imported:
    """A PEFT folder as a dial of the model, its modules and shapes checked on it."""
    dial = Dial.from_pretrained(path)
    dial.edits(model)  # refuses modules that the model does not have, or of other shapes
    source = models.source_of(model)
    made_for = dial.info.base_model
    if not dial.info.base_digest:
        dial.info.base_model, dial.info.base_digest = source.name, source.digest
        dial.info.base = source.parts
    half = " (lora_alpha and r of its config included), 0.5 half of its change"
    said = [
        f"a {dial.kind} dial on {len(dial.places())} modules",
        f"alpha 1 is the adapter as PEFT applies it{half if isinstance(dial, AdapterDial) else ''}",
    ]
    if made_for and made_for != source.name:
        said.append(
            f"its config names the base {made_for}; that it is this model ({source.name}) nobody can check"
        )
    return Imported(dial.eval(), said)
