"""What a verb makes sure of before the model is loaded, which may take minutes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.errors import ConfigError, DialError, ModelError, near

if TYPE_CHECKING:
    from trimtab.dials import Dial


def check_model(model: str, dtype: str, device: str, load_in: str | None = None) -> None:
    """Raise ModelError where the model cannot be found, dtype or device are unknown, or bitsandbytes
    is not there to quantise it."""
    from trimtab import models

    models.resolve_dtype(dtype, models.resolve_device(device))
    models.check_load_in(load_in)
    models.check(model)


def read_dials(names: Sequence[str], model: str, force: bool) -> list[Dial]:
    """The dials of `--dial`, in order, each made for the model.

    Raises:
        DialError: none there, damaged, or made for another base model (`force` goes on).
    """
    from trimtab import models
    from trimtab.dials import Dial, base

    dials = [Dial.from_pretrained(_dial_name(name), force=force) for name in names]
    if dials and not force:
        try:
            source = models.identify(model)
        except ModelError:  # nothing to take a digest of before it is loaded: checked again then
            return dials
        for name, dial in zip(names, dials, strict=True):
            try:
                base.check(dial, source)
            except DialError as error:
                raise DialError(f"{name}: {error}") from error
    return dials


def alpha_of(text: str) -> float:
    """A strength by number or name.

    Raises:
        ConfigError: neither.
    """
    from trimtab.dials.attach import PRESETS

    try:
        value = PRESETS[text] if text in PRESETS else float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(
            f"alpha: expected finite numbers, or {', '.join(PRESETS)}, at least one, "
            f"given {text}{near(text, PRESETS)}"
        )
    return value


def warn_range(dials: Sequence[Dial], alphas: Sequence[float], say: Callable[[str], None]) -> None:
    """A line for each dial that has been measured, and is to be used beyond that."""
    for dial in dials:
        if dial.info.range is None:
            continue
        low, high = dial.info.range
        if beyond := [a for a in alphas if not low <= a <= high]:
            say(
                f"warning: alpha {' '.join(f'{a:g}' for a in beyond)} is out of the range in "
                f"which the {dial.info.method or dial.kind} dial was measured "
                f"({low:g} to {high:g})"
            )


def read_pairs(spec: str, data_root: str | None, limit: int | None) -> Any:
    """The pairs of a spec; a dial's folder in its place is told apart."""
    from trimtab import pairs

    if Path(spec).is_dir():
        raise ConfigError(f"{spec}: a folder; expected a spec of pairs, such as facts:train")
    return pairs.read_pairs(spec, data_root, limit=limit)


def _dial_name(name: str) -> str:
    if ":" in name and not name.startswith("hub:") and not Path(name).exists():
        raise ConfigError(f"--dial {name}: looks like a spec of pairs; expected a dial's folder")
    return name
