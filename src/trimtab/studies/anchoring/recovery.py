"""Healing: how many steps and samples bring a deleted concept back, by kind of deletion.

Models that know red have it removed in several ways and are then trained on, on all colours or on
reds alone, without any anchoring. Beside them stand a model that never saw red, and one that starts
from nothing. Suppression acts at run time and stays on while the model learns around it; what is cut
out of the weights is free to grow back.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.anchoring import surgery
from trimtab.interventions import Falloff
from trimtab.progress import SILENT, Progress
from trimtab.provenance import versions
from trimtab.studies.anchoring import colours, evaluate, results
from trimtab.studies.anchoring.autoencoder import Autoencoder, Edit
from trimtab.studies.anchoring.catalogue import Cut, find
from trimtab.studies.anchoring.gates import Gate
from trimtab.studies.anchoring.train import train

NAME, TITLE = "healing", "How a deleted colour comes back"
ABOUT = (
    "2.9.1 and its form with a fallback (2.9.3) lose red in six ways and are trained on; counted are "
    "steps and samples until pure red is reconstructed again (error below .01)."
)
SEEDS = 20
STEPS, EVERY, BATCH, RATE, BACK = 600, 5, 64, 0.01, 0.01
RED = 0.5
"""Colours with at least this much redness are reds."""
DATA = ("all colours", "reds alone")


def run(
    out: Path, seeds: Sequence[int], *, steps: int | None = None, progress: Progress = SILENT
) -> Path:
    """Run the recovery experiment and write its result files."""
    start = time.perf_counter()
    further = STEPS if steps is None else max(EVERY, steps // 2)
    plain, fallen = find("2.9.1"), find("2.9.3")
    knows = train(plain, seeds, steps=steps, progress=progress)[0].model
    falls = train(fallen, seeds, steps=steps, progress=progress)[0].model
    unseen = dataclasses.replace(plain, data="no red")
    never = train(unseen, seeds, steps=steps, progress=progress)[0].model
    kinds = dict(_kinds(knows, falls, never, Autoencoder(plain.shape, [s + 7919 for s in seeds])))
    found: dict[str, Any] = {}
    arrays: dict[str, Any] = {}
    for number, (kind, (model, edit)) in enumerate(kinds.items()):
        entry: dict[str, Any] = {"probe": _probe(model, edit)}
        for data in DATA:
            red, rest = _relearn(model, edit, data, seeds, further)
            reached = [_first(curve) for curve in red.T.tolist()]
            red_share = _red_share(data)
            entry[data] = {
                "before": red[0],
                "steps": reached,
                "samples": [None if r is None else r * BATCH for r in reached],
                "red_samples": [None if r is None else r * BATCH * red_share for r in reached],
                "recovered": float(np.mean([r is not None for r in reached])),
                "rest_after": rest[-1],
            }
            arrays[f"red/{number}/{data}"] = red
            arrays[f"rest/{number}/{data}"] = rest
        found[kind] = entry
        progress.say(f"{NAME}: {kind}")
    result = {
        "name": NAME,
        "kind": "healing",
        "title": TITLE,
        "about": ABOUT,
        "seeds": list(seeds),
        "steps": steps,
        "versions": versions("torch", "python"),
        "kinds": found,
        "settings": {"rate": RATE, "batch": BATCH, "every": EVERY, "steps": further, "back": BACK},
        "seconds": {"all": time.perf_counter() - start},
    }
    return results.write(out, result, arrays)


def gates(result: dict[str, Any]) -> list[Gate]:
    """What must hold whatever the counts turn out to be."""
    kinds = result["kinds"]
    ablated, pruned = kinds["ablated"]["all colours"], kinds["pruned"]["all colours"]
    apart = [
        abs((a if a is not None else 1e9) - (b if b is not None else 1e9))
        for a, b in zip(ablated["steps"], pruned["steps"], strict=True)
    ]
    known = np.mean(kinds["untouched"]["all colours"]["before"])
    return [
        Gate("error of red before any cut, mean", float(known), high=1e-3),
        Gate("error of red after ablation, median", float(np.median(ablated["before"])), low=0.1),
        Gate(
            "ablated and pruned models recover alike: median difference, steps",
            float(np.median(apart)),
            high=EVERY,
        ),
        Gate(
            "reflected onto a fallback: standard deviation of red's error over seeds",
            float(np.std(kinds["reflected, fallback"]["all colours"]["before"], ddof=1)),
            high=0.05,
        ),
    ]


def _kinds(
    knows: Autoencoder, falls: Autoencoder, never: Autoencoder, fresh: Autoencoder
) -> list[tuple[str, tuple[Autoencoder, Edit | None]]]:
    """Every kind of deletion, as a model and an edit that stays on."""
    gate = Falloff(0, 1, 0)

    def cut(model: Autoencoder, change: Callable[[Autoencoder], None]) -> Autoencoder:
        copied = _copy(model)
        change(copied)
        return copied

    states = partial(evaluate.edit_states, Cut("suppress", falloff=gate))
    renormed = partial(evaluate.edit_states, Cut("suppress", falloff=gate, renormalise=True))
    return [
        ("untouched", (knows, None)),
        ("suppressed", (knows, states)),
        ("suppressed, renormalised", (knows, renormed)),
        ("ablated", (cut(knows, lambda m: surgery.ablate(m.producer, m.consumer, [0])), None)),
        ("pruned", (cut(knows, lambda m: surgery.prune(m.producer, m.consumer, [0])), None)),
        ("reflected, fallback", (cut(falls, lambda m: surgery.reflect(m.producer, [0])), None)),
        ("redirected, fallback", (cut(falls, lambda m: surgery.redirect(m.producer, 0)), None)),
        ("never saw red", (never, None)),
        ("from nothing", (fresh, None)),
    ]


def _copy(model: Autoencoder) -> Autoencoder:
    return copy.deepcopy(model)


def _relearn(
    model: Autoencoder, edit: Edit | None, data: str, seeds: Sequence[int], steps: int
) -> tuple[Float[Tensor, "time model"], Float[Tensor, "time model"]]:
    """Error of red, and mean error of what is not red, every few steps of further training."""
    model = _copy(model).requires_grad_(True)
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


def _red_share(data: str) -> float:
    if data == "reds alone":
        return 1.0
    return float((colours.redness(colours.rgb_grid(8)) >= RED).float().mean())


def _probe(model: Autoencoder, edit: Edit | None) -> list[float]:
    """R2 of redness predicted linearly from what is left of the states, on a held-out half."""
    rgb = colours.rgb_grid(8)
    with torch.no_grad():
        z = model(rgb, edit)[1]["bottleneck"]
    wanted = colours.redness(rgb).double()
    order = torch.randperm(len(rgb), generator=torch.Generator().manual_seed(0))
    half = len(rgb) // 2
    fit, test = order[:half], order[half:]
    found = []
    for states in z.double():
        x = torch.cat([states, torch.ones(len(states), 1, dtype=torch.float64)], -1)
        gram = x[fit].T @ x[fit] + 1e-6 * torch.eye(x.shape[1], dtype=torch.float64)
        weights = torch.linalg.solve(gram, x[fit].T @ wanted[fit])
        left = wanted[test] - x[test] @ weights
        found.append(float(1 - (left**2).sum() / ((wanted[test] - wanted[test].mean()) ** 2).sum()))
    return found
