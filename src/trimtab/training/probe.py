"""The gradient probe: before anything is trained on a base, gradients through it are held against the
weights that its layers multiply by, and against what its loss really does."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trimtab import models
from trimtab.dials.contexts import paused
from trimtab.errors import ModelError, TrainingError

COSINE = 0.998
"""Least cosine of the gradient at a layer's input with that on its dequantised weight."""
TOKENS, DIRECTIONS = 8, 4
STEP = 3e-3
"""How far the loss is to move, in nats, for its slope to be measured."""
STEADY, NEAR = 0.1, 0.05
"""Slopes at one and at two steps must agree this well to be believed; autograd's then may be so far
off, and three times as far as these are from one another. (Seen on sound models: 1e-4 to 1e-3.)"""

_found: weakref.WeakKeyDictionary[nn.Module, tuple[int, str]] = weakref.WeakKeyDictionary()


def check_gradients(model: nn.Module) -> None:
    """Refuse to train on a base through which gradients are wrong.

    Two things are tried, once a model. Of each kind of quantised layer the gradient at its input
    must be that on its dequantised weight. And along random directions of the embeddings (of the
    first block's input) the slope of the loss must be autograd's; where rounding hides the slope
    (half precision, quantised activations) this says nothing.

    Raises:
        TrainingError: with the layer and what is wrong there.
    """
    models.settle(model)
    kinds = " ".join(f"{type(m).__module__}.{type(m).__name__}" for m in model.modules())
    mark = hash((kinds, models.quantisation_digest(model), next(model.parameters()).dtype))
    if _found.get(model, (0, ""))[0] != mark:
        _found[model] = mark, _wrong(model)
    if wrong := _found[model][1]:
        raise TrainingError(
            f"{wrong}: nothing can be trained on this base; train on another quantisation "
            "or on the plain model (a method without training, such as mean, needs no gradient)"
        )


def _wrong(model: nn.Module) -> str:
    """What is wrong with the gradients through a model; empty where nothing is found to be."""
    with (
        _still(model),
        models.uncompiled(),
        paused(),
        models.differentiable(model),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        return _wrong_layer(model) or _wrong_slope(model)


@contextmanager
def _still(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, with its weights frozen; put back afterwards."""
    modes = [(m, m.training) for m in model.modules()]
    wanted = [p for p in model.parameters() if p.requires_grad]
    model.eval()
    for p in wanted:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for p in wanted:
            p.requires_grad_(True)


def _wrong_layer(model: nn.Module) -> str:
    tried = set()
    dtype = next((p.dtype for p in model.parameters() if models.is_plain(p)), torch.float32)
    for path, scheme in models.quantisation_of(model).items():
        module: Any = model.get_submodule(path)
        if not hasattr(module, "in_features"):
            continue
        kind = (type(module), scheme, module.in_features, module.out_features)
        if kind in tried:
            continue
        tried.add(kind)
        try:
            weight = models.dense_weight(module)
        except ModelError:
            continue  # the slope of the whole model has to do
        if reason := _differs(module, weight, dtype):
            return f"{path} ({scheme.split(' {')[0][:60]}): {reason}"
    return ""


def _differs(module: nn.Module, weight: Tensor, dtype: torch.dtype) -> str:
    """How the gradient at a layer's input differs from that on its weight; empty where it agrees."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS, weight.shape[1], generator=generator).to(weight.device, dtype)
    y = module(x.requires_grad_())
    up = torch.randn(y.shape, generator=generator).to(y)
    grad = None
    if y.requires_grad:
        (grad,) = torch.autograd.grad((y * up).sum(), x, allow_unused=True)
    if grad is None:
        return "hands no gradient to its input"
    cosine = torch.cosine_similarity(grad.float().flatten(), (up.float() @ weight).flatten(), 0)
    if cosine >= COSINE:
        return ""
    return f"its gradient has a cosine of {cosine:.3f} with that on its dequantised weight"


def _wrong_slope(model: nn.Module) -> str:
    generator = torch.Generator().manual_seed(0)
    vocabulary = min(models.text_config(model).vocab_size, 1000)
    ids = torch.randint(vocabulary, (1, TOKENS), generator=generator)
    ids = ids.to(next(p.device for p in model.parameters() if not p.is_meta))
    moved: list[Tensor] = []  # what is added to the embeddings

    def add(_: nn.Module, __: Any, y: Any) -> Any:
        if not isinstance(y, Tensor):
            return None
        if not moved:
            moved.append(torch.zeros_like(y).requires_grad_())
        return y + moved[0]

    def loss(rows: int) -> Tensor:
        repeated = ids.expand(rows, -1)
        out = model(
            input_ids=repeated, attention_mask=torch.ones_like(repeated), use_cache=False
        ).logits.float()
        picked = out[:, :-1].log_softmax(-1).gather(-1, repeated[:, 1:, None])
        return -picked.mean((1, 2))

    handle = models.embed(model).register_forward_hook(add)
    try:
        start = loss(1)
        if not start.requires_grad:
            return "no gradient reaches its embeddings from its loss"
        (grad,) = torch.autograd.grad(start.sum(), moved, allow_unused=True)
        if grad is None or not (length := float(grad.float().norm())):
            return "no gradient reaches its embeddings from its loss"
        ways = torch.randn(DIRECTIONS, *grad.shape[1:], generator=generator).to(grad.device)
        ways = ways / ways.flatten(1).norm(dim=1)[:, None, None]
        expected = (ways * grad.float()).flatten(1).sum(1)
        size = STEP / max(float(expected.abs().mean()), 1e-6 * length)
        steps = torch.cat([k * size * ways for k in (1, -1, 2, -2)])
        with torch.no_grad():
            moved[0] = steps.to(grad.dtype)
            up, down, up2, down2 = loss(len(steps)).view(4, DIRECTIONS)
    except Exception:  # of any kind: a model that takes no such pass is judged by its layers alone
        return ""
    finally:
        handle.remove()
    slope, wide = (up - down) / (2 * size), (up2 - down2) / (4 * size)
    unsteady = float((slope - wide).norm() / wide.norm())
    off = float((slope - expected).norm() / slope.norm())
    if not unsteady <= STEADY or off <= NEAR + 3 * unsteady:
        return ""
    return f"along random directions its loss rises otherwise than its gradient says (by {off:.0%})"
