"""RePS: the better answer's gain weighed by how far behind the reference has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch.nn.functional as F
from torch import Tensor

from trimtab.bounds import Positive, Within
from trimtab.objectives.base import Loss, Terms, require
from trimtab.readout import Needs, Readout


@dataclass(frozen=True)
class RePS(Terms):
    """Reference-free preference steering (Wu et al. 2025), -log sigmoid(z).

    `sound`: z = beta (Phi (m_c - m_c0) - (m_j - m_j0)) with m mean log-probs of the scored tokens, 0 the
    reference's, Phi = min(max(m_j0 - m_c0, 1), most). log 2 at the start, and DPO on means where Phi = 1.

    `published`: z = Phi S_c / n_c - S_j / n_j with Phi = max(S_j0 - S_c0, 1), S summed log-probs and n
    the tokens of prompt and answer. Phi is tens of nats, so that the loss is linear: mostly the
    likelihood of the chosen answer, weighted by how unlikely it was.
    """

    beta: Positive = 2.0
    """Inverse temperature (sound)."""
    most: Annotated[float, Within(1)] = 4.0
    """Phi is no larger (sound)."""
    variant: Literal["sound", "published"] = "sound"
    """Our formula, or the published one."""

    def needs(self, n_layers: int) -> Needs:
        """Log-probs of policy and reference."""
        return self.with_terms(Needs(logps=True, reference_logps=True))

    def __call__(self, policy: Readout, reference: Readout | None) -> Loss:
        """Loss a pair; metrics `margin` (z), `accuracy` (z > 0) and `phi`."""
        reference = require(reference, "RePS")
        chosen, rejected = (_answers(policy, name) for name in ("chosen", "rejected"))
        chosen_0, rejected_0 = (_answers(reference, name) for name in ("chosen", "rejected"))
        if self.variant == "published":
            prompt = 0 if policy.prompt_tokens is None else policy.prompt_tokens
            phi = (rejected_0[0] - chosen_0[0]).clamp(min=1)
            margin = phi * chosen[0] / (chosen[1] + prompt) - rejected[0] / (rejected[1] + prompt)
        else:
            c, j, c_0, j_0 = (s / n for s, n in (chosen, rejected, chosen_0, rejected_0))
            phi = (j_0 - c_0).clamp(1, self.most)
            margin = self.beta * (phi * (c - c_0) - (j - j_0))
        metrics = {"margin": margin.detach(), "accuracy": (margin > 0).float(), "phi": phi.detach()}
        return self.add_terms(-F.logsigmoid(margin), metrics, policy, reference)


def _answers(readout: Readout, name: str) -> tuple[Tensor, Tensor]:
    """Summed log-prob and scored tokens of one answer of each pair."""
    logps, tokens = getattr(readout, f"{name}_logps"), getattr(readout, f"{name}_tokens")
    if logps is None or tokens is None:
        raise ValueError("RePS needs log-probs and token counts, and the readout lacks them")
    return logps, tokens
