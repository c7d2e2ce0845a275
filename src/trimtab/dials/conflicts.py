"""Do dials that are used together get into each other's way?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.dials.dial import Composed, Dial, members
from trimtab.dials.vector import VectorDial
from trimtab.sites import Site

ALIKE = 0.3
"""Directions whose cosine is farther from 0 than this are called alike, or opposed."""


@dataclass(frozen=True)
class Conflict:
    """What two dials have in common.

    Attributes:
        first, second: their places in the sequence.
        cosines: of their directions, at the sites where both have one.
        modules: sites and modules that both edit.
    """

    first: int
    second: int
    cosines: dict[Site, float]
    modules: tuple[Site, ...]

    @property
    def worst(self) -> float:
        """The cosine farthest from 0; 0 where they share no site."""
        return max(self.cosines.values(), key=abs, default=0.0)

    def __str__(self) -> str:
        parts = []
        if self.cosines:
            site = max(self.cosines, key=lambda s: abs(self.cosines[s]))
            word = "alike" if self.worst > ALIKE else "opposed" if self.worst < -ALIKE else "apart"
            parts.append(f"directions {word} (cosine {self.worst:.2f} at site {site})")
        others = [m for m in self.modules if m not in self.cosines]
        if others:
            parts.append(f"{len(others)} modules edited by both, {others[0]} among them")
        return "; ".join(parts) or "nothing in common"


def conflicts(dials: Sequence[Dial] | Composed) -> list[Conflict]:
    """Every two dials that share a site or a module."""
    several = [d for d, _ in members(dials)] if isinstance(dials, Composed) else list(dials)
    found = []
    for i, a in enumerate(several):
        for j, b in enumerate(several[i + 1 :], i + 1):
            shared = tuple(s for s in a.places() if s in set(b.places()))
            cosines = {}
            if isinstance(a, VectorDial) and isinstance(b, VectorDial):
                cosines = {s: float(a.direction(s) @ b.direction(s)) for s in shared}
            if shared:
                found.append(Conflict(i, j, cosines, shared))
    return found
