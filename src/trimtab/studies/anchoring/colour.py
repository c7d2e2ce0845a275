"""Running a colour experiment: train, cut, measure, write the files that gates and pages read."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trimtab.progress import SILENT, Progress
from trimtab.provenance import versions
from trimtab.studies.anchoring import colours, evaluate, results
from trimtab.studies.anchoring.catalogue import Experiment
from trimtab.studies.anchoring.figures import figure_arrays
from trimtab.studies.anchoring.train import Trained, train

BASELINE = "baseline"


def run(
    experiment: Experiment,
    out: Path,
    seeds: Sequence[int],
    *,
    steps: int | None = None,
    progress: Progress = SILENT,
) -> Path:
    """Run an experiment and write its result files into `out`.

    Args:
        seeds: every arm is trained on each.
        steps: a shorter run (smoke tests; such a result says so).
    """
    start = time.perf_counter()
    head = {
        "name": experiment.name,
        "kind": "figure" if experiment.figure else "colour",
        "title": experiment.title,
        "about": experiment.said(len(seeds)),
        "seeds": list(seeds),
        "steps": steps,
        "versions": versions("torch", "python"),
    }
    if experiment.figure:
        found, arrays = figure_arrays(experiment.name)
        return results.write(out, head | {"figure": found}, arrays)
    done = train(experiment, seeds, steps=steps, progress=progress)
    trained = time.perf_counter() - start
    arms: dict[str, Any] = {}
    arrays: dict[str, Any] = {}
    for group in done:
        measured = _measure(experiment, group)
        for arm in dict.fromkeys(arm.name for arm, _ in group.members):
            rows = [i for i, (a, _) in enumerate(group.members) if a.name == arm]
            arms[arm] = _arm(measured, rows, [group.members[i][1] for i in rows])
    first = done[0]
    rows = [i for i, (a, _) in enumerate(first.members) if a.name == experiment.arms[0].name]
    best = _best(experiment, arms[experiment.arms[0].name])
    arrays |= _arrays(experiment, first, rows[best], seeds[best])
    head |= {
        "cuts": {BASELINE: "untouched"} | {n: c.kind for n, c in experiment.cuts.items()},
        "scores": [{"cut": s.cut, "of": s.of, "power": s.power} for s in experiment.scores],
        "colours": list(colours.NAMES),
        "arms": arms,
        "best": {"arm": experiment.arms[0].name, "index": best, "seed": seeds[best]},
        "samples": first.table.steps * experiment.batch,
        "schedule": _schedule(first),
        "losses": {"step": first.frames, **first.losses},
        "frames": first.frames,
        "seconds": {"train": trained, "all": time.perf_counter() - start},
    }
    return results.write(out, head, arrays)


def _measure(experiment: Experiment, group: Trained) -> dict[str, Any]:
    """Every number, a value a model."""
    model = group.model
    runs = {BASELINE: evaluate.apply(model)}
    runs |= {name: evaluate.apply(model, cut) for name, cut in experiment.cuts.items()}
    rgb, val, names = colours.rgb_grid(8), colours.validation_grid(), colours.named()
    on_grid = {name: evaluate.error(run, rgb) for name, run in runs.items()}
    found: dict[str, Any] = {f"geometry/{k}": v for k, v in evaluate.geometry(model).items()}
    found["recon"] = on_grid[BASELINE].mean(-1)
    found["recon_val"] = evaluate.error(runs[BASELINE], val).mean(-1)
    if experiment.data == "hues":
        held = torch.arange(150, 241, 5) / 360
        hues = colours.from_hsv(torch.cartesian_prod(held, torch.ones(1), torch.ones(1)))
        found["recon_held_out"] = evaluate.error(runs[BASELINE], hues).mean(-1)
        found["recon_hues"] = evaluate.error(runs[BASELINE], names[:12]).mean(-1)
    for name, run in runs.items():
        found[f"named/{name}"] = evaluate.error(run, names)
        found[f"median/{name}"] = on_grid[name].median(-1).values
        found[f"max/{name}"] = on_grid[name].max(-1).values
        found[f"mean/{name}"] = on_grid[name].mean(-1)
    for score in experiment.scores:
        found[f"r2/{score.cut}"] = colours.r_squared(
            on_grid[score.cut], evaluate.target(score, rgb)
        )
    if {"ablation", "pruning"} <= set(runs):
        # In float64, where two ways of computing one function do not differ by their rounding.
        exact = copy.deepcopy(model).double()
        one, other = (evaluate.apply(exact, experiment.cuts[n]) for n in ("ablation", "pruning"))
        apart = (one(rgb.double()) - other(rgb.double())).abs()
        found["prune_is_ablate"] = apart.flatten(1).max(-1).values
    if {"ablation", "suppression, renormalised"} <= set(runs):
        towards = evaluate.states(model, rgb)[..., 0] > 0
        apart = (runs["ablation"](rgb) - runs["suppression, renormalised"](rgb)).abs().amax(-1)
        found["renormalise_is_ablate"] = (apart * towards).max(-1).values
    if experiment.shape.bottleneck >= 4:
        found["opposite"] = evaluate.opposite(model)
    for label, counts in group.labelled.items():
        found[f"labelled/{label}"] = torch.tensor(counts)
    return found


def _arm(measured: dict[str, Any], rows: list[int], seeds: list[int]) -> dict[str, Any]:
    values = {name: value[rows] for name, value in measured.items()}
    spread = {
        name: results.summary(value.double().tolist())
        for name, value in values.items()
        if value.ndim == 1
    }
    return {"seeds": seeds, "values": values, "summary": spread}


def _best(experiment: Experiment, arm: dict[str, Any]) -> int:
    """The seed with the highest first score; without scores the lowest error."""
    if experiment.scores:
        return int(arm["values"][f"r2/{experiment.scores[0].cut}"].argmax())
    return int(arm["values"]["recon"].argmin())


def _schedule(group: Trained) -> dict[str, Any]:
    """The realised sheet at about 200 steps."""
    keep = sorted({round(i * (group.table.steps - 1) / 200) for i in range(201)})
    values = {n: [float(a[s]) for s in keep] for n, a in group.table.values.items()}
    return {"step": keep, "values": values, "phases": list(group.table.phases)}


def _arrays(experiment: Experiment, group: Trained, row: int, seed: int) -> dict[str, Any]:
    """What the figures of one model need: its states, its history, errors over hue, s and v."""
    model = _one(group, row)
    rgb = colours.rgb_grid(8)
    z = evaluate.states(model, rgb)[0]
    arrays: dict[str, Any] = {
        "states": z,
        "history": torch.stack([frame[row] for frame in group.history]),
        "similarity": colours.similarity(rgb),
        "vibrancy": colours.vibrancy(rgb),
    }
    runs = {BASELINE: evaluate.apply(model)}
    runs |= {name: evaluate.apply(model, cut) for name, cut in experiment.cuts.items()}
    lines = _lines()
    slices = _slice()
    for name, run in runs.items():
        arrays[f"error/{name}"] = evaluate.error(run, rgb)[0]
        arrays[f"slice/{name}"] = run(slices)[0].clamp(0, 1)
        for axis, line in lines.items():
            arrays[f"line/{axis}/{name}"] = evaluate.error(run, line)[0]
    for name, cut in experiment.cuts.items():
        if cut.kind in ("suppress", "repel", "project"):
            arrays[f"states/{name}"] = evaluate.edit_states(cut, z)
    for score in experiment.scores:
        fine = colours.rgb_grid(20)
        errors = evaluate.error(runs[score.cut], fine)
        arrays[f"r2_fine/{score.cut}"] = colours.r_squared(errors, evaluate.target(score, fine))
    return arrays


def _one(group: Trained, row: int) -> Any:
    """One model of many."""
    model = copy.deepcopy(group.model)
    for parameter in model.parameters():
        parameter.data = parameter.data[row : row + 1].clone()
    return model


def _lines() -> dict[str, Tensor]:
    """Colours along hue (vivid), and along saturation and value at red."""
    t = torch.linspace(0, 1, 121)
    one = torch.ones_like(t)
    zero = torch.zeros_like(t)
    return {
        "hue": colours.from_hsv(torch.stack([t * 0.9999, one, one], -1)),
        "saturation": colours.from_hsv(torch.stack([zero, t, one], -1)),
        "value": colours.from_hsv(torch.stack([zero, one, t], -1)),
    }


def _slice() -> Tensor:
    """Saturation 0, 1/3, 2/3, 1; value 0 to 1 in 5; 12 hues."""
    grid = torch.cartesian_prod(
        torch.linspace(0, 1, 4), torch.linspace(0, 1, 5), torch.arange(12) / 12
    )
    return colours.from_hsv(grid[:, [2, 0, 1]])
