"""The dials that are on offer: what they are called, what was measured of them, what is to be said."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import Any

from trimtab.dials import Dial
from trimtab.dials.attach import as_alpha
from trimtab.errors import ConfigError, near
from trimtab.evaluation.formats import Style, format_for

NAME = re.compile(r"[A-Za-z0-9_.-]+")


class Shelf:
    """A model's name and the dials beside it.

    A request names dials in `dials`, or in the model's name: `M+honesty` is the dial at 1,
    `M+honesty@1.5+tone@-0.5` two of them.
    """

    def __init__(self, model: str, dials: Mapping[str, Dial]):
        """
        Raises:
            ConfigError: a dial's name has other characters than letters, digits and `_.-`.
        """
        self.model, self.dials = model, dict(dials)
        for name in dials:
            if not NAME.fullmatch(name):
                raise ConfigError(f"dial {name!r}: expected a name of letters, digits, _ . and -")

    def alphas(self, model: str, given: Mapping[str, Any]) -> dict[str, float]:
        """The strength of each dial that is turned.

        Raises:
            LookupError: no such model.
            ConfigError: no such dial, one that is named twice, or a strength that is none.
        """
        if model != self.model and not model.startswith(f"{self.model}+"):
            raise LookupError(f"no model {model!r} here; there is {self.model}")
        named = [part.partition("@") for part in model[len(self.model) + 1 :].split("+") if part]
        turns = [(name, value if at else 1.0) for name, at, value in named] + [*given.items()]
        found: dict[str, float] = {}
        for name, value in turns:
            if name not in self.dials:
                known = ", ".join(self.dials) or "none"
                raise ConfigError(f"no dial {name!r}{near(name, self.dials)} (known: {known})")
            if name in found:
                raise ConfigError(f"the dial {name} is named twice")
            found[name] = self._alpha(name, value)
        return found

    def _alpha(self, name: str, value: Any) -> float:
        try:
            with contextlib.suppress(ValueError):  # the name of a strength
                value = float(value)
            alpha = as_alpha(value)
        except (ConfigError, TypeError) as error:
            raise ConfigError(f"the dial {name}: {error}") from error
        if not isinstance(alpha, float):
            raise ConfigError(f"the dial {name}: expected one strength, given {value!r}")
        return alpha

    def warnings(self, alphas: Mapping[str, float], style: Style) -> list[str]:
        """What whoever turns these dials should know: strengths at which nobody has measured, and
        prompts that are written otherwise than where the dial was fitted."""
        said = []
        for name, alpha in alphas.items():
            dial = self.dials[name]
            if not alpha:
                continue
            if dial.info.range is None:
                said.append(f"{name}: it was never measured how far this dial may be turned")
            elif not dial.info.range[0] <= alpha <= dial.info.range[1]:
                low, high = dial.info.range
                said.append(
                    f"{name}: alpha {alpha:g} is outside the range in which it was measured, "
                    f"{low:g} to {high:g}"
                )
            fitted = format_for([dial]).style
            if fitted not in ("auto", style):
                said.append(f"{name}: it was fitted on {fitted} prompts, and this one is {style}")
        return said

    def about(self) -> list[dict[str, Any]]:
        """What is known of each dial."""
        return [
            {
                "name": name,
                "method": dial.info.method or dial.kind,
                "range": None if dial.info.range is None else list(dial.info.range),
                "damage": dial.info.damage,
                "data": list(dial.info.data),
            }
            for name, dial in self.dials.items()
        ]
