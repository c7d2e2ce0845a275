"""Before a run: its memory and time, from counted operations and a measured rate."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from trimtab import models
from trimtab.batching import Encoded, Layout, Schedule, by_answer, row_length, trimmed
from trimtab.readout import Needs
from trimtab.states import depth

EFFICIENCY = 0.6
"""Share of the matmul rate that a whole training step reaches (docs/performance.md)."""


@dataclass(frozen=True)
class Estimate:
    """What a run will take: seconds, peak bytes, and what they were counted from."""

    seconds: float
    bytes: float
    positions: int
    """Padded positions of the whole run."""
    operations: float
    """Multiplications and additions of the whole run."""

    def times(self, n: int) -> Estimate:
        """Of a run in which every row is run so often."""
        return Estimate(n * self.seconds, self.bytes, n * self.positions, n * self.operations)

    def __str__(self) -> str:
        time_ = f"{self.seconds:.0f} s" if self.seconds < 120 else f"{self.seconds / 60:.0f} min"
        return f"about {time_} and {self.bytes / 2**30:.1f} GiB ({self.positions:,} positions)"


@cache
def matmul_rate(
    device: torch.device, dtype: torch.dtype, size: int = 1024, columns: int = 1024
) -> float:
    """Operations a second of a square matrix times some columns, measured once (a few milliseconds)."""
    a = torch.randn(size, size, device=device).to(dtype)
    b = a[:, :columns].contiguous()
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        (a @ b).sum().item()  # .item() waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * size**2 * columns / best


def operations(
    model: nn.Module, needs: Needs, positions: int, scored: int, *, backward: bool
) -> float:
    """Operations of passes over `positions`, of which `scored` reach the LM head.

    2 a weight and position forward; as much again backward for the gradient of the input (weights
    are frozen, the adapter's own share is small).
    """
    stack = models.layers(model)
    last = (
        len(stack) if needs.logps else 1 + max((depth(model, s) for s in needs.sites), default=-1)
    )
    weights = sum(p.numel() for layer in stack[: min(last, len(stack))] for p in layer.parameters())
    head = sum(p.numel() for p in models.head(model).parameters()) if needs.logps else 0
    return 2 * (weights * positions + head * scored) * (2 if backward else 1)


def estimate_training(
    model: nn.Module, needs: Needs, encoded: Encoded, schedule: Schedule, layout: Layout
) -> Estimate:
    """Time and memory of a planned training run on this machine."""
    rows = trimmed(encoded, layout)
    widths = [max(row_length(rows[i], layout) for i in m) for m in schedule.microbatches]
    lines = [
        sum(len(rows[i].answers) for i in m) if by_answer(layout, *(rows[i] for i in m)) else len(m)
        for m in schedule.microbatches
    ]
    padded = [w * n for w, n in zip(widths, lines, strict=True)]
    scored = sum(len(a) for m in schedule.microbatches for i in m for a in rows[i].answers)
    total = operations(model, needs, sum(padded), scored, backward=True)
    parameter = next(model.parameters())
    config = models.text_config(model)
    width = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or 4 * width
    inner = max(inner) if isinstance(inner, list | tuple) else inner  # a width a layer (Gemma 3n)
    per_position = (14 * width + 6 * inner) * models.n_layers(model)  # kept for the backward pass
    worst = max(padded) * per_position
    if needs.logps:  # float32 logits, their log-softmax and its gradient at scored positions
        most = max(sum(len(a) for i in m for a in rows[i].answers) for m in schedule.microbatches)
        worst += 3 * most * config.vocab_size * 4 // parameter.element_size()
    return estimate(model, total, worst * parameter.element_size(), sum(padded))


def estimate(model: nn.Module, total: float, kept: float, positions: int) -> Estimate:
    """What so many operations take on a model, `kept` bytes beside it, at the measured rate."""
    parameter = next(model.parameters())
    rate = matmul_rate(parameter.device, parameter.dtype)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return Estimate(total / (rate * EFFICIENCY), weights + kept, positions, total)
