"""Training an alignment head on the frozen model's last hidden states."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trimtab import models
from trimtab.batching import Encoded, Layout, layout_for
from trimtab.dials import LogitsDial
from trimtab.dials.attach import PRESETS
from trimtab.models.heads import after_head, head_site
from trimtab.objectives import Objective
from trimtab.objectives.heads import IAV, HeadReadout, head_readout
from trimtab.readout import Readout
from trimtab.training.head import HeadBatch, HeadModule, HeadTrainer, head_batch, stored
from trimtab.training.plan import Made, Run
from trimtab.training.trainer import train_run

CHUNK = 6 << 20
"""Logits computed at once, in entries: as float32 below the 32 MiB that `keep_freed_pages` covers."""
KEPT = 1 << 26
"""Logits kept for the backward pass; more are computed again there."""
MEASURED_ANSWERS = 32
"""Answers on which the KL of a new alignment head is measured."""


def fit_alignment_head(run: Run) -> Made:
    """Train an alignment head. Raises CacheError where the feature store is damaged or has no room."""
    recipe, model, encoded = run.recipe, run.model, run.encoded
    args, live = run.arguments(), recipe.dial.features == "live"
    layout = run.layout(layout_for(model, "predicting", encoded))
    schedule = run.schedule(layout, args)
    options: Any = {k: getattr(recipe.dial, k) for k in ("shape", "rank", "sites", "base_head")}
    generator = torch.Generator().manual_seed(run.seed)
    dial = LogitsDial.for_model(model, generator=generator, **options).to(args.device)
    module = IAVModule(model, dial, recipe.objective, encoded)
    module.stored = None if live else stored(run, args, module)
    _, extra = train_run(
        run, module, schedule, args, layout, said=module.reads, through=live, kind=HeadTrainer
    )
    dial.eval()
    strengths = list(PRESETS.values())
    dial.info.measured = {
        "alphas": [min(strengths), max(strengths)],
        "kl on training answers, nats a token, by alpha": module.kl(encoded, layout),
    }
    return dial, extra


class IAVModule(HeadModule):
    """A logits dial and its loss."""

    dial: LogitsDial

    def __init__(
        self, model: nn.Module, dial: LogitsDial, objective: IAV | Objective, encoded: Encoded
    ):
        super().__init__(model, dial, "predicting", (head_site(model), *dial.sites))
        self.objective = objective
        self.after = after_head(model)
        keep_freed_pages()
        flat = [a[0 if row.prompt else 1 :] for row in encoded.rows for a in row.answers]
        self.ids = [torch.tensor(a) for a in flat]

    def forward(self, batch: HeadBatch, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each pair of a batch, and metrics. The reference of losses on answers are the bare
        logits of the same pass."""
        readout = self.readout(batch)
        both = readout[batch.pair_chosen], readout[batch.pair_rejected]
        if isinstance(self.objective, IAV):
            return self.objective(*both)
        tokens: Any = [r.tokens for r in both]
        before = Readout(both[0].reference_logps, both[1].reference_logps, *tokens)
        kl: Any = dict(
            zip(("chosen_kl", "rejected_kl"), (r.kl / r.tokens for r in both), strict=True)
        )
        return self.objective(Readout(both[0].logps, both[1].logps, *tokens, **kl), before)

    def readout(self, batch: HeadBatch, alpha: float = 1.0) -> HeadReadout:
        """What the head says of a batch's answers."""
        states, counts, _ = self.states(batch)
        ids = torch.cat([self.ids[i] for i in batch.answer_ids.tolist()]).to(states.device)
        size = max(1, CHUNK // self.dial.vocabulary)
        again = len(ids) * self.dial.vocabulary > KEPT and torch.is_grad_enabled()
        parts = []
        for part in zip(states.split(size), ids.split(size), strict=True):
            parts.append(
                checkpoint(self._tokens, *part, alpha, use_reentrant=False)
                if again
                else self._tokens(*part, alpha)
            )
        of = torch.arange(len(counts), device=states.device).repeat_interleave(counts)
        tokens: dict[str, Tensor] = {k: torch.cat([p[k] for p in parts]) for k in parts[0]}
        sums = {k: v.new_zeros(len(counts)).index_add(0, of, v) for k, v in tokens.items()}
        return HeadReadout(tokens=counts, **sums)

    def _tokens(self, states: Tensor, ids: Tensor, alpha: float) -> dict[str, Tensor]:
        with torch.no_grad():
            z = models.head_logits(self.model, states[:, 0])
            z = z if z.dtype == torch.float64 else z.float()
        h = self.dial.hidden(states)
        a = self.dial.vector(h, models.head_weight(self.model))
        moved = self.dial.moved(h)
        shift = a if alpha == 1 else alpha * a
        return head_readout(
            z,
            shift if moved is None else shift + moved,
            a,
            ids,
            after=self.after,
            arm=getattr(self.objective, "preference", "") == "arm",
            norm=getattr(self.objective, "variant", "") == "published",
        )

    @torch.no_grad()
    def kl(self, encoded: Encoded, layout: Layout) -> dict[str, float]:
        """KL to the bare model at the named strengths, in nats a token of the training answers."""
        rows: list[int] = []
        while rows != list(range(len(encoded.rows))) and (
            sum(len(encoded.rows[i].answers) for i in rows) < MEASURED_ANSWERS
        ):
            rows.append(len(rows))
        found = {}
        for alpha in PRESETS.values():
            total, tokens = 0.0, 0
            for row in rows if alpha else ():
                batch = head_batch(encoded, [row], layout, self.live)
                readout = self.readout(batch.to(next(self.dial.parameters()).device), alpha)
                total, tokens = total + float(readout.kl.sum()), tokens + int(readout.tokens.sum())
            found[f"{alpha:g}"] = round(total / max(tokens, 1), 6)
        return found


def keep_freed_pages() -> None:
    """Have glibc keep what this process frees (up to 1 GiB, blocks below 32 MiB) instead of giving it
    back: logits of a few tokens are fresh pages each time otherwise, and a pass over them takes
    many times as long. Does nothing on other systems."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, at its largest
        mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
