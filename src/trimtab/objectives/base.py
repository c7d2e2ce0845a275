"""What every objective is: a frozen dataclass of hyperparameters that is called on readouts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from trimtab.bounds import Bounded, NonNegative
from trimtab.readout import Needs, Readout

Loss = tuple[Float[Tensor, "pair"], dict[str, Tensor]]
"""The loss of each pair, unreduced, and metrics to log (a value a pair each)."""


class Objective(Protocol):
    """A loss on readouts. Fields are hyperparameters; `needs` says what is read, the call gives
    the loss of each pair, unreduced, and metrics to log (a value a pair each)."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def needs(self, n_layers: int) -> Needs:
        """What to read of a model with `n_layers` decoder layers."""
        ...

    def __call__(
        self, policy: Readout, reference: Readout | None
    ) -> tuple[Float[Tensor, "pair"], dict[str, Tensor]]:
        """The loss of each pair, and metrics."""
        ...


@dataclass(frozen=True)
class Terms(Bounded, group="objective"):
    """What any objective can be given on top: pair weights, an NLL margin, a KL trust region."""

    weight_nll: NonNegative = 0.0
    """Weight of the coherence margin: relu(NLL of policy - NLL of reference - nll_margin) on the
    chosen answer, in nats a token."""
    nll_margin: NonNegative = 0.0
    """How much likelier the reference may find the chosen answer before that costs anything."""
    weight_kl: NonNegative = 0.0
    """Weight of the trust region: relu(KL(policy || reference) - kl_limit), the mean over the tokens
    of both answers. It costs a reference pass a step."""
    kl_limit: NonNegative = 0.0
    """KL that costs nothing, in nats a token."""
    wpo: bool = False
    """Weight each pair by how likely the policy itself is to say it (Zhou et al. 2024, WPO)."""

    def with_terms(self, needs: Needs) -> Needs:
        """What is needed, and what the terms need on top."""
        nll, kl = self.weight_nll != 0, self.weight_kl != 0
        return replace(
            needs,
            logps=needs.logps or nll or kl or self.wpo,
            reference_logps=needs.reference_logps or nll,
            kl=kl,
            confidence=self.wpo,
        )

    def add_terms(
        self, loss: Tensor, metrics: dict[str, Tensor], policy: Readout, reference: Readout | None
    ) -> Loss:
        """A preference loss with the terms; metrics `weight`, `nll_rise` and `kl` where they are
        on."""
        if self.wpo:
            weight = wpo_weight(policy)
            loss = weight * loss
            metrics["weight"] = weight
        if self.weight_nll:
            rise = nll(policy) - nll(require(reference, "weight_nll"))
            loss = loss + self.weight_nll * F.relu(rise - self.nll_margin)
            metrics["nll_rise"] = rise.detach()
        if self.weight_kl:
            if policy.chosen_kl is None or policy.rejected_kl is None:
                raise ValueError("weight_kl needs a readout with KL")
            kl = (policy.chosen_kl + policy.rejected_kl) / 2
            loss = loss + self.weight_kl * F.relu(kl - self.kl_limit)
            metrics["kl"] = kl.detach()
        return loss, metrics


def nll(readout: Readout) -> Float[Tensor, "pair"]:
    """Negative log-likelihood of the chosen answer, in nats a token."""
    if readout.chosen_logps is None or readout.chosen_tokens is None:
        raise ValueError(
            "this objective needs log-probs and token counts, and the readout has none"
        )
    return -readout.chosen_logps / readout.chosen_tokens


def wpo_weight(policy: Readout) -> Float[Tensor, "pair"]:
    """exp(sum over both answers of the mean over tokens of log p(token) - log sum p^2): about 1 where
    the policy would say just this, less where it would not (Zhou et al. 2024, eq. 2, aligned as in
    their section 3.2). No gradient."""
    if policy.chosen_confidence is None or policy.rejected_confidence is None:
        raise ValueError("WPO weights need a readout with confidence")
    total = policy.chosen_confidence + policy.rejected_confidence
    return torch.exp(total.detach())


def require(readout: Readout | None, name: str) -> Readout:
    """The readout, or a ValueError naming the objective that was called without it."""
    if readout is None:
        raise ValueError(f"{name} needs a reference readout")
    return readout
