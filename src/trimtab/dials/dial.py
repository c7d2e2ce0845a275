"""The base class of all dials: applying, composing, saving, loading."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trimtab import models
from trimtab.dials.attach import Alpha, Edit, as_alpha, attach
from trimtab.dials.base import FORCE, check, same_base
from trimtab.dials.contexts import check_bare
from trimtab.dials.experts import Swap
from trimtab.dials.linear import dense_weight
from trimtab.dials.merging import refuse_shared, verify
from trimtab.dials.numbers import LARGEST, STRONGEST
from trimtab.errors import ConfigError, DialError, ModelError
from trimtab.sites import Site

FORMAT = 1


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


class Dial(nn.Module):
    """A small module that owns its parameters and says which edits it makes to a model.

    `with dial(model, alpha): ...` applies it; leaving the context restores the model, also after
    an exception. `a + 0.5 * b` composes: at alpha, a acts at alpha and b at half of it.
    """

    kind: ClassVar[str]
    weights_file: ClassVar[str] = "dial.safetensors"

    def __init__(self) -> None:
        super().__init__()
        self.info = DialInfo()

    def edits(self, model: nn.Module) -> Sequence[Edit | Swap]:
        """The edits that make up the dial, for this model."""
        raise NotImplementedError

    def places(self) -> list[Site]:
        """The sites it edits."""
        raise NotImplementedError

    def parts(self, model: nn.Module) -> list[tuple[Sequence[Edit | Swap], float]]:
        """Edits with their weights: one group, unless the dial is composed of several."""
        return [(self.edits(model), 1.0)]

    def forward(
        self, model: nn.Module, alpha: Alpha, *, training: bool = False, force: bool = False
    ) -> AbstractContextManager[None]:
        """A context in which the model runs with the dial at `alpha`.

        Args:
            alpha: a number, `[B]` or `[B, T]`; at 0 nothing is attached.
            training: the context spans forward and backward (see `attach`).
            force: go on although the dial was made for another base model.

        Raises:
            DialError: the dial was made for another base model.
            ConfigError: alpha is not finite, or its shape does not fit.
        """
        model = models.unwrapped(model)
        if not force:
            self.check_base(model)
        context = attach(model, self.parts(model), alpha, training=training)
        return context if training else self._reading(context)

    @contextmanager
    def _reading(self, context: AbstractContextManager[None]) -> Iterator[None]:
        """Without the dial's own dropout in what is read."""
        with models.reading(self), context:
            yield

    def check_base(self, model: nn.Module, tokenizer: Any = None) -> None:
        """Raise DialError where the model is another than the dial was made for, in its weights as
        they are now or its config. Another tokenizer, template or quantisation is said, once."""
        check(self, models.source_of(model, tokenizer), lambda: models.old_digest_of(model))

    def low_rank(self, model: nn.Module, alpha: float = 1.0) -> dict[str, tuple[Tensor, Tensor]]:
        """The dial at `alpha` as W + B A: A `[r, in]` and B `[out, r]` by module path.

        Raises:
            DialError: it is no such change of weights.
        """
        raise DialError(f"a {self.kind} dial is no low-rank change of the model's weights")

    def weights_at(self, model: nn.Module, alpha: float = 1.0) -> dict[str, Tensor]:
        """The model's parameters, by name, with the dial at `alpha` in them (`[out, in]`, float32).

        Raises:
            DialError: the edit cannot be expressed in the model's weights.
        """
        return self.low_rank_weights(model, self.low_rank(model, alpha))

    @staticmethod
    def low_rank_weights(
        model: nn.Module, factors: dict[str, tuple[Tensor, Tensor]]
    ) -> dict[str, Tensor]:
        """W + B A by the weights' names, of A `[r, in]` and B `[out, r]` by module path."""
        changed = {}
        for path, (A, B) in factors.items():
            weight = dense_weight(model.get_submodule(path))
            changed[f"{path}.weight"] = weight + (B.double() @ A.double()).float().to(weight.device)
        return changed

    def merged(self, model: nn.Module, alpha: float = 1.0, *, force: bool = False) -> nn.Module:
        """A copy of the model with the dial at `alpha` in its weights, where the maths allows.

        Args:
            force: go on although the dial was made for another base model.

        Raises:
            DialError: the edit cannot be expressed in the model's weights.
            ConfigError: alpha is no finite number.
        """
        model = models.unwrapped(model)
        if not force:
            self.check_base(model)
        check_bare(model, "merging")
        self.parts(model)  # refuses a model that it does not fit
        if not isinstance(strength := as_alpha(alpha), float):
            raise ConfigError("a model is merged at one alpha: expected a number")
        result = models.plain_copy(model)
        weights = self.weights_at(result, strength)
        refuse_shared(result, weights)
        for name, value in weights.items():
            path, _, leaf = name.rpartition(".")
            module: Any = result.get_submodule(path)
            old = getattr(module, leaf)
            if old is None:
                like = module.weight
                setattr(module, leaf, nn.Parameter(value.to(like), requires_grad=False))
                continue
            value = value.T if leaf == "weight" and type(module).__name__ == "Conv1D" else value
            old.data = value.to(old)
        verify(model, self(model, strength, force=True), result, f"the {self.kind} dial")
        return result

    def __mul__(self, weight: float) -> Composed:
        return Composed([(self, float(weight))])

    __rmul__ = __mul__

    def __neg__(self) -> Composed:
        return self * -1.0

    def __add__(self, other: Dial) -> Composed:
        return Composed([*members(self), *members(other)])

    def __sub__(self, other: Dial) -> Composed:
        return self + -1.0 * other

    # ---- saving ----

    def settings(self) -> dict[str, Any]:
        """JSON values that `build` needs beside the tensors."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """The weights as they are saved."""
        raise NotImplementedError

    @classmethod
    def build(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """The inverse of `settings` and `tensors`."""
        raise NotImplementedError

    def save_pretrained(
        self, folder: str | Path, extra: dict[str, str | bytes] | None = None
    ) -> Path:
        """Save as a folder: weights (safetensors), `dial.json`, a model card. All or nothing: the
        folder is written aside and renamed. A dial that lies there is replaced, with all else in
        its folder. `extra` are further files by name.

        Raises:
            DialError: the folder cannot be written, or holds something that is no dial.
        """
        folder = Path(folder).expanduser().absolute()
        if folder.exists() and not _may_replace(folder):
            raise DialError(f"{folder}: exists and is no saved dial; choose another folder")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            stage = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
            new, old = stage / "new", stage / "old"
            try:
                new.mkdir()  # with ordinary permissions, unlike the stage
                self._write(new)
                for name, content in (extra or {}).items():
                    data = content.encode() if isinstance(content, str) else content
                    (new / name).write_bytes(data)
                if folder.exists():
                    folder.rename(old)
                new.rename(folder)
            finally:
                if old.exists() and not folder.exists():
                    old.rename(folder)
                shutil.rmtree(stage, ignore_errors=True)
        except (OSError, SafetensorError) as error:
            raise DialError(f"{folder}: cannot save the dial ({error})") from error
        return folder

    def _write(self, folder: Path) -> None:
        weights = {k: t.detach().cpu().contiguous() for k, t in self.tensors().items()}
        save_file(weights, folder / self.weights_file, metadata={"format": "pt"})
        note = {
            "format": FORMAT,
            "kind": self.kind,
            "settings": self.settings(),
            "weights": {"file": self.weights_file, "sha256": _sha(folder / self.weights_file)},
            **dataclasses.asdict(self.info),
        }
        if not self.info.base:
            del note["base"]
        note["digest"] = _digest(note)
        (folder / "dial.json").write_text(json.dumps(note, indent=2, ensure_ascii=False) + "\n")
        (folder / "README.md").write_text(card(self))

    def save_measured(self, folder: str | Path) -> None:
        """Write what was measured into the dial that is saved in `folder`, and its card; all else
        there stays as it is.

        Raises:
            DialError: no saved dial lies there, another one does, or it cannot be written.
        """
        file = Path(folder).expanduser() / "dial.json"
        try:
            note = json.loads(file.read_text())
            if note["kind"] != self.kind or note["base_digest"] != self.info.base_digest:
                raise DialError(f"{file}: another dial than the one that was measured")
            note["measured"] = self.info.measured
            text = json.dumps(note, indent=2, ensure_ascii=False) + "\n"
            for place, content in ((file, text), (file.with_name("README.md"), card(self))):
                aside = place.with_name(f".{place.name}.{os.getpid()}")
                aside.write_text(content)
                aside.replace(place)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DialError(f"{file}: cannot be written to ({error})") from error

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:
        """Upload the dial as a model repository; keyword arguments go to `HfApi.upload_folder`."""
        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(repo_id, exist_ok=True)
        with tempfile.TemporaryDirectory() as temporary:
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=self.save_pretrained(Path(temporary) / "dial"),
                **kwargs,
            )

    @staticmethod
    def from_pretrained(name: str | Path, *, force: bool = False) -> Dial:
        """Load a dial from a folder or a Hub id. A plain PEFT folder loads as an adapter dial.

        Args:
            force: go on although its digest was taken out, by which a change would be seen.

        Raises:
            DialError: nothing is there, a file is missing or damaged, or the kind is unknown.
        """
        from trimtab.dials import kinds
        from trimtab.dials.peft import PeftDial

        folder = _folder(name)
        note_file = folder / "dial.json"
        if not note_file.is_file():
            if (folder / "adapter_config.json").is_file():
                return PeftDial.from_peft(folder)
            raise DialError(f"{folder}: no dial.json (nor adapter_config.json): not a saved dial")
        try:
            note = json.loads(note_file.read_text())
            kind, made_by = note["kind"], note["format"]
            if made_by != FORMAT or kind not in kinds.KINDS:
                raise DialError(
                    f"{note_file}: format {made_by}, kind {kind!r}: "
                    "made by another version of trimtab"
                )
            sha256 = note["weights"]["sha256"]
            known = {"base": {}, **note}  # earlier versions had none
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
        file = folder / kinds.KINDS[kind].weights_file
        if not file.is_file():
            raise DialError(f"{file}: missing; the dial is incomplete")
        if _sha(file) != sha256:
            raise DialError(f"{file}: damaged: its sha256 is not the one that dial.json names")
        try:
            dial = kinds.KINDS[kind].build(note["settings"], load_finite(file))
        except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise DialError(f"{folder}: damaged ({type(error).__name__}: {error})") from error
        dial.info = info
        return dial.eval()


class Composed(Dial):
    """Several dials at once, each at its weight times alpha. Not saved: save its members."""

    kind = "composed"

    def __init__(self, members: Sequence[tuple[Dial, float]]):
        super().__init__()
        dials = [dial for dial, _ in members]
        self.members = nn.ModuleList(dials)
        self.weights = [weight for _, weight in members]
        if not all(abs(w) <= STRONGEST for w in self.weights):
            raise ConfigError(
                f"weights {self.weights} of a composed dial: expected finite numbers, at most "
                f"{STRONGEST:g}"
            )
        bases = {d.info.base_digest: d.info.base_model for d, _ in members if d.info.base_digest}
        if not all(same_base(a.info, b.info) for a, b in itertools.combinations(dials, 2)):
            raise DialError(
                "dials of different base models do not compose: "
                + ", ".join(f"{name} ({digest[:12]})" for digest, name in bases.items())
            )

    def parts(self, model: nn.Module) -> list[tuple[Sequence[Edit | Swap], float]]:
        """The members' edits at their weights."""
        return [
            (edits, weight * inner)
            for dial, weight in members(self)
            for edits, inner in dial.parts(model)
        ]

    def places(self) -> list[Site]:
        """The sites that any member edits."""
        return list(dict.fromkeys(site for dial, _ in members(self) for site in dial.places()))

    def check_base(self, model: nn.Module, tokenizer: Any = None) -> None:
        """Check every member."""
        for dial, _ in members(self):
            dial.check_base(model, tokenizer)

    def merged(self, model: nn.Module, alpha: float = 1.0, *, force: bool = False) -> nn.Module:
        """The members merged one after the other."""
        if not force:
            self.check_base(model)
        for dial, weight in members(self):
            model = dial.merged(model, weight * alpha, force=True)  # no base of its own any more
        return model

    def __mul__(self, weight: float) -> Composed:
        return Composed([(dial, weight * w) for dial, w in members(self)])

    __rmul__ = __mul__

    def save_pretrained(
        self, folder: str | Path, extra: dict[str, str | bytes] | None = None
    ) -> Path:
        """Refused: a composed dial is a way of using its members."""
        raise DialError("a composed dial is not saved: save its members and compose them again")


def members(dial: Dial) -> list[tuple[Dial, float]]:
    """The parts of a composed dial with their weights; any other dial, whole."""
    if isinstance(dial, Composed):
        return list(zip(dial.members, dial.weights, strict=True))  # type: ignore[arg-type]
    return [(dial, 1.0)]


def card(dial: Dial) -> str:
    """The model card of a dial, with its measured range and damage."""
    info = dial.info
    measured = "\n".join(f"- {k}: {v}" for k, v in info.measured.items()) or "- not measured yet"
    data = "\n".join(f"- `{k}` ({v[:12]})" for k, v in info.data.items()) or "- not recorded"
    return f"""---
library_name: {"peft" if dial.weights_file.startswith("adapter_model") else "trimtab"}
base_model: {info.base_model}
tags: [trimtab, alignment, {dial.kind}]
---

# {info.method or dial.kind} dial for {info.base_model or "an unnamed model"}

A {dial.kind} dial made by trimtab: at alpha = 0 the model is untouched, turned up it leans towards
the preference of its training pairs, turned down it leans away.

```python
from trimtab import Dial, load

model, tokenizer = load({info.base_model!r})
dial = Dial.from_pretrained("path/to/this/folder")
with dial(model, alpha=1.0):
    ...
```

## Made from

{data}

## Measured

{measured}
"""


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
        if not torch.isfinite(t).all():
            raise DialError(f"{file}: {name} has values that are not finite")
        if t.numel() and (most := t.abs().max().item()) > LARGEST:
            raise DialError(f"{file}: {name} has a value of {most:.2g}, whose products overflow")
    return tensors


def _digest(note: dict[str, Any]) -> str:
    """sha256 over what decides a dial's effect; what is measured of it may be added later."""
    keys = ["format", "kind", "settings", "weights", "base_model", "base_digest"]
    keys += ["base"] * bool(note.get("base"))
    return hashlib.sha256(
        json.dumps({k: note[k] for k in keys}, sort_keys=True).encode()
    ).hexdigest()


def _sha(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
