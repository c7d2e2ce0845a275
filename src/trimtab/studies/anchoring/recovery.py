"""Healing: how many steps and samples bring a deleted concept back, by kind of deletion.

Models that know red have it removed in several ways and are then trained on, on all colours or on
reds alone, without any anchoring. Beside them stand a model that never saw red, and one that starts
from nothing. Suppression acts at run time and stays on while the model learns around it; what is cut
out of the weights is free to grow back.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from trimtab.interventions import Falloff
from trimtab.studies.anchoring import colours, evaluate
from trimtab.studies.anchoring.autoencoder import Autoencoder, Edit
from trimtab.studies.anchoring.catalogue import Cut, find
from trimtab.studies.anchoring.experiment import MODELS, Experiment, keep
from trimtab.studies.anchoring.train import members, sheet_of, train
from trimtab.study.cells import Cell

STEPS, EVERY, BATCH, RATE, BACK = 600, 5, 64, 0.01, 0.01
RED = 0.5
"""Colours with at least this much redness are reds."""
DATA = ("all colours", "reds alone")
PLAIN = find("2.9.1")
LEARNED = {
    "knows": PLAIN,
    "falls": find("2.9.3"),
    "never": dataclasses.replace(PLAIN, data="no red"),
}
"""What is trained first: with red, with a fallback for red, without red."""
GATE = Falloff(0, 1, 0)
KINDS: dict[str, tuple[str, Cut | None]] = {
    "untouched": ("knows", None),
    "suppressed": ("knows", Cut("suppress", falloff=GATE)),
    "suppressed, renormalised": ("knows", Cut("suppress", falloff=GATE, renormalise=True)),
    "ablated": ("knows", Cut("ablate")),
    "pruned": ("knows", Cut("prune")),
    "reflected, fallback": ("falls", Cut("reflect")),
    "redirected, fallback": ("falls", Cut("redirect")),
    "never saw red": ("never", None),
    "from nothing": ("", None),
}
"""Every kind of deletion: of which models, and how; an edit of states stays on."""


class Healing(Experiment):
    """What is learned, and then what becomes of every kind of deletion; all seeds side by side."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.further = STEPS if self.steps is None else max(EVERY, self.steps // 2)

    def plan(self) -> Iterable[Sequence[Cell]]:
        """What is deleted from, then the deletions."""
        seeds = list(self.seeds)
        first = {
            which: self.cell(which, {"which": which, "seeds": seeds}, "learn", which=which)
            for which in LEARNED
        }
        yield list(first.values())
        wave = []
        for kind, (which, _) in KINDS.items():
            learned = f"../{first[which].folder.name}" if which else ""
            inputs = {"kind": kind, "seeds": seeds}
            wave.append(self.cell(kind, inputs, kind=kind, learned=learned))
        yield wave

    def learn(self, folder: Path, which: str) -> dict[str, Any]:
        """Models to delete from."""
        done = self._learned(which, self.steps)
        keep(folder, done.state_dict())
        return {}

    def _learned(self, which: str, steps: int | None) -> Autoencoder:
        experiment = LEARNED[which]
        (group,) = members(experiment, self.seeds)
        return train(experiment, group, steps=steps, progress=self.progress).model

    def measure(self, folder: Path, kind: str, learned: str) -> dict[str, Any]:
        """Delete, and train on."""
        cut = KINDS[kind][1]
        seeds = self.seeds if learned else [s + 7919 for s in self.seeds]
        model = Autoencoder(PLAIN.shape, seeds).requires_grad_(False)
        if learned:
            model.load_state_dict(load_file(folder / learned / MODELS))
        model, edit = evaluate.changed(model, cut) if cut else (model, None)
        entry: dict[str, Any] = {"probe": _probe(model, edit), "curves": {}}
        reds = float((colours.redness(colours.rgb_grid(8)) >= RED).float().mean())
        for data in DATA:
            red, rest = _relearn(model, edit, data, self.seeds, self.further)
            reached = [_first(curve) for curve in red.T.tolist()]
            share = reds if data == "all colours" else 1.0
            entry[data] = {
                "before": red[0].tolist(),
                "steps": reached,
                "red_samples": [None if r is None else r * BATCH * share for r in reached],
                "recovered": float(np.mean([r is not None for r in reached])),
            }
            entry["curves"][data] = {"red": red.tolist(), "rest": rest.tolist()}
        return entry

    def work(self, cell: Cell) -> tuple[int, Any, Callable[[int], Any]]:
        """Steps of the sheet, or of the relearning on both kinds of data."""
        if which := cell.own.get("which"):
            table = sheet_of(LEARNED[which], PLAIN.arms[0]).table()
            return self.steps or table.steps, which, partial(self._learned, which)
        model = Autoencoder(PLAIN.shape, self.seeds)
        relearn = partial(_relearn, model, None, DATA[0], self.seeds)
        return len(DATA) * self.further, "relearn", relearn

    def gathered(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Counts by kind, and their curves."""
        kinds = {kind: self.cells[kind].read() for kind in KINDS}
        arrays = {
            f"{part}/{number}/{data}": np.array(curve)
            for number, entry in enumerate(kinds.values())
            for data, curves in entry.pop("curves").items()
            for part, curve in curves.items()
        }
        settings = {"rate": RATE, "batch": BATCH, "every": EVERY, "back": BACK}
        settings["steps"] = self.further
        ours = {kind: entry[DATA[0]] for kind, entry in kinds.items()}
        steps = [np.array(ours[k]["steps"], float) for k in ("ablated", "pruned")]
        both, one = (np.nan_to_num(s, nan=1e9) for s in steps)
        metrics = {
            "untouched": ours["untouched"]["before"],
            "ablated": ours["ablated"]["before"],
            "ablated or pruned": abs(both - one).tolist(),
            "reflected": ours["reflected, fallback"]["before"],
        }
        return {"kinds": kinds, "settings": settings, "metrics": metrics}, arrays


def _relearn(
    model: Autoencoder, edit: Edit | None, data: str, seeds: Sequence[int], steps: int
) -> tuple[Float[Tensor, "time model"], Float[Tensor, "time model"]]:
    """Error of red, and mean error of what is not red, every few steps of further training."""
    model = copy.deepcopy(model).requires_grad_(True)
    points = colours.rgb_grid(8)
    red = colours.redness(points) >= RED
    pool = points[red] if data == "reds alone" else points
    rest, pure = points[~red], colours.named()[:1]
    generators = [torch.Generator().manual_seed(1_000_003 * s + 3) for s in seeds]
    rows = torch.stack([torch.randint(len(pool), (steps, BATCH), generator=g) for g in generators])
    adam = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    seen: list[Tensor] = []
    beside: list[Tensor] = []
    for step in range(steps + 1):
        if step % EVERY == 0:
            with torch.no_grad():
                seen.append(colours.squared_error(model(pure, edit)[0], pure)[:, 0])
                beside.append(colours.squared_error(model(rest, edit)[0], rest).mean(-1))
        if step == steps:
            break
        x = pool[rows[:, step]]
        adam.zero_grad(set_to_none=True)
        ((model(x, edit)[0] - x) ** 2).mean((-2, -1)).sum().backward()
        adam.step()
    return torch.stack(seen), torch.stack(beside)


def _first(curve: list[float]) -> int | None:
    """The first step at which red is back for good (until the end of the curve)."""
    below = np.asarray(curve) < BACK
    if not below[-1]:
        return None
    last_above = np.flatnonzero(~below)
    return int((last_above[-1] + 1 if len(last_above) else 0) * EVERY)


def _probe(model: Autoencoder, edit: Edit | None) -> list[float]:
    """R2 of redness predicted linearly from what is left of the states, on a held-out half."""
    rgb = colours.rgb_grid(8)
    with torch.no_grad():
        z = model(rgb, edit)[1]["bottleneck"]
    order = torch.randperm(len(rgb), generator=torch.Generator().manual_seed(0))
    fit, test = order[: len(rgb) // 2], order[len(rgb) // 2 :]
    wanted = colours.redness(rgb)
    return [colours.linear_r2(states, wanted, fit, test, 1e-6) for states in z]
