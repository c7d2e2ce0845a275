"""Losses on hidden states: what InnerPO's objectives share, and MSE, PrefVec and Rank.

Chosen and rejected states are pooled over their answers. At a site, delta = chosen - rejected; u is
the unit vector of the reference's delta (of each pair, or of the mean over a step's pairs or the
data set), D the length of the pair's own reference delta, floored at its 10th percentile over the
data set. s = <delta, u> of the policy is its separation along u, o the length of what is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from trimtab.bounds import NonNegative, Positive
from trimtab.objectives.base import Loss, Terms, require
from trimtab.objectives.output import log_ratio
from trimtab.readout import Direction, Needs, Pool, Readout, last_tokens
from trimtab.sites import Site, parse_sites

SMOOTH = 1e-3
"""Lengths below this share of D lose their gradient: where policy and reference agree, what is off
the axis is rounding, and the gradient of its length would have size 1 all the same."""


class Separation(NamedTuple):
    """The policy's difference of states at one site, measured with the reference's, a value a pair.

    `axis`: u, a pair's or all pairs'. `along`: s. `off`: o, smooth at 0. `length`: of the reference's
    own delta. `scale`: D. `own`: s of the reference itself. `own_off`: its o.
    """

    axis: Tensor
    along: Tensor
    off: Tensor
    length: Tensor
    scale: Tensor
    own: Tensor
    own_off: Tensor


def separation(policy: Readout, reference: Readout, site: Site) -> Separation:
    """How far the policy has its chosen and rejected states apart, and along what."""
    delta = policy.chosen[site] - policy.rejected[site]  # pair d
    target = reference.chosen[site] - reference.rejected[site]
    length = target.norm(dim=-1)
    scale = floored(length, reference, site)
    if (u := reference.direction.get(site)) is None:
        # The epsilon keeps a pair of equal states (length 0) at a direction of 0 instead of NaN.
        u = target / length.clamp(min=1e-12)[:, None]
    along, own = (delta * u).sum(-1), (target * u).sum(-1)
    return Separation(
        u,
        along,
        _length(delta - along[:, None] * u, scale),
        length,
        scale,
        own,
        _length(target - own[:, None] * u, scale),
    )


def _length(x: Tensor, scale: Tensor) -> Tensor:
    """L2 norm with a gradient that goes to 0 with it."""
    small = SMOOTH * scale
    return (x.square().sum(-1) + small**2).sqrt() - small


def floored(length: Tensor, reference: Readout, site: Site) -> Tensor:
    """D: a pair's own length, or the floor of its site."""
    return length.clamp(min=max(reference.floor.get(site, 0.0), 1e-12))


@dataclass(frozen=True)
class Inner(Terms):
    """What all losses on hidden states share. `variant="published"` is the formula of
    wassname/repr-preference-optimization with its defaults, plain indexing slips apart."""

    sites: str | tuple[Site, ...] = "0.3..0.9"
    """Where states are read: fractions of the depth, blocks, module paths or patterns of them."""
    pool: Pool = "completion"
    """Which answer positions are averaged: completion, last, last:K, predicting or marker."""
    sinks: bool = True
    """Average attention sinks with the other tokens; without, tokens more than ten times as long as
    the median of their answer are left out."""
    weight_outer: NonNegative | None = None
    """Weight of the DPO term; at 0 the LM head and the blocks above the last site are never run."""
    beta: Positive | None = None
    """Inverse temperature of the DPO term."""
    variant: Literal["sound", "published"] = "sound"
    """Our formula, or the published one with its defaults."""

    token_maps: ClassVar[dict[str, str]] = {"sound": "none", "published": "none"}
    """What is done to each token's state before pooling."""
    outer: ClassVar[dict[str, float]] = {"sound": 0.0, "published": 0.0}
    """Default of `weight_outer`."""
    differences: ClassVar[bool] = False
    """Whether it sees chosen less rejected alone: one shift of both is then nothing to it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        last_tokens(self.pool)

    @property
    def published(self) -> bool:
        """Whether the formula is the published one."""
        return self.variant == "published"

    @property
    def outer_weight(self) -> float:
        """Weight of the term on log-probs."""
        return self.outer[self.variant] if self.weight_outer is None else self.weight_outer

    @property
    def rotation_invariant(self) -> bool:
        """Whether one orthogonal map of all states leaves the loss as it is: then a space that is
        such a map is provably without effect."""
        return True

    def needs(self, n_layers: int) -> Needs:
        """States of policy and reference at the sites; log-probs where there is a term on them."""
        outer = self.outer_weight != 0
        return self.with_terms(
            Needs(
                logps=outer,
                sites=parse_sites(self.sites, n_layers),
                pool=self.pool,
                sinks=self.sinks,
                token_map=self.token_maps[self.variant],  # type: ignore[arg-type]
                direction=getattr(self, "direction", None) or "pair",
                reference_logps=outer,
                reference_states=True,
            )
        )

    def outer_term(
        self, loss: Tensor, metrics: dict[str, Tensor], policy: Readout, reference: Readout
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Add the weighted DPO term; metrics `margin` and `accuracy`."""
        if self.outer_weight != 0:
            rho = log_ratio(policy, reference)
            margin = (0.1 if self.beta is None else self.beta) * rho
            loss = loss + self.outer_weight * F.softplus(-margin)
            metrics |= {"margin": margin.detach(), "accuracy": (rho > 0).float()}
        return loss, metrics


def over_sites(values: list[Tensor]) -> Float[Tensor, "pair"]:
    """Mean over sites of a value a pair."""
    return torch.stack(values).mean(0)  # site pair


@dataclass(frozen=True)
class MSE(Inner):
    """Rejected states drawn to the reference's chosen ones, chosen states kept (InnerPO's `mse`).

    `sound`: mean over sites of (|rejected - ref chosen|^2 + weight_keep |chosen - ref chosen|^2) /
    D^2; 1 at the start (less where D is the floor), unchanged when all states are scaled or shifted
    alike. `published` (bd9ae63): 100 times the mean over sites of d(rejected) + weight_keep
    d(chosen), d = log(distance to the reference's chosen) - log(|ref delta|), which is unbounded
    below and starts at log 1e-12 for the chosen.
    """

    weight_keep: NonNegative | None = None
    """Weight of keeping the chosen states (by default 1; published: 0.6)."""

    def __call__(self, policy: Readout, reference: Readout | None) -> Loss:
        """Loss a pair; metrics `distance` (of the rejected state, in D), `drift` (of the chosen)."""
        reference = require(reference, "MSE")
        losses, distances, drifts = [], [], []
        keep = self.weight_keep
        for site, target in reference.chosen.items():
            length = (target - reference.rejected[site]).norm(dim=-1)
            scale = floored(length, reference, site)
            far, drift = policy.rejected[site] - target, policy.chosen[site] - target
            if self.published:
                log = [
                    (x.norm(dim=-1) + 1e-12).log() - (length + 1e-12).log() for x in (far, drift)
                ]
                losses.append(100 * (log[0] + (0.6 if keep is None else keep) * log[1]))
            else:
                squares = [x.square().sum(-1) / scale**2 for x in (far, drift)]
                losses.append(squares[0] + (1.0 if keep is None else keep) * squares[1])
            distances.append(far.detach().norm(dim=-1) / scale)
            drifts.append(drift.detach().norm(dim=-1) / scale)
        metrics = {"distance": over_sites(distances), "drift": over_sites(drifts)}
        loss, metrics = self.outer_term(over_sites(losses), metrics, policy, reference)
        return self.add_terms(loss, metrics, policy, reference)


@dataclass(frozen=True)
class PrefVec(Inner):
    """Separation along the reference's direction, as far as a trust region (InnerPO's `prefvec`).

    `sound`: mean over sites of -min(theta, trust) + weight_off o / D with theta = s / D - 1, plus
    the coherence margin on the chosen answer (`weight_nll`). theta starts at 0 and is unchanged when
    all states are scaled or shifted alike. `published` (bd9ae63): 1e5 |mean over hidden units of
    s u|, which drives the separation to 0, plus log sigmoid(-rho) on summed log-probs.
    """

    weight_nll: NonNegative = 1.0
    """Weight of the coherence margin: relu(NLL of policy - NLL of reference - nll_margin) on the
    chosen answer, in nats a token."""
    trust: NonNegative = 1.0
    """Separation beyond (1 + trust) D earns nothing."""
    weight_off: NonNegative = 0.1
    """Weight of what is off the axis."""
    direction: Direction = "pair"
    """Over what the preference direction is taken: pair, batch or data."""

    outer: ClassVar[dict[str, float]] = {"sound": 0.0, "published": 1.0}
    differences: ClassVar[bool] = True

    def with_terms(self, needs: Needs) -> Needs:
        """The published form has no coherence margin."""
        return needs if self.published else super().with_terms(needs)

    @property
    def rotation_invariant(self) -> bool:
        """The published mean over hidden units depends on their basis."""
        return not self.published

    def __call__(self, policy: Readout, reference: Readout | None) -> Loss:
        """Loss a pair; metrics `separation` (theta, mean over sites) and `off` (o / D)."""
        reference = require(reference, "PrefVec")
        found = {site: separation(policy, reference, site) for site in policy.chosen}
        theta = [f.along / f.scale - 1 for f in found.values()]
        off = [f.off / f.scale for f in found.values()]
        metrics = {
            "separation": over_sites(theta).detach(),
            "off": over_sites(off).detach(),
        }
        if self.published:
            projected = [(f.along[:, None] * f.axis).mean(-1) for f in found.values()]
            loss = (1e5 * over_sites(projected)).abs()
            if self.outer_weight:
                rho = log_ratio(policy, reference)
                loss = loss + self.outer_weight * F.logsigmoid(-rho)
                metrics |= {"margin": rho.detach(), "accuracy": (rho > 0).float()}
            return loss, metrics
        loss = over_sites(
            [self.weight_off * o - t.clamp(max=self.trust) for t, o in zip(theta, off, strict=True)]
        )
        loss, metrics = self.outer_term(loss, metrics, policy, reference)
        return self.add_terms(loss, metrics, policy, reference)


@dataclass(frozen=True)
class Rank(Inner):
    """Each state read as a ranking of hidden units: softmax over them (InnerPO's `rank`).

    `sound`: softmax of each token's state, averaged over the answer to one distribution P (answers
    of different lengths have no token in common); mean over sites of KL(P ref chosen || P rejected)
    + weight_keep KL(P ref chosen || P chosen). Unchanged when all units are shifted alike, not when
    they are scaled. `published` (bd9ae63): with z the averaged log-softmax and q = (z chosen - z ref
    chosen) - (z rejected - z ref rejected), the mean over units of -log sigmoid(-beta_inner q),
    whose sign is contrary to its description, plus 0.25 relu(-rho).
    """

    weight_keep: NonNegative = 1.0
    """Weight of keeping the chosen states."""
    beta_inner: Positive = 1.0
    """Published form: steepness."""

    token_maps: ClassVar[dict[str, str]] = {"sound": "softmax", "published": "log_softmax"}
    outer: ClassVar[dict[str, float]] = {"sound": 0.0, "published": 0.25}

    @property
    def rotation_invariant(self) -> bool:
        """A softmax depends on the basis."""
        return False

    def __call__(self, policy: Readout, reference: Readout | None) -> Loss:
        """Loss a pair; metrics `distance` (KL of the rejected state, or q) and `drift` (KL of the
        chosen)."""
        reference = require(reference, "Rank")
        if self.published:
            return self._published(policy, reference)
        distances, drifts = [], []
        for site, target in reference.chosen.items():
            distances.append(_kl(target, policy.rejected[site]))
            drifts.append(_kl(target, policy.chosen[site]))
        distance, drift = over_sites(distances), over_sites(drifts)
        metrics = {"distance": distance.detach(), "drift": drift.detach()}
        loss = distance + self.weight_keep * drift
        loss, metrics = self.outer_term(loss, metrics, policy, reference)
        return self.add_terms(loss, metrics, policy, reference)

    def _published(self, policy: Readout, reference: Readout) -> Loss:
        losses, shifts = [], []
        for site, target in reference.chosen.items():
            q = (policy.chosen[site] - target) - (policy.rejected[site] - reference.rejected[site])
            losses.append(F.softplus(self.beta_inner * q).mean(-1))
            shifts.append(q.detach().mean(-1))
        loss, metrics = over_sites(losses), {"distance": over_sites(shifts)}
        if self.outer_weight:
            rho = log_ratio(policy, reference)
            loss = loss + self.outer_weight * F.relu(-rho)
            metrics |= {"margin": rho.detach(), "accuracy": (rho > 0).float()}
        return self.add_terms(loss, metrics, policy, reference)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of distributions over the last axis, in nats."""
    tiny = torch.finfo(p.dtype).tiny
    return (p * (p.clamp(min=tiny).log() - q.clamp(min=tiny).log())).sum(-1)
