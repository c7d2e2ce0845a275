"""What a mixing transformer has learned, and what it loses when red is removed."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional as F

from trimtab.studies.anchoring import colours
from trimtab.studies.anchoring.mixing_task import LEVELS, Data
from trimtab.studies.anchoring.ngpt import NGPT, Edit

BINS = (0.0, 0.2, 0.5, 0.8, 0.999)
"""Lower ends of the groups of lines by the redness of their redder operand; the last is pure red."""
DOSES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)


# ---- interventions ------------------------------------------------------------------------------


def reflected(h: Tensor, _: int) -> Tensor:
    """Dimension 0 at its opposite end."""
    return torch.cat([-h[..., :1].abs(), h[..., 1:]], -1)


def without(directions: Tensor, dose: float = 1.0, *, renormalise: bool = False) -> Edit:
    """States less `dose` times their part along the point's direction. Renormalised, the little that is
    left of a state that was nearly nothing else is blown up to full length, and read again."""

    def edit(h: Tensor, point: int) -> Tensor:
        v = directions[point]
        left = h - dose * (h @ v).unsqueeze(-1) * v
        return F.normalize(left, dim=-1) if renormalise else left

    return edit


def axis(model: NGPT) -> Float[Tensor, "point d"]:
    """Dimension 0 at every point."""
    found = torch.zeros(model.points, model.size.width)
    found[:, 0] = 1
    return found


def ablated(model: NGPT) -> NGPT:
    """A copy without dimension 0."""
    cut = copy.deepcopy(model)
    cut.ablate([0])
    return cut


def _found(model: NGPT, task: Data, seed: int) -> dict[str, Float[Tensor, "point d"]]:
    """Directions of red found in a trained model: what one would do without anchoring.

    Read where the first operand stands, over all lines trained on.
    """
    known = ~task.held_out
    _, seen = model(task.lines[known])
    red = colours.redness(task.rgb)[task.lines[known][:, 0]]
    states = torch.stack([h[:, 0] for h in seen])  # point line d
    centred = (states - states.mean(1, keepdim=True)).double()
    gram = centred.mT @ centred + torch.eye(states.shape[-1], dtype=torch.float64)
    drawn = torch.Generator().manual_seed(seed)
    found = {
        "random": torch.randn(model.points, model.size.width, generator=drawn),
        "difference of means": states[:, red > 0.8].mean(1) - states[:, red <= 0.8].mean(1),
        "probe": torch.linalg.solve(gram, centred.mT @ (red - red.mean()).double()).float(),
    }
    return {how: F.normalize(v, dim=-1) for how, v in found.items()}


def _answers(model: NGPT, task: Data, edit: Edit | None = None, **options: Any) -> Tensor:
    """Probabilities of the 216 colours after every line."""
    logits, _ = model(task.lines, edit, last=True, **options)
    return logits[:, -1, : LEVELS**3].softmax(-1)


def _interventions(arm: str, model: NGPT, task: Data, seed: int) -> dict[str, Tensor]:
    """What a trained model answers after each."""
    there = axis(model)
    if arm == "control":
        token = copy.deepcopy(model)
        pure = int((colours.redness(task.rgb) > 0.999).nonzero()[0, 0])
        token.embedding.weight[pure] = model.embedding.weight[: LEVELS**3].mean(0)
        edits = {f"projection, {how}": without(v) for how, v in _found(model, task, seed).items()}
        edits["dimension 0"] = without(there)
        others = {"token masked": token}
    else:
        edits = {
            "projection": without(there),
            "projection, renormalised": without(there, renormalise=True),
            "reflection": reflected,
        }
        others = {"ablation": ablated(model)}
    found = {name: _answers(model, task, edit) for name, edit in edits.items()}
    return found | {name: _answers(cut, task) for name, cut in others.items()}


# ---- measuring ----------------------------------------------------------------------------------


@torch.no_grad()
def measure(arm: str, model: NGPT, task: Data, seed: int) -> dict[str, Any]:
    """Everything about one model, as JSON values."""
    base, seen = _answers(model, task), model(task.lines)[1]
    true = base.gather(-1, task.answers[:, None])[:, 0]
    right = (base.argmax(-1) == task.answers).float()
    red = colours.redness(task.rgb)
    first = torch.stack(seen[::2])[:, :, 0, 0].mean(0)  # mean over slices, where the operand stands
    by_colour = torch.stack([first[task.lines[:, 0] == c].mean() for c in range(LEVELS**3)])
    pure = int(red.argmax())
    groups = np.digitize(task.redness.numpy(), BINS) - 1
    entry: dict[str, Any] = {
        "held_out": float(right[task.held_out].mean()),
        "trained": float(right[~task.held_out].mean()),
        "red_cosine": float(by_colour[pure]),
        "mean_cosine": float(by_colour.abs().mean()),
        "cosine_by_redness": [red.tolist(), by_colour.tolist()],
        "probe": _probe(seen, task),
        "cuts": {},
    }
    for name, after in _interventions(arm, model, task, seed).items():
        entry["cuts"][name] = _compare(after, true, task, groups)
    if arm != "control":
        whole = without(axis(model), renormalise=True)
        apart = _answers(model, task, whole, everywhere=True) - _answers(ablated(model), task)
        entry["ablate_is_project"] = float(apart.abs().max())
        entry["dose"] = [
            _by_bin(_answers(model, task, without(axis(model), dose)), task, groups)
            for dose in DOSES
        ]
    return entry


def _by_bin(after: Tensor, task: Data, groups: np.ndarray) -> list[float]:
    """Mean probability of the right answer in every group of lines."""
    now = after.gather(-1, task.answers[:, None])[:, 0].numpy()
    return [float(now[groups == k].mean()) for k in range(len(BINS))]


def _compare(after: Tensor, before: Tensor, task: Data, groups: np.ndarray) -> dict[str, Any]:
    """What an intervention costs, by redness of the redder operand."""
    now = after.gather(-1, task.answers[:, None])[:, 0]
    drop, red = (before - now).numpy(), task.redness.numpy()
    answer = after.argmax(-1)
    moved = (task.rgb[answer] - task.rgb[task.answers]).norm(dim=-1).numpy()
    return {
        "by_bin": _by_bin(after, task, groups),
        "pure_red": float(now.numpy()[red > 0.999].mean()),
        "loss_below_half": float(drop[red < 0.5].mean()),
        "spearman": float(spearmanr(red, drop).statistic),  # pyright: ignore
        "spearman_red": float(spearmanr(red[red >= 0.5], drop[red >= 0.5]).statistic),  # pyright: ignore
        "moved": float(moved[red > 0.999].mean()),
    }


def _probe(seen: list[Tensor], task: Data) -> list[float]:
    """R2 of RGB read linearly where the first operand stands, a value a point; fitted on four
    fifths of the colours, scored on the rest."""
    order = torch.randperm(LEVELS**3, generator=torch.Generator().manual_seed(1))
    test = torch.isin(task.lines[:, 0], order[: LEVELS**3 // 5])
    rgb = task.rgb[task.lines[:, 0]]
    return [colours.linear_r2(h[:, 0], rgb, ~test, test, 1e-2) for h in seen]


# ---- over seeds ---------------------------------------------------------------------------------

Cells = Mapping[str, list[dict[str, Any]]]


def _all(cells: list[dict[str, Any]], *path: Any) -> list[float]:
    """A value a seed."""

    def get(cell: Any) -> float:
        for key in path:
            cell = cell[key]
        return float(cell)

    return [get(c) for c in cells]


def metrics(cells: Cells) -> dict[str, list[float]]:
    """What the gates read; of the arm that is pulled twice as hard where nothing else is said."""
    full, cut = cells["strong"], ("cuts", "projection")
    held = (_all(cells[a], "held_out") for a in ("control", "strong"))
    return {
        "held-out lost": [a - b for a, b in zip(*held, strict=True)],
        **{key: _all(full, key) for key in ("red_cosine", "mean_cosine", "ablate_is_project")},
        **{key: _all(full, *cut, key) for key in ("pure_red", "loss_below_half", "spearman")},
        "graded spearman": _all(cells["graded"], *cut, "spearman"),
    }


def tables(cells: Cells) -> dict[str, list[list[Any]]]:
    """Rows of each table, by its title: medians over seeds."""

    def median(found: list[dict[str, Any]], *path: Any) -> float:
        return float(np.median(_all(found, *path)))

    shape = [
        [
            arm,
            *(median(found, key) for key in ("held_out", "red_cosine", "mean_cosine", "labelled")),
            median(found, "probe", -1),
        ]
        for arm, found in cells.items()
    ]
    edits = [
        [
            f"{arm}: {cut}",
            median(found, "cuts", cut, "pure_red"),
            *(median(found, "cuts", cut, "by_bin", k) for k in (3, 2, 1)),
            *(median(found, "cuts", cut, k) for k in ("loss_below_half", "spearman", "moved")),
        ]
        for arm, found in cells.items()
        for cut in found[0]["cuts"]
    ]
    return {"Models": shape, "Interventions": edits}
