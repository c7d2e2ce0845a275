"""What happens inside while any transformers `Trainer` trains: separation, drift, KL, a panel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from trimtab import models
from trimtab.batching import Encoded, PromptStyle, encode
from trimtab.damage import divergence
from trimtab.errors import ConfigError
from trimtab.evaluation import NeutralText
from trimtab.evaluation.items import item_scores
from trimtab.pairs import PairSet, read_pairs
from trimtab.pairs.neutral import NEUTRAL
from trimtab.panel import Arm, Property, measure
from trimtab.readings import collect
from trimtab.sites import Site, parse_sites
from trimtab.states import Readings


@dataclass(frozen=True)
class _Start:
    """The model as it was when training began: the reference of all that is logged."""

    encoded: Encoded
    sites: tuple[Site, ...]
    found: Readings
    text: NeutralText
    logps: tuple[Tensor, ...]


class InnerMonitor(TrainerCallback):
    """Every n steps, of the model as it is then, beside what it was when training began:

    - `inner/accuracy`, `inner/margin`: preference accuracy and mean margin (nats a token) on held-out pairs;
    - `inner/separation@SITE`: how far chosen and rejected states are apart along the reference's
      difference, over its length: 1 at the start;
    - `inner/drift@SITE`: mean distance of states from the reference's, over their length: 0 at the start;
    - `inner/kl`: KL(reference || model) on neutral text, nats a token;
    - `panel/PROPERTY/METRIC`: figures of a panel.

    They go into the trainer's log (`state.log_history`) and `history`. With `attach(trainer)`, in place of
    `add_callback`, trackers such as TensorBoard get them as well.

    Args:
        pairs: held-out pairs, or a spec of them.
        sites: where states are read, as objectives have it.
        every: steps from one measuring to the next; the first is before the first step.
        items: the first so many items of the pairs.
        passages: neutral passages for the KL.
        panel: properties that are measured as well.
        panel_items: items of a property.

    Raises:
        ConfigError: `every` below 1, or no tokenizer (`processing_class`) in the trainer.
        DataError: pairs that cannot be read.
    """

    def __init__(
        self,
        pairs: PairSet | str,
        *,
        sites: str = "0.5",
        every: int = 50,
        items: int = 32,
        passages: int = 4,
        panel: Sequence[Property] = (),
        panel_items: int = 32,
        max_length: int = 1024,
        prompt_style: PromptStyle = "plain",
        data_root: str | Path | None = None,
    ):
        if every < 1:
            raise ConfigError(f"every: expected a number of steps of 1 or more, given {every}")
        self.pairs = (read_pairs(pairs, data_root) if isinstance(pairs, str) else pairs).limit(
            items
        )
        self.sites, self.every, self.passages = sites, every, passages
        self.panel, self.panel_items, self.data_root = tuple(panel), panel_items, data_root
        self.max_length = max_length
        self.prompt_style: PromptStyle = prompt_style
        self.history: list[dict[str, float]] = []
        self._start: _Start | None = None
        self._due: dict[str, float] = {}

    def attach(self, trainer: Any) -> InnerMonitor:
        """Add the monitor ahead of the trainer's trackers, so that they get what it measures."""
        trainer.callback_handler.callbacks.insert(0, self)
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Read the model as it begins."""
        model, tokenizer = models.unwrapped(kwargs["model"]), kwargs.get("processing_class")
        if tokenizer is None:
            raise ConfigError("InnerMonitor: the trainer has no processing_class, a tokenizer")
        encoded = encode(
            self.pairs, tokenizer, max_length=self.max_length, prompt_style=self.prompt_style
        )
        sites = parse_sites(self.sites, models.n_layers(model))
        text = NeutralText(model, tokenizer, NEUTRAL[: self.passages])
        logps = tuple(text.log_probs(i) for i in range(len(text.ids)))
        found = collect(model, encoded, logps=True, sites=sites)
        self._start = _Start(encoded, tuple(sites), found, text, logps)
        self._tokenizer = tokenizer
        if state.global_step == 0:
            self._measure(model, state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure where it is due, and have it logged."""
        if state.global_step % self.every == 0:
            self._due = self._measure(models.unwrapped(kwargs["model"]), state)
            control.should_log = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Put what was measured into the line that is logged."""
        if self._due and logs is not None:
            logs.update(self._due)
            state.log_history[-1].update(self._due)
            self._due = {}

    def _measure(self, model: Any, state: Any) -> dict[str, float]:
        start = self._start
        assert start is not None
        found = collect(model, start.encoded, logps=True, sites=start.sites)
        scores = item_scores(start.encoded, found)
        told = {
            "inner/accuracy": float(scores.accuracy.mean()),
            "inner/margin": float(scores.margin.mean()),
            "inner/kl": self._kl(start),
        }
        chosen, rejected = start.encoded.pair_answers()
        for site in start.sites:
            now, then = found.states[site], start.found.states[site]
            own = then[chosen] - then[rejected]
            along = ((now[chosen] - now[rejected]) * own).sum(-1)
            square = own.square().sum(-1)
            apart = square > 0
            told[f"inner/separation@{site}"] = (along[apart] / square[apart]).mean().item()
            moved = (now - then).norm(dim=-1) / then.norm(dim=-1).clamp(min=1e-12)
            told[f"inner/drift@{site}"] = moved.mean().item()
        told |= self._of_panel(model)
        self.history.append({"step": state.global_step, **told})
        return told

    @torch.no_grad()
    def _kl(self, start: _Start) -> float:
        kl = [divergence(p, start.text.log_probs(i)) for i, p in enumerate(start.logps)]
        return sum(kl) / len(kl)

    def _of_panel(self, model: Any) -> dict[str, float]:
        if not self.panel:
            return {}
        (found,) = measure(
            model,
            self._tokenizer,
            self.panel,
            [Arm("now")],
            items=self.panel_items,
            data_root=self.data_root,
        )
        return {f"panel/{p}/{v.metric}": v.mean for p, metrics in found.items() for v in metrics}
