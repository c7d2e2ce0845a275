"""What adapter dials of every tuner share: one edit a linear layer, and PEFT's folder as format."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from trimtab import models
from trimtab.dials.attach import ADAPTER, Edit
from trimtab.dials.dial import Dial
from trimtab.dials.experts import Swap
from trimtab.dials.linear import linear_at
from trimtab.dials.saved import KINDS, DialInfo, load_finite
from trimtab.dials.trial import refuse_unfit
from trimtab.errors import DialError
from trimtab.foreign import parse_json
from trimtab.sites import Site

PREFIX = "base_model.model."

HARMLESS = {
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path"),
    *("revision", "inference_mode", "target_modules", "exclude_modules", "fan_in_fan_out"),
    *("layers_to_transform", "layers_pattern"),
}
"""Fields of PEFT's configs that do not change what saved weights mean."""


class PeftDial(Dial):
    """base + alpha (adapted - base) on every adapted linear layer, saved as a PEFT folder.

    A subclass is a tuner: it has parameters a module, says what they change (`_edit`), and names
    its tensors and settings as PEFT does.
    """

    weights_file = "adapter_model.safetensors"
    peft_type: ClassVar[str]
    tuner: ClassVar[str]
    """Its name in messages."""
    own: ClassVar[dict[str, str]] = {}
    """Attributes that hold a tensor a module, by PEFT's name for it."""
    odd: ClassVar[tuple[str, ...]] = ()
    """Attributes that are negated to exchange alpha and -alpha; empty where none would do."""
    known: ClassVar[set[str]] = set()
    """Fields of PEFT's config that it reads, or that do not change what saved weights mean."""
    plain: ClassVar[dict[str, tuple[Any, ...]]] = {"bias": ("none",)}
    """Values of other fields that mean nothing special."""

    def __init__(self, shapes: dict[str, tuple[int, int]], *, elsewhere: bool = False):
        """
        Args:
            shapes: (in, out) features of each adapted module, by its path in the model.
            elsewhere: the adapter is (also) on something else.
        """
        super().__init__()
        if not shapes and not elsewhere:
            raise DialError("an adapter needs at least one module")
        self.shapes = dict(shapes)
        self.paths = list(shapes)

    def places(self) -> list[Site]:
        """The outputs of the adapted modules."""
        return [f"{path}:out" for path in self.paths]

    def edits(self, model: nn.Module) -> list[Edit] | list[Edit | Swap]:
        """One change of a module's output each."""
        refuse_unfit(model, self.paths)
        return [
            Edit(
                f"{path}:out",
                ADAPTER,
                partial(self._edit, index, linear_at(model, path, self.shapes[path], "adapter")),
            )
            for index, path in enumerate(self.paths)
        ]

    def _edit(
        self, index: int, module: nn.Module, x: Tensor, y: Tensor, alpha: float | Tensor
    ) -> Tensor:
        """y + alpha (adapted - base) of the index-th module, whose input is x."""
        raise NotImplementedError

    @torch.no_grad()
    def flip(self) -> None:
        """Exchange alpha and -alpha, exactly.

        Raises:
            DialError: the tuner has no parameters that would do so.
        """
        if not self.odd:
            raise DialError(f"{self.tuner}: its opposite is no adapter of this kind")
        for p in (p for name in self.odd for p in getattr(self, name)):
            p.neg_()

    # ---- saving: the folder is a PEFT adapter at the same time ----

    def tensors(self) -> dict[str, Tensor]:
        """Weights under PEFT's names."""
        return {
            f"{PREFIX}{path}.{theirs}": getattr(self, mine)[index]
            for index, path in enumerate(self.paths)
            for theirs, mine in self.own.items()
        }

    @torch.no_grad()
    def filled(self, tensors: dict[str, Tensor]) -> Self:
        """The dial, with saved weights."""
        for name, mine in PeftDial.tensors(self).items():
            if not mine.numel():
                raise DialError(f"{name}: no weights")
            mine.copy_(tensors[name].view_as(mine))
        return self

    def peft_settings(self) -> dict[str, Any]:
        """What PEFT's config says of this tuner."""
        raise NotImplementedError

    def peft_config(self) -> Any:
        """PEFT's config of this adapter."""
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
        from peft.utils import PeftType

        kind: Any = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(self.peft_type)]
        base = self.info.base_model or None
        return kind(
            target_modules=self.paths,
            task_type="CAUSAL_LM",
            inference_mode=True,
            base_model_name_or_path=base and (models.on_hub(base) or base),
            **self.peft_settings(),
        )

    def _write(self, folder: Path) -> None:
        super()._write(folder)
        config = self.peft_config().to_dict()
        note = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
        (folder / "adapter_config.json").write_text(
            json.dumps(note, indent=2, sort_keys=True, default=str) + "\n"
        )

    @classmethod
    def _from_config(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """From PEFT's config and weights. Raises DialError, or KeyError where something lacks."""
        raise NotImplementedError

    @classmethod
    def modules_of(cls, tensors: Iterable[str]) -> list[str]:
        """Paths of the modules that PEFT's names of tensors tell; every name must be known.

        Raises:
            DialError: a tensor that this tuner does not have.
        """
        found = {}
        for name in tensors:
            path, _, theirs = name.removeprefix(PREFIX).rpartition(".")
            if theirs == "weight":  # of a module inside
                path, _, inner = path.rpartition(".")
                theirs = f"{inner}.weight"
            if theirs not in cls.own:
                raise DialError(f"only plain {cls.tuner} load as a dial; this has {name}")
            found[path] = None
        return sorted(found)

    @staticmethod
    def from_folder(folder: Path) -> Dial | None:
        """A plain PEFT folder's."""
        named = (folder / "adapter_config.json").is_file()
        return PeftDial.from_peft(folder) if named else None

    @staticmethod
    def from_peft(folder: str | Path) -> PeftDial:
        """A plain PEFT folder as a dial.

        Raises:
            DialError: a tuner that has no alpha, or uses what a dial has no strength for (DoRA,
                biases, …).
        """
        folder = Path(folder)
        try:
            config = parse_json((folder / "adapter_config.json").read_bytes())
            tensors = load_finite(folder / PeftDial.weights_file)
            if not isinstance(config, dict):
                raise ValueError("adapter_config.json holds no settings")
        except (OSError, ValueError, SafetensorError) as error:
            raise DialError(f"{folder}: not a readable PEFT adapter folder: {error}") from error
        tuners = [kind for kind in KINDS.values() if issubclass(kind, PeftDial)]
        tuner = {kind.peft_type: kind for kind in tuners}.get(str(config.get("peft_type")))
        if tuner is None:
            known = ", ".join(kind.tuner for kind in tuners)
            raise DialError(
                f"{folder}: {config.get('peft_type')} has no strength that is 0 at the bare model; "
                f"these load as a dial: {known}"
            )
        try:
            refuse_beyond(config, tuner)
            dial = tuner._from_config(config, tensors)
        except DialError as error:
            raise DialError(f"{folder}: {error}") from error
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise DialError(f"{folder}: damaged ({type(error).__name__}: {error})") from error
        dial.info = DialInfo(method="peft", base_model=config.get("base_model_name_or_path") or "")
        return dial.eval()


def refuse_beyond(config: dict[str, Any], tuner: type[PeftDial]) -> None:
    """Raise DialError where a PEFT config asks for more than its plain tuner (DoRA, biases, …)."""
    for key, value in config.items():
        known = key in HARMLESS or key in tuner.known
        if not known and value and value not in tuner.plain.get(key, ()):
            raise DialError(f"only plain {tuner.tuner} load as a dial; this has {key} {value!r}")


# ---- PEFT's names and patterns ------------------------------------------------------------------


def matches(key: str, path: str) -> bool:
    """Whether a key of a pattern is for a path: a regular expression, matched at its end behind a dot.
    Raises DialError where it is none."""
    try:
        return bool(re.match(rf"(.*\.)?({key})$", path))
    except re.error as error:
        raise DialError(f"pattern {key!r}: not a regular expression ({error})") from error


def pattern_value(pattern: Mapping[str, Any], path: str, default: Any) -> Any:
    """What a pattern (`rank_pattern`, `alpha_pattern`) says of a path: the first key that matches."""
    return next((value for key, value in pattern.items() if matches(key, path)), default)


def is_target(targets: Any, path: str) -> bool:
    """Whether `target_modules` names a module: a regular expression of the whole path, or ends of it."""
    if isinstance(targets, str):
        try:
            return targets == "all-linear" or bool(re.fullmatch(targets, path))
        except re.error as error:
            raise DialError(f"target_modules {targets!r}: not a regular expression") from error
    return any(path == t or path.endswith(f".{t}") for t in targets or ())
