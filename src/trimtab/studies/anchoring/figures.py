"""The experiments that are figures: 1.1 (colour data), 1.4 (transitions), 2.1 (lobes). Their curves
are computed here and drawn from the files, as those of any other run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from trimtab.anchoring.paths import Reactive
from trimtab.interventions import Bezier, Falloff, Linear, repel, suppress
from trimtab.interventions.falloffs import Mapper
from trimtab.studies.anchoring import colours

_C60, _C30 = math.cos(math.radians(60)), math.cos(math.radians(30))

SUPPRESSIONS: dict[str, Falloff] = {
    "from 90°, half, linear": Falloff(0, 0.5, 1),
    "from 90°, half, square": Falloff(0, 0.5, 2),
    "from 60°, whole, linear": Falloff(_C60, 1, 1),
    "from 60°, whole, square": Falloff(_C60, 1, 2),
}
REPULSIONS: dict[str, Mapper] = {
    "linear, 90° to 60°": Linear(0, _C60),
    "linear, 60° to 30°": Linear(_C60, _C30),
    "Bézier, 90° to 60°": Bezier(0, _C60, slope_end=0.2),
    "Bézier, 60° to 30°": Bezier(_C60, _C30, slope_end=0.2),
}


def figure_arrays(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Notes and arrays of a figure experiment."""
    return {"1.1": _colours, "1.4": _transitions, "2.1": _lobes}[name]()


def _colours() -> tuple[dict[str, Any], dict[str, Any]]:
    rgb = colours.rgb_grid(8)
    hues = colours.hues(torch.linspace(0, 1, 121))
    return {"labels": ["redness", "vibrancy", "similarity"]}, {
        "redness": colours.redness(rgb),
        "vibrancy": colours.vibrancy(rgb),
        "similarity": colours.similarity(rgb),
        "redness_by_hue": colours.redness(hues),
        "similarity_by_hue": colours.similarity(hues),
    }


def _transitions() -> tuple[dict[str, Any], dict[str, Any]]:
    """From five states to 1 in 50 steps; and targets that change on the way."""
    starts = {"at rest": (0.0, 0.0), "rising": (0.0, 0.04), "falling": (0.0, -0.04)}
    starts |= {"speeding up": (0.0, 0.0), "from above": (1.5, -0.02)}
    pushes = {"speeding up": 0.002}
    arrays: dict[str, Any] = {}
    for i, (name, (value, velocity)) in enumerate(starts.items()):
        path = Reactive(value)
        path.start(value, velocity, pushes.get(name, 0.0))
        path.set(1.0, 50)
        arrays[f"path/{i}"] = _states(path, 60, {})
    targets = {0: 0.5, 40: 0.75, 60: 0.0, 120: 1.0}
    arrays["moving"] = _states(Reactive(0.0), 189, targets)
    return {"paths": list(starts), "targets": {str(k): v for k, v in targets.items()}}, arrays


def _states(path: Reactive, steps: int, targets: Mapping[int, float]) -> np.ndarray:
    """Value, velocity and acceleration over steps, with new targets at some of them."""
    states = []
    for step in range(steps + 1):
        if step in targets:
            path.set(targets[step], 50)
        states.append((path.value, path.velocity, path.acceleration))
        path.step()
    return np.array(states)


def _lobes() -> tuple[dict[str, Any], dict[str, Any]]:
    """What happens to 360 directions of the plane; the concept points up."""
    angle = torch.arange(360, dtype=torch.float64) * torch.pi / 180
    x = torch.stack([torch.sin(angle), torch.cos(angle)], -1)
    up = torch.tensor([0.0, 1.0], dtype=torch.float64)
    a = torch.linspace(-1, 1, 201, dtype=torch.float64)
    arrays: dict[str, Any] = {}
    for i, falloff in enumerate(SUPPRESSIONS.values()):
        arrays[f"suppress/{i}/out"] = suppress(x, up, falloff)
        arrays[f"suppress/{i}/strength"] = falloff(x[:, 1].clamp(0, 1))
        arrays[f"suppress/{i}/curve"] = falloff(a.clamp(0, 1))
    notes: dict[str, Any] = {"handles": {}}
    for i, (name, mapper) in enumerate(REPULSIONS.items()):
        along = x[:, 1].clamp(0, 1)
        arrays[f"repel/{i}/out"] = repel(x, up, mapper)
        arrays[f"repel/{i}/strength"] = (along - mapper(along)).abs()
        arrays[f"repel/{i}/curve"] = mapper(a.clamp(0, 1))
        if isinstance(mapper, Bezier):
            notes["handles"][name] = mapper.control_points()
    arrays["cosine"] = a
    notes |= {
        "suppressions": {n: f.start for n, f in SUPPRESSIONS.items()},
        "repulsions": {n: m.start for n, m in REPULSIONS.items()},
    }
    return notes, arrays
