"""Losses of heads on a frozen model: alignment vectors added to the logits, and rewards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from trimtab.bounds import Bounded, NonNegative, Positive, Smoothing
from trimtab.objectives.output import logistic, preference
from trimtab.readout import Needs, Readout

# ---- alignment vectors --------------------------------------------------------------------------


@dataclass(frozen=True)
class HeadReadout:
    """What a head says of A answers, each value a sum over the answer's T tokens.

    Attributes:
        tokens: T.
        logps: log-probs with the head at alpha = 1, in nats.
        reference_logps: log-probs of the bare model.
        kl: KL(with the head || bare model), in nats.
        l2: of the alignment vectors: mean over the vocabulary of (a - mean a)^2; `published`: the
            norm of a.
        arm_logps: log softmax(a) of the answer's tokens, where it is asked for.
    """

    tokens: Int[Tensor, "answer"]
    logps: Float[Tensor, "answer"]
    reference_logps: Float[Tensor, "answer"]
    kl: Float[Tensor, "answer"]
    l2: Float[Tensor, "answer"]
    arm_logps: Float[Tensor, "answer"] | None = None

    def __getitem__(self, answers: Tensor) -> HeadReadout:
        given = {k: v for k, v in vars(self).items() if v is not None}
        return replace(self, **{k: v[answers] for k, v in given.items()})


@dataclass(frozen=True)
class IAV(Bounded, group="objective"):
    """Inherent alignment vectors: z + alpha a(h) on a frozen base head.

    A pair's loss is the preference term, plus `weight_kl` times the mean over both answers of the
    KL a token, plus `weight_l2` times the mean over both of the l2 a token (`HeadReadout`).
    `sound` preference terms: `dpo` is exact DPO, whose reference are the bare logits of the same
    pass; `simpo` (Meng et al. 2024, eq. 6) has mean log-probs, no reference and a margin; `arm`
    (Xu et al. 2024, GenARM, eq. 8) makes a itself the logits of an autoregressive reward model.
    `published` (the README of s4n9hyun/IAV): -log sigmoid(beta x margin of mean log-probs), and the
    norm of a on the chosen side alone. There a margin of the bare model counts as if learned.
    """

    preference: Literal["dpo", "simpo", "arm"] = "dpo"
    """Preference term of the `sound` variant."""
    beta: Positive | None = None
    """Inverse temperature (by default dpo 0.1, simpo 2, arm 0.05, published 0.1)."""
    gamma: NonNegative = 1.0
    """simpo: the margin to be exceeded, in units of beta x nats a token."""
    label_smoothing: Smoothing = 0.0
    """Probability that a label is wrong (Mitchell 2023)."""
    weight_kl: NonNegative = 0.1
    """Weight of the KL to the bare model over the whole vocabulary, on both answers."""
    weight_l2: NonNegative = 0.01
    """Weight of the squared centred alignment vectors, on both answers."""
    variant: Literal["sound", "published"] = "sound"
    """Our formula, or the published one."""

    def __call__(
        self, chosen: HeadReadout, rejected: HeadReadout
    ) -> tuple[Float[Tensor, "pair"], dict[str, Tensor]]:
        """Loss a pair; metrics `margin`, `accuracy` (margin > 0), `kl` and `l2` a token."""
        margin, shift = self._margin(chosen, rejected)
        loss = logistic(margin - shift, self.label_smoothing)
        kl = (chosen.kl / chosen.tokens + rejected.kl / rejected.tokens) / 2
        if self.variant == "published":
            l2 = chosen.l2 / chosen.tokens
        else:
            l2 = (chosen.l2 / chosen.tokens + rejected.l2 / rejected.tokens) / 2
        loss = loss + self.weight_kl * kl + self.weight_l2 * l2
        return loss, {
            "margin": margin.detach(),
            "accuracy": (margin > 0).float(),
            "kl": kl.detach(),
            "l2": l2.detach(),
        }

    def _margin(self, chosen: HeadReadout, rejected: HeadReadout) -> tuple[Tensor, float]:
        if self.variant == "published" or self.preference == "simpo":
            beta, shift = (0.1, 0.0) if self.variant == "published" else (2.0, self.gamma)
            margin = chosen.logps / chosen.tokens - rejected.logps / rejected.tokens
        elif self.preference == "dpo":
            beta, shift = 0.1, 0.0
            margin = (chosen.logps - chosen.reference_logps) - (
                rejected.logps - rejected.reference_logps
            )
        else:
            if chosen.arm_logps is None or rejected.arm_logps is None:
                raise ValueError("arm needs the log-probs of softmax(a)")
            beta, shift = 0.05, 0.0
            margin = chosen.arm_logps - rejected.arm_logps
        return (beta if self.beta is None else self.beta) * margin, shift


def head_readout(
    z: Float[Tensor, "token vocab"],
    shift: Float[Tensor, "token vocab"],
    a: Float[Tensor, "token vocab"],
    ids: Int[Tensor, "token"],
    *,
    after: Callable[[Tensor], Tensor] | None = None,
    arm: bool = False,
    norm: bool = False,
) -> dict[str, Float[Tensor, "token"]]:
    """The token values whose sums are a `HeadReadout`.

    Args:
        z: what the base head puts out, without gradient.
        shift: what is added to it, with gradient: a, and what a trained base head has moved.
        a: alignment vectors.
        ids: the tokens that the positions predict.
        after: what the model does to its head's output (soft-capping, scaling).
        arm: also log softmax(a).
        norm: l2 is the norm of a (`published`).
    """
    u, difference = z + shift, shift
    if after is not None:
        z, u, difference = after(z), after(u), None
    logps, reference, kl = told_apart(u, z, ids, difference)
    found = {"logps": logps, "reference_logps": reference, "kl": kl}
    found["l2"] = a.norm(dim=-1) if norm else _CentredSquare.apply(a)
    if arm:
        found["arm_logps"] = a.gather(-1, ids[:, None])[:, 0] - a.logsumexp(-1)
    return found


def told_apart(
    u: Float[Tensor, "token vocab"],
    z: Float[Tensor, "token vocab"],
    ids: Int[Tensor, "token"],
    difference: Float[Tensor, "token vocab"] | None = None,
) -> tuple[Float[Tensor, "token"], Float[Tensor, "token"], Float[Tensor, "token"]]:
    """Log-probs of the tokens by logits u, by logits z, and KL(p_u || p_z), in nats. `difference` is
    u - z, where it is at hand."""
    difference = u - z if difference is None else difference
    return _Terms.apply(u, z, ids, difference.detach())  # type: ignore[return-value]


class _Terms(torch.autograd.Function):
    """log p_u(id), log p_z(id) and KL(p_u || p_z) of M tokens, from logits u (with gradient) and z.

    By hand, since autograd would keep half a dozen [M, V] tensors where two are enough:
    d log p_u / du = e_id - p_u, and d KL / du = p_u (u - z - E_u[u - z]).
    """

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, z: Tensor, ids: Tensor, difference: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        (p, top), (_, base) = _softmax(u), _softmax(z)
        mean = torch.linalg.vecdot(p, difference)
        ctx.save_for_backward(p, difference, mean, ids)
        at = ids[:, None]
        reference = z.gather(-1, at)[:, 0] - base
        ctx.mark_non_differentiable(reference)
        return u.gather(-1, at)[:, 0] - top, reference, mean - (top - base)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        p, difference, mean, ids = ctx.saved_tensors
        of_logp, _, of_kl = grads
        down = (difference * of_kl[:, None]).sub_((of_kl * mean + of_logp)[:, None]).mul_(p)
        return down.scatter_add_(-1, ids[:, None], of_logp[:, None]), None, None, None


def _softmax(x: Float[Tensor, "token vocab"]) -> tuple[Tensor, Tensor]:
    """Softmax and logsumexp, which is max x - log max softmax(x) and a pass over x less so."""
    p = x.softmax(-1)
    return p, x.amax(-1) - p.amax(-1).log()


class _CentredSquare(torch.autograd.Function):
    """Mean over the vocabulary of (a - mean a)^2: a shift of all logits is none. By its moments, since
    torch's variance takes as long as a quarter of the LM head."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        mean = a.mean(-1)
        ctx.save_for_backward(a, mean)
        square = torch.linalg.vector_norm(a, dim=-1).square() / a.shape[-1]
        return (square - mean.square()).clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        a, mean = ctx.saved_tensors
        return (a - mean[:, None]).mul_(grads[0][:, None] * (2 / a.shape[-1]))


@dataclass(frozen=True)
class ARM(Bounded, group="objective"):
    """An autoregressive reward model (Xu et al. 2024, GenARM, eq. 8): a second model of the same
    base, -log sigmoid(beta (log pi_r(chosen) - log pi_r(rejected))), sums over answer tokens, no
    reference."""

    beta: Positive = 0.05
    """Inverse temperature."""
    label_smoothing: Smoothing = 0.0
    """Probability that a label is wrong."""

    def needs(self, n_layers: int) -> Needs:
        """Log-probs of the policy."""
        return Needs(logps=True)

    def __call__(
        self, policy: Readout, reference: Readout | None
    ) -> tuple[Float[Tensor, "pair"], dict[str, Tensor]]:
        """Loss a pair; metrics `margin` and `accuracy`."""
        margin = self.beta * preference(policy)
        metrics = {"margin": margin.detach(), "accuracy": (margin > 0).float()}
        return logistic(margin, self.label_smoothing), metrics


# ---- rewards ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DPH(Bounded, group="objective"):
    """Direct preference heads (Hadji-Kyriacou and Arandjelovic 2024): a reward read off the states.

    With r_w, r_l the rewards of chosen and rejected, s the label smoothing and L the logistic
    function: `separable` -(1 - s) log L(r_w) - s log L(-r_w) - s log L(r_l) - (1 - s) log L(-r_l);
    `contrastive` -(1 - s) log L(r_w - r_l) - s log L(r_l - r_w); `listwise` the cross-entropy of
    softmax over an item's chosen answer and all rejected ones, counted once a pair, with 1 - s on
    the chosen one. Contrastive at s = 0 is Bradley-Terry, TRL's RewardTrainer.
    """

    loss: Literal["separable", "contrastive", "listwise"] = "separable"
    """How rewards of an item are compared."""
    label_smoothing: Smoothing = 0.1
    """Probability that a label is wrong."""
    weight_centre: NonNegative = 0.0
    """Weight of (r_w + r_l)^2, which keeps rewards around 0 (TRL's center_rewards_coefficient)."""
    weight_prior: NonNegative = 0.0
    """Weight of the squared distance of all trained weights from where they started."""
    weight_dpo: NonNegative = 0.0
    """Weight of DPO on the log-probs, where an adapter is trained along."""
    beta: Positive = 0.1
    """Inverse temperature of the DPO term."""
    weight_sft: NonNegative = 0.0
    """Weight of the chosen answer's negative log-likelihood a token, where an adapter is trained."""

    @property
    def logps(self) -> bool:
        """Whether log-probs are read, which takes an adapter to make sense."""
        return self.weight_dpo != 0 or self.weight_sft != 0

    def __call__(
        self,
        chosen: Float[Tensor, "pair"],
        rejected: Float[Tensor, "pair"],
        group: Int[Tensor, "pair"],
        policy: Readout | None = None,
        reference: Readout | None = None,
    ) -> tuple[Float[Tensor, "pair"], dict[str, Tensor]]:
        """Loss a pair; metrics `margin`, `accuracy`, `chosen` and `rejected` (rewards), and `tied`: 1
        where these differ by less than 1e-4 of their size, as those of a saturated pooling do.

        Args:
            group: pairs with the same number have one chosen answer, and are one list.
        """
        s, margin = self.label_smoothing, chosen - rejected
        if self.loss == "separable":
            loss = logistic(chosen, s) + logistic(-rejected, s)
        elif self.loss == "contrastive":
            loss = logistic(margin, s)
        else:
            loss = _listwise(margin, group, s)
        if self.weight_centre:
            loss = loss + self.weight_centre * (chosen + rejected).square()
        metrics = {
            "margin": margin.detach(),
            "accuracy": (margin > 0).float(),
            "chosen": chosen.detach(),
            "rejected": rejected.detach(),
            "tied": (margin.abs() <= 5e-5 * (chosen.abs() + rejected.abs())).float(),
        }
        if self.logps:
            if policy is None or policy.chosen_logps is None or policy.chosen_tokens is None:
                raise ValueError("the DPO and SFT terms need log-probs of the policy")
            if self.weight_dpo:
                if reference is None:
                    raise ValueError("the DPO term needs log-probs of the reference")
                rho = preference(policy) - preference(reference)
                loss = loss + self.weight_dpo * logistic(self.beta * rho, s)
                metrics["dpo_margin"] = self.beta * rho.detach()
            loss = loss - self.weight_sft * policy.chosen_logps / policy.chosen_tokens
        return loss, metrics


def _listwise(margin: Tensor, group: Tensor, smoothing: float) -> Tensor:
    """-sum_k t_k log softmax(r)_k of each pair's list, with t = 1 - s on the chosen answer and s
    spread over its K rejected ones. Only differences to the chosen reward matter."""
    _, of = group.unique(return_inverse=True)
    n = int(of.max()) + 1
    low = -margin  # r_l - r_w
    top = low.new_zeros(n).scatter_reduce(0, of, low.detach(), "amax").clamp(min=0)
    total = (-top).exp().index_add(0, of, (low - top[of]).exp())
    lse = total.log() + top  # log(1 + sum exp(r_l - r_w))
    count = torch.bincount(of, minlength=n)
    mean = low.new_zeros(n).index_add(0, of, low) / count
    return (lse - smoothing * mean)[of]
