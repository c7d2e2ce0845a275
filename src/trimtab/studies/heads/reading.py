"""Log-probs of a test's answers, and KL from the bare model, under whatever leans on its logits: from states
at the LM head, without the backbone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from trimtab import models
from trimtab.batching import Encoded, collate, layout_for, plan_batches
from trimtab.dials import Dial
from trimtab.evaluation.decoding import Decoder, args_rewards
from trimtab.evaluation.items import item_scores
from trimtab.models.heads import after_head, head_site
from trimtab.objectives.heads import told_apart
from trimtab.readings import Features
from trimtab.states import Readings, read_tokens

Lean = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""(answers, states, bare logits, alpha) to logits."""
ANSWERS = 8
"""Answers whose logits are held at once."""


class Test:
    """A test's token rows with the bare model's states at the head.

    Args:
        states: of every token of an answer, where it is predicted.
        kl_items: on how many items' answers KL is measured, the first ones.
    """

    def __init__(self, model: Any, encoded: Encoded, states: Features, kl_items: int) -> None:
        self.model, self.encoded, self.states, self.kl_items = model, encoded, states, kl_items
        rows = encoded.rows
        self.ids = [
            torch.tensor(answer[0 if row.prompt else 1 :]) for row in rows for answer in row.answers
        ]

    @cached_property
    def _after(self) -> Any:
        return after_head(self.model)

    @property
    def _device(self) -> Any:
        return next(self.model.parameters()).device

    @torch.no_grad()
    def leaned(self, lean: Lean, alpha: float) -> tuple[Tensor, list[float]]:
        """Log-probs of every answer, and KL to the bare model a token of the first items' answers."""
        n, rows = self.encoded.n_answers, self.encoded.rows
        first = list(dict.fromkeys(row.item for row in rows))[: self.kl_items]
        item_of = [row.item for row in rows for _ in row.answers]
        logps, away = torch.zeros(n), torch.zeros(n)
        for answers in torch.arange(n).split(ANSWERS):
            h, counts = self.states.take(answers)
            h = h.to(self._device)
            ids = torch.cat([self.ids[i] for i in answers.tolist()]).to(self._device)
            z = self.finished(self.logits(h))
            u = lean(answers, h, z, alpha)
            of = torch.arange(len(counts)).repeat_interleave(counts)
            if any(item_of[i] in first for i in answers.tolist()):
                token, _, kl = told_apart(u, z, ids)
                away[answers] = torch.zeros(len(counts)).index_add(0, of, kl.float().cpu())
            else:
                token = u.gather(-1, ids[:, None])[:, 0] - u.logsumexp(-1)
            logps[answers] = torch.zeros(len(counts)).index_add(0, of, token.float().cpu())
        by_item = []
        for item in first:
            mine = [i for i, other in enumerate(item_of) if other == item]
            by_item.append(float(away[mine].sum() / self.states.counts[mine].sum()))
        return logps, by_item

    def logits(self, h: Tensor) -> Tensor:
        """What the base head makes of states `[token, 1, d]`."""
        return models.head_logits(self.model, h[:, 0]).float()

    def finished(self, z: Tensor) -> Tensor:
        """What the model does to its head's output."""
        return z if self._after is None else self._after(z)

    @torch.no_grad()
    def states_with(self, dial: Dial, alpha: float) -> list[Tensor]:
        """States at the head of every answer with a dial attached."""
        encoded, site = self.encoded, head_site(self.model)
        layout = layout_for(self.model, "predicting", encoded)
        found: list[Tensor] = [torch.empty(0)] * encoded.n_answers
        with dial(self.model, alpha):
            for rows in plan_batches(encoded, 2048, layout):
                batch = collate(encoded, rows, layout).to(self._device)
                states, counts, _ = read_tokens(self.model, batch, (site,), "predicting")
                parts = states.cpu().split(counts.tolist())
                for answer, part in zip(batch.answer_ids.tolist(), parts, strict=True):
                    found[answer] = part
        return found

    def accuracy(self, logps: Tensor) -> list[float]:
        """By item, from log-probs of the answers."""
        found = Readings(logps, self.states.counts)
        return item_scores(self.encoded, found).accuracy.tolist()

    @torch.no_grad()
    def args_kl(
        self, dial: Any, alphas: Sequence[float], k: int, answers: int, ends: Any
    ) -> list[list[float]]:
        """By alpha, KL(softmax over the k likeliest of log-prob + alpha r || bare) of a few answers,
        in nats a token."""
        found: list[list[float]] = [[] for _ in alphas]
        both = [(row.prompt, a) for row in self.encoded.rows for a in row.answers]
        for prompt, answer in both[:answers]:
            if not prompt:
                continue
            rows = Decoder(self.model, prompt, 1, dial.sites, room=len(answer))
            total = torch.zeros(len(alphas))
            for token in answer:
                logps, likely = rows.logits[0].log_softmax(-1).topk(k)
                fed = torch.cat([likely.cpu(), torch.tensor([token])])  # the answer's own one too
                r = args_rewards(rows, dial, fed, ends)[:k]
                for i, alpha in enumerate(alphas):
                    q = (logps + alpha * r).log_softmax(-1)
                    total[i] += float((q.exp() * (q - logps)).sum())
                logits = rows.logits
                rows.select(torch.tensor([k]))
                rows.logits = logits[k:]
            for i in range(len(alphas)):
                found[i].append(float(total[i]) / len(answer))
        return found
