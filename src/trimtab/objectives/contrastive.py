"""The contrastive steering loss: one dial, both directions of alpha at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from trimtab.bounds import Bounded, NonNegative, Positive
from trimtab.objectives.output import preference
from trimtab.readout import Needs, Pool, Readout
from trimtab.sites import Site, parse_sites


@dataclass(frozen=True)
class ContrastiveSteering(Bounded, group="objective"):
    """Separation up at alpha = +1 and down at -1, without harm to what is said.

    At each site u is the unit mean over the data of the reference's chosen - rejected state, and
    p = <chosen - rejected, u> / s, with s the root mean square of the reference's own. The
    separation gained is d(alpha) = p(alpha) - p(0). A pair's loss is the sum of

    - separation: `linear`, (d(-1) - d(+1)) / 2; or `logsigmoid`, the mean of
      softplus(-beta (d(+1) - margin)) and softplus(-beta (-d(-1) - margin)), divided by beta, whose
      pull ends once the margin is passed;
    - coherence: what the answer that alpha leans to (chosen at +1, rejected at -1) loses in mean
      log-prob beyond `tolerance`, in nats a token;
    - monotonicity: with g(alpha) the gain of mean log p(chosen) - mean log p(rejected),
      relu(g(-1) + m) + relu(m - g(+1)), or the same with the two ends exchanged, whichever is less:
      both ends may not be worse, yet the layers need not be fought over the sign, which is
      calibrated afterwards.

    wassname's InnerPiSSA and AntiPaSTO losses, on states before the final norm, with one scale for
    every layer, and unreduced.
    """

    form: Literal["logsigmoid", "linear"] = "logsigmoid"
    """How separation is rewarded."""
    sites: str | tuple[Site, ...] = "0.8"
    """Where states are read: above the adapted modules."""
    pool: Pool = "completion"
    """Which positions are averaged (`last` for whole sequences that differ in a persona)."""
    beta: Positive = 1.0
    """Steepness of the log-sigmoid form."""
    margin: NonNegative = 1.0
    """Gain, in units of the reference's own separation, at which its pull halves."""
    weight_coherence: NonNegative = 1.0
    """Weight of the coherence term; with the next at 0, too, the LM head is never run."""
    tolerance: NonNegative = 0.5
    """Nats a token that may be lost freely."""
    weight_monotone: NonNegative = 1.0
    """Weight of the monotonicity term."""
    gap: NonNegative = 0.05
    """m: least change of the log-prob gap, in nats a token, that counts as a change."""

    differences: ClassVar[bool] = True

    @property
    def outer(self) -> bool:
        """Whether log-probs are read."""
        return self.weight_coherence != 0 or self.weight_monotone != 0

    def needs(self, n_layers: int) -> Needs:
        """States of both at the sites, and log-probs unless both of their weights are 0."""
        return Needs(
            logps=self.outer,
            sites=parse_sites(self.sites, n_layers),
            pool=self.pool,
            reference_logps=self.outer,
            reference_states=True,
        )

    def __call__(
        self,
        plus: Readout,
        minus: Readout,
        reference: Readout,
        directions: Mapping[Site, Float[Tensor, "d"]],
    ) -> tuple[Float[Tensor, "pair"], dict[str, Tensor]]:
        """Loss a pair; metrics `gained_plus` and `gained_minus` (separation, mean over sites), and
        `gap_plus` and `gap_minus` of the log-probs where they are read.

        Args:
            plus, minus: the policy at alpha = +1 and -1.
            reference: the same pairs at 0.
            directions: u / s of each site (`scaled_direction`).
        """
        up, down = (
            torch.stack([_along(r, reference, site, directions[site]) for site in directions])
            for r in (plus, minus)
        )  # site pair
        if self.form == "linear":
            loss = ((down - up) / 2).mean(0)
        else:
            each = [F.softplus(-self.beta * (d - self.margin)) for d in (up, -down)]
            loss = (each[0] + each[1]).mean(0) / (2 * self.beta)
        metrics = {"gained_plus": up.detach().mean(0), "gained_minus": down.detach().mean(0)}
        if self.outer:
            lost = [
                _mean_logps(reference, chosen) - _mean_logps(policy, chosen)
                for policy, chosen in ((plus, True), (minus, False))
            ]
            incoherent = sum(F.relu(x - self.tolerance) for x in lost) / 2
            g_up, g_down = (
                preference(r, mean=True) - preference(reference, mean=True) for r in (plus, minus)
            )
            right = F.relu(g_down + self.gap) + F.relu(self.gap - g_up)
            wrong = F.relu(g_up + self.gap) + F.relu(self.gap - g_down)
            loss = loss + self.weight_coherence * incoherent
            loss = loss + self.weight_monotone * torch.minimum(right, wrong)
            metrics |= {"gap_plus": g_up.detach(), "gap_minus": g_down.detach()}
        return loss, metrics


def scaled_direction(differences: Float[Tensor, "pair d"]) -> Float[Tensor, "d"]:
    """u / s: the unit mean difference over the root mean square of the differences' parts along it.

    Raises:
        ValueError: the mean difference is zero.
    """
    mean = differences.mean(0)
    if not mean.norm() > 0:
        raise ValueError("the mean difference is zero: there is no direction")
    u = mean / mean.norm()
    return u / (differences @ u).square().mean().sqrt()


def _along(
    policy: Readout, reference: Readout, site: Site, direction: Tensor
) -> Float[Tensor, "pair"]:
    """The separation that a policy gained along a direction."""
    now = policy.chosen[site] - policy.rejected[site]
    before = reference.chosen[site] - reference.rejected[site]
    return (now - before) @ direction.to(now)


def _mean_logps(readout: Readout, chosen: bool) -> Float[Tensor, "pair"]:
    logps = readout.chosen_logps if chosen else readout.rejected_logps
    tokens = readout.chosen_tokens if chosen else readout.rejected_tokens
    assert logps is not None
    assert tokens is not None
    return logps / tokens
