"""Anchoring any PyTorch model: a callback for `transformers.Trainer`, or three lines in a loop.

    anchors = Anchors(terms, "sheet.csv").attach(model)          # once
    loss = model(**batch).loss + anchors.loss(concepts, mask)    # every step
    anchors.step()

With the Trainer, `Trainer(..., callbacks=[Anchors(terms, sheet)])` is all: the term is added to the
model's own loss. States are captured by hooks, at any site: the residual stream after a block
(`3`), the input or output of any module (`"model.layers.3.self_attn.q_proj:out"` are queries).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from trimtab.anchoring.labels import auroc
from trimtab.anchoring.timeline import Sheet, Table, read_sheet
from trimtab.errors import ConfigError
from trimtab.objectives.anchoring import Term, cosine
from trimtab.sites import Site
from trimtab.states import seeing

Concepts = Mapping[str, Tensor]
"""Labels by name, `[sample]`, 0..1."""


@dataclass(frozen=True)
class Monitor:
    """What is measured during training: how well a dimension tells a concept, and its neighbours.

    A sample's score is the mean cosine of its states with the dimension over its tokens.
    """

    layer: Site
    """Where states are read."""
    axis: int
    """The concept's dimension."""
    batches: Sequence[Mapping[str, Any]]
    """Model inputs with `concepts`: labels of the concept itself and of any neighbours."""
    every: int = 100
    """Steps between two measurements."""


class Anchors(TrainerCallback):
    """Terms on a model's states, weighted by a timeline.

    Under a Trainer the timeline is stretched over the run; its learning rate stays the Trainer's,
    so the sheet has no `lr` column.
    """

    def __init__(
        self,
        terms: Sequence[Term],
        timeline: Sheet | str | Path,
        *,
        layers: Mapping[str, Site] | None = None,
        labels: Callable[[Mapping[str, Any]], Concepts] | None = None,
        monitor: Monitor | None = None,
        log_every: int = 50,
    ):
        """
        Args:
            terms: what is added to the loss; each has a column of the timeline.
            timeline: a sheet, or the path of one.
            layers: sites by the names that terms use; a term may also name a site itself.
            labels: from a model's inputs to its samples' labels; by default the inputs carry them
                as `concepts` (with a Trainer, set `remove_unused_columns=False`).
            monitor: what to measure on the way.
            log_every: steps between two entries of `history`.

        Raises:
            ConfigError: two terms of one name, a column that no term reads, a term without a
                column, a negative weight, a layer name that no term uses.
        """
        self.sheet = timeline if isinstance(timeline, Sheet) else read_sheet(timeline)
        names = [t.name for t in terms]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"terms {', '.join(names) or 'none'}: expected some, each name once")
        self.sheet.check(names, [n for n in ("lr",) if n in self.sheet.names])
        self.terms = tuple(terms)
        self.sites = {str(t.layer): (layers or {}).get(str(t.layer), t.layer) for t in terms}
        if monitor is not None:
            self.sites[str(monitor.layer)] = (layers or {}).get(str(monitor.layer), monitor.layer)
        if unused := set(layers or {}) - set(self.sites):
            raise ConfigError(
                f"layers: no term reads {min(unused)!r} (terms read {', '.join(self.sites)})"
            )
        self.labels, self.monitor, self.log_every = labels, monitor, log_every
        self.table: Table = self.sheet.table()
        self.at = 0
        self.history: list[dict[str, float]] = []
        self._captured: dict[str, Tensor] = {}
        self._hooks = ExitStack()
        self._model: nn.Module | None = None
        self._latest: dict[str, float] = {}
        self._concepts: Concepts | None = None
        self._share = 1.0

    # ---- a plain loop ----

    def attach(self, model: nn.Module) -> Self:
        """Start capturing states.

        Raises:
            ConfigError: a layer that the model does not have.
        """
        self.detach()
        self._model = model
        for name, site in self.sites.items():
            keep = partial(self._captured.__setitem__, name)
            self._hooks.enter_context(seeing(model, site, keep))
        return self

    def detach(self) -> None:
        """Stop: the model is as it was."""
        self._hooks.close()
        self._captured.clear()

    def loss(self, concepts: Concepts | None = None, mask: Tensor | None = None) -> Tensor:
        """The weighted sum of the terms on the states of the last forward pass.

        Args:
            concepts: labels of the samples, by name.
            mask: which positions count, `[sample, position]` (an attention mask); all by default.

        Raises:
            ConfigError: a layer was not run, a label is missing or outside 0..1, states carry no
                gradient.
        """
        weights = self.table.at(self.at)
        total: Tensor | float = 0.0
        for term in self.terms:
            weight = weights[term.name]
            if weight == 0:
                continue
            z = self._states(str(term.layer))
            keep = None
            if z.ndim == 3:
                keep = (torch.ones_like(z[..., 0]) if mask is None else mask).bool()
            value = term(z, _onto(concepts, z), keep)
            if self.at % self.log_every == 0:
                self._latest[term.name] = float(value.detach())
            total = total + weight * value
        return torch.as_tensor(total)

    def step(self) -> None:
        """Go on to the next step of the timeline; measure and note where it is time."""
        if self.at % self.log_every == 0 and self._latest:
            self.history.append({"step": float(self.at), **self._latest})
            self._latest = {}
        if self.monitor is not None and self.at % self.monitor.every == 0:
            self.measure()
        self.at += 1

    @property
    def lr(self) -> float:
        """The sheet's learning rate at this step, for a plain loop."""
        if "lr" not in self.table.values:
            raise ConfigError(f"{self.sheet.name}: no 'lr' column")
        return self.table.at(self.at)["lr"]

    def measure(self) -> dict[str, float]:
        """AUROC of the monitor's dimension for every concept in its batches; kept in `history`."""
        if self.monitor is None or self._model is None:
            raise ConfigError("nothing to measure: give a monitor, and attach a model")
        found = monitor_scores(self._model, self.monitor, self.sites[str(self.monitor.layer)])
        entry = {f"auroc/{name}": auroc(*pair) for name, pair in found.items()}
        self.history.append({"step": float(self.at), **entry})
        return entry

    # ---- transformers.Trainer ----

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attach, and stretch the timeline over the run."""
        model = kwargs["model"]
        if "lr" in self.sheet.names:
            raise ConfigError(
                f"{self.sheet.name}: column 'lr': the Trainer has a schedule of its own; leave it out"
            )
        if (
            self.labels is None
            and args.remove_unused_columns
            and any(t.labels is not None for t in self.terms)
        ):
            raise ConfigError(
                "the Trainer would drop the column `concepts`: set remove_unused_columns=False, "
                "or give Anchors a function for `labels`"
            )
        self.table = self.sheet.stretched(max(2, state.max_steps)).table()
        self.at = state.global_step
        self._share = 1.0 / args.gradient_accumulation_steps
        self.attach(model)
        for hook in (
            model.register_forward_pre_hook(self._take, with_kwargs=True),
            model.register_forward_hook(self._add, with_kwargs=True),
        ):
            self._hooks.callback(hook.remove)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Next step."""
        self.step()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Put the latest values into the Trainer's log."""
        # The Trainer has kept its entry by now; what reports to other places reads `logs`.
        for entry in self.history[-2:]:
            found = {f"anchor/{k}": v for k, v in entry.items() if k != "step"}
            for kept in (logs, state.log_history[-1] if state.log_history else None):
                if kept is not None:
                    kept.update(found)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Detach."""
        self.detach()

    def _take(self, _: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        given = kwargs.pop("concepts", None)
        self._concepts = self.labels(kwargs) if self.labels is not None else given
        return args, kwargs

    def _add(self, module: nn.Module, _: Any, kwargs: dict[str, Any], output: Any) -> Any:
        if not module.training or getattr(output, "loss", None) is None:
            return output
        penalty = self.loss(self._concepts, kwargs.get("attention_mask"))
        # Where the Trainer divides by a count of tokens itself, it does not divide by the number of
        # accumulated batches.
        share = self._share if kwargs.get("num_items_in_batch") is not None else 1.0
        output.loss = output.loss + share * penalty.to(output.loss)
        return output

    def _states(self, name: str) -> Tensor:
        if name not in self._captured:
            raise ConfigError(f"layer {name!r}: no states; run the model first")
        z = self._captured[name]
        if torch.is_grad_enabled() and not z.requires_grad:
            raise ConfigError(
                f"layer {name!r}: its states carry no gradient, so a term there would do nothing "
                "(frozen weights, or reentrant activation checkpointing)"
            )
        return z if z.dtype == torch.float64 else z.float()


def monitor_scores(
    model: nn.Module, monitor: Monitor, site: Site | None = None
) -> dict[str, tuple[list[float], list[float]]]:
    """Scores and labels of the monitor's samples, for every concept in its batches."""
    seen: list[Tensor] = []
    scores: list[float] = []
    labels: dict[str, list[float]] = {}
    training = model.training
    try:
        model.eval()
        where = monitor.layer if site is None else site
        with torch.no_grad(), seeing(model, where, seen.append):
            for batch in monitor.batches:
                seen.clear()
                model(**{k: v for k, v in batch.items() if k not in ("concepts", "labels")})
                along = cosine(seen[-1].float(), monitor.axis)
                if along.ndim == 2:
                    mask = batch.get("attention_mask", torch.ones_like(along)).to(along)
                    along = (along * mask).sum(-1) / mask.sum(-1).clamp(min=1)
                scores += along.tolist()
                for name, values in batch["concepts"].items():
                    labels.setdefault(name, []).extend(torch.as_tensor(values).tolist())
    finally:
        model.train(training)
    return {name: (scores, values) for name, values in labels.items()}


def _onto(concepts: Concepts | None, z: Tensor) -> Concepts | None:
    if concepts is None:
        return None
    return {name: torch.as_tensor(values).to(z) for name, values in concepts.items()}
