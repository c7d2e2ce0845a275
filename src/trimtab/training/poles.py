"""Training at several alphas, one a row: at a negative one the rejected answer is to win."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from trimtab.batching import Batch
from trimtab.training.fit_module import FitModule


class PolesModule(FitModule):
    """The model with every row of a batch at an alpha of its own, and the answers of a pair exchanged
    where that is negative.

    Rows find their alphas in one tensor, whose values are set before each forward pass and stay until
    after its backward pass.
    """

    def __init__(
        self,
        *,
        poles: str,
        seed: int,
        factors: tuple[float, float] = (1.0, 1.0),
        by_answer: bool = False,
        **parts: Any,
    ):
        """
        Args:
            factors, by_answer: how the size of alpha is drawn (`recipes.PolesRecipe`).
            parts: of `FitModule`.
            poles: both, one or drawn (`recipes.PolesRecipe`).
            seed: of what is drawn, with the step.
        """
        super().__init__(**parts)
        self.poles, self.seed, self.alpha = poles, seed, torch.ones(1)
        self.factors, self.by_answer = factors, by_answer

    def forward(self, batch: Batch, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each pair of a batch of an optimizer step, and metrics."""
        pairs, both = len(batch.pair_ids), self.poles == "both"
        sign = 1.0
        if self.poles == "drawn" and share(self.seed, step) < 0.5:
            sign = -1.0
        rows = sign * self._sizes(batch, step)
        signs = torch.full((pairs,), sign, device=batch.input_ids.device)
        if both:
            batch = twice(batch)
            rows, signs = torch.cat([rows, -rows]), torch.cat([signs, -signs])
        self.alpha.data = rows  # type: ignore[union-attr]
        chosen = torch.where(signs > 0, batch.pair_chosen, batch.pair_rejected)
        rejected = torch.where(signs > 0, batch.pair_rejected, batch.pair_chosen)
        self.exchanged = signs
        loss, metrics = super().forward(
            replace(batch, pair_chosen=chosen, pair_rejected=rejected), step
        )
        if not both:
            return loss, metrics
        each = {name: (v[:pairs] + v[pairs:]) / 2 for name, v in metrics.items()}
        return (loss[:pairs] + loss[pairs:]) / 2, each

    def _sizes(self, batch: Batch, step: int) -> Tensor:
        """The size of alpha in each line of a batch, by its item (or answer) and the step alone."""
        low, high = self.factors
        lines = torch.ones(len(batch.input_ids))
        if low == high and not self.by_answer:
            return lines * low
        line = torch.zeros_like(batch.answer_ids)
        line[batch.token_answer] = batch.token_row
        for n, answer, item in zip(
            line.tolist(), batch.answer_ids.tolist(), batch.items, strict=True
        ):
            if self.by_answer:
                lines[n] = 2 + 2 * int(10 * share(self.seed, step, answer))
            else:
                lines[n] = low * (high / low) ** share(self.seed, step, item)
        return lines


def share(*what: Any) -> float:
    """A number from 0 up to 1 that is drawn by what it is for, whatever else was drawn."""
    return int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:7]) / 256**7


def twice(batch: Batch) -> Batch:
    """A batch followed by itself: all rows, then all rows again."""
    shift = {
        "token_row": len(batch.input_ids),
        **dict.fromkeys(("token_answer", "pair_chosen", "pair_rejected"), batch.n_answers),
    }
    doubled: dict[str, Any] = {
        name: torch.cat([value, value + shift[name] if name in shift else value])
        for name, value in vars(batch).items()
        if isinstance(value, Tensor)
    }
    return replace(batch, **doubled, items=batch.items * 2)
