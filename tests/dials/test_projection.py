"""Gradients let through: what is kept, on which axis, of which batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers_fit import adapter, random_pairs, relative
from trimtab.batching import collate, encode, layout_of, plan_training
from trimtab.dials.adapter import AdapterDial
from trimtab.errors import ConfigError
from trimtab.objectives import DPO
from trimtab.states import pair_up, read
from trimtab.training import fit
from trimtab.training.projection import (
    Projection,
    off_direction,
    onto,
    shrunk,
    step_differences,
)
from trimtab.training.recipes import AdapterSettings, ProjectionRecipe, Recipe, TrainSettings
from trimtab.training.settings import ProjectionSettings


def recipe(steps: int = 2, **projection: Any) -> ProjectionRecipe:
    return ProjectionRecipe(
        projection=ProjectionSettings(**projection),
        dial=AdapterSettings(rank=4, lora_alpha=8),
        train=TrainSettings(pairs_per_step=8, max_steps=steps, learning_rate=1e-2),
    )


def test_onto_by_hand():
    p = torch.tensor([0.0, 2.0])
    g = torch.tensor([[3.0, -4.0], [1.0, 1.0]])
    assert onto(g, p, 0.0).tolist() == [[0, -4], [0, 1]]
    assert onto(g, p, 0.5).tolist() == [[1.5, -4], [0.5, 1]]
    assert onto(g, p, 0.0, 0.1).flatten().tolist() == pytest.approx([0, -0.4, 0, 1])
    assert off_direction(g, p) == pytest.approx((9 + 1) / (9 + 16 + 1 + 1))
    assert off_direction(onto(g, p, 0.0), p) == 0


def test_clipping_scales_and_keeps_the_direction():
    g, p = torch.tensor([[3.0, 4.0]]), torch.tensor([0.0, 2.0])
    assert shrunk(g, p, 0.5).flatten().tolist() == pytest.approx([0.6, 0.8])
    assert torch.equal(shrunk(g, p, 100.0), g)
    assert torch.equal(shrunk(g, p, None), g)


@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_no_energy_is_left_off_the_direction_in_any_module(name, tiny, tokenizer):
    """Non-square modules, too: keys and values of grouped attention, up and down projections."""
    model = tiny(name)
    encoded = encode(random_pairs(8), tokenizer)
    layout = layout_of(model)
    schedule = plan_training(encoded, pairs_per_step=8, epochs=1, seed=0, layout=layout)
    dial = adapter(model, std=0.02)
    differences = step_differences(model, encoded, schedule, dial.paths, layout)
    projection = Projection(ProjectionSettings(), dial, differences)
    with dial(model, 1.0, training=True):
        for rows in schedule.microbatches:
            found = read(model, collate(encoded, rows, layout), logps=True)
            (found.logps * torch.linspace(-1, 1, len(found.logps))).sum().backward()
    before = {p: B.grad.clone() for p, B in zip(dial.paths, dial.B, strict=True)}
    inputs = [A.grad.clone() for A in dial.A]
    projection.on_pre_optimizer_step()
    shapes = set()
    for path, A, B in zip(dial.paths, dial.A, dial.B, strict=True):
        p = differences[path][0]
        shapes.add((A.shape[1], B.shape[0]))
        assert off_direction(before[path].T, p) > 0.5, "there is something to take away"
        assert off_direction(B.grad.T, p) < 1e-6
        torch.testing.assert_close(p @ B.grad, p @ before[path])
    assert len({a == b for a, b in shapes}) == 2, "square and other modules"
    assert all(torch.equal(A.grad, old) for A, old in zip(dial.A, inputs, strict=True))


def test_differences_are_those_of_the_whole_step(tiny, tokenizer):
    """Mean over all pairs of a step, read one row at a time through the plain model."""
    model = tiny("llama")
    encoded = encode(random_pairs(9, items=6), tokenizer)
    layout = layout_of(model)
    schedule = plan_training(encoded, pairs_per_step=5, epochs=2, seed=1, budget=64, layout=layout)
    path = "model.layers.2.mlp.down_proj"
    found = step_differences(model, encoded, schedule, [path], layout, budget=64)[path]
    assert found.shape == (schedule.steps, 32)
    for step in range(schedule.steps):
        deltas = []
        for row in schedule.rows_of(step):
            with torch.no_grad():
                batch = collate(encoded, [row], "padded")
                got = pair_up(read(model, batch, sites=[f"{path}:out"]), batch)
            deltas.append(got.chosen[f"{path}:out"] - got.rejected[f"{path}:out"])
        torch.testing.assert_close(found[step], torch.cat(deltas).mean(0), rtol=1e-4, atol=1e-5)


def test_the_signal_is_projected_behind_every_module(tiny, tokenizer):
    model = tiny("qwen3")
    encoded = encode(random_pairs(6), tokenizer)
    layout = layout_of(model)
    schedule = plan_training(encoded, pairs_per_step=6, epochs=1, seed=0, layout=layout)
    dial = adapter(model, std=0.02)
    differences = step_differences(model, encoded, schedule, dial.paths, layout)
    projection = Projection(ProjectionSettings(of="signal"), dial, differences)
    with dial(model, 1.0, training=True), projection.attached(model):
        for rows in schedule.microbatches:
            found = read(model, collate(encoded, rows, layout), logps=True)
            (found.logps * torch.linspace(-1, 1, len(found.logps))).sum().backward()
    for path, B in zip(dial.paths, dial.B, strict=True):
        assert off_direction(B.grad.T, differences[path][0]) < 1e-6
    assert not any(len(m._forward_hooks) for m in model.model.layers[0].mlp.modules())


def test_an_update_is_kept_to_the_direction_where_a_gradient_alone_is_not(
    tiny, tokenizer, tmp_path: Path
):
    """AdamW rescales every entry of a gradient: what it changes leaves the direction again."""
    model, pairs = tiny("llama"), random_pairs(8)
    encoded = encode(pairs, tokenizer)
    layout = layout_of(model)
    schedule = plan_training(encoded, pairs_per_step=8, epochs=1, seed=0, layout=layout)
    shares = {}
    for on in ("gradient", "update"):
        dial = fit(recipe(1, on=on), model, tokenizer, pairs, out=tmp_path / on)
        assert isinstance(dial, AdapterDial)
        differences = step_differences(model, encoded, schedule, dial.paths, layout)
        off = [
            off_direction(B.detach().T, differences[path][0])
            for path, B in zip(dial.paths, dial.B, strict=True)
        ]
        shares[on] = max(off)
    assert shares["update"] < 1e-6
    assert shares["gradient"] > 0.1


def test_as_published_it_leaves_modules_that_are_not_square_alone(tiny, tokenizer):
    model = tiny("llama")
    dial = adapter(model, std=0.02)
    differences = {p: torch.randn(1, B.shape[0]) for p, B in zip(dial.paths, dial.B, strict=True)}
    for tensor in (*dial.A, *dial.B):
        tensor.grad = torch.randn(tensor.shape)
    before = [t.grad.clone() for t in (*dial.A, *dial.B)]
    Projection(ProjectionSettings(variant="published"), dial, differences).on_pre_optimizer_step()
    for A, B, old, old_B in zip(dial.A, dial.B, before, before[len(dial.A) :], strict=False):
        assert torch.equal(B.grad, old_B)
        assert torch.equal(A.grad, old) == (A.shape[1] != B.shape[0])


def test_projected_runs_resume_and_differ_from_dpo(tiny, tokenizer):
    model, pairs = tiny("llama"), random_pairs(8)
    found = {}
    for name, settings in {
        "weights": {},
        "signal": {"of": "signal"},
        "everything kept": {"keep": 1.0},
        "published": {"variant": "published"},
        "signal, published": {"of": "signal", "variant": "published"},
    }.items():
        dial: Any = fit(recipe(3, **settings), model, tokenizer, pairs)
        found[name] = list(dial.B)
    dpo = Recipe(DPO(), recipe().dial, recipe(3).train)
    plain: Any = fit(dpo, model, tokenizer, pairs)
    weights = list(plain.B)
    assert relative(found["everything kept"], weights) < 1e-4, "a share of 1 takes nothing away"
    moved = {k: relative(v, weights) for k, v in found.items() if k != "everything kept"}
    # As published four fifths of everything else are kept and AdamW takes out the scale: DPO.
    assert moved.pop("published") < 0.01
    assert min(moved.values()) > 0.5, moved


def test_bad_settings():
    with pytest.raises(ConfigError, match="weights, signal"):
        ProjectionSettings(of="weight")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"projection\.keep"):
        ProjectionSettings(keep=-0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"of": "signal", "on": "update"}, "expected of=weights"),
        ({"on": "update", "variant": "published"}, "expected on=gradient"),
        ({"on": "update", "clip": 0.5}, "expected on=gradient"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        ProjectionSettings(**settings)
