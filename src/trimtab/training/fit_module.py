"""What the Trainer trains: the frozen model, a dial, and the objective between them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trimtab import models
from trimtab.batching import Batch, Trunk
from trimtab.dials import Alpha, Dial
from trimtab.dials.contexts import paused
from trimtab.models.above import running
from trimtab.objectives import Objective
from trimtab.readout import Needs
from trimtab.sites import Site
from trimtab.sparing import sparing
from trimtab.states import Readings, pair_up, read
from trimtab.training.reference import Reference, is_tokenwise
from trimtab.training.spaces import Spaces


class FitModule(nn.Module):
    """The frozen model, the dial that is trained, the objective between them: batch in, loss out."""

    alpha: Alpha = 1.0
    """At which the dial is trained."""
    exchanged: Tensor | None = None
    """-1 for each pair of the batch in hand whose answers are exchanged, else 1."""

    def __init__(
        self,
        model: nn.Module,
        dial: Dial,
        objective: Objective,
        needs: Needs,
        reference: Reference,
        spaces: Spaces | None = None,
        trunk: Trunk | None = None,
        spares: bool = False,
    ):
        """
        Args:
            spares: what is cheap to compute again is not kept for the backward pass.
        """
        super().__init__()
        self.spares = spares
        self.model, self.dial, self.objective, self.needs = model, dial, objective, needs
        self.reference, self.spaces, self.trunk = reference, spaces, trunk
        model.requires_grad_(False)

    def train(self, mode: bool = True) -> FitModule:
        """Train mode for the dial alone: dropout in the base would tell policy from reference."""
        self.training = mode
        self.dial.train(mode)
        self.model.eval()
        return self

    def forward(self, batch: Batch, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each pair of a batch of an optimizer step, and metrics."""
        needs, spaces = self.needs, self.spaces
        inside = spaces.items() if spaces is not None and is_tokenwise(needs, spaces) else None
        live = self._live(batch, inside)
        with sparing() if self.spares else nullcontext():
            policy = read(
                self.model,
                batch,
                **needs.asked(),
                spaces=inside,
                against=live.logits if live else None,
                trunk=self.trunk,
            )
        before = self._stored(batch)
        delta = {s: d.to(batch.input_ids.device) for s, d in self.reference.delta(step).items()}
        if live is not None and inside:
            before.states = live.states
        elif spaces is not None:
            policy.states = spaces(policy.states)
            with torch.no_grad():
                before.states, delta = spaces(before.states), spaces(delta)
        direction = {site: nn.functional.normalize(d, dim=-1) for site, d in delta.items()}
        if self.exchanged is not None:
            direction = {site: self.exchanged[:, None] * d for site, d in direction.items()}
        loss, metrics = self.objective(
            pair_up(policy, batch), pair_up(before, batch, self.reference.floor, direction)
        )
        if spaces is not None and (penalty := spaces.penalty()) is not None:
            loss = loss + penalty
            metrics["stretch"] = penalty.detach().expand(len(loss))
        return loss, metrics

    def _live(self, batch: Batch, inside: dict[Site, Any] | None) -> Readings | None:
        """What has to be read of the reference at every step: its logits, and its tokens' states
        in a space that is being trained."""
        if not self.needs.kl and inside is None:
            return None
        with paused():
            sites = self.needs.sites if inside else ()
            asked = replace(self.needs, logps=self.needs.kl, sites=sites, confidence=False).asked()
            how: Any = {"spaces": inside, "keep_logits": self.needs.kl, "trunk": self.trunk}
            return read(self.model, batch, **asked, **how)

    def _stored(self, batch: Batch) -> Readings:
        """The reference's readings of a batch's answers."""
        at = batch.answer_ids.cpu()
        ref, device = self.reference.readings, batch.input_ids.device
        return Readings(
            logps=None if ref.logps is None else ref.logps[at].to(device),
            tokens=None if ref.tokens is None else ref.tokens[at].to(device),
            states={s: h[at].to(device) for s, h in ref.states.items()},
        )


@contextmanager
def recomputing(model: nn.Module) -> Iterator[None]:
    """Activation checkpointing: decoder layers keep their input alone, and run again backward.

    Done here and not by transformers, whose switch works in train mode only, where the base model's
    own dropout is on. A dial has to stay attached through the backward pass.
    """
    again = ((m, partial(checkpoint, m.forward, use_reentrant=False)) for m in models.layers(model))
    with running(again):
        yield
