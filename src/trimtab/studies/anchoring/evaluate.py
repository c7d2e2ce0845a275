"""What a trained colour model can still do after a cut: errors a colour, selectivity, where red is.

Everything is computed for all models at once; numbers come back a value a model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.anchoring import surgery
from trimtab.interventions import project, repel, suppress
from trimtab.interventions.concepts import EPS
from trimtab.studies.anchoring import colours
from trimtab.studies.anchoring.autoencoder import Autoencoder, Edit
from trimtab.studies.anchoring.catalogue import Cut, Score

Run = Callable[[Float[Tensor, "n 3"]], Float[Tensor, "model n 3"]]
"""Colours in, colours out, for every model."""


_ON_STATES: dict[str, Callable[[Tensor, Tensor, Cut], Tensor]] = {
    "suppress": lambda z, axis, cut: suppress(z, axis, cut.falloff),
    "repel": lambda z, axis, cut: repel(z, axis, cut.mapper),
    "project": lambda z, axis, cut: project(z, cut.axes),
}
_IN_WEIGHTS: dict[str, Callable[[Autoencoder, tuple[int, ...]], None]] = {
    "ablate": lambda model, axes: surgery.ablate(model.producer, model.consumer, axes),
    "prune": lambda model, axes: surgery.prune(model.producer, model.consumer, axes),
    "reflect": lambda model, axes: surgery.reflect(model.producer, axes),
    "redirect": lambda model, axes: surgery.redirect(model.producer, axes[0]),
}


def changed(model: Autoencoder, cut: Cut) -> tuple[Autoencoder, Edit | None]:
    """The models with a cut: weights in a copy, or what is done to states on the way."""
    if cut.kind in _ON_STATES:
        return model, partial(edit_states, cut)
    model = copy.deepcopy(model)
    _IN_WEIGHTS[cut.kind](model, cut.axes)
    return model, None


def apply(model: Autoencoder, cut: Cut | None = None) -> Run:
    """What the models do with a cut."""
    model, edit = changed(model, cut) if cut else (model, None)
    return torch.no_grad()(lambda rgb: model(rgb, edit)[0])


def edit_states(cut: Cut, z: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
    """A cut on states at the bottleneck."""
    axis = torch.zeros(z.shape[-1], dtype=z.dtype)
    axis[cut.axes[0]] = 1
    out = _ON_STATES[cut.kind](z, axis, cut)
    return out / out.norm(dim=-1, keepdim=True).clamp(min=EPS) if cut.renormalise else out


def error(run: Run, rgb: Float[Tensor, "n 3"], chunk: int = 4096) -> Float[Tensor, "model n"]:
    """Mean squared error of every colour."""
    return torch.cat([colours.squared_error(run(part), part) for part in rgb.split(chunk)], -1)


def target(score: Score, rgb: Float[Tensor, "n 3"]) -> Float[Tensor, "n"]:
    """What the error should follow: likeness to red, or vibrancy, to a power."""
    base = colours.similarity(rgb) if score.of == "red" else colours.vibrancy(rgb)
    return base**score.power


def states(model: Autoencoder, rgb: Float[Tensor, "n 3"]) -> Float[Tensor, "model n d"]:
    """States at the bottleneck."""
    with torch.no_grad():
        return model(rgb)[1]["bottleneck"]


def geometry(model: Autoencoder) -> dict[str, Float[Tensor, "model"]]:
    """Where the model keeps its colours.

    Returns:
        `red_cosine`: cosine of pure red with dimension 0; `red_angle` in degrees in the plane of
        dimensions 0 and 1; `cyclic`: 1 where the 12 hues lie in order around that plane;
        `radius_error`: mean | ||z|| - 1 | over the grid; `off_plane`: mean squared state of vivid
        colours outside that plane; `spread`: mean cosine between colours.
    """
    hues = states(model, colours.named()[:12])
    red = hues[:, 0]
    grid = states(model, colours.rgb_grid(8))
    unit = grid / grid.norm(dim=-1, keepdim=True).clamp(min=EPS)
    angle = torch.atan2(hues[..., 1], hues[..., 0])  # model hue
    turn = (angle.roll(-1, -1) - angle + torch.pi) % (2 * torch.pi) - torch.pi
    around = (turn > 0).all(-1) | (turn < 0).all(-1)
    once = (turn.sum(-1).abs() - 2 * torch.pi).abs() < 1e-3
    n = grid.shape[1]
    total = unit.sum(1)  # sum over all pairs of u_i . u_j is the squared length of the sum
    vivid = hues[..., 2:]
    return {
        "red_cosine": red[:, 0] / red.norm(dim=-1).clamp(min=EPS),
        "red_angle": torch.rad2deg(torch.atan2(red[:, 1], red[:, 0])).abs(),
        "cyclic": (around & once).float(),
        "radius_error": (grid.norm(dim=-1) - 1).abs().mean(-1),
        "radius": grid.norm(dim=-1).mean(-1),
        "off_plane": (vivid**2).sum(-1).mean(-1) if vivid.numel() else torch.zeros(len(red)),
        "spread": ((total**2).sum(-1) - n) / (n * (n - 1)),
    }
