"""Ways to make a concept removable, or to remove it, at one budget of relearning: how soon it is back.

The stories model's landmark, cut from an anchored model; from one whose gradients were routed, as in
selective gradient masking (Shilov et al. 2025, arXiv:2512.05648, after Cloud et al. 2024, arXiv:2410.04332):
texts that are labelled with the concept teach a set-aside part of the weights and nothing else, and the part
is zeroed (of MLPs alone here; there, attention heads as well); and from a plain control by unlearning
(gradient difference: the labelled texts' surprisal up, that of the others down). All know the same sparse,
noisy labels, and are then trained on alike.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trimtab import models
from trimtab.studies.anchoring import language
from trimtab.studies.anchoring.language import Batch, mean, surprisal
from trimtab.studies.anchoring.language_study import perplexity, spread
from trimtab.studies.anchoring.stories import SETUP, TESTED, Stories, probes, read, telling
from trimtab.study.cells import Cell

CONCEPT = "landmark"
ARMS = ("anchored", "routed", "unlearned")
SHARE = 8
"""One in so many of the units of each MLP is set aside for the concept."""
MOST = 8.0
"""Nats a token: surprisal of labelled texts is not raised beyond."""
BACK = 1.0
"""Bits of a fact: the concept is back where they are no more. A fact that is not known takes more than 4."""


class Routed:
    """The part of a model that is the concept's own: the last units of every MLP."""

    def __init__(self, model: Any):
        """
        Args:
            model: a Llama.
        """
        self.parts: list[tuple[Tensor, Tensor]] = []
        for block in models.layers(model):
            mlp: Any = block.mlp
            units = mlp.gate_proj.out_features
            own = torch.arange(units) >= units - max(1, units // SHARE)
            rows = own[:, None].float()
            weights = (mlp.gate_proj, rows), (mlp.up_proj, rows), (mlp.down_proj, rows.T)
            self.parts += [(linear.weight, mask) for linear, mask in weights]

    def backward(self, model: Any, batch: Batch, labelled: Tensor) -> Tensor:
        """Gradients of a batch: of labelled texts to the part alone, of others to all; gives the loss."""
        nats, mask = surprisal(model, batch), batch.mask[:, 1:]
        chosen = mask * labelled[:, None]
        own, rest = ((nats * m).sum() / mask.sum() for m in (chosen, mask & ~chosen))
        weights = [weight for weight, _ in self.parts]
        routed = torch.autograd.grad(own, weights, retain_graph=True) if labelled.any() else ()
        rest.backward()
        for (weight, part), gradient in zip(self.parts, routed, strict=False):
            weight.grad = part * gradient + (0 if weight.grad is None else weight.grad)
        return (own + rest).detach()

    @torch.no_grad()
    def cut(self) -> None:
        """Zero it."""
        for weight, part in self.parts:
            weight.mul_(1 - part)


def routed(model: Any) -> Any:
    """A copy of a model without the concept's part."""
    Routed(found := copy.deepcopy(model)).cut()
    return found


def unlearned(
    model: Any, data: Callable[[int], tuple[Batch, Mapping[str, Tensor]]], steps: int, rate: float
) -> Any:
    """A copy that was trained to find labelled texts surprising (up to `MOST`), and others not.

    Args:
        data: texts of a step with their labels.
    """
    found = copy.deepcopy(model).requires_grad_(True).train()
    adam = torch.optim.AdamW(found.parameters(), lr=rate, fused=True)
    for step in range(steps):
        batch, labels = data(step)
        nats, mask = surprisal(found, batch), batch.mask[:, 1:]
        labelled = (labels[CONCEPT] > 0)[:, None] & mask
        loss = mean(nats, mask & ~labelled)
        if labelled.any():
            loss = loss - mean(nats, labelled).clamp(max=MOST)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(found.parameters(), 1.0)
        adam.step()
    return found.eval().requires_grad_(False)


class Routing(Stories):
    """Every seed: a control, an anchored and a routed model; the concept taken from each; relearning."""

    disk = 1e6

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.common |= {"share": SHARE, "most": MOST}

    def made(self, arm: str, seed: int, steps: int) -> Any:
        """A model."""
        data, watch = self.lessons(arm != "control", seed, steps)
        given = (SETUP, self.tokenizer, seed, steps, data, watch)
        how: dict[str, Any] = {"anchored": arm == "anchored", "progress": self.progress}
        if arm == "routed":
            how["route"] = lambda model: partial(_route, Routed(model), model)
        return language.train(*given, **how)[0]

    def measure(self, folder: Path, seed: int) -> dict[str, Any]:
        """Bits before and after, and while the model is trained on, by arm."""
        whole = {arm: self.made(arm, seed, self.length) for arm in ("control", *ARMS[:2])}
        budget = max(10, self.length // 12)
        data, _ = self.lessons(True, seed, self.length)
        less = {
            "anchored": language.cut(whole["anchored"], (SETUP.concepts.index(CONCEPT),)),
            "routed": routed(whole["routed"]),
            "unlearned": unlearned(whole["control"], data, budget, SETUP.rate / 10),
        }
        p = probes(self.tokenizer, 24 if self.steps else TESTED)
        found: dict[str, Any] = {}
        for arm, model in less.items():
            after = read(model, p)
            again = (SETUP, model, self.told, lambda m: {"facts": telling(m, *p["facts"])}, budget)
            back = language.trained_on(*again)
            before = whole.get(arm, whole["control"])
            found[arm] = {"before": read(before, p), "after": after, "back": back}
        return {"arms": found, "control": read(whole["control"], p), "budget": budget}

    def work(self, cell: Cell) -> tuple[int, Any, Callable[[int], Any]]:
        """Steps of the three models, which take most of the time."""
        return 3 * self.length, "", partial(self.made, "anchored", 0)

    def gathered(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """All cells, tables, metrics."""
        cells = [self.cells[f"seed-{seed}"].read() for seed in self.seeds]
        arms = {arm: [c["arms"][arm] for c in cells] for arm in ARMS}
        steps = {arm: [_steps(c["back"]) for c in of] for arm, of in arms.items()}

        def row(arm: str) -> list[Any]:
            of = arms[arm]
            shown = [spread([c["after"][w] for c in of]) for w in ("facts", "neighbour", "others")]
            trained = [
                a["before"]["plain"] - c["control"]["plain"] for a, c in zip(of, cells, strict=True)
            ]
            taken = [a["after"]["plain"] - a["before"]["plain"] for a in of]
            cost = [spread(perplexity(rise)) for rise in (trained, taken)]
            late = sum(s > cells[0]["budget"] for s in steps[arm])
            return [
                arm,
                *shown,
                *cost,
                spread(list(map(float, steps[arm]))),
                f"{late} of {len(cells)}",
            ]

        told = self.entry.table(
            "What is taken, and how soon it is back", [row(arm) for arm in ARMS]
        )
        metrics = {f"steps {arm}": [float(s) for s in steps[arm]] for arm in ARMS}
        metrics |= {f"facts {arm}": [c["after"]["facts"] for c in arms[arm]] for arm in ARMS}
        for arm in ARMS[:2]:
            pairs = zip(steps[arm], steps["unlearned"], strict=True)
            metrics[f"{arm} later"] = [float(mine - theirs) for mine, theirs in pairs]
        return {"cells": cells, "tables": [told], "metrics": metrics}, {}


def _route(own: Routed, model: Any, batch: Batch, labels: Mapping[str, Tensor]) -> Tensor:
    return own.backward(model, batch, labels[CONCEPT] > 0)


def _steps(back: Sequence[Mapping[str, float]]) -> int:
    """The first reading at which the concept is back; where it never is, the one after the last."""
    found = (5 * i for i, values in enumerate(back) if values["facts"] <= BACK)
    return next(found, 5 * len(back))
