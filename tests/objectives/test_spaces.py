"""Spaces: shapes, isometry where it is claimed, the identity at the start, gradients, and how they
are made from a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers_fit import random_pairs
from trimtab import models
from trimtab.batching import encode
from trimtab.errors import ConfigError
from trimtab.objectives import DPO, MSE, InnerDPO, Rank
from trimtab.readout import Needs
from trimtab.spaces import (
    TRAINABLE,
    EtherPlus,
    Householder,
    Projector,
    leading_directions,
    span_of,
)
from trimtab.training.plan import Run
from trimtab.training.recipes import InnerRecipe, Method
from trimtab.training.settings import SpaceSettings, check_space, no_effect
from trimtab.training.spaces import build_spaces, site_widths, suppressed_tokens

WIDTH = 12


def made(kind: str, *, moved: bool) -> Any:
    generator = torch.Generator().manual_seed(0)
    extra = {"rank": 4} if kind == "hra" else {}
    space = TRAINABLE[kind](WIDTH, generator, **extra)  # type: ignore[call-arg]
    if moved:
        for p in space.parameters():
            p.data += 0.7 * torch.randn(p.shape, generator=generator)
    return space.double()


def matrix(space: Any) -> torch.Tensor:
    return space(torch.eye(WIDTH, dtype=torch.float64))


@pytest.mark.parametrize("kind", TRAINABLE)
def test_isometric_where_claimed(kind):
    for moved in (False, True):
        H = matrix(made(kind, moved=moved))
        error = (H @ H.T - torch.eye(WIDTH, dtype=torch.float64)).abs().max()
        if TRAINABLE[kind].isometric:
            assert error < 1e-12
        elif moved:
            assert error > 0.01


@pytest.mark.parametrize("kind", ["ortho", "hra", "etherplus"])
def test_the_identity_at_the_start(kind):
    torch.testing.assert_close(
        matrix(made(kind, moved=False)), torch.eye(WIDTH, dtype=torch.float64)
    )


@pytest.mark.parametrize("kind", TRAINABLE)
def test_shapes_linearity_and_gradients(kind):
    space = made(kind, moved=True)
    h = torch.randn(3, 5, WIDTH, dtype=torch.float64)
    assert space(h).shape == h.shape
    torch.testing.assert_close(space(2 * h), 2 * space(h))
    torch.testing.assert_close(space(h), h @ matrix(space))
    (space(h)[..., 0] ** 2).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in space.parameters())
    inputs = [p.detach().clone().requires_grad_() for p in space.parameters()]
    names = [n for n, _ in space.named_parameters()]
    few = h[0, :2]

    def run(*values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(space, dict(zip(names, values, strict=True)), few)

    assert torch.autograd.gradcheck(run, inputs)


def test_stretch_is_what_the_singular_values_say():
    for moved in (False, True):
        space = made("etherplus", moved=moved)
        values = torch.linalg.svdvals(matrix(space))
        torch.testing.assert_close(space.stretch(), (values - 1).square().sum(), rtol=0, atol=1e-9)
    assert isinstance(space, EtherPlus)
    assert made("ether", moved=True).stretch() is None


def test_a_projection_and_its_rest():
    basis = torch.linalg.qr(torch.randn(WIDTH, 3, dtype=torch.float64))[0]
    h = torch.randn(4, WIDTH, dtype=torch.float64)
    inside, rest = Projector(basis)(h), Projector(basis, without=True)(h)
    torch.testing.assert_close(inside + rest, h)
    torch.testing.assert_close(Projector(basis)(inside), inside)
    assert (rest @ basis).abs().max() < 1e-12


def test_leading_directions_hold_the_share_and_not_more():
    # squared energy along the axes: 9 + 4 + 4, so half of 17 takes the first axis alone, 0.6 two
    one, two = torch.diag(torch.tensor([3.0, 0, 2])), torch.tensor([[0.0, 2, 0]])
    top = leading_directions([one, two], 0.5)
    assert top.shape == (3, 1)
    assert top.abs().flatten().tolist() == pytest.approx([1, 0, 0])
    assert leading_directions([one, two], 0.6).shape == (3, 2)
    with pytest.raises(ValueError, match="takes all"):
        leading_directions([one, two], 0.99)


def test_the_span_of_rows_that_repeat_each_other():
    rows = torch.tensor([[1.0, 0, 0], [2, 0, 0], [0, 1, 1], [0, 0, 5]])
    basis = span_of(rows, torch.tensor([0, 1, 2]))
    assert basis.shape == (3, 2)
    torch.testing.assert_close(basis.T @ basis, torch.eye(2, dtype=torch.float64))
    assert (
        (rows[:3].double() @ basis).norm(dim=-1) - rows[:3].double().norm(dim=-1)
    ).abs().max() < 1e-12


def test_reflections_come_in_pairs():
    with pytest.raises(ValueError, match="even"):
        Householder(WIDTH, rank=3)
    with pytest.raises(ConfigError, match="even"):
        SpaceSettings(kind="hra", rank=3)


# ---- made from a model --------------------------------------------------------------------------


def run(settings: SpaceSettings, model: Any, encoded: Any, store: Any) -> Run:
    """A run in a space."""
    named = Method("spaced", InnerRecipe(MSE(), space=settings), "", "")
    return Run(named, model, encoded, 0, Path(), store=store)


def test_spaces_of_a_model(tiny: Any, tokenizer: Any, store: Any) -> None:
    model, encoded = tiny("llama"), encode(random_pairs(8), tokenizer)
    needs = Needs(sites=(1, 2), reference_states=True)
    for kind in ("svd", "ortho", "hra", "ether", "etherplus", "suppressed"):
        settings = SpaceSettings(kind=kind, rank=4 if kind in ("hra", "suppressed") else None)  # type: ignore[arg-type]
        spaces = build_spaces(run(settings, model, encoded, store), needs)
        assert list(spaces.items()) == [1, 2]
        states = {s: torch.randn(3, 32) for s in (1, 2)}
        assert all(h.shape == (3, 32) for h in spaces(states).values())
        trained = sum(p.numel() for p in spaces.parameters())
        assert (trained > 0) == (kind in TRAINABLE)
        assert (spaces.penalty() is not None) == (kind == "etherplus")


def test_suppressed_tokens_are_those_that_fall_most(tiny: Any, tokenizer: Any, store: Any) -> None:
    model, encoded = tiny("llama"), encode(random_pairs(8), tokenizer)
    found = suppressed_tokens(model, encoded, 5, store=store)
    falls = []
    for row in encoded.rows:
        for answer in row.answers:
            ids = torch.tensor([row.prompt + answer[:-1]])  # without EOS
            with torch.no_grad():
                blocks = model(input_ids=ids, output_hidden_states=True).hidden_states
                lens = [
                    model.lm_head(h).log_softmax(-1)
                    for h in (models.final_norm(model)(blocks[3][0, -1]), blocks[4][0, -1])
                ]
            falls.append(lens[0] - lens[1])
    expected = torch.stack(falls).mean(0).topk(5).indices
    assert found.tolist() == expected.tolist()


def test_a_space_of_the_lm_head_needs_states_of_its_width(
    tiny: Any, tokenizer: Any, store: Any
) -> None:
    model, encoded = tiny("llama"), encode(random_pairs(8), tokenizer)
    site = "model.layers.1.mlp.down_proj:in"
    assert site_widths(model, (0, site)) == {0: 32, site: 48}
    needs = Needs(sites=(0, site), reference_states=True)
    with pytest.raises(ConfigError, match=r"down_proj:in.* has 48"):
        build_spaces(run(SpaceSettings(kind="svd"), model, encoded, store), needs)
    build_spaces(run(SpaceSettings(kind="ether"), model, encoded, store), needs)


def test_a_space_without_effect_says_so_and_names_others():
    assert "etherplus" in (no_effect("ether", MSE()) or "")
    assert no_effect("hra", InnerDPO()) is not None
    assert no_effect("ortho", Rank()) is None
    assert no_effect("hra", InnerDPO(variant="published", align="para_orth_signed")) is None
    assert no_effect("svd", MSE()) is None
    with pytest.raises(ConfigError, match="reads no hidden states"):
        check_space("svd", DPO())
