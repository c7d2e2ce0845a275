"""The mixing transformer: it learns `a + b = c` over 216 colours, a token each, and has red anchored.

Arms: no anchoring; an anchor; with everything else kept off its dimension; with soft-minimum pooling
over the positions of a line; that pulled twice as hard, on which the gates are judged; a milder form,
meant to lose red by degrees; and one with a fallback. Then red is projected out, reflected, cut from
the weights; directions found afterwards in the control, and a masked token, stand beside. The task
holds no RGB: colours are names to the model.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional as F

from trimtab.anchoring.timeline import Row, Sheet
from trimtab.objectives.anchoring import AngularAnchor, AntiSubspace, Term
from trimtab.progress import SILENT, Progress
from trimtab.provenance import versions
from trimtab.studies.anchoring import colours, results
from trimtab.studies.anchoring.gates import Gate, over_seeds
from trimtab.studies.anchoring.ngpt import NGPT, Edit, Size

NAME, TITLE = "mixing", "A transformer that mixes colours"
ABOUT = (
    "An nGPT of two layers and 64 dimensions learns to mix 216 colours from 2,246 pairs; red is "
    "anchored to dimension 0 by labels on about one line in a thousand, and then removed."
)
SEEDS = 5
STEPS, BATCH, RATE, WEIGHT = 1500, 256, 1e-2, 0.1
LEVELS, PLUS, EQUALS = 6, 216, 217
BINS = (0.0, 0.2, 0.5, 0.8, 0.999)
"""Lower ends of the groups of lines by the redness of their redder operand; the last is pure red."""
DOSES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)


@dataclass(frozen=True)
class Arm:
    """A way of training."""

    what: str
    terms: tuple[Term, ...] = ()
    exponent: float = 8
    """Sharpness of the labels."""
    rate: float = 0.04
    """Probability of a label for a line with pure red."""
    pull: float = 1.0
    """Weight of the anchor, in units of `WEIGHT`."""
    fallback: bool = False
    """Labelled lines, reflected, are taught to answer with no colour in particular."""


def _terms(pool: Any, tau: float = 0.1, enough: float = 1.0, anti: bool = True) -> tuple[Term, ...]:
    anchor = Term("anchor", AngularAnchor(0, enough=enough), "stream", {"red": 1.0}, pool, tau)
    return (anchor, Term("anti-subspace", AntiSubspace((0,)), "stream")) if anti else (anchor,)


ARMS: dict[str, Arm] = {
    "control": Arm("no anchoring"),
    "anchor": Arm("labelled lines pulled to dimension 0", _terms("mean", anti=False)),
    "anti-subspace": Arm("and everything kept off it", _terms("mean")),
    "pooling": Arm("and only the nearest positions of a line pulled", _terms("mellowmax")),
    "strong": Arm("pooling, pulled twice as hard", _terms("mellowmax"), pull=2),
    "graded": Arm(
        "the same, milder: flatter labels, softer pooling, a hinge at cosine .8",
        _terms("mellowmax", tau=0.2, enough=0.8),
        exponent=3,
    ),
    "fallback": Arm(
        "pooling, with a fallback for what is reflected", _terms("mellowmax"), fallback=True
    ),
}


# ---- data ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """Lines of four tokens, `a + b =`, and the colour that follows.

    Attributes:
        lines: ids `[line, 4]`; both orders of every pair.
        answers: the mixture `[line]`.
        held_out: lines never trained on (both orders of a fifth of the pairs).
        rgb: colours by token `[216, 3]`.
    """

    lines: Int[Tensor, "line 4"]
    answers: Int[Tensor, "line"]
    held_out: Tensor
    rgb: Float[Tensor, "216 3"]

    @property
    def redness(self) -> Float[Tensor, "line"]:
        """Redness of the redder operand of each line."""
        return colours.redness(self.rgb)[self.lines[:, [0, 2]]].amax(-1)


def data() -> Data:
    """All pairs of different colours whose mixture, channel by channel, is one of the 216."""
    level = torch.cartesian_prod(*[torch.arange(LEVELS)] * 3)
    pairs = torch.tensor(list(combinations(range(LEVELS**3), 2)))
    total = level[pairs[:, 0]] + level[pairs[:, 1]]
    pairs = pairs[(total % 2 == 0).all(-1)]
    middle = (level[pairs[:, 0]] + level[pairs[:, 1]]) // 2
    answer = (middle * torch.tensor([LEVELS**2, LEVELS, 1])).sum(-1)
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))
    held = torch.zeros(len(pairs), dtype=torch.bool)
    held[order[: len(pairs) // 5]] = True
    both = torch.cat([pairs, pairs.flip(-1)])
    marks = torch.tensor([PLUS, EQUALS]).expand(len(both), 2)
    lines = torch.stack([both[:, 0], marks[:, 0], both[:, 1], marks[:, 1]], -1)
    return Data(lines, answer.repeat(2), held.repeat(2), level / (LEVELS - 1))


# ---- training -----------------------------------------------------------------------------------


def train(
    arm: Arm,
    seed: int,
    task: Data,
    steps: int = STEPS,
    progress: Progress = SILENT,
    label: str = "",
) -> tuple[NGPT, int]:
    """One model, and how many lines were labelled on the way."""
    model = NGPT(Size(tokens=218), seed)
    known = (~task.held_out).nonzero()[:, 0]
    generator = torch.Generator().manual_seed(1_000_003 * seed + 5)
    chance = arm.rate * colours.redness(task.rgb) ** arm.exponent
    rows = _sheet(arm, steps).table() if arm.terms else None
    adam = torch.optim.Adam(model.parameters(), lr=RATE, betas=(0.9, 0.95), fused=True)
    labelled = 0
    with progress.bar(label, steps, "steps") as update:
        for step in range(steps):
            pick = known[torch.randint(len(known), (BATCH,), generator=generator)]
            ids, answers = task.lines[pick], task.answers[pick]
            draws = torch.rand(BATCH, 2, generator=generator)
            red = (draws < chance[ids[:, [0, 2]]]).any(-1)
            labelled += int(red.sum())
            logits, seen = model(ids, last=True)
            loss = F.cross_entropy(logits[:, -1], answers)
            if rows is not None:
                weights = rows.at(step)
                z = torch.stack(seen[::2])  # slice line position d: the embedding and each block
                mask = torch.ones(ids.shape, dtype=torch.bool)
                for term in arm.terms:
                    value = term(z, {"red": red.float()}, mask).mean()
                    loss = loss + weights[term.name] * value
                if arm.fallback and bool(red.any()):
                    away, _ = model(ids[red], _reflected, last=True)
                    plain = -F.log_softmax(away[:, -1, : LEVELS**3], -1).mean()
                    loss = loss + 0.05 * plain
            adam.param_groups[0]["lr"] = _rate(step, steps)
            adam.zero_grad(set_to_none=True)
            loss.backward()
            adam.step()
            model.project()
            update(step + 1, steps)
    return model.requires_grad_(False).eval(), labelled


def _sheet(arm: Arm, steps: int) -> Sheet:
    """The pull is even and dies away at the end; the push sinks to an eighth by 90 % of the way."""
    late, pull = round(0.9 * (steps - 1)), arm.pull * WEIGHT
    keys = {
        0: {"anchor": pull, "anti-subspace": 2.5 * WEIGHT},
        late: {"anchor": pull, "anti-subspace": 0.3 * WEIGHT},
        steps - 1: {"anchor": 0.1 * pull, "anti-subspace": 0.03 * WEIGHT},
    }
    names = [t.name for t in arm.terms]
    sheet = Sheet(tuple(Row(s, {n: v[n] for n in names}) for s, v in keys.items()), name=NAME)
    sheet.check(names, ())
    return sheet


def _rate(step: int, steps: int) -> float:
    """10 % warm-up, then a cosine down to 1 %."""
    warm = max(1, steps // 10)
    if step < warm:
        return RATE * (step + 1) / warm
    share = (step - warm) / max(1, steps - warm)
    return RATE * (0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2)


def _reflected(h: Tensor, _: int) -> Tensor:
    return torch.cat([-h[..., :1].abs(), h[..., 1:]], -1)


# ---- interventions ------------------------------------------------------------------------------


def _remove(
    directions: Tensor, dose: float, h: Tensor, point: int, *, renormalise: bool = False
) -> Tensor:
    """h less `dose` times its part along the point's direction. Renormalised, the little that is
    left of a state that was nearly nothing else is blown up to full length, and read again."""
    v = directions[point]
    left = h - dose * (h @ v).unsqueeze(-1) * v
    return F.normalize(left, dim=-1) if renormalise else left


def _axis(model: NGPT) -> Tensor:
    axis = torch.zeros(model.points, model.size.width)
    axis[:, 0] = 1
    return axis


def _found(model: NGPT, task: Data, how: str, seed: int) -> Tensor:
    """Directions of red found in a trained model, one a point: what one would do without anchoring.

    Read where the first operand stands, over all lines trained on.
    """
    if how == "random":
        drawn = torch.randn(
            model.points, model.size.width, generator=torch.Generator().manual_seed(seed)
        )
        return F.normalize(drawn, dim=-1)
    known = ~task.held_out
    _, seen = model(task.lines[known])
    red = colours.redness(task.rgb)[task.lines[known][:, 0]]
    found = []
    for h in seen:
        x = h[:, 0]
        if how == "means":
            v = x[red > 0.8].mean(0) - x[red <= 0.8].mean(0)
        else:  # a ridge probe of redness
            centred = (x - x.mean(0)).double()
            gram = centred.T @ centred + 1.0 * torch.eye(x.shape[1], dtype=torch.float64)
            v = torch.linalg.solve(gram, centred.T @ (red - red.mean()).double()).float()
        found.append(F.normalize(v, dim=-1))
    return torch.stack(found)


Answers = Callable[[], Float[Tensor, "line colour"]]


def _answers(model: NGPT, task: Data, edit: Edit | None = None, **options: Any) -> Tensor:
    """Probabilities of the 216 colours after every line."""
    logits, _ = model(task.lines, edit, last=True, **options)
    return logits[:, -1, : LEVELS**3].softmax(-1)


def _interventions(arm: str, model: NGPT, task: Data, seed: int) -> dict[str, Answers]:
    """What is done to a trained model."""
    axis = _axis(model)
    if arm == "control":
        token = copy.deepcopy(model)
        pure = int((colours.redness(task.rgb) > 0.999).nonzero()[0, 0])
        token.embedding.weight[pure] = model.embedding.weight[: LEVELS**3].mean(0)
        found = {
            f"projection, {how}": partial(
                _answers, model, task, partial(_remove, _found(model, task, key, seed), 1.0)
            )
            for how, key in (
                ("random", "random"),
                ("difference of means", "means"),
                ("probe", "probe"),
            )
        }
        found["dimension 0"] = partial(_answers, model, task, partial(_remove, axis, 1.0))
        return found | {"token masked": partial(_answers, token, task)}
    cut = copy.deepcopy(model)
    cut.ablate([0])
    return {
        "projection": partial(_answers, model, task, partial(_remove, axis, 1.0)),
        "projection, renormalised": partial(
            _answers, model, task, partial(_remove, axis, 1.0, renormalise=True)
        ),
        "ablation": partial(_answers, cut, task),
        "reflection": partial(_answers, model, task, _reflected),
    }


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
    for name, answers in _interventions(arm, model, task, seed).items():
        entry["cuts"][name] = _compare(answers(), true, task, groups)
    if arm != "control":
        axis = _axis(model)
        whole = partial(_remove, axis, 1.0, renormalise=True)
        everywhere = _answers(model, task, whole, everywhere=True)
        cut = copy.deepcopy(model)
        cut.ablate([0])
        entry["ablate_is_project"] = float((everywhere - _answers(cut, task)).abs().max())
        entry["dose"] = [
            _compare(_answers(model, task, partial(_remove, axis, d)), true, task, groups)["by_bin"]
            for d in DOSES
        ]
    return entry


def _compare(after: Tensor, before: Tensor, task: Data, groups: np.ndarray) -> dict[str, Any]:
    """What an intervention costs, by redness of the redder operand."""
    now = after.gather(-1, task.answers[:, None])[:, 0]
    drop, red = (before - now).numpy(), task.redness.numpy()
    answer = after.argmax(-1)
    moved = (task.rgb[answer] - task.rgb[task.answers]).norm(dim=-1).numpy()
    return {
        "by_bin": [float(now.numpy()[groups == k].mean()) for k in range(len(BINS))],
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
    y = task.rgb[task.lines[:, 0]].double()
    found = []
    for h in seen:
        x = torch.cat([h[:, 0], torch.ones(len(h), 1)], -1).double()
        gram = x[~test].T @ x[~test] + 1e-2 * torch.eye(x.shape[1], dtype=torch.float64)
        w = torch.linalg.solve(gram, x[~test].T @ y[~test])
        left = ((y[test] - x[test] @ w) ** 2).sum()
        found.append(float(1 - left / ((y[test] - y[test].mean(0)) ** 2).sum()))
    return found


# ---- running ------------------------------------------------------------------------------------


def run(
    out: Path, seeds: Sequence[int], *, steps: int | None = None, progress: Progress = SILENT
) -> Path:
    """Every arm on every seed; a finished one is not run again."""
    start, task = time.perf_counter(), data()
    length = STEPS if steps is None else steps
    cells: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    first = ("control", "strong")  # what the gates need
    for seed in seeds:
        for arm in (*first, *(a for a in ARMS if a not in first)):
            how = ARMS[arm]
            file = out / "cells" / f"{arm}-{seed}-{length}.json"
            if not file.is_file():
                begun = time.perf_counter()
                model, labelled = train(how, seed, task, length, progress, f"{arm}, seed {seed}")
                took = time.perf_counter() - begun
                entry = measure(arm, model, task, seed)
                results.write_json(file, entry | {"labelled": labelled, "seconds": took})
                save_file(model.state_dict(), file.with_suffix(".safetensors"))
            cells[arm].append(json.loads(file.read_text()))
    along = {arm: [c.pop("cosine_by_redness") for c in found] for arm, found in cells.items()}
    result = {
        "name": NAME,
        "kind": "mixing",
        "title": TITLE,
        "about": ABOUT,
        "seeds": list(seeds),
        "steps": steps,
        "versions": versions("torch", "python"),
        "arms": {arm: {"what": ARMS[arm].what, "cells": found} for arm, found in cells.items()},
        "bins": BINS,
        "doses": DOSES,
        "tables": _tables(cells),
        "cosines": {arm: found[0] for arm, found in along.items()},
        "seconds": {
            "all": time.perf_counter() - start,
            "a run": float(np.median([c["seconds"] for found in cells.values() for c in found])),
        },
    }
    return results.write(out, result, {"doses": np.array(DOSES)})


def _all(cells: list[dict[str, Any]], *path: str) -> list[float]:
    """A value a seed."""

    def get(cell: Any) -> float:
        for key in path:
            cell = cell[key]
        return float(cell)

    return [get(c) for c in cells]


def _median(cells: list[dict[str, Any]], *path: str) -> float:
    return float(np.median(_all(cells, *path)))


def _tables(cells: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Medians over seeds, ready to be shown."""
    shape = [
        [
            arm,
            *(_median(found, key) for key in ("held_out", "red_cosine", "mean_cosine", "labelled")),
            float(np.median([c["probe"][-1] for c in found])),
        ]
        for arm, found in cells.items()
    ]
    edits = [
        [
            f"{arm}: {cut}",
            _median(found, "cuts", cut, "pure_red"),
            *(float(np.median([c["cuts"][cut]["by_bin"][k] for c in found])) for k in (3, 2, 1)),
            *(_median(found, "cuts", cut, k) for k in ("loss_below_half", "spearman", "moved")),
        ]
        for arm, found in cells.items()
        for cut in found[0]["cuts"]
    ]
    return [
        {
            "title": "Models",
            "caption": "Medians over seeds: exact answers on held-out pairs; cosine with dimension 0 "
            "of pure red and of all colours (mean size), where the operand stands; lines labelled; "
            "R² of RGB read linearly at the last point, for colours that the reading never saw.",
            "header": ["arm", "held-out", "red", "all colours", "labelled", "RGB R²"],
            "rows": shape,
        },
        {
            "title": "Interventions",
            "caption": "Medians over seeds: probability of the right answer by redness of the redder "
            "operand; what lines below .5 lose; rank correlation of loss with redness; how far the "
            "answer moves in RGB where pure red is mixed.",
            "header": [
                *("intervention", "pure red", ".8–.9", ".5–.8", ".2–.5"),
                *("loss below .5", "rank corr.", "moved"),
            ],
            "rows": edits,
        },
    ]


def gates(result: dict[str, Any]) -> list[Gate]:
    """Medians over seeds."""
    full, control = (result["arms"][a]["cells"] for a in ("strong", "control"))
    graded = result["arms"]["graded"]["cells"]
    held = zip(_all(control, "held_out"), _all(full, "held_out"), strict=True)
    return [
        over_seeds(
            "held-out accuracy lost by anchoring",
            [a - b for a, b in held],
            high=0.02,
            published="none measurable",
        ),
        over_seeds("cosine of pure red with dimension 0", _all(full, "red_cosine"), low=0.9),
        over_seeds("mean size of the cosine over all colours", _all(full, "mean_cosine"), high=0.1),
        over_seeds(
            "right answers with pure red, projected out",
            _all(full, "cuts", "projection", "pure_red"),
            high=0.15,
        ),
        over_seeds(
            "loss of lines with redness below .5",
            _all(full, "cuts", "projection", "loss_below_half"),
            high=0.02,
        ),
        Gate(
            "projection everywhere and ablation, largest difference",
            max(_all(full, "ablate_is_project")),
            high=1e-4,
        ),
        over_seeds(
            "rank correlation of redness with loss",
            _all(full, "cuts", "projection", "spearman"),
            low=0.5,
            stretch=True,
        ),
        over_seeds(
            "the same, graded arm",
            _all(graded, "cuts", "projection", "spearman"),
            low=0.5,
            stretch=True,
        ),
    ]
