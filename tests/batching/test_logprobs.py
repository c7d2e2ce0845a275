"""Log-probs from last states: as from logits, in value and gradient, and only where that is so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from conftest import TINY
from trimtab import logprobs, models
from trimtab.batching import collate, packing_proof
from trimtab.logprobs import has_plain_head, head_logps, token_logps
from trimtab.states import read


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 128])
def test_from_states_as_from_logits(monkeypatch, chunk, bias):
    monkeypatch.setattr(logprobs, "CHUNK", chunk)
    head = nn.Linear(6, 11, bias=bias).double().requires_grad_(False)
    h = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(0, 11, (7,))
    weights = torch.randn(7, dtype=torch.float64)
    found = head_logps(head, h, ids)
    expected = head(h).log_softmax(-1).gather(-1, ids[:, None])[:, 0]
    torch.testing.assert_close(found, expected)
    mine, theirs = (torch.autograd.grad((x * weights).sum(), h)[0] for x in (found, expected))
    torch.testing.assert_close(mine, theirs)
    assert torch.autograd.gradcheck(lambda x: head_logps(head, x, ids), [h])


def test_log_probs_of_extreme_logits_are_finite():
    head = nn.Linear(2, 3, bias=False).requires_grad_(False)
    head.weight.data = torch.tensor([[1e4, 0.0], [-1e4, 0.0], [0.0, 1.0]])
    h = torch.tensor([[1.0, 0.0]], requires_grad=True)
    found = head_logps(head, h.expand(3, 2), torch.tensor([0, 1, 2]))
    assert found.tolist() == pytest.approx([0, -2e4, -1e4])
    assert torch.autograd.grad(found.sum(), h)[0].isfinite().all()


def test_from_logits_the_gradient_is_that_of_a_log_softmax():
    logits = torch.randn(5, 9, dtype=torch.float64, requires_grad=True)
    ids, weights = torch.randint(0, 9, (5,)), torch.randn(5, dtype=torch.float64)
    expected = torch.autograd.grad(
        (logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0] * weights).sum(), logits
    )[0]
    kept = logits * 1  # the gradient takes its place
    found = torch.autograd.grad((token_logps(kept, ids) * weights).sum(), logits)[0]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", [*TINY, "gemma2", "granite", "cohere"])
def test_the_head_alone_is_read_only_where_nothing_follows_it(tiny: Any, rows: Any, name: str):
    model = tiny(name, "eager", fresh=True)
    batch = collate(rows, [0, 1, 2])
    assert not has_plain_head(model), "not before the proof"
    first = read(model, batch, logps=True).logps
    assert packing_proof(model).holds
    assert has_plain_head(model) == (name not in ("gemma2", "granite", "cohere"))
    second = read(model, batch, logps=True).logps
    torch.testing.assert_close(first, second, rtol=0, atol=1e-5 * float(first.abs().max()))


def test_a_hooked_or_trained_head_is_run_itself(tiny: Any, rows: Any):
    model = tiny("llama", fresh=True)
    batch = collate(rows, [0, 1])
    packing_proof(model)
    plain = read(model, batch, logps=True).logps
    head = models.head(model)
    handle = head.register_forward_hook(lambda _, __, y: 2 * y)
    assert has_plain_head(model) is False
    assert not torch.allclose(read(model, batch, logps=True).logps, plain)
    handle.remove()
    assert has_plain_head(model) is True
    head.weight.requires_grad_(True)
    assert read(model, batch, logps=True).logps.requires_grad
    head.weight.requires_grad_(False)
