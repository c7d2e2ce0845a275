"""Training the colour autoencoders: all seeds of an experiment, and arms that share a sheet, in one
batch of matrix products. Seeds do not touch each other: each draws its own data and labels, losses
are summed, and Adam treats every number alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.anchoring.timeline import Sheet, Table, read_sheet
from trimtab.errors import ConfigError
from trimtab.objectives.anchoring import ReferenceAnchor
from trimtab.progress import SILENT, Progress
from trimtab.studies.anchoring import colours
from trimtab.studies.anchoring.autoencoder import Autoencoder, Shape
from trimtab.studies.anchoring.catalogue import Arm, Experiment

SHEETS = Path(__file__).parent / "sheets"
CHUNK = 100
"""Steps whose data and labels are drawn at a time, and over which sampling weights are fixed."""
FRAMES = 41
"""Moments of training whose states are kept."""


Member = tuple[Arm, int]
"""A model: its arm and its seed."""


@dataclass
class Trained:
    """Models of one sheet and shape, seeds and arms along the leading dimension.

    Attributes:
        model: the autoencoders.
        table: the realised sheet.
        members: arm and seed of every model.
        frames: steps whose states were kept.
        history: their states of `rgb_grid(6)` at the bottleneck, `[frame, model, 216, d]`.
        losses: means over the models of the loss and of every term at the frames.
        labelled: how many samples each label was drawn for, a count a model.
    """

    model: Autoencoder
    table: Table
    members: list[Member]
    frames: list[int] = field(default_factory=list)
    history: list[Float[Tensor, "model 216 d"]] = field(default_factory=list)
    losses: dict[str, list[float]] = field(default_factory=dict)
    labelled: dict[str, list[int]] = field(default_factory=dict)


def sheet_of(experiment: Experiment, arm: Arm) -> Sheet:
    """The keyframes of an arm, held against what its training reads."""
    sheet = read_sheet(SHEETS / f"{arm.sheet or experiment.sheet or experiment.name}.csv")
    others = ["lr"]
    if "recon" in sheet.names:
        others.append("recon")
    if experiment.data == "focus":
        others += [n for n in ("data-fraction", "data-hues", "data-vibrancies") if n in sheet.names]
    sheet.check([t.name for t in experiment.terms], others)
    return sheet


def members(experiment: Experiment, seeds: Sequence[int]) -> list[list[Member]]:
    """Every arm on every seed; those of one sheet and shape together, which can be trained side by side."""
    groups: dict[tuple[str, Shape | None], list[Member]] = {}
    for arm in experiment.arms:
        groups.setdefault((arm.sheet, arm.shape), []).extend((arm, seed) for seed in seeds)
    return list(groups.values())


def train(
    experiment: Experiment,
    members: Sequence[Member],
    *,
    steps: int | None = None,
    progress: Progress = SILENT,
) -> Trained:
    """Train models side by side.

    Args:
        members: arms of one sheet and shape, each with its seed: initialisation, order of data and
            labels, all of them.
        steps: a shorter run with the same sheet (smoke tests).
    """
    first = members[0][0]
    sheet = sheet_of(experiment, first)
    table = (sheet if steps is None else sheet.stretched(steps)).table()
    model = Autoencoder(first.shape or experiment.shape, [seed for _, seed in members])
    source = _Source(experiment, [seed for _, seed in members])
    terms = list(experiment.terms)
    active = {
        t.name: torch.tensor([float(t.name not in arm.without) for arm, _ in members])
        for t in terms
    }
    rates = {t.name: table.values[t.name] for t in terms}
    recon = table.values.get("recon")
    adam = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    done = Trained(model, table, list(members))
    keep = {round((table.steps - 1) * (i / (FRAMES - 1)) ** 2) for i in range(FRAMES)}
    watched, references = colours.rgb_grid(6), colours.named()[:12:2]
    with progress.bar(f"{experiment.name} ({len(members)} models)", table.steps, "steps") as update:
        for step in range(table.steps):
            for action in table.actions.get(step, ()):
                if action != "anchor":
                    raise ConfigError(f"{sheet.name}: unknown action {action!r} at step {step}")
                with torch.no_grad():  # a reference anchor holds its samples where they are now
                    held = ReferenceAnchor(model.encode(references))
                terms = [
                    dataclasses.replace(t, loss=held) if isinstance(t.loss, ReferenceAnchor) else t
                    for t in terms
                ]
            x, labels = source.draw(step, table)
            y, layers = model(x)
            error = ((y - x) ** 2).mean((-2, -1))  # model
            loss = error if recon is None else float(recon[step]) * error
            values = {"recon": error}
            for term in terms:
                weight = float(rates[term.name][step])
                if weight == 0:
                    continue
                z = layers.get(str(term.layer))
                if z is None:
                    z = _further(str(term.layer), model, references)
                values[term.name] = term(z, labels)
                loss = loss + weight * active[term.name] * values[term.name]
            if step in keep:
                with torch.no_grad():
                    done.history.append(model(watched)[1]["bottleneck"].clone())
                done.frames.append(step)
                for name in ("recon", *(t.name for t in terms)):
                    value = values[name].mean().item() if name in values else 0.0
                    done.losses.setdefault(name, []).append(value)
            adam.param_groups[0]["lr"] = float(table.values["lr"][step])
            adam.zero_grad(set_to_none=True)
            loss.sum().backward()
            adam.step()
            update(step + 1, table.steps)
    model.requires_grad_(False)
    done.labelled = source.labelled
    return done


def _further(layer: str, model: Autoencoder, references: Tensor) -> Tensor:
    """What is read beside the batch: the reference colours' states, or what the decoder makes of
    the direction opposite to dimension 0."""
    if layer == "reference":
        return model.encode(references)
    if layer == "opposite":
        return model.opposite()
    raise ConfigError(f"layer {layer!r}: the model has encoder, bottleneck, reference and opposite")


# ---- data ---------------------------------------------------------------------------------------


class _Source:
    """Colours and labels of every model, drawn from generators of its own."""

    def __init__(self, experiment: Experiment, seeds: Sequence[int]):
        self.kind, self.batch = experiment.data, experiment.batch
        self.points = _points(experiment.data)
        self.chances = {n: k.probability(self.points) for n, k in experiment.labels.items()}
        self.generators = [torch.Generator().manual_seed(1_000_003 * s + 2) for s in seeds]
        self.labelled = {name: [0] * len(seeds) for name in experiment.labels}
        self._rows: Tensor | None = None
        self._drawn: dict[str, Tensor] = {}

    def draw(self, step: int, table: Table) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Colours `[model, sample, 3]` and labels `[model, sample]` of a step."""
        if not self.batch:
            return self.points.expand(len(self.generators), -1, -1), {}
        at = step % CHUNK
        if at == 0 or self._rows is None:
            self._fill(step, table)
        assert self._rows is not None
        return self.points[self._rows[:, at]], {n: d[:, at] for n, d in self._drawn.items()}

    def _fill(self, step: int, table: Table) -> None:
        weights = _weights(self.kind, self.points, table.phase(step), table.at(step))
        size = (min(CHUNK, table.steps - step), self.batch)
        count = size[0] * size[1]
        rows, uniform = [], {name: [] for name in self.chances}
        for generator in self.generators:
            if weights is None:
                drawn = torch.randint(len(self.points), (count,), generator=generator)
            else:
                drawn = torch.multinomial(weights, count, replacement=True, generator=generator)
            rows.append(drawn.view(size))
            for draws in uniform.values():
                draws.append(torch.rand(size, generator=generator))
        self._rows = torch.stack(rows)
        for name, draws in uniform.items():
            drawn = torch.stack(draws) < self.chances[name][self._rows]
            self._drawn[name] = drawn.float()
            counts = drawn.sum((-2, -1)).tolist()
            self.labelled[name] = [a + b for a, b in zip(self.labelled[name], counts, strict=True)]


def _points(kind: str) -> Float[Tensor, "n 3"]:
    """The colours that an experiment trains on."""
    if kind in ("rgb8", "no red"):
        return colours.rgb_grid(8)
    if kind == "rgb10":
        return colours.rgb_grid(10)
    if kind == "hues":
        hsv = torch.cartesian_prod(torch.arange(360) / 360, torch.ones(1), torch.tensor([0.9, 1.0]))
        return colours.from_hsv(hsv[(hsv[:, 0] < 150 / 360) | (hsv[:, 0] > 240 / 360)])
    if kind == "phases":
        values = torch.linspace(0.2, 1, 9)
        return colours.from_hsv(
            torch.cartesian_prod(torch.arange(360) / 360, torch.ones(1), values)
        )
    return colours.from_hsv(colours.hsv_grid(36, 10, 10))


def _weights(
    kind: str, points: Float[Tensor, "n 3"], phase: str, values: Mapping[str, float]
) -> Float[Tensor, "n"] | None:
    """Sampling weights; None for uniform."""
    if kind in ("rgb8", "rgb10", "hues"):
        return None
    if kind == "no red":
        return (colours.redness(points) < 0.5).float()
    hsv = colours.to_hsv(points)
    h, _, v = hsv.unbind(-1)
    if kind == "phases":
        if phase == "12 hues":
            return ((h * 12 - (h * 12).round()).abs() < 1e-3).float() * (v > 0.99)
        low = {"360 hues": 1.0, "Value 0.9": 0.9, "Value 0.8": 0.8, "Value 0.2": 0.2}[phase]
        return (v > low - 1e-3).float()
    if kind == "focus":
        return _focus(points, phase, values)
    return colours.grid_weights(hsv, 10, 36)


def _focus(points: Tensor, phase: str, values: Mapping[str, float]) -> Tensor:
    """Six pure hues first, then vivid colours, in the end all: weights rise with vibrancy above a
    threshold that sinks, and then for all alike."""
    vivid = colours.vibrancy(points)
    h = colours.to_hsv(points)[:, 0]
    if phase == "Primary & secondary":
        return ((h * 6 - (h * 6).round()).abs() < 1e-3).float() * (vivid > 0.999)
    share = values.get("data-fraction", values.get("data-vibrancies", 1.0))
    low, floor = 0.99 * max(0.0, 1 - 2 * share), max(0.0, 2 * share - 1)
    weight = floor + (1 - floor) * ((vivid - low) / (1 - low)).clamp(0, 1)
    if "data-hues" in values:
        # Near the six hues first: a cosine bump, 30 degrees wide on either side.
        away = (h * 6 - (h * 6).round()).abs() * 60
        near = (torch.cos(torch.pi * away / 30) + 1) / 2
        weight = weight * (near + (1 - near) * values["data-hues"])
    if not bool((weight > 0).any()):
        return (vivid > 0.999).float()
    return weight * colours.grid_weights(colours.to_hsv(points), 10, 36)
