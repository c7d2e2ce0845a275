"""Whether packed rows may go through block masks on a model: found by trying, once, as every shortcut is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trimtab import models, proofs
from trimtab.batching import blocks, probes
from trimtab.batching.batches import Batch, collate
from trimtab.batching.forward import forward


def know_blocks(model: nn.Module, prove: Callable[[], Any]) -> str:
    """Have a model's masks be blocks where that holds.

    Args:
        prove: the proof of packed rows, on whatever masks they have (a `Proof`).

    Returns:
        Why they stay dense on a GPU; empty where they do not, and where there was nothing to try.
    """
    if not blocks.able(model):
        return ""
    found = proofs.proven(model, "blocks 1", "random", lambda: _try(model, prove))
    blocks.know(model, found["reason"] == "")
    return found["reason"] and f"no block masks, {found['reason']}; masks are dense"


def _try(model: nn.Module, prove: Callable[[], Any]) -> dict[str, Any]:
    """Log-probs of packed rows against single ones, then gradients against those of dense masks."""
    with blocks.trying(model, True):
        proof = prove()
    reason = proof.refused or proof.reason or ("" if proof.shares else "lines of rows differ")
    found = {"error": proof.error, "reason": reason}
    if reason:
        return found
    rows = probes.encoded(probes.random_rows(model))
    batch = collate(rows, range(len(rows.rows))).to(next(model.parameters()).device)
    try:
        by_blocks, dense = (_gradient(model, batch, on) for on in (True, False))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever the kernel's backward does not take
        return found | {"reason": f"no gradient ({str(error).splitlines()[0][:100]})"}
    gap = ((by_blocks - dense).norm() / dense.norm()).item()
    half = by_blocks.dtype in (torch.bfloat16, torch.float16)
    wrong = not gap <= (0.05 if half else 1e-3)
    return found | {"gradient": gap, "reason": f"gradients differ by {gap:.1%}" if wrong else ""}


def _gradient(model: nn.Module, batch: Batch, on: bool) -> Tensor:
    """Of the sum of the scored log-probs, in the embedded tokens `[B, T, d]`."""
    leaves: list[Tensor] = []

    def leaf(_: nn.Module, __: Any, out: Tensor) -> Tensor:
        leaves.append(out.detach().requires_grad_())
        return leaves[-1]

    handle = models.embed(model).register_forward_hook(leaf)
    try:
        with torch.enable_grad(), models.reading(model), blocks.trying(model, on):
            logits = forward(model, batch).logits[batch.token_row, batch.token_from]
            logps = logits.float().log_softmax(-1).gather(-1, batch.token_id[:, None])
            return torch.autograd.grad(logps.sum(), leaves[0])[0]
    finally:
        handle.remove()
