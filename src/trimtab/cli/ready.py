"""What a verb makes sure of before the model is loaded, which may take minutes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.errors import ConfigError, DialError, ModelError

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


def read_condition(name: Path | None, model: str, force: bool) -> Any:
    """The condition of `--condition`, made for the model; None without one.

    Raises:
        DialError: none there, damaged, or found on another base model (`force` goes on).
    """
    if name is None:
        return None
    from trimtab import models
    from trimtab.dials import base
    from trimtab.dials.conditions import load_condition

    found = load_condition(name)
    if not force:
        with contextlib.suppress(ModelError):
            base.check(found, models.identify(model))
    return found.condition


def under(dials: Sequence[Dial], condition: Any) -> None:
    """Put dials under a condition.

    Raises:
        ConfigError: a dial that is no vector, or has a condition of its own.
    """
    from trimtab.dials import VectorDial

    for dial in dials if condition is not None else ():
        if not isinstance(dial, VectorDial):
            raise ConfigError(f"--condition: a {dial.kind} dial takes none; vector dials do")
        if dial.condition is not None:
            raise ConfigError("--condition: the dial has one of its own")
        dial.condition = condition


def _dial_name(name: str) -> str:
    if ":" in name and not name.startswith("hub:") and not Path(name).exists():
        raise ConfigError(f"--dial {name}: looks like a spec of pairs; expected a dial's folder")
    return name
