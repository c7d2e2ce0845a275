"""The least that the work can take: multiplications that cannot be left out, at the machine's rate.

Counted: every frozen linear layer on every real position (padding left out, a shared prompt once),
forward and for the gradient of its input; the adapter's products; the LM head where a token is
scored. Not counted: attention scores, norms, activations, softmax, memory traffic, the optimizer.
So the floor is lower than anything that can be reached.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from trimtab import models
from trimtab.batching import Encoded, Layout, Schedule, collate
from trimtab.dials.adapter import linear_modules
from trimtab.readout import Needs
from trimtab.states import depth

ROWS = 1024
"""Positions at which the matmul rate is measured: about a microbatch."""


@dataclass(frozen=True)
class Work:
    """What a unit of work is made of.

    Attributes:
        tokens: real positions, a shared prompt counted once.
        positions: positions that are computed, padding included.
        scored: positions that reach the LM head.
        least: operations (multiplications and additions) over the real positions.
        counted: operations over the computed positions.
        widest: computed positions of the largest microbatch.
        widest_scored: scored positions of that microbatch.
    """

    tokens: int
    positions: int
    scored: int
    least: float
    counted: float
    widest: int = 0
    widest_scored: int = 0

    @staticmethod
    def reading(model: nn.Module, tokens: int, positions: int | None = None) -> Work:
        """A forward pass through all blocks, without the head."""
        weights = block_weights(model, models.n_layers(model))
        done = positions or tokens
        return Work(tokens, done, 0, 2.0 * weights * tokens, 2.0 * weights * done)


def block_weights(model: nn.Module, blocks: int) -> int:
    """Weights of the linear layers in the first blocks, of a model without an adapter of PEFT's: it
    would be counted as layers of the model, and with it once more what it wraps."""
    assert not any("lora_" in name for name, _ in model.named_modules()), (
        "count before it is wrapped"
    )
    shapes = linear_modules(model, blocks=range(blocks)) if blocks else {}
    return sum(a * b for a, b in shapes.values())


def training_work(
    model: nn.Module,
    dial: nn.Module,
    encoded: Encoded,
    schedule: Schedule,
    needs: Needs,
    layout: Layout,
    first: int = 0,
) -> Work:
    """The work of the first optimizer step of a schedule, from block `first` on."""
    sizes = [counted(encoded, m, layout) for m in schedule.microbatches[: schedule.per_step]]
    padded, real, scores = zip(*sizes, strict=True)
    tokens, positions, scored = sum(real), sum(padded), sum(scores) if needs.logps else 0
    count = models.n_layers(model)
    last = count if needs.logps else 1 + max(depth(model, s) for s in needs.sites)
    adapter = sum(p.numel() for p in dial.parameters())
    blocks = block_weights(model, last) - block_weights(model, first)
    a_position = 4.0 * blocks + 6.0 * adapter
    head = models.head(model)
    a_scored = 4.0 * sum(p.numel() for p in head.parameters())
    return Work(
        tokens,
        positions,
        scored,
        a_position * tokens + a_scored * scored,
        a_position * positions + a_scored * scored,
        max(padded),
        scores[padded.index(max(padded))],
    )


def counted(encoded: Encoded, rows: Sequence[int], layout: Layout) -> tuple[int, int, int]:
    """Positions that a batch computes, tokens among them, and scored tokens; a shared prefix once."""
    batch = collate(encoded, rows, layout)
    prefix = 0 if batch.prefix is None else len(batch.prefix)
    tokens = int((batch.segments >= 0).sum())
    return batch.input_ids.numel() + prefix, tokens + prefix, int(batch.token_scored.sum())


def reading_per_position(model: nn.Module) -> float:
    """Operations of a forward pass with the LM head, a position: what repeng runs."""
    head = sum(p.numel() for p in models.head(model).parameters())
    return 2.0 * (block_weights(model, models.n_layers(model)) + head)


def peer_work(
    weights: float, adapter: int, positions: int, reference: bool = False, below: float = 0.0
) -> float:
    """Operations of the other trainer's step: every padded position through all blocks and the LM
    head (without Triton TRL 1.16 scores every position), and the reference's where it is live.

    Args:
        weights: of the bare model's blocks and head (`reading_per_position` counts each twice).
        below: of these the weights below what is trained, through which no gradient runs.
    """
    step = 4.0 * weights - 2.0 * below + 6.0 * adapter
    return (step + (2.0 * weights if reference else 0.0)) * positions


def matmul_rate(model: nn.Module, repeats: int = 5) -> float:
    """Operations a second of this model's own linear layers, one of each shape, on ROWS positions:
    the median of several rounds."""
    parameter = next(model.parameters())
    shapes = linear_modules(model, blocks=range(1)).values()
    made = [
        (
            torch.randn(ROWS, n_in, device=parameter.device).to(parameter.dtype),
            torch.randn(n_out, n_in, device=parameter.device).to(parameter.dtype),
        )
        for n_in, n_out in shapes
    ]
    operations = 2.0 * ROWS * sum(a * b for a, b in shapes)
    seconds = []
    with torch.no_grad():
        for _ in range(repeats + 1):
            start = time.perf_counter()
            for x, weight in made:
                F.linear(x, weight)
            seconds.append(time.perf_counter() - start)
    return operations / statistics.median(seconds[1:])
