"""TRL's DPO with a term on hidden states."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.utils import use_adapter

from trimtab import models
from trimtab.errors import ConfigError, near
from trimtab.objectives import InnerDPO
from trimtab.objectives.inner import Inner
from trimtab.readout import Needs, Readout
from trimtab.sites import Site
from trimtab.training import METHODS
from trimtab.training.reference import floors
from trimtab.trl.states import positions, watching

FIRST = 256
"""Pairs of the training set on which the floor, and a direction over the data, are found."""


class InnerDPOTrainer(DPOTrainer):
    """TRL's `DPOTrainer` whose loss is TRL's own plus `inner_weight` times a loss on hidden states.

    Everything else, arguments, data, logging, saving, is TRL's; at `inner_weight=0` so is every number.
    The log has `inner/loss` and the loss's own metrics (`inner/separation`, …) beside TRL's.

    Args:
        inner: an objective on hidden states, or the name of a method that has one (`innerdpo`,
            `hs-none-prefvec`). Its own DPO term is left out: TRL has one.
        inner_weight: what it is multiplied by.

    Raises:
        ConfigError: a name or an objective that is none on hidden states; a method in a space; a
            weight below 0; precomputed reference log-probs, which keep no states.
    """

    def __init__(
        self, *args: Any, inner: Inner | str | None = None, inner_weight: float = 1.0, **kwargs: Any
    ):
        self.inner: Any = _objective(inner)
        if not inner_weight >= 0:
            raise ConfigError(f"inner_weight: expected a number of 0 or more, given {inner_weight}")
        self.inner_weight = inner_weight
        super().__init__(*args, **kwargs)
        if self.precompute_ref_logps and inner_weight:
            raise ConfigError(
                "precompute_ref_log_probs keeps no hidden states of the reference: leave it out"
            )
        self._over_data: tuple[dict[Site, float], dict[Site, Tensor]] | None = None

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        if not self.inner_weight:
            return super()._compute_loss(model, inputs, return_outputs)
        needs = self._needs()
        floor, direction = self._of_data(needs)
        with watching(self._watched(), needs, self._where(inputs, needs)) as seen:
            told = super()._compute_loss(model, inputs, return_outputs)
        scored = inputs["completion_mask"].bool() if needs.logps else None
        policy, reference = seen.readout(0, scored), seen.readout(1, scored)
        if needs.direction == "batch":
            direction = {
                site: F.normalize(_apart(reference, site).mean(0), dim=-1) for site in needs.sites
            }
        loss, metrics = self.inner(policy, replace(reference, floor=floor, direction=direction))
        mode = "train" if model.training else "eval"
        for name, value in {"loss": loss, **metrics}.items():
            gathered: Any = self.accelerator.gather_for_metrics(value.detach().float())
            self._metrics[mode][f"inner/{name}"].append(gathered.mean().item())
        total = (told[0] if return_outputs else told) + self.inner_weight * loss.mean()
        return (total, told[1]) if return_outputs else total

    def _needs(self) -> Needs:
        return self.inner.needs(models.n_layers(self._bare(self.model)))

    def _bare(self, model: Any) -> Any:
        return self.accelerator.unwrap_model(model)

    def _watched(self) -> list[nn.Module]:
        """Policy and reference; with an adapter they are one model."""
        own = self._bare(self.model)
        return [own] if self.ref_model is None else [own, self._bare(self.ref_model)]

    def _where(self, inputs: Any, needs: Needs) -> Any:
        ids, mask = inputs["input_ids"], inputs["completion_mask"].bool()
        tokenizer: Any = self.processing_class
        return positions(ids, mask, tokenizer.eos_token_id, needs.pool)

    def _of_data(self, needs: Needs) -> tuple[dict[Site, float], dict[Site, Tensor]]:
        """The floor by which nothing is divided less, and a direction over the data where one is asked
        for, of the reference's states on the first pairs of the training set."""
        if self._over_data is None:
            apart: dict[Site, list[Tensor]] = {site: [] for site in needs.sites}
            count = 0
            for rows in self.get_train_dataloader():
                with torch.no_grad(), self._as_reference() as model:
                    inputs = self._prepare_inputs(rows)
                    given = {k: inputs[k] for k in ("input_ids", "attention_mask")}
                    with watching([self._bare(model)], needs, self._where(inputs, needs)) as seen:
                        model(**given, use_cache=False)
                found = seen.readout(0)
                for site, deltas in apart.items():
                    deltas.append(_apart(found, site))
                count += len(next(iter(found.chosen.values())))
                if count >= FIRST:
                    break
            whole = {site: torch.cat(deltas) for site, deltas in apart.items()}
            mean = {s: F.normalize(d.mean(0), dim=-1) for s, d in whole.items()}
            self._over_data = floors(whole), mean if needs.direction == "data" else {}
        return self._over_data

    @contextmanager
    def _as_reference(self) -> Iterator[Any]:
        """The reference model, as TRL has it: one of its own, or the model without its adapter."""
        if self.ref_model is not None:
            yield self.ref_model
            return
        own = self._bare(self.model)
        with use_adapter(own, adapter_name="ref" if "ref" in own.peft_config else None):
            yield self.model


def _objective(given: Inner | str | None) -> Inner:
    """The objective without its own term on log-probs."""
    if isinstance(given, str):
        if given not in METHODS:
            raise ConfigError(f"inner: unknown method {given!r}{near(given, METHODS)}")
        recipe: Any = METHODS[given].recipe
        if getattr(getattr(recipe, "space", None), "kind", "none") != "none":
            raise ConfigError(
                f"inner: {given} reads states in a space; give one without (hs-none-…)"
            )
        given = recipe.objective
    found = InnerDPO() if given is None else given
    if not isinstance(found, Inner):
        raise ConfigError(f"inner: {type(found).__name__} is no objective on hidden states")
    return replace(found, weight_outer=0.0)


def _apart(readout: Readout, site: Site) -> Tensor:
    return readout.chosen[site] - readout.rejected[site]
