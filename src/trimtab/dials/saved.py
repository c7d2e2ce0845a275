"""Dials as folders: weights (safetensors), `dial.json`, a model card."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trimtab import models, provenance
from trimtab.dials.base import FORCE
from trimtab.dials.card import card
from trimtab.dials.numbers import LARGEST
from trimtab.errors import DialError, ModelError
from trimtab.files import sha256, staged, write_text
from trimtab.foreign import parse_json
from trimtab.holding import holding
from trimtab.models.values import raw_bytes

if TYPE_CHECKING:
    from trimtab.dials.dial import Dial

KINDS: dict[str, type[Dial]] = {}
"""Dial kinds by the name that `dial.json` gives them; each enters itself as its class is made."""

FORMAT = 1
REAL = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass
class DialInfo:
    """What a saved dial says of itself."""

    method: str = ""
    """The recipe that made it."""
    base_model: str = ""
    """Name of the model it was made for."""
    base_digest: str = ""
    """Digest of that model's source tensors."""
    base: dict[str, Any] = field(default_factory=dict)
    """What else is known of that model's identity, by part (`models.Source.parts`)."""
    data: dict[str, str] = field(default_factory=dict)
    """Specs of the pairs it was made from, with their digests."""
    seed: int | None = None
    """Seed of initialisation, data order and dropout; None for closed-form methods."""
    config: dict[str, Any] = field(default_factory=dict)
    """The recipe's whole configuration."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of trimtab, torch, transformers and peft."""
    measured: dict[str, Any] = field(default_factory=dict)
    """Measured range of alpha and the damage there, once it has been evaluated."""
    dose: dict[str, list[float]] = field(default_factory=dict)
    """Of a vector, a number a site: `relative`, by which share of a state's mean length alpha = 1 moves
    it; `trained_norm`, the length of w that was trained, in tenths of that; `raw_norm`, the length of
    the mean difference that a closed form was read off, in the states' units: so much is CAA's
    multiplier 1."""

    @property
    def range(self) -> tuple[float, float] | None:
        """From the least to the largest alpha at which the dial was measured, 0 among them: what
        `calibrate` found within its budget, else what training or a comparison measured. None where
        nothing was."""
        calibrated = self.measured.get("range")
        found = calibrated.get("alpha") if isinstance(calibrated, dict) else None
        found = found or self.measured.get("alpha") or self.measured.get("alphas")
        if not isinstance(found, list) or not found:
            return None
        if any(isinstance(a, bool) or not isinstance(a, int | float) for a in found):
            return None
        return min(0.0, *found), max(0.0, *found)

    @property
    def damage(self) -> list[tuple[float, float]]:
        """Alphas at which damage was measured, and the mean KL from the bare model there, in nats a
        token; 0 among them."""
        found, curve = {0.0: 0.0}, self.measured.get("kl_nats_per_token")
        if isinstance(curve, dict):
            found |= {float(a): float(kl) for a, kl in curve.items()}
        ends = self.measured.get("range")
        if isinstance(ends, dict):
            alphas = ends.get("alpha", [])
            found |= dict(zip(alphas, ends.get("kl_nats_per_token", []), strict=False))
        return sorted(found.items()) if len(found) > 1 else []


@holding("folder")
def save(dial: Dial, folder: str | Path, extra: Mapping[str, str | bytes]) -> Path:
    """See `Dial.save_pretrained`."""
    folder = Path(os.path.realpath(Path(folder).expanduser()))  # a link stays one
    if folder.exists() and not _may_replace(folder):
        raise DialError(f"{folder}: exists and is no saved dial; choose another folder")
    try:
        with staged(folder) as stage:
            new = stage / "new"
            new.mkdir()
            dial._write(new)
            for name, content in extra.items():
                data = content.encode() if isinstance(content, str) else content
                (new / name).write_bytes(data)
            if folder.exists():
                folder.rename(stage / "old")
            new.rename(folder)
    except (OSError, SafetensorError) as error:
        raise DialError(f"{folder}: cannot save the dial ({error})") from error
    return folder


def write(dial: Dial, folder: Path) -> None:
    """A dial's files, into a folder that is there."""
    weights = {k: t.detach().cpu().contiguous() for k, t in dial.tensors().items()}
    save_file(weights, folder / dial.weights_file, metadata={"format": "pt"})
    note = {
        "format": FORMAT,
        "kind": dial.kind,
        "settings": dial.settings(),
        "weights": {"file": dial.weights_file, "sha256": sha256(folder / dial.weights_file)},
        **dataclasses.asdict(dial.info),
    }
    for name in ("base", "dose"):
        if not note[name]:
            del note[name]
    note["digest"] = _digest(note)
    (folder / "dial.json").write_text(json.dumps(note, indent=2, ensure_ascii=False) + "\n")
    (folder / "README.md").write_text(card(dial))


@holding("folder")
def save_measured(dial: Dial, folder: str | Path) -> None:
    """See `Dial.save_measured`."""
    file = Path(folder).expanduser() / "dial.json"
    try:
        note = parse_json(file.read_bytes())
        if note["kind"] != dial.kind or note["base_digest"] != dial.info.base_digest:
            raise DialError(f"{file}: another dial than the one that was measured")
        note["measured"] = dial.info.measured
        text = json.dumps(note, indent=2, ensure_ascii=False) + "\n"
        for place, content in ((file, text), (file.with_name("README.md"), card(dial))):
            write_text(place, content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DialError(f"{file}: cannot be written to ({error})") from error


def digest_of(dial: Dial) -> str:
    """Digest of what decides a dial's effect, saved or not."""
    sha = hashlib.sha256(json.dumps([dial.kind, dial.settings()], sort_keys=True).encode())
    for name, tensor in sorted(dial.tensors().items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(raw_bytes(tensor.detach().cpu()).data)
    return sha.hexdigest()


def load(name: str | Path, *, force: bool = False) -> Dial:
    """See `Dial.from_pretrained`."""
    folder = _folder(name)
    note_file = folder / "dial.json"
    if not note_file.is_file():
        for kind in KINDS.values():
            if (found := kind.from_folder(folder)) is not None:
                return found
        raise DialError(f"{folder}: no dial.json (nor adapter_config.json): not a saved dial")
    try:
        note = parse_json(note_file.read_bytes())
        kind, made_by = note["kind"], note["format"]
        if made_by != FORMAT or kind not in KINDS:
            raise DialError(
                f"{note_file}: format {made_by}, kind {kind!r}: made by another version of trimtab"
            )
        written = note["weights"]["sha256"]
        known = {"base": {}, "dose": {}, **note}  # earlier versions had none
        info = DialInfo(**{f.name: known[f.name] for f in dataclasses.fields(DialInfo)})
        if not isinstance(info.base, dict):
            raise TypeError("base is no mapping")
        if "digest" not in note and not force:
            raise DialError(
                f"{note_file}: its digest was taken out, so that nobody can tell whether what it "
                f"says of its base model is true; {FORCE}"
            )
        if note.get("digest", mine := _digest(note)) != mine:
            raise DialError(f"{note_file}: damaged: its digest is not that of its content")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DialError(f"{note_file}: damaged ({type(error).__name__}: {error})") from error
    file = folder / KINDS[kind].weights_file
    if not file.is_file():
        raise DialError(f"{file}: missing; the dial is incomplete")
    if sha256(file) != written:
        raise DialError(f"{file}: damaged: its sha256 is not the one that dial.json names")
    try:
        dial = KINDS[kind].build(note["settings"], load_finite(file))
    except (
        *(SafetensorError, LookupError, TypeError, ValueError, RuntimeError),
        *(AttributeError, ArithmeticError),
    ) as error:
        raise DialError(f"{folder}: damaged ({type(error).__name__}: {error})") from error
    dial.info = info
    return dial.eval()


def same(a: Dial, b: Dial) -> bool:
    """Whether two dials do the same to the same model, to the bit."""
    mine, yours = a.tensors(), b.tensors()
    return (
        (a.kind, a.settings(), a.info.base_digest) == (b.kind, b.settings(), b.info.base_digest)
        and mine.keys() == yours.keys()
        and all(torch.equal(mine[k].cpu(), yours[k].cpu()) for k in mine)
    )


def _folder(name: str | Path) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    try:
        repository = models.hub_id(str(name), "folder")
    except ModelError as error:
        raise DialError(str(error)) from error
    if "/" not in repository:
        raise DialError(f"{name}: no such folder")
    try:
        return Path(models.hub_folder(repository))
    except ModelError as error:
        raise DialError(f"{name}: no such folder, and no dial of the Hub: {error}") from error


def _may_replace(folder: Path) -> bool:
    """Whether a folder is a saved dial, or empty."""
    return folder.is_dir() and (
        any((folder / name).is_file() for name in ("dial.json", "adapter_config.json"))
        or not any(folder.iterdir())
    )


def load_finite(file: Path) -> dict[str, Tensor]:
    """The tensors of a file, all of them finite (0 times infinity is not 0), and none so large that
    what is computed with it would not be. Else a DialError."""
    tensors = load_file(file)
    for name, t in tensors.items():
        if t.dtype not in REAL:
            raise DialError(
                f"{file}: {name} holds {t.dtype}; expected real numbers of 16 bits or more"
            )
        if not torch.isfinite(t).all():
            raise DialError(f"{file}: {name} has values that are not finite")
        if t.numel() and (most := t.abs().max().item()) > LARGEST:
            raise DialError(f"{file}: {name} has a value of {most:.2g}, whose products overflow")
    return tensors


def _digest(note: dict[str, Any]) -> str:
    """sha256 over what decides a dial's effect; what is measured of it may be added later."""
    keys = ["format", "kind", "settings", "weights", "base_model", "base_digest"]
    keys += ["base"] * bool(note.get("base"))
    return provenance.digest({k: note[k] for k in keys})
