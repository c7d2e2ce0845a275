"""A rotation's training step as one would first write it: each adapted layer replaced by its factors and
the rest, one pass over padded sequences for each coefficient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimtab.batching import Encoded
from trimtab.dials import RotationDial
from trimtab.readout import Needs, Readout
from trimtab.rendering import Turn
from trimtab.sites import Site


class Rotated(nn.Module):
    """x V R(c) diag(S exp(c l)) U^T + x W_res^T."""

    def __init__(self, linear: nn.Linear, dial: RotationDial, index: int):
        super().__init__()
        self.dial, self.index, self.c = dial, index, 0.0
        U, S, V = dial.basis(index)
        self.U, self.S, self.V = U, S, V
        self.rest = linear.weight.detach() - U @ torch.diag(S) @ V.mT
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """The layer at coefficient `c`."""
        A = self.dial.skew(self.index)
        eye = torch.eye(len(A), dtype=A.dtype)
        turn = torch.linalg.solve(eye - self.c * A / 2, eye + self.c * A / 2)
        scale = self.S * torch.exp(self.c * self.dial.gain[self.index])
        return (x @ self.V @ turn * scale) @ self.U.mT + F.linear(x, self.rest, self.bias)


class Naive:
    """The step: reference, +1 and -1, each a pass of its own; the same objective as ours."""

    def __init__(
        self,
        model: Any,
        dial: RotationDial,
        objective: Any,
        needs: Needs,
        encoded: Encoded,
        directions: dict[Site, Tensor],
    ):
        self.model, self.dial, self.objective = model, dial, objective
        self.needs, self.directions = needs, directions
        self.sequences = [
            [
                (row.prompt, row.answers[i], row.turns[i])
                for row in encoded.rows
                for i in (pair[k] for pair in row.pairs)
            ]
            for k in (0, 1)
        ]
        self.optimizer = torch.optim.AdamW(dial.parameters(), lr=0.0)
        self.layers = {p: model.get_submodule(p) for p in dial.paths}
        self.rotated = {p: Rotated(self.layers[p], dial, i) for i, p in enumerate(dial.paths)}

    def step(self) -> Tensor:
        """Three passes, a loss, its gradient, an optimizer step."""
        with torch.no_grad():
            reference = self._pass(None)
        plus, minus = self._pass(1.0), self._pass(-1.0)
        loss = self.objective(plus, minus, reference, self.directions)[0].mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def _pass(self, c: float | None) -> Readout:
        for path, layer in self.rotated.items():
            layer.c = c or 0.0
            self.model.set_submodule(path, self.layers[path] if c is None else layer)
        try:
            chosen, rejected = (self._read(sequences) for sequences in self.sequences)
        finally:
            for path, layer in self.layers.items():
                self.model.set_submodule(path, layer)
        return Readout(
            chosen=chosen[2],
            rejected=rejected[2],
            chosen_logps=chosen[0],
            rejected_logps=rejected[0],
            chosen_tokens=chosen[1],
            rejected_tokens=rejected[1],
        )

    def _read(
        self, sequences: Sequence[tuple[Sequence[int], Sequence[int], Sequence[Turn]]]
    ) -> tuple[Tensor, Tensor, dict[Site, Tensor]]:
        """Summed log-probs, scored tokens and pooled states of padded sequences."""
        width = max(len(p) + len(a) for p, a, _ in sequences)
        ids = torch.zeros(len(sequences), width, dtype=torch.long)
        mask, scored, body = (torch.zeros_like(ids) for _ in range(3))
        for i, (prompt, answer, turns) in enumerate(sequences):
            n, end = len(prompt), len(prompt) + len(answer)
            ids[i, :end] = torch.tensor([*prompt, *answer])
            mask[i, :end] = 1
            for turn in turns:
                scored[i, max(n + turn.start, 1) : n + turn.stop] = 1
                body[i, n + turn.content : n + turn.end] = 1
        out = self.model(
            input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False
        )
        logps = torch.log_softmax(out.logits[:, :-1].float(), -1)
        taken = logps.gather(-1, ids[:, 1:, None])[..., 0] * scored[:, 1:]
        states = {}
        for site in self.needs.sites:
            assert isinstance(site, int)
            h, part = out.hidden_states[site + 1], body[..., None]  # any block but the last
            states[site] = (h * part).sum(1) / part.sum(1)
        return taken.sum(1), scored.sum(1), states
