"""Dials: untouched at 0, by rows as one by one, undone at the end, saved whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import TINY, count_calls, random_rows
from trimtab import models
from trimtab.batching import collate
from trimtab.dials import AdapterDial, ConceptDial, Dial, Edit, VectorDial
from trimtab.dials import saved as saving
from trimtab.dials.adapter import linear_modules, linear_shape
from trimtab.dials.attach import ADAPTER, VECTOR, attach
from trimtab.errors import ConfigError, DialError
from trimtab.states import read

# transformers 5.23 renames its checkpointing switches, peft tells of Conv1D: neither is ours.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

IDS = torch.randint(2, 320, (3, 14), generator=torch.Generator().manual_seed(7))
KINDS = ("vector", "adapter", "concept", "composed")


def vector(model: Any, seed: int = 0, sites: tuple = (1, 2)) -> VectorDial:
    """Random directions, each half as long as the states at its site."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        lengths = read(model, collate(random_rows(), [1], "padded"), sites=sites).norms
    return VectorDial(
        {s: torch.randn(model.config.hidden_size, generator=g) for s in sites},
        {s: 0.5 * float(lengths[s].mean()) for s in sites},
    )


def adapter(
    model: Any, seed: int = 0, targets: str = "all-linear", std: float = 0.3, **options: Any
) -> AdapterDial:
    g = torch.Generator().manual_seed(seed)
    options = {"rank": 4, "lora_alpha": 8, **options}
    dial = AdapterDial(linear_modules(model, targets), generator=g, **options)
    for B in dial.B:
        B.data = torch.randn(B.shape, generator=g) * std
    return dial.eval()


def concept(model: Any, seed: int = 0, sites: tuple = (1, 2)) -> ConceptDial:
    """Random directions, reflected: a large change whatever the states."""
    g = torch.Generator().manual_seed(seed)
    width = model.config.hidden_size
    return ConceptDial({s: torch.randn(width, generator=g) for s in sites}, "reflect")


def make(kind: str, model: Any, seed: int = 0) -> Dial:
    if kind == "composed":
        return adapter(model, seed) + 0.5 * vector(model, seed)
    return {"vector": vector, "adapter": adapter, "concept": concept}[kind](model, seed)


def logits(model: Any, ids: Tensor = IDS, **options: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False, **options).logits


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(1.0, b.abs().max().item()))


def hooks_on(model: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# ---- alpha 0 ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TINY)
def test_at_0_the_model_is_untouched_to_the_last_bit(tiny, name, kind):
    model = tiny(name)
    dial = make(kind, model)
    bare, hooks = logits(model), hooks_on(model)
    with dial(model, 1.0):
        assert (logits(model) - bare).abs().max() > 0.1  # it does something
    assert torch.equal(logits(model), bare)  # after the context
    for zero in (
        0,
        0.0,
        -0.0,
        torch.tensor(0.0),
        np.float32(0),
        torch.zeros(3),
        [0.0, 0.0, 0.0],
        torch.zeros(3, 14),
    ):
        with dial(model, zero):
            assert torch.equal(logits(model), bare)
    with dial(model, 0.0):
        assert hooks_on(model) == hooks  # a scalar 0 attaches nothing
    with pytest.raises(RuntimeError, match="on purpose"), dial(model, 1.0):
        _fail_if(hooks_on(model) > hooks)
    assert hooks_on(model) == hooks
    assert torch.equal(logits(model), bare)


def _fail_if(condition: bool) -> None:
    if condition:
        raise RuntimeError("on purpose")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TINY)
def test_rows_at_0_equal_the_bare_rows_of_the_same_batch(tiny, name, kind):
    model = tiny(name)
    dial = make(kind, model)
    bare = logits(model)
    with dial(model, torch.tensor([1.0, 0.0, -2.0])):
        mixed = logits(model)
    if (
        name == "qwen3moe"
    ):  # other rows' tokens go to other experts: another shape, another rounding
        close(mixed[1], bare[1])
    else:
        assert torch.equal(mixed[1], bare[1])
    assert (mixed[0] - bare[0]).abs().max() > 0.1
    assert (mixed[2] - bare[2]).abs().max() > 0.1


def test_rows_at_0_are_selected_not_multiplied(tiny):
    """An edit that gives NaN and infinity leaves the rows at 0 alone."""
    model = tiny("llama")
    edit = Edit(1, VECTOR, lambda x, y, alpha: y * float("nan"))
    bare = logits(model)
    with attach(model, [([edit], 1.0)], [0.0, 1.0, 0.0]):
        mixed = logits(model)
    assert torch.equal(mixed[[0, 2]], bare[[0, 2]])
    assert mixed[1].isnan().all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_of_0_attaches_nothing(tiny, kind):
    model = tiny("llama")
    dial, hooks = 0.0 * make(kind, model), hooks_on(model)
    with dial(model, 3.0):
        assert hooks_on(model) == hooks


@pytest.mark.parametrize("kind", KINDS)
def test_the_real_model_at_0(smollm2, kind):
    model, tokenizer = smollm2
    ids = torch.tensor([tokenizer("The capital of France is Paris, and")["input_ids"]] * 2)
    dial = make(kind, model)
    bare = logits(model, ids)
    with dial(model, 0.0):
        assert torch.equal(logits(model, ids), bare)
    with dial(model, [0.0, 1.0]):
        mixed = logits(model, ids)
    assert torch.equal(mixed[0], bare[0])
    assert (mixed[1] - bare[1]).abs().max() > 0.1
    assert torch.equal(logits(model, ids), bare)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision(tiny, kind):
    """A float32 dial on a bfloat16 model: 0 is exact, 1 does something, dtypes stay."""
    model = tiny("llama", dtype=torch.bfloat16)
    dial = make(kind, model)
    bare = logits(model)
    with dial(model, 0.0):
        assert torch.equal(logits(model), bare)
    with dial(model, [0.0, 1.0, 1.0]):
        mixed = logits(model)
    with dial(model, 1.0):
        one = logits(model)
    assert mixed.dtype == one.dtype == torch.bfloat16
    assert torch.equal(mixed[0], bare[0])
    assert (one - bare).abs().max() > 0.1
    noise = (one[1:] - mixed[1:]).float().pow(2).mean().sqrt()  # rounding of bfloat16
    assert noise < 0.1 * (one - bare).float().pow(2).mean().sqrt()
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {t.dtype for t in dial.state_dict().values()} == {torch.float32}


# ---- what alpha may be --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "alpha",
    [
        float("nan"),
        float("inf"),
        -float("inf"),
        [1.0, float("nan"), 0.0],
        torch.tensor([float("inf")]),
        torch.tensor(float("nan")),
        torch.zeros(2, 3, 4),
        [],
        None,
        "1",
    ],
)
def test_what_alpha_cannot_be(tiny, alpha):
    model = tiny("llama")
    hooks = hooks_on(model)
    with pytest.raises(ConfigError, match="alpha"), vector(model)(model, alpha):
        pytest.fail("entered")
    assert hooks_on(model) == hooks


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(2,), (4,), (6,), (3, 5), (2, 14)])
def test_an_alpha_of_another_batch_is_refused(tiny, kind, shape):
    model = tiny("llama")
    hooks = hooks_on(model)
    with pytest.raises(ConfigError, match="alpha has"), make(kind, model)(model, torch.ones(shape)):
        logits(model)
    assert hooks_on(model) == hooks


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TINY)
def test_rows_at_their_own_alpha_equal_the_rows_run_one_by_one(tiny, name, kind):
    model = tiny(name)
    dial = make(kind, model)
    alphas = [1.0, -0.5, 0.0]
    with dial(model, alphas):
        mixed = logits(model)
    for row, alpha in enumerate(alphas):
        with dial(model, alpha):
            close(mixed[row], logits(model, IDS[row : row + 1])[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TINY)
def test_an_alpha_a_token(tiny, name, kind):
    """Up to token 6 a text runs at 0, then at 1: the first part is the bare model's. Where all
    tokens of a row have one alpha, it is the row's."""
    model = tiny(name)
    dial = make(kind, model)
    alpha = torch.ones(3, 14)
    alpha[0, :6] = 0
    alpha[2] = -0.5
    with dial(model, alpha):
        found = logits(model)
    close(found[0, :6], logits(model)[0, :6])
    assert (found[0, 6:] - logits(model)[0, 6:]).abs().max() > 0.1
    with dial(model, [1.0, 1.0, -0.5]):
        rows = logits(model)
    close(found[1:], rows[1:])
    assert (found[0, 6:] - rows[0, 6:]).abs().max() > 1e-3  # its context differs


def test_alphas_of_a_module_that_sees_its_tokens_in_one_line(tiny):
    """The router of a mixture of experts gives [B T, experts]."""
    model = tiny("qwen3moe")
    router = models.layers(model)[1].mlp.gate
    assert isinstance(router, torch.nn.Module)
    seen: list[Tensor] = []

    def fn(x: Tensor, y: Tensor, alpha: Any) -> Tensor:
        seen.append(alpha.expand_as(y)[:, 0])
        return y + alpha

    edit = Edit("model.layers.1.mlp.gate:out", VECTOR, fn)
    for alpha in (torch.tensor([1.0, 2.0, 3.0]), torch.arange(42.0).view(3, 14)):
        with attach(model, [([edit], 1.0)], alpha):
            logits(model)
    assert seen[0].tolist() == [1.0] * 14 + [2.0] * 14 + [3.0] * 14
    assert seen[1].tolist() == list(range(42))


@pytest.mark.parametrize("kind", KINDS)
def test_a_dial_works_in_packed_rows(tiny, kind):
    model = tiny("gemma3")
    dial, encoded = make(kind, model), random_rows()
    alphas = [1.0, 0.0, -1.0]
    with dial(model, alphas), torch.no_grad():
        packed = read(model, collate(encoded, [0, 1, 2]), logps=True).logps
    apart = []
    for row, alpha in enumerate(alphas):
        with dial(model, alpha), torch.no_grad():
            apart.append(read(model, collate(encoded, [row], "padded"), logps=True).logps)
    close(packed, torch.cat(apart))


# ---- generation ---------------------------------------------------------------------------------

GENERATE = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 1}


def generated(model: Any, ids: Tensor, **options: Any) -> Tensor:
    with torch.no_grad():
        return model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), **{**GENERATE, **options}
        )


@pytest.mark.parametrize(
    ("name", "kind"), [*((n, "composed") for n in TINY), ("llama", "vector"), ("gpt2", "adapter")]
)
@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3, "num_return_sequences": 2}, {"num_beams": 2, "use_cache": False}],
    ids=["greedy", "beams", "uncached"],
)
def test_generation_by_rows_equals_single_rows(tiny, name, kind, options):
    model = tiny(name)
    dial = make(kind, model)
    alphas = [1.0, 0.0, -1.0]
    returns = options.get("num_return_sequences", 1)
    with dial(model, alphas):
        together = generated(model, IDS, **options)
    rows = []
    for row, alpha in enumerate(alphas):
        with dial(model, alpha):
            rows.append(generated(model, IDS[row : row + 1], **options))
    assert together.tolist() == torch.cat(rows).tolist()
    assert together.shape == (3 * returns, 20)
    bare = generated(model, IDS, **options)
    assert bare[returns : 2 * returns].tolist() == together[returns : 2 * returns].tolist()
    assert bare.tolist() != together.tolist()


def test_sampled_returns_come_row_by_row(tiny):
    """num_return_sequences without beams: every copy of a row runs at the row's alpha."""
    model = tiny("llama")
    v = torch.zeros(32)
    v[0] = 1
    seen: list[Tensor] = []
    edit = Edit(1, VECTOR, lambda x, y, alpha: seen.append(alpha.flatten()) or y)
    with attach(model, [([edit], 1.0)], [1.0, 2.0, 3.0]):
        generated(model, IDS, do_sample=True, num_return_sequences=2)
    assert {tuple(a.tolist()) for a in seen} == {(1.0, 1.0, 2.0, 2.0, 3.0, 3.0)}


# ---- composing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TINY)
def test_a_sum_is_each_part_at_its_weight(tiny, name):
    model = tiny(name)
    a, b = adapter(model, 1), vector(model, 2)
    for alpha in (1.0, -0.5, [1.0, 0.0, 2.0]):
        with (a + 0.5 * b)(model, alpha):
            together = logits(model)
        half = 0.5 * alpha if isinstance(alpha, float) else [0.5 * x for x in alpha]
        with a(model, alpha), b(model, half):
            close(together, logits(model))


def test_the_algebra_of_dials(tiny):
    model = tiny("llama")
    a, b, c = vector(model, 1), vector(model, 2), adapter(model, 3)

    def weights(dial: Dial) -> list[float]:
        return [weight for _, weight in dial.parts(model)]

    assert weights(a) == [1]
    assert weights(a + b + c) == [1, 1, 1]
    assert weights(a - 2 * b) == [1, -2]
    assert weights(-(a + b * 3)) == [-1, -3]
    assert weights(0.5 * (a - (b + c * 4))) == [0.5, -0.5, -2]
    with (a - a)(model, 1.0):
        close(logits(model), logits(model))
    with (a - a)(model, 1.0):
        cancelled = logits(model)
    close(cancelled, logits(model))
    with (2 * a)(model, 1.0):
        twice = logits(model)
    with a(model, 2.0):
        assert torch.equal(logits(model), twice)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="finite"):
            bad * a


def test_adapters_come_before_vectors_at_one_site(tiny):
    model = tiny("llama")
    site = "model.layers.1.mlp:out"
    double = Edit(site, ADAPTER, lambda x, y, alpha: 2 * y)
    add = Edit(site, VECTOR, lambda x, y, alpha: y + 1)
    found = []
    for groups in ([([double], 1.0), ([add], 1.0)], [([add], 1.0), ([double], 1.0)]):
        seen: list[Tensor] = []
        module = model.get_submodule("model.layers.1.mlp")
        with attach(model, groups, 1.0):
            handle = module.register_forward_hook(lambda _, __, out, seen=seen: seen.append(out))
            logits(model)
            handle.remove()
        found.append(seen[0])
    bare: list[Tensor] = []
    handle = module.register_forward_hook(lambda _, __, out: bare.append(out))
    logits(model)
    handle.remove()
    assert torch.equal(found[0], 2 * bare[0] + 1)
    assert torch.equal(found[0], found[1])


def test_edits_of_modules_called_by_keyword(tiny):
    """Attention is called with keywords alone and gives a tuple."""
    model = tiny("llama")
    seen: list[Tensor] = []
    edit = Edit(
        "model.layers.1.self_attn:out", VECTOR, lambda x, y, alpha: seen.append(x) or y + alpha
    )
    bare = logits(model)
    with attach(model, [([edit], 1.0)], 1.0):
        assert (logits(model) - bare).abs().max() > 0.1
    assert seen[0].shape == (3, 14, 32)


def test_edits_are_made_to_outputs(tiny):
    model = tiny("llama")
    hooks = hooks_on(model)
    edits = [Edit(1, VECTOR, lambda x, y, a: y), Edit("model.norm:in", VECTOR, lambda x, y, a: y)]
    with pytest.raises(ConfigError, match="outputs"), attach(model, [(edits, 1.0)], 1.0):
        pytest.fail("entered")
    assert hooks_on(model) == hooks  # the first edit was undone


# ---- vectors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TINY)
def test_a_vector_adds_alpha_scale_times_the_unit_direction(tiny, name):
    model = tiny(name)
    v = torch.arange(32.0) - 7
    batch = collate(random_rows(), [0, 1])
    with torch.no_grad():
        bare = read(model, batch, sites=(2,)).states[2]
        with VectorDial({2: v}, {2: 0.3})(model, -2.0):
            moved = read(model, batch, sites=(2,)).states[2]
    close(moved - bare, (-0.6 * v / v.norm()).expand_as(bare), 2e-5)


def test_what_a_vector_cannot_be(tiny):
    good = torch.ones(32)
    for bad in (torch.zeros(32), torch.full((32,), float("nan")), torch.full((32,), float("inf"))):
        with pytest.raises(DialError, match="site 2 is zero or not finite"):
            VectorDial({1: good, 2: bad}, {1: 1.0, 2: 1.0})
    with pytest.raises(DialError, match="expected the same sites"):
        VectorDial({1: good}, {2: 1.0})
    with (
        pytest.raises(DialError, match="7 entries, the model's hidden states 32"),
        VectorDial({1: torch.ones(7)}, {1: 1.0})(tiny("llama"), 1.0),
    ):
        pytest.fail("entered")
    with (
        pytest.raises(ConfigError, match="blocks 0 to 3"),
        VectorDial({9: good}, {9: 1.0})(tiny("llama"), 1.0),
    ):
        pytest.fail("entered")


# ---- adapters -----------------------------------------------------------------------------------


def test_linear_layers_are_found_by_structure(tiny):
    per_layer = {
        "llama": 7,
        "qwen3": 7,
        "gemma3": 7,
        "gpt2": 4,
        "neox": 4,
        "qwen3moe": 4,
        "mistral": 7,
    }
    for name, count in per_layer.items():
        found = linear_modules(tiny(name))
        assert len(found) == 4 * count, name
        for path, shape in found.items():
            assert linear_shape(tiny(name).get_submodule(path)) == shape
    gpt2 = linear_modules(tiny("gpt2"), "mlp.c_fc", range(1, 3))
    assert gpt2 == {"transformer.h.1.mlp.c_fc": (32, 128), "transformer.h.2.mlp.c_fc": (32, 128)}
    with pytest.raises(
        DialError, match=r"targets 'nothing' match no linear layer; .*layers.N.self_attn.q_proj"
    ):
        linear_modules(tiny("llama"), "nothing")


def test_a_new_adapter_changes_nothing_and_is_drawn_by_its_seed(tiny):
    model = tiny("llama")
    shapes = linear_modules(model)
    new = [
        AdapterDial(shapes, rank=4, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)
    ]
    assert torch.equal(new[0].A[3], new[1].A[3])
    assert not torch.equal(new[0].A[3], new[2].A[3])
    bare = logits(model)
    with new[0](model, 1.0):
        close(logits(model), bare, 1e-6)
    assert new[0].A[0].abs().max() <= 32**-0.5  # PEFT's kaiming uniform


@pytest.mark.parametrize("options", [{}, {"rslora": True, "lora_alpha": 3}], ids=["lora", "rslora"])
@pytest.mark.parametrize("name", TINY)
def test_a_saved_adapter_is_peft_s_own(tiny, name, options, tmp_path):
    peft = pytest.importorskip("peft")
    model = tiny(name)
    dial = adapter(model, **options)
    dial.save_pretrained(tmp_path / "dial")
    theirs = peft.PeftModel.from_pretrained(tiny(name, fresh=True), tmp_path / "dial")
    with dial(model, 1.0):
        ours = logits(model)
    assert (ours - logits(model)).abs().max() > 0.1
    close(ours, logits(theirs))


@pytest.mark.parametrize("name", ["llama", "gpt2", "neox", "qwen3moe"])
@pytest.mark.parametrize("rslora", [False, True])
def test_a_peft_adapter_loads_as_a_dial(tiny, name, rslora, tmp_path):
    peft = pytest.importorskip("peft")
    base = tiny(name, fresh=True)
    targets = sorted({path.rpartition(".")[2] for path in linear_modules(base)})[:2]
    config = peft.LoraConfig(r=3, lora_alpha=5, use_rslora=rslora, target_modules=targets)
    theirs = peft.get_peft_model(base, config).eval()
    g = torch.Generator().manual_seed(0)
    for n, p in theirs.named_parameters():
        if "lora_B" in n:
            p.data = torch.randn(p.shape, generator=g) * 0.3
    theirs.save_pretrained(tmp_path / "peft")
    dial = Dial.from_pretrained(tmp_path / "peft")
    assert isinstance(dial, AdapterDial)
    assert dial.info.method == "peft"
    model = tiny(name)
    with dial(model, 1.0):
        close(logits(model), logits(theirs))


def test_peft_adapters_that_are_more_than_lora_are_refused_by_name(tiny, tmp_path):
    peft = pytest.importorskip("peft")
    for number, (options, named) in enumerate(
        [
            ({"use_dora": True}, "use_dora"),
            ({"bias": "all"}, "bias"),
            ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
            ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ]
    ):
        folder = tmp_path / str(number)
        config = peft.LoraConfig(r=2, target_modules=["q_proj"], **options)
        peft.get_peft_model(tiny("llama", fresh=True), config).save_pretrained(folder)
        with pytest.raises(
            DialError, match=f"only plain LoRA and rsLoRA load as a dial; .*{named}"
        ):
            Dial.from_pretrained(folder)
    config = peft.LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"])
    peft.get_peft_model(tiny("llama", fresh=True), config).save_pretrained(tmp_path / "embed")
    with pytest.raises(DialError, match="embed"):
        Dial.from_pretrained(tmp_path / "embed")
    peft.get_peft_model(
        tiny("llama", fresh=True), peft.LoHaConfig(target_modules=["q_proj"])
    ).save_pretrained(tmp_path / "loha")
    with pytest.raises(DialError, match=r"LOHA .*these load as a dial: .*LoRA and rsLoRA.*IA3"):
        Dial.from_pretrained(tmp_path / "loha")


@pytest.mark.parametrize("alpha", [1.0, -0.5])
@pytest.mark.parametrize("name", TINY)
def test_merged_equals_attached(tiny, name, alpha):
    model = tiny(name)
    bare = logits(model)
    sound = name not in ("gemma3", "qwen3moe")  # whose blocks leave a vector's bias no place
    for dial in (adapter(model), *((adapter(model) - 0.5 * vector(model),) if sound else ())):
        merged = dial.merged(model, alpha)
        with dial(model, alpha):
            close(logits(merged), logits(model), 2e-5)
    assert torch.equal(logits(model), bare)  # the model itself is not touched


def test_what_cannot_be_merged_is_refused(tiny):
    model = tiny("llama")
    for what in (
        vector(model, sites=("embed",)),
        VectorDial({1: torch.ones(32)}, {1: 1.0}, positions="last"),
    ):
        with pytest.raises(DialError, match="only a vector added after blocks, at every position"):
            what.merged(model)
    with pytest.raises(ConfigError, match="one alpha"):
        adapter(model).merged(model, [1.0, 0.0, 0.0])
    with pytest.raises(ConfigError, match="alpha is nan"):
        adapter(model).merged(model, float("nan"))
    tied = tiny("gpt2")
    dial = AdapterDial({"lm_head": (32, 320)}, rank=2)
    with pytest.raises(DialError, match="tied"):
        dial.merged(tied)


def test_an_adapter_of_another_model_is_refused(tiny):
    dial = adapter(tiny("llama"))
    with (
        pytest.raises(DialError, match="q_proj' is not in the model"),
        dial(tiny("gpt2"), 1.0),
    ):
        pytest.fail("entered")
    with (
        pytest.raises(DialError, match="maps 32 to 32 features"),
        adapter(tiny("llama"), targets="q_proj")(_wider(), 1.0),
    ):
        pytest.fail("entered")


def _wider() -> Any:
    import transformers

    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=8,
            hidden_size=64,
            intermediate_size=8,
            num_hidden_layers=4,
            num_attention_heads=4,
        )
    )


def test_dropout_acts_in_training_alone(tiny):
    model = tiny("llama")
    dial = adapter(model, dropout=0.5)
    with dial(model, 1.0):
        first, second = logits(model), logits(model)
        dial.train()
        third = logits(model)
    assert torch.equal(first, second)
    assert (third - first).abs().max() > 0.1


# ---- gradients and activation checkpointing -----------------------------------------------------


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", TINY)
def test_checkpointing_needs_training_true_and_then_gives_the_same_gradients(tiny, name, reentrant):
    plain, model = tiny(name, fresh=True), tiny(name, fresh=True)
    for m in (plain, model):
        m.train()
        for module in m.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    dials = [adapter(plain), adapter(model)]
    with pytest.raises(ConfigError, match="training=True"), dials[1](model, 1.0):
        pytest.fail("entered")
    with torch.no_grad(), dials[1](model, 1.0):  # nothing is recomputed
        logits(model)
    with dials[1](model, 0.0):  # nothing is attached
        pass
    for m, dial in zip((plain, model), dials, strict=True):
        with dial(m, 1.0, training=True):
            m(input_ids=IDS, use_cache=False).logits.logsumexp(-1).sum().backward()
    for a, b in zip(dials[0].parameters(), dials[1].parameters(), strict=True):
        close(b.grad, a.grad)
        assert a.grad.abs().max() > 0
    model.eval()
    with dials[1](model, 1.0):  # out of train mode nothing is checkpointed
        logits(model)


def test_gradients_reach_the_dial_alone(tiny):
    model = tiny("llama")
    dial = adapter(model)
    with dial(model, 1.0):
        model(input_ids=IDS).logits.sum().backward()
    assert all(p.grad is not None for p in dial.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_rows_at_0_give_no_gradient(tiny):
    """The adapter's gradient in a mixed batch is that of the rows not at 0."""
    model = tiny("llama")
    grads = []
    for ids, alpha in ((IDS, [1.0, 0.0, 1.0]), (IDS[[0, 2]], 1.0)):
        dial = adapter(model)
        with dial(model, alpha):
            model(input_ids=ids).logits.logsumexp(-1).sum().backward()
        grads.append([p.grad for p in dial.parameters()])
    for a, b in zip(*grads, strict=True):
        close(a, b)


# ---- saving and loading -------------------------------------------------------------------------

INFO = {
    "method": "dpo",
    "base_model": "tiny",
    "data": {"facts:train": "ab" * 32},
    "seed": 3,
    "config": {"beta": 0.1, "sites": [1, 2]},
    "versions": {"torch": "2"},
    "measured": {"kl": 0.25},
}


def saved(kind: str, model: Any, folder: Path) -> Dial:
    dial = make(kind, model)
    for key, value in INFO.items():
        setattr(dial.info, key, value)
    dial.save_pretrained(folder)
    return dial


@pytest.mark.parametrize("kind", ["vector", "adapter"])
def test_a_round_trip_is_bitwise(tiny, tmp_path, kind):
    model = tiny("llama")
    dial = saved(kind, model, tmp_path / "deep" / "dial")
    again = Dial.from_pretrained(tmp_path / "deep" / "dial")
    assert type(again) is type(dial)
    assert again.info == dial.info
    assert again.settings() == dial.settings()
    for key, value in dial.tensors().items():
        assert torch.equal(again.tensors()[key], value)
    with dial(model, 0.7):
        expected = logits(model)
    with again(model, 0.7):
        assert torch.equal(logits(model), expected)
    # saved again, the same bytes
    again.save_pretrained(tmp_path / "twice")
    for file in (tmp_path / "deep" / "dial").iterdir():
        assert (tmp_path / "twice" / file.name).read_bytes() == file.read_bytes()


def test_sites_by_name_survive(tiny, tmp_path):
    model = tiny("llama")
    sites = ("embed", 2, "model.layers.1.mlp:out", "final")
    dial = vector(model, sites=sites)
    dial.save_pretrained(tmp_path / "d")
    again = Dial.from_pretrained(tmp_path / "d")
    assert again.sites == sites
    with dial(model, 1.0):
        expected = logits(model)
    with again(model, 1.0):
        assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("kind", ["vector", "adapter"])
def test_a_saved_folder(tiny, tmp_path, kind):
    saved(kind, tiny("llama"), tmp_path / "dial")
    names = {p.name for p in (tmp_path / "dial").iterdir()}
    weights = {"vector": "dial.safetensors", "adapter": "adapter_model.safetensors"}[kind]
    assert names == {weights, "dial.json", "README.md"} | (
        {"adapter_config.json"} if kind == "adapter" else set()
    )
    for file in (tmp_path / "dial").iterdir():  # nothing is pickled
        head = file.read_bytes()[:4]
        assert not head.startswith((b"\x80", b"PK\x03\x04"))
        if file.suffix == ".json":
            json.loads(file.read_text())
    card = (tmp_path / "dial" / "README.md").read_text()
    assert card.startswith("---\n")
    assert "`facts:train`" in card
    assert "kl: 0.25" in card
    assert [p.name for p in tmp_path.iterdir()] == ["dial"]  # nothing is left beside it
    probe = tmp_path / "probe"
    probe.mkdir()
    assert (tmp_path / "dial").stat().st_mode == probe.stat().st_mode  # others may read it


def test_saving_replaces_a_dial_and_nothing_else(tiny, tmp_path):
    model = tiny("llama")
    saved("adapter", model, tmp_path / "d")
    saved("vector", model, tmp_path / "d")
    assert isinstance(Dial.from_pretrained(tmp_path / "d"), VectorDial)
    assert not (tmp_path / "d" / "adapter_config.json").exists()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("more")
    for name in ("precious", "file"):
        with pytest.raises(DialError, match="is no saved dial; choose another folder"):
            vector(model).save_pretrained(tmp_path / name)
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "years of work"
    assert (tmp_path / "file").read_text() == "more"
    (tmp_path / "empty").mkdir()
    vector(model).save_pretrained(tmp_path / "empty")


def test_a_composed_dial_is_not_saved(tiny, tmp_path):
    with pytest.raises(DialError, match="save its members"):
        make("composed", tiny("llama")).save_pretrained(tmp_path / "d")


def _write(folder: Path, **changes: Any) -> None:
    note = json.loads((folder / "dial.json").read_text())
    (folder / "dial.json").write_text(json.dumps(note | changes))


def _flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: _flip(f / "dial.safetensors", -5), "dial.safetensors: damaged"),
        (lambda f: _flip(f / "dial.safetensors", 3), "dial.safetensors: damaged"),
        (lambda f: (f / "dial.safetensors").write_bytes(b""), "dial.safetensors: damaged"),
        (lambda f: (f / "dial.safetensors").unlink(), "dial.safetensors: missing"),
        (lambda f: (f / "dial.json").write_text("{"), "dial.json: damaged"),
        (lambda f: (f / "dial.json").write_text("[]"), "dial.json: damaged"),
        (lambda f: (f / "dial.json").write_bytes(b"\xff\xfe\x00"), "dial.json: damaged"),
        (lambda f: (f / "dial.json").unlink(), "no dial.json"),
        (lambda f: _write(f, kind="sorcery"), "kind 'sorcery'"),
        (lambda f: _write(f, kind=["vector"]), "dial.json: damaged"),
        (lambda f: _write(f, format=99), "another version of trimtab"),
        (lambda f: _write(f, settings={}), "damaged"),
        (
            lambda f: _write(f, settings={"sites": [1, 2], "scales": [1.0, 200.0]}),
            "its digest is not",
        ),
        (lambda f: _write(f, base_digest="00"), "its digest is not"),
    ],
)
def test_a_damaged_dial_is_refused_with_the_reason(tiny, tmp_path, harm, message):
    saved("vector", tiny("llama"), tmp_path / "d")
    harm(tmp_path / "d")
    with pytest.raises(DialError, match=message) as caught:
        Dial.from_pretrained(tmp_path / "d")
    assert str(tmp_path / "d") in str(caught.value)


@pytest.mark.parametrize("kind", ["vector", "adapter"])
def test_a_note_without_one_of_its_keys_is_refused(tiny, tmp_path, kind):
    saved(kind, tiny("llama"), tmp_path / "d")
    whole = json.loads((tmp_path / "d" / "dial.json").read_text())
    for key in set(whole) - {"digest"}:
        (tmp_path / "d" / "dial.json").write_text(
            json.dumps({k: v for k, v in whole.items() if k != key})
        )
        with pytest.raises(DialError, match="damaged"):
            Dial.from_pretrained(tmp_path / "d")


def test_what_is_measured_later_may_be_added(tiny, tmp_path):
    saved("vector", tiny("llama"), tmp_path / "d")
    _write(tmp_path / "d", measured={"kl": 1.0})
    assert Dial.from_pretrained(tmp_path / "d").info.measured == {"kl": 1.0}


@pytest.mark.parametrize("kind", ["vector", "adapter"])
def test_weights_that_are_not_finite_are_refused(tiny, tmp_path, kind):
    """0 times infinity is not 0: such a dial would not be untouched at 0."""
    model = tiny("llama")
    dial = make(kind, model)
    next(iter(dial.state_dict().values())).view(-1)[0] = float("inf")
    dial.save_pretrained(tmp_path / "d")
    with pytest.raises(DialError, match="not finite"):
        Dial.from_pretrained(tmp_path / "d")
    if kind == "adapter":  # as a plain PEFT folder too
        (tmp_path / "d" / "dial.json").unlink()
        with pytest.raises(DialError, match="not finite"):
            Dial.from_pretrained(tmp_path / "d")


@pytest.mark.parametrize("name", ["/no/such/dial", "./none", "none", "runs/none", "a/b/c"])
def test_a_dial_that_is_not_there(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DialError, match="no such folder"):
        Dial.from_pretrained(name)


def test_a_dial_of_another_base_model_is_refused(tiny, tmp_path):
    model, other = tiny("llama", fresh=True), tiny("llama", fresh=True)
    other.model.norm.weight.data[0] += 1
    dial = vector(model)
    dial.info.base_model, dial.info.base_digest = "tiny", models.source_of(model).digest
    dial.save_pretrained(tmp_path / "d")
    dial = Dial.from_pretrained(tmp_path / "d")
    models.source_of(other)
    with dial(model, 1.0):
        pass
    for use in (dial, 0.5 * dial, dial + dial):
        with pytest.raises(DialError, match=r"made for tiny .*--force"), use(other, 1.0):
            pytest.fail("entered")
        with use(other, 1.0, force=True):
            pass


def test_a_failed_write_leaves_the_old_dial(tiny, tmp_path, monkeypatch):
    model = tiny("llama")
    old = saved("vector", model, tmp_path / "d")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    for target in ("save_file", "card"):
        with monkeypatch.context() as patch:
            patch.setattr(saving, target, full)
            with pytest.raises(DialError, match=r"cannot save the dial .*No space left"):
                vector(model, 9).save_pretrained(tmp_path / "d")
        again = Dial.from_pretrained(tmp_path / "d")
        assert torch.equal(again.tensors()["vectors"], old.tensors()["vectors"])
        assert [p.name for p in tmp_path.iterdir()] == ["d"]
    # the last rename fails: the old dial is put back
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(DialError, match="cannot save"):
        vector(model, 9).save_pretrained(tmp_path / "d")
    again = Dial.from_pretrained(tmp_path / "d")
    assert torch.equal(again.tensors()["vectors"], old.tensors()["vectors"])
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_a_disk_that_is_full_is_a_clear_error(tiny, tmp_path):
    """The kernel itself refuses to write: a limit on file sizes, in a process of its own."""
    resource = pytest.importorskip("resource")
    saved("vector", tiny("llama"), tmp_path / "d")
    before = (tmp_path / "d" / "dial.safetensors").read_bytes()
    big = VectorDial({1: torch.ones(100_000)}, {1: 1.0})
    told, child = tmp_path.parent / f"{tmp_path.name}.told", os.fork()
    if not child:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            big.save_pretrained(tmp_path / "d")
        except BaseException as error:
            told.write_text(f"{type(error).__name__}: {error}")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert told.read_text().startswith(f"DialError: {tmp_path / 'd'}: cannot save the dial")
    assert (tmp_path / "d" / "dial.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_calls_are_not_repeated(tiny):
    """A dial runs every layer once: no second forward hides in it."""
    model = tiny("llama")
    dial = make("composed", model)
    counts, done = count_calls(*models.layers(model))
    with dial(model, [1.0, 0.0, 2.0]):
        logits(model)
    done()
    assert counts == [1] * 4
