"""Losses on the log-probs of the answers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from trimtab.bounds import NonNegative, Positive, Smoothing
from trimtab.objectives.base import Loss, Terms, nll, require
from trimtab.readout import Needs, Readout


@dataclass(frozen=True)
class DPO(Terms):
    """Direct preference optimization (Rafailov et al. 2023, eq. 7).

    With rho = (log pi(chosen) - log pi(rejected)) - (the same of the reference), sums over answer
    tokens, a pair's loss is -(1 - s) log sigmoid(beta rho) - s log sigmoid(-beta rho). It is log 2
    where policy and reference agree; swapping chosen and rejected negates rho.
    """

    beta: Positive = 0.1
    """Inverse temperature: how strongly the policy is held to the reference."""
    label_smoothing: Smoothing = 0.0
    """Probability s that a label is wrong (Mitchell 2023, conservative DPO)."""

    def needs(self, n_layers: int) -> Needs:
        """Log-probs of policy and reference."""
        return self.with_terms(Needs(logps=True, reference_logps=True))

    def __call__(self, policy: Readout, reference: Readout | None) -> Loss:
        """Loss a pair; metrics `margin` (beta rho) and `accuracy` (rho > 0)."""
        rho = log_ratio(policy, require(reference, "DPO"))
        margin = self.beta * rho
        loss = logistic(margin, self.label_smoothing)
        metrics = {"margin": margin.detach(), "accuracy": (rho > 0).float()}
        return self.add_terms(loss, metrics, policy, reference)


@dataclass(frozen=True)
class IPO(Terms):
    """Identity preference optimization (Azar et al. 2024, eq. 17).

    (rho - 1 / (2 beta))^2 with DPO's rho: the margin is drawn to a value instead of to infinity.
    1 / (4 beta^2) where policy and reference agree.
    """

    beta: Positive = 0.1
    """Half the inverse of the margin aimed at, in nats."""
    mean: bool = False
    """Divide log-probs by the number of tokens first, as TRL does; the margin is then in nats a
    token."""

    def needs(self, n_layers: int) -> Needs:
        """Log-probs of policy and reference."""
        return self.with_terms(Needs(logps=True, reference_logps=True))

    def __call__(self, policy: Readout, reference: Readout | None) -> Loss:
        """Loss a pair; metrics `margin` (rho) and `accuracy` (rho > 0)."""
        rho = log_ratio(policy, require(reference, "IPO"), mean=self.mean)
        loss = (rho - 1 / (2 * self.beta)) ** 2
        metrics = {"margin": rho.detach(), "accuracy": (rho > 0).float()}
        return self.add_terms(loss, metrics, policy, reference)


@dataclass(frozen=True)
class SimPO(Terms):
    """Simple preference optimization (Meng et al. 2024, eq. 6): no reference model.

    -log sigmoid(beta (mean log pi(chosen) - mean log pi(rejected)) - gamma), means over tokens.
    """

    beta: Positive = 2.0
    """Scale of the difference of mean log-probs."""
    gamma: NonNegative = 1.0
    """The margin aimed at."""
    label_smoothing: Smoothing = 0.0
    """Probability that a label is wrong."""

    def needs(self, n_layers: int) -> Needs:
        """Log-probs of the policy."""
        return self.with_terms(Needs(logps=True))

    def __call__(self, policy: Readout, reference: Readout | None) -> Loss:
        """Loss a pair; metrics `margin` (beta times the difference, minus gamma) and `accuracy`."""
        difference = preference(policy, mean=True)
        margin = self.beta * difference - self.gamma
        loss = logistic(margin, self.label_smoothing)
        metrics = {"margin": margin.detach(), "accuracy": (difference > 0).float()}
        return self.add_terms(loss, metrics, policy, reference)


@dataclass(frozen=True)
class ORPO(Terms):
    """Odds ratio preference optimization (Hong et al. 2024, eq. 6 and 7): no reference model.

    NLL of the chosen answer a token, plus weight_ratio * -log sigmoid(log odds(chosen) - log
    odds(rejected)) with odds p / (1 - p) of p = exp(mean log-prob).
    """

    weight_ratio: NonNegative = 0.1
    """Weight of the odds ratio (lambda in the paper)."""

    def needs(self, n_layers: int) -> Needs:
        """Log-probs of the policy."""
        return self.with_terms(Needs(logps=True))

    def __call__(self, policy: Readout, reference: Readout | None) -> Loss:
        """Loss a pair; metrics `margin` (the log of the odds ratio), `accuracy` and `nll`."""
        chosen = nll(policy)
        difference = preference(policy, mean=True)
        margin = log_odds(-chosen) - log_odds(-chosen - difference)
        loss = chosen + self.weight_ratio * F.softplus(-margin)
        metrics = {
            "margin": margin.detach(),
            "accuracy": (margin > 0).float(),
            "nll": chosen.detach(),
        }
        return self.add_terms(loss, metrics, policy, reference)


def logistic(margin: Tensor, smoothing: float = 0.0) -> Tensor:
    """-(1 - s) log sigmoid(margin) - s log sigmoid(-margin)."""
    if not smoothing:
        return -F.logsigmoid(margin)
    return -(1 - smoothing) * F.logsigmoid(margin) - smoothing * F.logsigmoid(-margin)


def log_odds(logp: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = exp(logp), logp < 0."""
    return logp - torch.log(-torch.expm1(logp))


def log_ratio(policy: Readout, reference: Readout, *, mean: bool = False) -> Float[Tensor, "pair"]:
    """How much more than the reference the policy prefers chosen to rejected, in nats.

    With `mean`, log-probs are divided by the number of scored tokens first.
    """
    return preference(policy, mean=mean) - preference(reference, mean=mean)


def preference(readout: Readout, *, mean: bool = False) -> Float[Tensor, "pair"]:
    """log p(chosen) - log p(rejected), in nats (nats a token with `mean`)."""
    chosen, rejected = readout.chosen_logps, readout.rejected_logps
    if chosen is None or rejected is None:
        raise ValueError("this objective needs log-probs, and the readout has none")
    if mean:
        if readout.chosen_tokens is None or readout.rejected_tokens is None:
            raise ValueError("mean log-probs need token counts, and the readout has none")
        return chosen / readout.chosen_tokens - rejected / readout.rejected_tokens
    return chosen - rejected
