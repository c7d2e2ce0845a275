"""Losses whose gradients, sampled once, are directions: nothing is trained on them here.

They are read where policy and reference agree, so that a loss must have a gradient there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from trimtab.bounds import Bounded, NonNegative, Positive
from trimtab.objectives.base import nll, require
from trimtab.readout import Needs, Readout
from trimtab.sites import block_index


@dataclass(frozen=True)
class ReprPOMargin(Bounded, group="objective"):
    """Separate the states of a pair, within a margin of what the model said before
    (wassname/repeng, `reprpo_nll_margin`; drawn in docs/loss_geometry.md).

    h+ and h- are the states at `site`, l the chosen pole's mean log-prob a token, l0 the reference's.

    `sound`: -||h+ - h-|| / ||h+ - h-||_0 + weight softplus((l0 - l) / margin - 1). The separation
    counts in units of the reference's, so that every layer and pair counts alike; the barrier bends
    at l0 - margin, `margin` nats away from the point where the gradient is taken, and pushes back
    with 0.27 weight / margin already there.

    `published`: -||h+ - h-|| + 10^4 relu(0.99 l0 - l)^2. Since l0 is negative, 0.99 l0 lies *above*
    l0: the point is always outside the margin, by 1 % of |l0|, and the barrier's gradient is 200 |l0|
    times that of the NLL, whatever the reference was.
    """

    site: int = -3
    """Block after which states are separated; the published one is `hidden_states[-3]`."""
    weight: NonNegative = 1.0
    """Weight of the barrier (sound)."""
    margin: Positive = 0.1
    """Distance to the barrier's bend, in nats a token (sound)."""
    variant: Literal["sound", "published"] = "sound"
    """Our formula, or the published one."""

    def needs(self, n_layers: int) -> Needs:
        """Log-probs, and states at the site, of policy and reference."""
        return Needs(
            logps=True,
            sites=(block_index(max(self.site, -n_layers), n_layers),),
            reference_logps=True,
            reference_states=True,
        )

    def __call__(
        self, policy: Readout, reference: Readout | None
    ) -> tuple[Float[Tensor, "pair"], dict[str, Tensor]]:
        """Loss a pair; metrics `separation` (in units of the reference's) and `nll_rise`."""
        reference = require(reference, "ReprPOMargin")
        (site,) = policy.chosen
        apart = (policy.chosen[site] - policy.rejected[site]).norm(dim=-1)
        before = (reference.chosen[site] - reference.rejected[site]).norm(dim=-1).clamp(min=1e-12)
        now, then = -nll(policy), -nll(reference)
        if self.variant == "published":
            loss = -apart + 1e4 * F.relu(0.99 * then - now).square()
        else:
            loss = -apart / before + self.weight * F.softplus((then - now) / self.margin - 1)
        rise = (then - now).detach()
        return loss, {"separation": (apart / before).detach(), "nll_rise": rise}


@dataclass(frozen=True)
class NLL:
    """Negative log-likelihood of the chosen answer, in nats a token."""

    def needs(self, n_layers: int) -> Needs:
        """Log-probs of the policy."""
        return Needs(logps=True)

    def __call__(
        self, policy: Readout, reference: Readout | None
    ) -> tuple[Float[Tensor, "pair"], dict[str, Tensor]]:
        """Loss a pair; no metrics."""
        return nll(policy), {}
