"""Log-probs of given tokens from the last hidden states, without keeping a logit more than needed."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from trimtab import models

CHUNK = 128
"""Tokens whose logits are held at once: small enough for the cache, large enough for the product."""

_plain: weakref.WeakKeyDictionary[nn.Module, dict[torch.dtype | None, bool]] = (
    weakref.WeakKeyDictionary()
)


def token_logps(logits: Float[Tensor, "M V"], ids: Int[Tensor, "M"]) -> Float[Tensor, "M"]:
    """Log-prob of each token from its logits, in nats."""
    return _FromLogits.apply(logits, ids)  # type: ignore[no-any-return]


def head_logps(
    head: nn.Linear, h: Float[Tensor, "M d"], ids: Int[Tensor, "M"]
) -> Float[Tensor, "M"]:
    """Log-prob of each token from the LM head's input, in nats, float32 (or float64).

    Logits live for a chunk of tokens at a time. What the gradient of a log-prob is with respect to
    its state, W[token] - p W, costs one product more while the logits are there, and saves keeping
    them; the head itself gets no gradient.
    """
    return _FromStates.apply(h, head.weight, head.bias, ids)  # type: ignore[no-any-return]


def has_plain_head(model: nn.Module) -> bool:
    """Whether the model's logits are known to be its LM head's product, with nothing done to them
    after it (scaling, soft-capping), nothing hooked to it and nothing trained in it. Known from the
    proof of the packed layout alone, so that a run that goes on takes the same way as one that was
    never stopped."""
    head = models.head(model)
    if type(head) is not nn.Linear or not models.is_plain(head.weight):
        return False
    if head._forward_hooks or head._forward_pre_hooks:
        return False
    if any(p.requires_grad for p in head.parameters()):
        return False
    return know_head(model)


def know_head(model: nn.Module, plain: bool | None = None) -> bool:
    """Whether a proof has seen (or, with `plain`, has found before and remembered) that logits are the
    head's product."""
    dtype = next((p.dtype for p in models.head(model).parameters()), None)
    known = _plain.setdefault(model, {})
    if plain is not None:
        known[dtype] = plain
    return known.get(dtype, False)


@contextmanager
def watching_head(model: nn.Module) -> Iterator[None]:
    """Within it the bare model is run once; whether its logits are its LM head's product is
    remembered."""
    head = models.head(model)
    states: list[Tensor] = []
    logits: list[Tensor] = []
    handles = [
        head.register_forward_pre_hook(lambda _, args: states.append(args[0])),
        model.register_forward_hook(lambda _, __, out: logits.append(out.logits)),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if isinstance(head, nn.Linear) and models.is_plain(head.weight) and states and logits:
        product = F.linear(states[0], head.weight, head.bias).to(logits[0].dtype)
        largest = float(logits[0].abs().max())
        plain = math.isfinite(largest) and product.shape == logits[0].shape
        plain = plain and torch.allclose(product, logits[0], rtol=0, atol=1e-5 * largest)
        know_head(model, plain)


class _FromLogits(torch.autograd.Function):
    """torch's log-softmax on a CPU leaves a gradient of some 2e-5 relative error in float32 (measured
    on SmolLM2 against float64); exp(logits - logsumexp) leaves 5e-6, and keeps one [M, V] tensor less.
    The gradient takes the logits' place: a second backward pass is refused by autograd."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor) -> Tensor:
        total = logits.logsumexp(-1)
        ctx.save_for_backward(logits, total, ids)
        return logits.gather(-1, ids[:, None])[:, 0] - total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        logits, total, ids = ctx.saved_tensors
        (grad,) = grads
        down = logits.sub_(total[:, None]).exp_().mul_(-grad[:, None])
        return down.scatter_add_(-1, ids[:, None], grad[:, None]), None


class _FromStates(torch.autograd.Function):
    """Chunks of tokens: logits, log-probs, and the gradient of each log-prob, `[M, d]`."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor) -> Tensor:
        exact = h.dtype if h.dtype == torch.float64 else torch.float32
        logps = h.new_empty(len(h), dtype=exact)
        slopes = torch.empty_like(h, dtype=exact) if h.requires_grad else None
        room = h.new_empty(min(CHUNK, len(h)), len(weight))
        for start in range(0, len(h), CHUNK):
            part = slice(start, start + CHUNK)
            id_ = ids[part]
            logits = torch.mm(h[part], weight.T, out=room[: len(id_)])
            if bias is not None:
                logits += bias
            p = logits if logits.dtype == exact else logits.to(exact)
            top = p.amax(-1, keepdim=True)
            token = p.gather(-1, id_[:, None]) - top
            p.sub_(top).exp_()
            total = p.sum(-1, keepdim=True)
            logps[part] = (token - total.log())[:, 0]
            if slopes is not None:
                expected = torch.mm(p.div_(total).to(h.dtype), weight).to(exact)
                slopes[part] = weight[id_].to(exact) - expected
        ctx.save_for_backward(slopes)
        return logps

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (slopes,) = ctx.saved_tensors
        (grad,) = grads
        return (grad[:, None] * slopes), None, None, None


gathered: weakref.WeakKeyDictionary[nn.Module, tuple[Tensor, Tensor]] = weakref.WeakKeyDictionary()
"""Rows and positions at which an LM head is had to compute, while it runs."""


def at_head(
    model: nn.Module, h: Float[Tensor, "B T d"], like: Float[Tensor, "B t e"]
) -> Float[Tensor, "B t d"]:
    """States of another site, in the same pass, at the positions that the LM head computes (`like`
    is its input): all of them, the last ones, or those that predict a scored token."""
    if (places := gathered.get(models.head(model))) is not None:
        return h[places][None]
    return h[:, -like.shape[1] :]
