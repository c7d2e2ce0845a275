"""How large microbatches may be, by the bytes that one keeps for its backward pass."""

from __future__ import annotations

import gc

import torch

from trimtab import models
from trimtab.batching import Layout, collate, plan_batches
from trimtab.dials import Dial
from trimtab.errors import ConfigError
from trimtab.logprobs import CHUNK
from trimtab.readout import Needs
from trimtab.sparing import sparing
from trimtab.states import read
from trimtab.training.plan import MOST, Run
from trimtab.training.settings import bytes_of

OVER = 2.2
"""Peak memory over the bytes kept, with glibc's allocator (docs/LOG.md, 2026-11-29)."""
TRIED = 512
"""Padded positions of the batch that is measured."""


def fitting(run: Run, dial: Dial, needs: Needs, layout: Layout) -> int | None:
    """Padded positions of a microbatch that `--train.memory` has room for; None where it is not set. What
    the run has chosen before stays.

    Raises:
        ConfigError: not even the longest row fits.
    """
    limit = run.recipe.train.memory
    if limit is None:
        return None
    return run.begun_with(lambda: _measured(run, dial, needs, layout, limit))


def _measured(run: Run, dial: Dial, needs: Needs, layout: Layout, limit: str) -> int:
    """As many as fit, by one pass."""
    model, encoded = run.model, run.encoded
    device = next(model.parameters()).device
    batch = collate(encoded, plan_batches(encoded, TRIED, layout)[0], layout).to(device)
    trained = [p for p in model.parameters() if p.requires_grad]
    model.requires_grad_(False)
    try:
        with (
            models.reading(model),
            torch.enable_grad(),
            dial(model, 1.0, training=True, force=True),
            sparing([*model.parameters(), *dial.parameters()]) as counted,
        ):
            read(model, batch, **needs.asked())
    finally:
        for p in trained:
            p.requires_grad_()
    gc.collect()  # what ended the pass holds its frames, and these its activations
    per_position = OVER * counted.bytes / batch.input_ids.numel()
    if run.recipe.both_ends:  # rows run twice
        per_position *= 2
    parameter = next(model.parameters())
    size = parameter.element_size()
    always = 3 * sum(p.numel() * p.element_size() for p in dial.parameters())  # gradient, moments
    if needs.logps:
        always += 6 * CHUNK * models.text_config(model).vocab_size * max(size, 4)
    chosen = int((bytes_of(limit, "train.memory") - always) / per_position)
    longest = batch.input_ids.shape[1]
    if chosen < longest:
        least = (always + longest * per_position) / 2**20
        raise ConfigError(
            f"train.memory is {limit}; a step on the longest row ({longest} tokens) takes about "
            f"{least:,.0f} MiB beside the model: expected more, a smaller --max-length, or "
            "--train.activation-checkpointing"
        )
    chosen = min(chosen, MOST)
    run.progress.say(f"train.memory {limit}: microbatches of up to {chosen:,} positions")
    return chosen
