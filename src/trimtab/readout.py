"""What an objective asks of a forward pass (`Needs`) and what it is given (`Readout`).

These two are the whole language between models and losses: `states.py` fills a `Readout` from a
model, `objectives/` turn it into a loss, and neither knows the other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypedDict

from jaxtyping import Float, Int
from torch import Tensor

from trimtab.errors import ConfigError
from trimtab.sites import Site

Pool = str
"""Which token positions of an answer are averaged: `completion`, its tokens without EOS;
`predicting`, the positions that predict those tokens (shifted by one); `last`, the last token
without EOS; `last:K`, the last K of them; `marker`, EOS alone."""

TokenMap = Literal["none", "l2", "softmax", "log_softmax"]
"""A map of each token's state before pooling: nothing, division by its L2 norm, its softmax over
hidden units or the logarithm of that."""

Direction = Literal["pair", "batch", "data"]
"""Over what the reference's preference direction is taken: each pair for itself, the mean over the
pairs of an optimizer step, or over the whole data set."""


@dataclass(frozen=True)
class Needs:
    """What an objective reads.

    Attributes:
        logps: log-probs of the answers, which cost a pass through all blocks and the LM head.
        sites: sites whose pooled hidden states are read. With `logps=False` nothing above the
            deepest of them is computed.
        pool: the token positions averaged.
        sinks: whether attention sinks are averaged with the other tokens.
        token_map: a map of each token's state before pooling.
        direction: over what the reference's preference direction is taken.
        reference_logps: also the log-probs of the reference model (the dial at 0).
        reference_states: also the pooled states of the reference model.
        confidence: also how sure the policy was of each answer's tokens, for WPO's weights.
        kl: also the KL divergence from the reference at every scored token, which costs a pass of
            the reference model beside each of the policy's.
    """

    logps: bool = False
    sites: tuple[Site, ...] = ()
    pool: Pool = "completion"
    sinks: bool = True
    token_map: TokenMap = "none"
    direction: Direction = "pair"
    reference_logps: bool = False
    reference_states: bool = False
    confidence: bool = False
    kl: bool = False

    def asked(self) -> Asked:
        """What a pass of the policy reads of these."""
        return {name: getattr(self, name) for name in Asked.__annotations__}  # type: ignore[return-value]


class Asked(TypedDict, total=False):
    """What is asked of one pass, as keywords: see `Needs`."""

    logps: bool
    sites: Sequence[Site]
    pool: Pool
    sinks: bool
    token_map: TokenMap
    confidence: bool


@dataclass(frozen=True)
class Readout:
    """What was read of P pairs, in float32 (or float64 where the model is).

    Attributes:
        chosen_logps: summed log-prob of each chosen answer, in nats.
        rejected_logps: the same of the rejected ones.
        chosen_tokens: scored tokens of each chosen answer, EOS included.
        rejected_tokens: the same of the rejected ones.
        chosen: pooled states of the chosen answers, a tensor a site.
        rejected: the same of the rejected ones.
        floor: for a reference readout, the 10th percentile of ||chosen - rejected|| over the
            data set, a number a site: the least scale by which an objective divides.
        direction: for a reference readout, the unit preference direction at each site where it is
            taken over more than a pair.
        chosen_confidence: mean over each chosen answer's scored tokens of log p(token) -
            log(sum of squared probs), in nats.
        rejected_confidence: the same of the rejected ones.
        chosen_kl: mean over each chosen answer's scored tokens of KL(policy || reference), in nats.
        rejected_kl: the same of the rejected ones.
        prompt_tokens: tokens of each pair's prompt, where it stands before its answers.
        answers: index of each pair's chosen and rejected answer, the same where pairs share an answer;
            without it no pairs do.
    """

    chosen_logps: Float[Tensor, "pair"] | None = None
    rejected_logps: Float[Tensor, "pair"] | None = None
    chosen_tokens: Int[Tensor, "pair"] | None = None
    rejected_tokens: Int[Tensor, "pair"] | None = None
    chosen: dict[Site, Float[Tensor, "pair d"]] = field(default_factory=dict)
    rejected: dict[Site, Float[Tensor, "pair d"]] = field(default_factory=dict)
    floor: dict[Site, float] = field(default_factory=dict)
    direction: dict[Site, Float[Tensor, "d"]] = field(default_factory=dict)
    chosen_confidence: Float[Tensor, "pair"] | None = None
    rejected_confidence: Float[Tensor, "pair"] | None = None
    chosen_kl: Float[Tensor, "pair"] | None = None
    rejected_kl: Float[Tensor, "pair"] | None = None
    answers: Int[Tensor, "2 pair"] | None = None
    prompt_tokens: Int[Tensor, "pair"] | None = None


def last_tokens(pool: Pool) -> int | None:
    """How many last tokens `last` or `last:K` average; None for another pool.

    Raises:
        ConfigError: an unknown pool.
    """
    if pool in ("completion", "predicting", "marker"):
        return None
    match = re.fullmatch(r"last(?::([1-9]\d*))?", pool)
    if not match:
        raise ConfigError(f"pool {pool!r}: expected completion, predicting, last, last:K or marker")
    return int(match[1] or 1)
