"""InnerPO's innerDPO: a logistic loss on a score of how hidden states are aligned."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab.bounds import NonNegative, Positive
from trimtab.objectives.base import Loss, require
from trimtab.objectives.inner import Inner, Separation, separation
from trimtab.objectives.output import log_ratio
from trimtab.readout import Direction, Readout
from trimtab.sites import Site

Align = Literal[
    "para_signed",
    "para_signed_log",
    "para_orth_signed",
    "para_orth_signed_log",
    "logodds",
    "cosine_policy_margin",
    "cosine_cross_model",
    "ratio",
]


@dataclass(frozen=True)
class InnerDPO(Inner):
    """Separate chosen and rejected states along the reference's direction (InnerPO's innerDPO).

    At each site a score theta says how much better than the reference the policy separates the two;
    the loss of a pair is weight_outer * DPO + weight_inner * mean over sites of softplus(-beta_inner
    min(theta, trust)).

    `sound`, with slog(x) = sign(x) log(1 + |x|), s, o and D as in `objectives/inner.py`:

    - para_signed: s / D - 1
    - para_signed_log: slog(s / D) - log 2
    - para_orth_signed: (s - o) / D - 1
    - para_orth_signed_log: slog(s / D) - log(1 + o / D) - log 2
    - logodds: slog(s / D) - log(1 + o / D), minus the same of the reference. For a direction of each
      pair the reference has o = 0, and this is para_orth_signed_log: by default it is `data`.
    - cosine_policy_margin: cos(chosen, rejected) of the reference minus that of the policy
    - cosine_cross_model: cos(chosen, ref chosen) - cos(rejected, ref chosen), minus the same of the
      reference
    - ratio: s / |ref delta| - 1, D without its floor

    All start at 0 (where D is not the floor) and are unchanged when all states are scaled alike; the
    cosines alone change when they are shifted. They rise with s, the cosines with the angle.
    `published` (697c6c0; `ratio`: the successor, vast2) is in `_published`: tokens divided by their
    norm, L1 lengths, logs with a sign error, the cosine margin's sign turned round.
    """

    align: Align = "para_signed"
    """How the alignment of the states is scored."""
    direction: Direction | None = None
    """Over what the preference direction is taken: pair, batch or data (by default pair; for
    logodds data)."""
    weight_inner: NonNegative | None = None
    """Weight of the term on hidden states (by default 1; published: 0.25)."""
    beta_inner: Positive = 1.0
    """Steepness of the term on hidden states."""
    trust: NonNegative | None = None
    """theta beyond this earns nothing."""

    token_maps: ClassVar[dict[str, str]] = {"sound": "none", "published": "l2"}
    outer: ClassVar[dict[str, float]] = {"sound": 1.0, "published": 1.0}
    differences: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.direction is None and self.align == "logodds" and not self.published:
            object.__setattr__(self, "direction", "data")

    @property
    def rotation_invariant(self) -> bool:
        """The published L1 lengths depend on the basis."""
        return not (self.published and ("orth" in self.align or self.align == "logodds"))

    def __call__(self, policy: Readout, reference: Readout | None) -> Loss:
        """Loss a pair; metrics `separation` (theta, mean over sites), and `margin` and `accuracy`
        of the outer term where there is one."""
        reference = require(reference, "InnerDPO")
        score = _published if self.published else _sound
        thetas = torch.stack([score(self.align, policy, reference, s) for s in policy.chosen])
        weight = self.weight_inner
        if weight is None:
            weight = 0.25 if self.published else 1.0
        held = thetas if self.trust is None else thetas.clamp(max=self.trust)  # site pair
        loss = weight * F.softplus(-self.beta_inner * held).mean(0)
        metrics = {"separation": thetas.detach().mean(0)}
        if self.published and self.outer_weight:
            margin = (1.0 if self.beta is None else self.beta) * log_ratio(
                policy, reference, mean=True
            )
            loss = loss + self.outer_weight * F.softplus(-margin)
            metrics |= {"margin": margin.detach(), "accuracy": (margin > 0).float()}
        else:
            loss, metrics = self.outer_term(loss, metrics, policy, reference)
        return self.add_terms(loss, metrics, policy, reference)


def _sound(align: Align, policy: Readout, reference: Readout, site: Site) -> Tensor:
    """theta of each pair at a site."""
    if align.startswith("cosine"):
        c, j = policy.chosen[site], policy.rejected[site]
        rc, rj = reference.chosen[site], reference.rejected[site]
        between = F.cosine_similarity(rc, rj, dim=-1)
        if align == "cosine_policy_margin":
            return between - F.cosine_similarity(c, j, dim=-1)
        # Against the reference's *rejected* state the second cosine would start at its maximum, and
        # both gradients at 0.
        own = F.cosine_similarity(c, rc, dim=-1) - F.cosine_similarity(j, rc, dim=-1)
        return own - (1 - between)
    return SOUND[align](separation(policy, reference, site))


def slog(x: Tensor) -> Tensor:
    """sign(x) log(1 + |x|): monotone, and x itself near 0."""
    return x.sign() * x.abs().log1p()


def _logodds(along: Tensor, off: Tensor, scale: Tensor) -> Tensor:
    return slog(along / scale) - (off / scale).log1p()


SOUND: dict[str, Callable[[Separation], Tensor]] = {
    "para_signed": lambda f: f.along / f.scale - 1,
    "para_signed_log": lambda f: slog(f.along / f.scale) - math.log(2),
    "para_orth_signed": lambda f: (f.along - f.off) / f.scale - 1,
    "para_orth_signed_log": lambda f: _logodds(f.along, f.off, f.scale) - math.log(2),
    "logodds": lambda f: _logodds(f.along, f.off, f.scale) - _logodds(f.own, f.own_off, f.scale),
    "ratio": lambda f: f.along / f.length.clamp(min=1e-12) - 1,
}
"""theta of each align method on the separation; the cosines need the states themselves."""

EPSILON = 1e-5
"""The published one."""


def _published(align: Align, policy: Readout, reference: Readout, site: Site) -> Tensor:
    """theta as published, of states whose tokens were divided by their norm."""
    c, j = policy.chosen[site], policy.rejected[site]
    rc, rj = reference.chosen[site], reference.rejected[site]
    if align == "cosine_policy_margin":
        return F.cosine_similarity(c, j, dim=-1) - F.cosine_similarity(rc, rj, dim=-1)
    if align == "cosine_cross_model":
        return F.cosine_similarity(c, rc, dim=-1) - F.cosine_similarity(j, rj, dim=-1)
    f = separation(policy, reference, site)

    def l1(d: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        par = s[:, None] * f.axis
        return par.abs().sum(-1), (d - par).abs().sum(-1)

    def log(x: Tensor) -> Tensor:
        return x.sign() * x.abs().clamp(min=EPSILON).log()

    par, off = l1(c - j, f.along)
    if align == "para_signed":
        return f.along
    if align == "para_signed_log":
        return log(f.along)
    if align == "para_orth_signed":
        return f.along - off
    if align == "para_orth_signed_log":
        return log(f.along) - (off + EPSILON).log()
    if align == "ratio":
        return f.along / (f.length.clamp(min=1e-12) + EPSILON) - 1
    ref_par, ref_off = l1(rc - rj, f.own)
    return (log(par) - log(off)) - (log(ref_par) - log(ref_off))
