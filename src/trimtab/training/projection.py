"""Gradients let through: kept to the direction in which the reference tells chosen from rejected.

At the output of every adapted module, p is the mean over the pairs of an optimizer step of chosen
minus rejected, pooled over the answers, of the reference; u = p / |p|. ProjGrad keeps the gradient
of the adapter's weights to u, on the axis that lives in that output (the rows of B); ProjBP keeps
to u the signal that is propagated back through that output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerState, TrainingArguments

from trimtab.batching import Encoded, Layout, Schedule, collate, plan_batches
from trimtab.dials import AdapterDial
from trimtab.progress import SILENT, Progress
from trimtab.states import pair_up, read
from trimtab.training.settings import ProjectionSettings


class Projection(TrainerCallback):
    """Projects the gradients of a run, a preference difference a module and step at hand."""

    def __init__(
        self, settings: ProjectionSettings, dial: AdapterDial, differences: dict[str, Tensor]
    ):
        """
        Args:
            differences: p at the output of every adapted module, `[steps, out]`, by path.
        """
        self.settings, self.dial, self.differences = settings, dial, differences
        self.step = 0
        self.before: list[Tensor] = []

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any
    ) -> None:
        """Before the microbatches of a step."""
        self.step = state.global_step

    @torch.no_grad()
    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Once the gradients of all microbatches and processes are summed."""
        if self.settings.of == "weights" and self.settings.on == "gradient":
            for path, A, B in zip(self.dial.paths, self.dial.A, self.dial.B, strict=True):
                self.weights(path, A, B)
        elif self.settings.of == "weights":
            self.before = [B.detach().clone() for B in self.dial.B]

    @torch.no_grad()
    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """After the optimizer, where its change is what is projected."""
        for path, B, old in zip(self.dial.paths, self.dial.B, self.before, strict=False):
            p = self.at(path, B)
            change = B - old
            B.copy_(old + onto(change.T, p, self.settings.kept).T)
        self.before = []

    def weights(self, path: str, A: nn.Parameter, B: nn.Parameter) -> None:
        """Project the gradients of one module's adapter, in place."""
        p = self.at(path, B)
        if self.settings.variant == "sound":
            if B.grad is not None:
                B.grad.copy_(
                    shrunk(onto(B.grad.T, p, self.settings.kept).T, p, self.settings.clipped)
                )
        elif A.grad is not None and A.shape[1] == B.shape[0]:
            A.grad.copy_(shrunk(onto(A.grad, p, self.settings.kept, 0.0), p, self.settings.clipped))

    def signal(self, path: str, g: Tensor) -> Tensor:
        """The projected signal at one module's output, `[..., out]`."""
        p = self.at(path, g)
        published = self.settings.variant == "published"
        limit = self.settings.clipped
        if limit is not None and g.ndim == 3:  # by row, on the mean over its tokens
            size = g.mean(1, keepdim=True).norm(dim=-1, keepdim=True)
            g = g / (size / (p.norm() * limit).clamp(min=1e-12)).clamp(min=1)
        new = onto(g, p, self.settings.kept, 0.01 if published else None)
        return new * (g.norm() / new.norm().clamp(min=1e-12)) if published else new

    def at(self, path: str, like: Tensor) -> Tensor:
        """p at a module's output for the step in hand."""
        return self.differences[path][self.step].to(like)

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """Let every backward pass through the adapted modules' outputs be projected (ProjBP)."""
        with ExitStack() as stack:
            for path in self.dial.paths if self.settings.of == "signal" else ():

                def hook(_: nn.Module, __: Any, y: Tensor, path: str = path) -> None:
                    if y.requires_grad:
                        y.register_hook(lambda g: self.signal(path, g))

                handle = model.get_submodule(path).register_forward_hook(hook)
                stack.callback(handle.remove)
            yield


def onto(g: Tensor, p: Tensor, keep: float, slope: float | None = None) -> Tensor:
    """Rows of g `[..., d]` kept to p, plus a share of the rest. With `slope`, the projected entries
    go through a leaky ReLU, which leaves the direction (as published)."""
    u = p / p.norm().clamp(min=1e-12)
    along = (g @ u)[..., None] * u
    return (along if slope is None else F.leaky_relu(along, slope)) + keep * (g - along)


def shrunk(g: Tensor, p: Tensor, clip: float | None) -> Tensor:
    """g scaled down to a norm of at most clip |p|."""
    if clip is None:
        return g
    return g / (g.norm() / (p.norm() * clip).clamp(min=1e-12)).clamp(min=1)


def off_direction(g: Tensor, p: Tensor) -> float:
    """Share of the energy of g `[..., d]` that is off p, 0 to 1."""
    rest = g - onto(g, p, 0.0)
    return float(rest.square().sum() / g.square().sum().clamp(min=1e-30))


@torch.no_grad()
def step_differences(
    model: nn.Module,
    encoded: Encoded,
    schedule: Schedule,
    paths: Sequence[str],
    layout: Layout,
    *,
    budget: int = 2048,
    progress: Progress = SILENT,
) -> dict[str, Tensor]:
    """p of every step at the output of every module, `[steps, out]` in float32 on the CPU: one pass
    over the data, sums alone are kept."""
    steps_of: dict[int, list[int]] = {}  # by pair
    for step in range(schedule.steps):
        for row in schedule.rows_of(step):
            for pair in encoded.rows[row].pair_ids:
                steps_of.setdefault(pair, []).append(step)
    counts = torch.zeros(schedule.steps)
    sums: dict[str, Tensor] = {}
    device = next(model.parameters()).device
    done = 0
    with progress.bar("reading the modules' outputs", encoded.n_answers, "answers") as update:
        for rows in plan_batches(encoded, budget, layout):
            batch = collate(encoded, rows, layout).to(device)
            found = pair_up(read(model, batch, sites=[f"{path}:out" for path in paths]), batch)
            uses = [
                (i, s) for i, p in enumerate(batch.pair_ids.tolist()) for s in steps_of.get(p, ())
            ]
            if uses:
                which, steps = torch.tensor(uses).T
                counts.index_add_(0, steps, torch.ones(len(steps)))
                for path in paths:
                    delta = (found.chosen[f"{path}:out"] - found.rejected[f"{path}:out"]).cpu()
                    total = sums.setdefault(path, torch.zeros(schedule.steps, delta.shape[1]))
                    total.index_add_(0, steps, delta[which].float())
            done += batch.n_answers
            update(done, encoded.n_answers)
    return {path: total / counts[:, None].clamp(min=1) for path, total in sums.items()}
