"""What is found by trying: rows and streams, linear layers, shared weights, merged against hooked."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers_kinds import IDS, build, kind, layer, logits, lora, shaken
from trimtab import fit, models
from trimtab.dials import AdapterDial, ConceptDial, IA3Dial, RotationDial, VectorDial
from trimtab.dials.attach import VECTOR, Edit, attach
from trimtab.dials.rotation import Basis
from trimtab.dials.targets import left_out, linear_modules
from trimtab.dials.trial import Axes, axes_at, unfit, width_at
from trimtab.errors import ConfigError, DialError
from trimtab.export import export
from trimtab.progress import Progress
from trimtab.training.methods import method

STREAMS = {"gemma3n": Axes(4, 1, 2, (0,)), "deepseek_v4": Axes(4, 0, 1, (2,))}


def vector(site: Any, width: int = 32) -> VectorDial:
    v = torch.randn(width, generator=torch.Generator().manual_seed(1))
    return VectorDial({site: v}, {site: 3.0})


# ---- rows, tokens, streams ----------------------------------------------------------------------


@pytest.mark.parametrize("name", STREAMS)
def test_streams_are_found_and_vectors_there_refused(name):
    model = kind(name)
    assert axes_at(model, 1) == STREAMS[name]
    assert axes_at(model, "final") == Axes(3, 0, 1)
    path = models.layer_paths(model)[1]
    for dial in (
        vector(1),
        vector(f"{path}:out"),
        ConceptDial({1: torch.ones(32)}),
        vector(-1).times(2),
    ):
        with pytest.raises(DialError, match=r"several residual streams there.*such as 'final'"):
            dial(model, 1.0).__enter__()
    bare = logits(model)
    for site in ("final", f"{path}.mlp:out"):
        with vector(site)(model, [1.0, 0.0, -1.0]):
            rows = logits(model)
        assert torch.equal(rows[1], bare[1])
        assert (rows[0] - bare[0]).abs().max() > 0.1
        with vector(site)(model, -1.0):
            torch.testing.assert_close(rows[2:], logits(model, IDS[2:]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [*STREAMS, "qwen4_exp", "llama4", "mamba", "jamba"])
def test_rows_of_an_adapter_are_rows_whatever_else_has_axes(name):
    """As many rows as there are streams (3 and 4): an axis of them must not be taken for rows."""
    model = kind(name)
    dial = lora(model)
    for rows in (3, 4):
        ids = IDS[[0, 1, 2, 0][:rows]]
        alphas = [1.0, 0.0, -1.0, 0.5][:rows]
        bare = logits(model, ids)
        with dial(model, alphas):
            found = logits(model, ids)
        assert torch.equal(found[1], bare[1])
        for row, alpha in enumerate(alphas):
            with dial(model, alpha):
                alone = logits(model, ids[row : row + 1])[0]
            torch.testing.assert_close(found[row], alone, atol=1e-4, rtol=1e-4)


def test_a_wide_state_is_one_state(few_pairs, tokenizer):
    """qwen4_exp's streams lie in the last axis: a vector has a place there, four times as wide."""
    model = kind("qwen4_exp")
    assert axes_at(model, 0) == Axes(3, 0, 1)
    assert width_at(model, 0, "a vector") == 128
    dial = fit("mean", model, tokenizer, few_pairs)
    assert isinstance(dial, VectorDial)
    assert len(dial.direction(dial.sites[0])) == 128
    bare = logits(model)
    with dial(model, 1.0):
        assert (logits(model) - bare).abs().max() > 1e-2
    with pytest.raises(DialError, match="32 entries, the model's hidden states 128"):
        vector(0)(model, 1.0).__enter__()


@pytest.mark.parametrize("name", STREAMS)
def test_fits_on_models_with_streams(name, few_pairs, tokenizer):
    """DPO reads no states; a mean direction says what to do."""
    with pytest.raises(DialError, match=r"several residual streams there.*'final'"):
        fit("mean", kind(name), tokenizer, few_pairs)
    with pytest.raises(DialError, match="several residual streams there"):
        fit("hs-none-mse", kind(name), tokenizer, few_pairs)
    recipe = dataclasses.replace(method("mean").recipe, sites="final")
    dial = fit(recipe, kind(name), tokenizer, few_pairs)
    bare = logits(kind(name))
    with dial(kind(name), 1.0):
        assert (logits(kind(name)) - bare).abs().max() > 1e-2
    model = build(name)
    recipe = method("dpo").recipe
    train = dataclasses.replace(recipe.train, max_steps=2, pairs_per_step=3)
    dial = fit(dataclasses.replace(recipe, train=train), model, tokenizer, few_pairs)
    with dial(model, 1.0):
        assert (logits(model) - bare).abs().max() > 1e-3


class TimeFirst(nn.Module):
    """A layer's part that works on `[T, B, d]`."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = nn.Sequential(inner)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.transpose(0, 1)).transpose(0, 1)


class OneLine(TimeFirst):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.flatten(0, 1)).view_as(x)


class OneLineOfABatch(TimeFirst):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.flatten(0, 1)[None]).view_as(x)


class Stack(TimeFirst):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(torch.stack([x, 2 * x, x])).mean(0) * 3 / 4


class SomeTokens(TimeFirst):
    """As an expert sees its tokens."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        here = x[..., 0] > 0
        y[here] = self.inner(x[here])
        return y


@pytest.mark.parametrize(
    ("kind_of", "axes"),
    [
        (TimeFirst, Axes(3, 1, 0)),
        (OneLine, Axes(2, 0, 0)),
        (OneLineOfABatch, Axes(3, 1, 1)),
        (Stack, Axes(4, 1, 2, (0,))),
    ],
)
def test_rows_are_found_in_any_axis(tiny, kind_of, axes):
    model = tiny("llama", fresh=True)
    model.model.layers[1].mlp = kind_of(model.model.layers[1].mlp)
    site = "model.layers.1.mlp.inner:out"
    assert axes_at(model, site) == axes
    bare = logits(model)
    for dial in (vector(site), vector(site).times(1)):
        with dial(model, [1.0, 0.0, -1.0]):
            rows = logits(model)
        assert torch.equal(rows[1], bare[1])
        for row, alpha in ((0, 1.0), (2, -1.0)):
            with dial(model, alpha):
                close = logits(model)[row]
            torch.testing.assert_close(rows[row], close, atol=1e-5, rtol=1e-5)
    where = VectorDial(
        {site: torch.randn(32)}, {site: 3.0}, positions=(int(IDS[0, 4]), int(IDS[2, 2]))
    )
    with where(model, 1.0):
        some = logits(model)
    assert torch.equal(some[0, :4], bare[0, :4])
    assert (some[0, 4] - bare[0, 4]).abs().max() > 0.01
    with pytest.raises(ConfigError, match="alpha has 2 rows"), vector(site)(model, [1.0, 0.5]):
        logits(model)


def test_where_rows_cannot_be_told_they_are_refused(tiny):
    """Two alphas on what a router deals out would fall on the wrong rows."""
    model = tiny("llama", fresh=True)
    model.model.layers[1].mlp = SomeTokens(model.model.layers[1].mlp)
    dial = vector("model.layers.1.mlp.inner:out")
    with pytest.raises(ConfigError, match="which row each state belongs to cannot be told"):
        dial(model, [1.0, 0.0, 2.0]).__enter__()
    bare = logits(model)
    with dial(model, 1.0):
        assert (logits(model) - bare).abs().max() > 0.01


def test_a_trial_leaves_the_model_as_it_was(tiny):
    model = tiny("gpt2", fresh=True)
    model.transformer.h[1].train()
    state = torch.get_rng_state()
    modes = [m.training for m in model.modules()]
    with vector(0)(model, [1.0, 0.5, 1.0]):  # while a dial is on, too
        unfit(model), axes_at(model, 1)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_hooks for m in model.modules())


# ---- linear layers ------------------------------------------------------------------------------

LEFT_OUT = {
    "llama4": ("router", "it gives a tuple"),
    "mamba": ("mixer.dt_proj", "never runs it as a module"),
    "falcon_mamba": ("mixer.dt_proj", "never runs it as a module"),
    "jamba": ("mamba.dt_proj", "never runs it as a module"),
    "glm_moe_dsa": ("indexer.wk", "reaches the logits with a gradient"),
    "deepseek_v4": ("self_attn.o_a_proj", "it is not W x"),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_layers_that_are_no_place_for_an_adapter_are_left_out_and_refused_by_name(name):
    model, (word, why) = kind(name), LEFT_OUT[name]
    paths = linear_modules(model)
    assert paths
    assert not any(p.endswith(word) for p in paths)
    with pytest.raises(DialError, match=why):
        linear_modules(model, word.replace(".", "[.]") + "$")
    assert any(why in line and word in line for line in left_out(model, paths.keys()))


@pytest.mark.parametrize("name", ["llama4", "mamba", "jamba", "deepseek_v4"])
def test_a_dial_of_such_a_layer_does_not_attach(name):
    """A folder made elsewhere may name it: no hook of ours would do what it says."""
    model, (word, why) = kind(name), LEFT_OUT[name]
    path, module = next((p, m) for p, m in model.named_modules() if p.endswith(word))
    shape = (module.in_features, module.out_features)
    for dial in (
        shaken(AdapterDial({path: shape}, rank=2)),
        IA3Dial({path: shape}),
        RotationDial(
            {path: Basis(torch.eye(shape[1])[:, :2], torch.ones(2), torch.eye(shape[0])[:, :2])}
        ),
    ):
        with pytest.raises(DialError, match=why):
            dial(model, 1.0).__enter__()


def with_gelu(mlp: Any) -> None:
    class Gelu(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.gelu(super().forward(x))

    mlp.up_proj.__class__ = Gelu


def read_directly(mlp: Any) -> None:
    mlp.forward = lambda x: mlp.down_proj(
        mlp.act_fn(mlp.gate_proj(x)) * F.linear(x, mlp.up_proj.weight)
    )


def thrown_away(mlp: Any) -> None:
    mlp.forward = lambda x: mlp.down_proj(
        mlp.act_fn(mlp.gate_proj(x)) + 0 * mlp.up_proj(x).sum().sign()
    )


def without_gradient(mlp: Any) -> None:
    def forward(x: Tensor) -> Tensor:
        with torch.no_grad():
            up = mlp.up_proj(x)
        return mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)) * up)

    mlp.forward = forward


def scaled(mlp: Any) -> None:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 1.5 * super().forward(x)

    mlp.up_proj.__class__ = Scaled


def unused(mlp: Any) -> None:
    mlp.spare = nn.Linear(32, 48)
    mlp.forward = lambda x: mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)))


@pytest.mark.parametrize(
    "change", [with_gelu, read_directly, thrown_away, without_gradient, scaled, unused]
)
def test_neighbours_of_them_are_found_as_well(tiny, change: Callable[[Any], None]):
    model = tiny("llama", fresh=True)
    change(model.model.layers[2].mlp)
    paths = linear_modules(model)
    bad = {p for p, why in unfit(model).items() if why}
    assert "model.layers.2.mlp.up_proj" in bad
    assert all(p.startswith("model.layers.2.mlp.") for p in bad)
    assert len(paths) == 28 + (change is unused) - len(bad)


def test_an_expert_that_a_few_tokens_do_not_meet_is_no_unused_layer(tiny):
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(32, 32, bias=False) for _ in range(64))

        def forward(self, x: Tensor) -> Tensor:
            y = torch.zeros_like(x)
            chosen = (x[..., 0] * 1e4).long() % 64
            for k in chosen.unique().tolist():
                y[chosen == k] = self.experts[k](x[chosen == k])
            return y

    model = tiny("llama", fresh=True)
    model.model.layers[1].mlp = Experts()
    assert sum("mlp.experts" in p for p in linear_modules(model)) == 64


def test_half_precision_and_transposed_layers_pass(tiny):
    for name, dtype in (
        ("llama", torch.bfloat16),
        ("gpt2", torch.float16),
        ("gpt2", torch.float32),
    ):
        assert not any(unfit(tiny(name, dtype=dtype)).values())


def test_what_is_left_out_is_said_with_its_share(few_pairs, tokenizer):
    said: list[str] = []

    class Heard(Progress):
        def say(self, line: str) -> None:
            said.append(line)

    recipe = method("dpo").recipe
    train = dataclasses.replace(recipe.train, max_steps=1)
    model = build("jamba")
    fit(
        dataclasses.replace(recipe, train=train),
        model,
        tokenizer,
        few_pairs,
        progress=Heard(quiet=True),
    )
    assert any(
        s == "left out: 1 x mamba.dt_proj, its model never runs it as a module" for s in said
    )
    weights = {
        n: p.numel()
        for layer_ in models.layers(model)
        for n, p in layer_.named_parameters()
        if p.ndim > 1
    }
    experts = weights["feed_forward.experts.gate_up_proj"]
    total = sum(p.numel() for la in models.layers(model) for p in la.parameters() if p.ndim > 1)
    assert any(f"feed_forward.experts.gate_up_proj {experts / total:.1%}" in s for s in said)


# ---- merged against hooked ----------------------------------------------------------------------


def test_weights_that_run_at_several_depths_are_not_merged(tmp_path, tokenizer):
    """Zamba: two LoRAs by path are exact when hooked, and one weight cannot hold both."""
    model = kind("zamba")
    shared = r"layers[.][13][.]shared_transf[.].*(q_proj|down_proj)"
    dial = lora(model, shared)
    assert len(dial.paths) == 4
    with pytest.raises(DialError, match="one tensor: the model runs the same weights at several"):
        dial.merged(model, 1.0)
    with pytest.raises(DialError, match="one tensor"):
        export(dial, model, tokenizer, "merged", tmp_path / "merged")
    apart = lora(model, r"mamba[.]in_proj|mamba_decoder[.]mamba[.]in_proj")
    with apart(model, 1.0):
        on = logits(model)
    torch.testing.assert_close(logits(apart.merged(model, 1.0)), on, atol=1e-4, rtol=1e-4)


def test_one_parameter_in_two_places_is_not_merged(tiny):
    model = tiny("llama", fresh=True)
    layer(model, 2).mlp.up_proj.weight = layer(model, 1).mlp.up_proj.weight
    with pytest.raises(DialError, match="one tensor"):
        lora(model, "up_proj").merged(model, 1.0)


def test_a_module_that_runs_twice_is_merged_once(tiny):
    """Its hook acts at every run, as its weight does; and it is one place for an adapter."""
    model = tiny("llama", fresh=True)
    layer(model, 3).mlp = layer(model, 1).mlp
    dial = lora(model, "gate_proj")
    assert len(dial.paths) == 3
    with dial(model, 1.0):
        on = logits(model)
    torch.testing.assert_close(logits(dial.merged(model, 1.0)), on, atol=1e-4, rtol=1e-4)


def also_directly(mlp: Any) -> None:
    """The weight is run as a module and read beside it: a hook sees half of what a merge changes."""
    mlp.forward = lambda x: mlp.down_proj(
        mlp.act_fn(mlp.gate_proj(x)) * (mlp.up_proj(x) + F.linear(x, mlp.up_proj.weight)) / 2
    )


def hooked_too(mlp: Any) -> None:
    """Somebody else's hook makes more of a layer's output."""
    mlp.up_proj.register_forward_hook(lambda _, __, y: y.relu())


@pytest.mark.parametrize("change", [also_directly, hooked_too])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merge_that_differs_from_the_hooks_is_refused(tiny, change, dtype):
    model = copy.deepcopy(tiny("llama", dtype=dtype))
    change(model.model.layers[1].mlp)
    dial = shaken(AdapterDial({"model.layers.1.mlp.up_proj": (32, 48)}, rank=2), spread=1.5)
    with pytest.raises(DialError, match=r"other logits than hooked|it is not W x"):
        dial.merged(model, 1.0)
    plain = tiny("llama", dtype=dtype)
    with dial(plain, 1.0):
        on = logits(plain)
    tolerance = 1e-4 if dtype == torch.float32 else 0.5
    torch.testing.assert_close(logits(dial.merged(plain, 1.0)), on, atol=tolerance, rtol=tolerance)


def test_edits_of_outputs_in_lists(few_pairs, tokenizer):
    """openai-gpt's blocks give a list."""
    model = kind("openai_gpt")
    assert axes_at(model, 1) == Axes(3, 0, 1)
    edit = Edit(1, VECTOR, lambda x, y, alpha: y + alpha)
    bare = logits(model)
    with attach(model, [([edit], 1.0)], [1.0, 0.0, -1.0]):
        rows = logits(model)
    assert torch.equal(rows[1], bare[1])
    assert (rows[0] - bare[0]).abs().max() > 1e-3
