"""The colour experiments: models trained side by side in lots, cut, measured; figures of the best seed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from trimtab.studies.anchoring import colours, evaluate, gates
from trimtab.studies.anchoring.autoencoder import Autoencoder
from trimtab.studies.anchoring.catalogue import find
from trimtab.studies.anchoring.experiment import MODELS, Experiment, keep
from trimtab.studies.anchoring.figures import figure_arrays
from trimtab.studies.anchoring.train import Trained, members, sheet_of, train
from trimtab.study.cells import Cell

BASELINE = "baseline"
LOT = 32
"""Models of a cell. The last bits of one depend on what is beside it, so that this is fixed."""
SHOWN = ("r2/", "recon", "geometry/red_cosine", "labelled/")
"""What pages show of every experiment, by how the names of values begin."""


class Figures(Experiment):
    """An experiment that is a figure: nothing is trained."""

    def plan(self) -> Iterable[Sequence[Cell]]:
        """No cells."""
        return []

    def gathered(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Notes and arrays."""
        notes, arrays = figure_arrays(self.entry.name)
        return {"figure": notes}, arrays


class Colour(Experiment):
    """Autoencoders of colours with dimensions that were chosen beforehand."""

    disk = 4e6

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.experiment = find(self.entry.name)
        self.arms = {arm.name: arm for arm in self.experiment.arms}
        self.sheets = {n: sheet_of(self.experiment, arm) for n, arm in self.arms.items()}
        self.common["sheets"] = {n: repr((s.columns, s.rows)) for n, s in self.sheets.items()}

    def plan(self) -> Iterable[Sequence[Cell]]:
        """A cell a lot of models of one sheet and shape."""
        wave = []
        for k, group in enumerate(members(self.experiment, self.seeds)):
            for i in range(0, len(group), LOT):
                lot = [[arm.name, seed] for arm, seed in group[i : i + LOT]]
                label = f"{self.entry.name}-{k}-{i // LOT}"
                wave.append(self.cell(label, {"models": lot}, models=lot))
        yield wave

    def trained(self, models: Sequence[tuple[str, int]], steps: int | None) -> Trained:
        """The models of a cell."""
        chosen = [(self.arms[arm], seed) for arm, seed in models]
        return train(self.experiment, chosen, steps=steps, progress=self.progress)

    def measure(self, folder: Path, models: Sequence[tuple[str, int]]) -> dict[str, Any]:
        """Train and measure; the models and their states over training stay in the folder."""
        done = self.trained(models, self.steps)
        keep(folder, done.model.state_dict() | {"history": torch.stack(done.history, 1).half()})
        values = {k: v.double().tolist() for k, v in self._values(done).items()}
        return {"values": values, "frames": done.frames, "losses": done.losses}

    def work(self, cell: Cell) -> tuple[int, Any, Callable[[int], Any]]:
        """Steps of the lot's sheet."""
        models = cell.own["models"]
        steps = self.steps or self.sheets[models[0][0]].table().steps
        return steps, len(models), partial(self.trained, models)

    # ---- measuring ----

    def _runs(self, model: Autoencoder) -> dict[str, evaluate.Run]:
        """The models untouched, and with every cut."""
        cuts = self.experiment.cuts.items()
        return {BASELINE: evaluate.apply(model)} | {n: evaluate.apply(model, c) for n, c in cuts}

    def _values(self, done: Trained) -> dict[str, Tensor]:
        """Every number, a value a model (`named/…`: a value a named colour)."""
        experiment, model = self.experiment, done.model
        runs = self._runs(model)
        rgb, names = colours.rgb_grid(8), colours.named()
        on_grid = {name: evaluate.error(run, rgb) for name, run in runs.items()}
        found = {f"geometry/{k}": v for k, v in evaluate.geometry(model).items()}
        found["recon"] = on_grid[BASELINE].mean(-1)
        found["recon_val"] = evaluate.error(runs[BASELINE], colours.validation_grid()).mean(-1)
        for name, run in runs.items():
            error = found[f"named/{name}"] = evaluate.error(run, names)
            unlike = error[:, [i for i, n in enumerate(colours.NAMES) if n in colours.UNLIKE_RED]]
            found |= {
                f"{name}/red": error[:, 0],
                f"{name}/cyan": error[:, 6],
                f"{name}/hues": error[:, :12].mean(-1),
                f"{name}/least hue": error[:, :12].amin(-1),
                f"{name}/greys": error[:, 12:].amax(-1),
                f"{name}/unlike": unlike.amax(-1),
                f"{name}/median": on_grid[name].median(-1).values,
            }
        if experiment.data == "hues":
            held = colours.from_hsv(
                torch.cartesian_prod(torch.arange(150, 241, 5) / 360, torch.ones(1), torch.ones(1))
            )
            found["recon_held_out"] = evaluate.error(runs[BASELINE], held).mean(-1)
            found["recon_hues"] = found[f"{BASELINE}/hues"]
        for score in experiment.scores:
            wanted = evaluate.target(score, rgb)
            found[f"r2/{score.cut}"] = colours.r_squared(on_grid[score.cut], wanted)
        if {"ablation", "pruning"} <= set(runs):
            # In float64, where two ways of computing one function do not differ by their rounding.
            exact = self._runs(copy.deepcopy(model).double())
            apart = (exact["ablation"](rgb.double()) - exact["pruning"](rgb.double())).abs()
            found["prune_is_ablate"] = apart.flatten(1).amax(-1)
        if {"ablation", "suppression, renormalised"} <= set(runs):
            towards = evaluate.states(model, rgb)[..., 0] > 0
            apart = runs["ablation"](rgb) - runs["suppression, renormalised"](rgb)
            found["renormalise_is_ablate"] = (apart.abs().amax(-1) * towards).amax(-1)
        with torch.no_grad():
            found["opposite"] = (model.opposite().clamp(0, 1) - 0.5).abs().amax((-2, -1))
        counts = {f"labelled/{name}": torch.tensor(c) for name, c in done.labelled.items()}
        return found | counts

    # ---- all models ----

    def gathered(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Values by arm, and what is drawn of the best seed."""
        places: dict[str, list[tuple[Cell, int]]] = {name: [] for name in self.arms}
        cells = list(self.cells.values())
        for cell in cells:
            for row, (arm, _) in enumerate(cell.own["models"]):
                places[arm].append((cell, row))
        read = {cell.label: cell.read() for cell in cells}
        values = {
            arm: {
                name: [read[cell.label]["values"][name][row] for cell, row in found]
                for name in read[found[0][0].label]["values"]
            }
            for arm, found in places.items()
        }
        first = self.experiment.arms[0].name
        best = self._best(values[first])
        cuts = {BASELINE: "untouched"} | {n: c.kind for n, c in self.experiment.cuts.items()}
        named = {cut: np.array(values[first][f"named/{cut}"]) for cut in cuts}
        table = self.sheets[first]
        table = (table if self.steps is None else table.stretched(self.steps)).table()
        keep = sorted({round(i * (table.steps - 1) / 200) for i in range(201)})
        beside = {arm.name for arm, _ in members(self.experiment, [0])[0]}
        side = [cell for cell in cells if cell.own["models"][0][0] in beside]
        frames = read[side[0].label]["frames"]
        result = {
            "cuts": cuts,
            "scores": [
                {"cut": s.cut, "of": s.of, "power": s.power} for s in self.experiment.scores
            ],
            "colours": colours.NAMES,
            "named": {c: [np.median(e, 0), e[best]] for c, e in named.items() if c != "pruning"},
            "arms": {arm: {"values": self._kept(found)} for arm, found in values.items()},
            "best": {"arm": first, "index": best, "seed": self.seeds[best]},
            "samples": table.steps * self.experiment.batch,
            "schedule": {
                "step": keep,
                "values": {n: [float(a[s]) for s in keep] for n, a in table.values.items()},
                "phases": table.phases,
            },
            "losses": {"step": frames, **_mean_losses(side, read)},
            "frames": frames,
        }
        return result, self._arrays(*places[first][best])

    def measured(self, found: Mapping[str, Any]) -> Mapping[str, Mapping[str, Sequence[float]]]:
        """The values that are kept."""
        return {arm: entry["values"] for arm, entry in found["arms"].items()}

    def _kept(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What gates and pages read."""
        asked = gates.metrics(self.entry.name)
        several = ("geometry/",) if len(self.arms) > 2 else ()
        return {
            name: found
            for name, found in values.items()
            if name in asked
            or name.startswith((*SHOWN, *several))
            or (name.endswith(("/red", "/cyan")) and len(self.arms) == 1)
        }

    def _best(self, values: Mapping[str, Any]) -> int:
        """The seed with the highest first score; without scores the lowest error."""
        if scores := self.experiment.scores:
            return int(np.argmax(values[f"r2/{scores[0].cut}"]))
        return int(np.argmin(values["recon"]))

    def _arrays(self, cell: Cell, row: int) -> dict[str, Any]:
        """What the figures of one model need: its states, its history, errors over hue, s and v."""
        kept = load_file(cell.folder / MODELS)
        history = kept.pop("history")[row]
        arm, seed = cell.own["models"][row]
        model = Autoencoder(self.arms[arm].shape or self.experiment.shape, [seed])
        model.load_state_dict({name: value[row : row + 1] for name, value in kept.items()})
        rgb = colours.rgb_grid(8)
        z = evaluate.states(model, rgb)[0]
        arrays: dict[str, Any] = {
            "states": z,
            "history": history,
            "similarity": colours.similarity(rgb),
            "vibrancy": colours.vibrancy(rgb),
        }
        runs = self._runs(model)
        lines, slices = _lines(), _slices()
        for name, run in runs.items():
            arrays[f"error/{name}"] = evaluate.error(run, rgb)[0]
            arrays[f"slice/{name}"] = run(slices)[0].clamp(0, 1)
            for axis, line in lines.items():
                arrays[f"line/{axis}/{name}"] = evaluate.error(run, line)[0]
        for name, cut in self.experiment.cuts.items():
            if cut.kind in ("suppress", "repel", "project"):
                arrays[f"states/{name}"] = evaluate.edit_states(cut, z)
        fine = colours.rgb_grid(20)
        for score in self.experiment.scores:
            errors = evaluate.error(runs[score.cut], fine)
            wanted = evaluate.target(score, fine)
            arrays[f"r2_fine/{score.cut}"] = colours.r_squared(errors, wanted)
        return arrays


def _mean_losses(cells: Sequence[Cell], read: Mapping[str, Any]) -> dict[str, Any]:
    """Over all models of some cells, whose means they have."""
    sizes = [len(cell.own["models"]) for cell in cells]
    names = read[cells[0].label]["losses"]
    return {
        name: np.average([read[cell.label]["losses"][name] for cell in cells], 0, weights=sizes)
        for name in names
    }


def _lines() -> dict[str, Tensor]:
    """Colours along hue (vivid), and along saturation and value at red."""
    t = torch.linspace(0, 1, 121)
    one, zero = torch.ones_like(t), torch.zeros_like(t)
    return {
        "hue": colours.hues(t),
        "saturation": colours.from_hsv(torch.stack([zero, t, one], -1)),
        "value": colours.from_hsv(torch.stack([zero, one, t], -1)),
    }


def _slices() -> Tensor:
    """Saturation 0, 1/3, 2/3, 1; value 0 to 1 in 5; 12 hues."""
    grid = torch.cartesian_prod(
        torch.linspace(0, 1, 4), torch.linspace(0, 1, 5), torch.arange(12) / 12
    )
    return colours.from_hsv(grid[:, [2, 0, 1]])
