"""Losses on the log-probs of the answers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from trimtab.bounds import NonNegative, Positive, Smoothing
from trimtab.errors import DataError
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


@dataclass(frozen=True)
class PlackettLuce(Terms):
    """The ranking of all of an item's answers at once (Rafailov et al. 2023, appendix A.3, eq. 20).

    With rho_i = log pi(answer i) - log r(answer i), sums over tokens, each answer i that others are worse
    than costs -log [exp(beta rho_i) / sum of exp(beta rho_j)], j being i and all answers that a chain of
    pairs leads to from i: of a ranking a > b > c this is the likelihood of the order; of a best answer
    against each other one, that it comes first. A term is spread over the pairs whose chosen answer i is,
    so that the sum over an item's pairs is the item's. A single pair is DPO.
    """

    beta: Positive = 0.1
    """Inverse temperature: how strongly the policy is held to the reference."""

    def needs(self, n_layers: int) -> Needs:
        """Log-probs of policy and reference."""
        return self.with_terms(Needs(logps=True, reference_logps=True))

    def __call__(self, policy: Readout, reference: Readout | None) -> Loss:
        """Loss a pair; metrics `margin` (beta rho of the pair) and `accuracy` (rho > 0).

        Raises:
            DataError: preferences that go in a circle, which no ranking has.
        """
        reference = require(reference, "PlackettLuce")
        rho = log_ratio(policy, reference)
        margin = self.beta * rho
        metrics = {"margin": margin.detach(), "accuracy": (rho > 0).float()}
        if policy.answers is None:
            loss = logistic(margin)
        else:
            own = [
                self.beta * (getattr(policy, name) - getattr(reference, name))
                for name in ("chosen_logps", "rejected_logps")
            ]
            loss = ranking_loss(torch.stack(own), policy.answers)
        return self.add_terms(loss, metrics, policy, reference)


def ranking_loss(
    scores: Float[Tensor, "2 pair"], answers: Int[Tensor, "2 pair"]
) -> Float[Tensor, "pair"]:
    """Minus the log-likelihood under Plackett and Luce of what pairs say of their answers' order.

    Args:
        scores: of each pair's chosen and rejected answer.
        answers: which answers these are.

    Raises:
        DataError: an answer is better than itself.
    """
    names, place = answers.unique(return_inverse=True)
    worse = torch.zeros(len(names), len(names), device=scores.device)
    worse[place[0], place[1]] = 1
    for _ in range(max(len(names) - 1, 0).bit_length()):  # chains of up to 1, 2, 4, … pairs
        worse = ((worse + worse @ worse) > 0).float()
    if worse.diagonal().any():
        raise DataError("pairs whose preferences go in a circle have no ranking (see inspect)")
    at = torch.arange(place.numel(), device=scores.device)
    first = at.new_full((len(names),), len(at)).scatter_reduce(0, place.flatten(), at, "amin")
    score = scores.flatten()[first]  # an answer of several pairs stands there several times
    among = (worse + torch.eye(len(names), device=scores.device)) > 0
    total = score.expand(len(names), -1).masked_fill(~among, -torch.inf).logsumexp(1)
    count = torch.bincount(place[0], minlength=len(names))
    return ((total - score) / count.clamp(min=1))[place[0]]


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
