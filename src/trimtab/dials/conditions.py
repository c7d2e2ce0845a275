"""Conditions in files of their own, to put any vector dial of a model under."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from trimtab.dials.saved import DialInfo, load_finite
from trimtab.dials.where import Condition
from trimtab.errors import DialError
from trimtab.files import staged
from trimtab.foreign import parse_json
from trimtab.holding import holding

NOTE, WEIGHTS = "condition.json", "condition.safetensors"
FIELDS = ("site", "threshold", "over", "above", "prompt_style", "rendering")


@dataclass
class SavedCondition:
    """A condition, what it was found on, and how well it told apart what it was not made from."""

    condition: Condition
    info: DialInfo = field(default_factory=DialInfo)
    balanced_accuracy: float | None = None
    kind: str = "condition"


@holding("folder")
def save_condition(folder: str | Path, saved: SavedCondition) -> Path:
    """Write a condition into a folder.

    Raises:
        DialError: the folder holds something else, or cannot be written.
    """
    folder = Path(os.path.realpath(Path(folder).expanduser()))  # a link stays one
    if folder.exists() and not (folder / NOTE).is_file():
        raise DialError(f"{folder}: exists and is no saved condition; choose another folder")
    note: dict[str, Any] = {
        "format": 1,
        **{name: getattr(saved.condition, name) for name in FIELDS},
        "balanced_accuracy": saved.balanced_accuracy,
        **{k: v for k, v in dataclasses.asdict(saved.info).items() if v},
    }
    try:
        with staged(folder) as stage:
            new = stage / "new"
            new.mkdir()
            save_file({"condition": saved.condition.direction.contiguous()}, new / WEIGHTS)
            (new / NOTE).write_text(json.dumps(note, indent=2, ensure_ascii=False) + "\n")
            if folder.exists():
                folder.rename(stage / "old")
            new.rename(folder)
    except (OSError, SafetensorError) as error:
        raise DialError(f"{folder}: cannot save the condition ({error})") from error
    return folder


def load_condition(folder: str | Path) -> SavedCondition:
    """Read a condition from a folder.

    Raises:
        DialError: none there, or damaged.
    """
    folder = Path(folder).expanduser()
    try:
        note = parse_json((folder / NOTE).read_bytes())
        tensors = load_finite(folder / WEIGHTS)
        condition = Condition(
            direction=tensors["condition"], **{name: note[name] for name in FIELDS}
        )
        known = {f.name for f in dataclasses.fields(DialInfo)}
        info = DialInfo(**{k: v for k, v in note.items() if k in known})
    except FileNotFoundError:
        raise DialError(
            f"{folder}: no {NOTE} and {WEIGHTS}: not a condition (trimtab fit-condition makes one)"
        ) from None
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        SafetensorError,
        DialError,
    ) as error:
        raise DialError(f"{folder}: damaged condition ({error})") from error
    return SavedCondition(condition, info, note.get("balanced_accuracy"))
