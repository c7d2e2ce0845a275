"""Vectors that are trained: in the units of the dial, from zero."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trimtab.dials import VectorDial
from trimtab.dials.numbers import length
from trimtab.dials.where import Positions
from trimtab.errors import TrainingError
from trimtab.sites import Site


class LearnedVector(VectorDial):
    """A vector while it is trained: h + alpha s w at each site, w from 0.

    With s a tenth of the states' mean length and the learning rate eta / sqrt(d), one step of Adam
    changes the length of w by eta at most, whatever the model and depth. With every s = 1, and the
    rate as it is, it is the vector itself whose entries are trained (`raw`).
    """

    def __init__(
        self,
        widths: Mapping[Site, int],
        scales: Mapping[Site, float] | None = None,
        *,
        positions: Positions = "all",
        largest: float | None = None,
    ):
        """
        Args:
            widths: entries of a state at each site.
            scales: s of each site; None: raw.
            largest: w gets no longer than this.
        """
        ones = {site: torch.ones(width) for site, width in widths.items()}
        super().__init__(ones, scales or dict.fromkeys(widths, 1.0), positions=positions)
        self.raw, self.largest = scales is None, largest
        self.w = nn.ParameterList(nn.Parameter(torch.zeros(width)) for width in widths.values())

    def at(self, site: Site) -> Float[Tensor, "d"]:
        """w at a site, no longer than the longest."""
        w = self.w[self.sites.index(site)]
        return w if self.largest is None else w * (self.largest / w.norm().clamp(min=self.largest))

    def step(self, site: Site) -> Float[Tensor, "d"]:
        """What is added at alpha = 1."""
        return self.scales[site] * self.at(site)

    def rates(self) -> list[tuple[nn.Parameter, float]]:
        """The length of w grows by the learning rate at most, not each entry."""
        return [(w, 1.0 if self.raw else len(w) ** -0.5) for w in self.w]

    @torch.no_grad()
    def flip(self) -> None:
        """Exchange alpha and -alpha."""
        for w in self.w:
            w.neg_()

    @torch.no_grad()
    def trained(self, states: Mapping[Site, float]) -> VectorDial:
        """The vector dial that it has become, whose alpha = 1 is the strength that was trained.

        Args:
            states: the states' mean length at each site.

        Raises:
            TrainingError: it has not moved at some site.
        """
        steps = {site: self.step(site).detach() for site in self.sites}
        if still := [site for site, step in steps.items() if not step.any()]:
            raise TrainingError(f"the vector at site {still[0]!r} has not moved: no gradient came")
        sizes = {site: length(step) for site, step in steps.items()}
        dial = VectorDial(steps, sizes, positions=self.positions)
        dial.info.dose = {
            "trained_norm": [length(self.at(site)) for site in self.sites],
            "relative": [sizes[site] / states[site] for site in self.sites],
        }
        return dial
