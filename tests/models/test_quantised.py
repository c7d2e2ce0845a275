"""Bases quantised by other libraries: their weights, names, gradients, copies; dials on them."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trimtab import models
from trimtab.batching import Encoded, collate, layout_of
from trimtab.cli import main
from trimtab.dials import AdapterDial, Dial, LogitsDial, VectorDial
from trimtab.dials.targets import linear_modules
from trimtab.errors import DialError, ModelError, TrainingError
from trimtab.export import check, export, run
from trimtab.pairs import PairSet
from trimtab.readings import collect
from trimtab.states import read
from trimtab.training import fit
from trimtab.training.methods import method
from trimtab.training.probe import _differs, check_gradients
from trimtab.training.settings import TrainSettings

VOCAB, WIDTH = 320, 64
IDS = torch.randint(2, VOCAB, (3, 12), generator=torch.Generator().manual_seed(1))


def plain(seed: int = 0) -> Any:
    """A tiny Llama, wide enough for blocks of 64 codes."""
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
    )
    torch.manual_seed(seed)
    model: Any = transformers.AutoModelForCausalLM.from_config(config).float()
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        if p.ndim == 2:
            p.data = torch.randn(p.shape, generator=generator) * 1.5 / p.shape[-1] ** 0.5
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """The plain model and a tokenizer, saved."""
    where = tmp_path_factory.mktemp("quantised") / "model"
    plain().save_pretrained(where)
    tokenizer.save_pretrained(where)
    return where


def linears(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """Owner, attribute and linear layer of every linear layer inside the blocks."""
    return [
        (model.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2], module)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and "layers." in path
    ]


def by_transformers(config: Callable[[], Any]) -> Callable[[Path], Any]:
    def build(folder: Path) -> Any:
        kind: Any = transformers.AutoModelForCausalLM
        return kind.from_pretrained(folder, dtype=torch.float32, quantization_config=config())

    return build


def torchao(name: str) -> Callable[[], Any]:
    def config() -> Any:
        import torchao.quantization

        return transformers.TorchAoConfig(getattr(torchao.quantization, name)())

    return config


def in_place(folder: Path) -> Any:
    """torchao in memory, without transformers' knowledge."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = plain()
    quantize_(model.model.layers, Int8WeightOnlyConfig())
    return model


def hqq(folder: Path) -> Any:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    model = plain()
    settings = BaseQuantizeConfig(nbits=4, group_size=64)
    for owner, name, module in linears(model):
        layer = HQQLinear(module, settings, compute_dtype=torch.float32, device="cpu")
        setattr(owner, name, layer)
    return model


def compressed(folder: Path) -> Any:
    """int8 weights of compressed-tensors as a checkpoint has them: decompressed when they first run."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )
    from compressed_tensors.quantization.quant_args import QuantizationArgs

    model = plain()
    weights = QuantizationArgs(num_bits=8, type="int", symmetric=True, strategy="channel")
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    settings = QuantizationConfig(
        config_groups={"all": scheme}, ignore=["lm_head"], format="int-quantized"
    )
    apply_quantization_config(model, settings)
    for _, _, module in linears(model):
        scale: Any = module.weight_scale
        scale.data = module.weight.abs().amax(1, keepdim=True) / 127  # type: ignore[operator]
    ModelCompressor(quantization_config=settings).compress_model(model)
    return model


def four_bit(**options: Any) -> Callable[[], Any]:
    return lambda: transformers.BitsAndBytesConfig(load_in_4bit=True, **options)


WEIGHTS_ONLY: dict[str, Callable[[Path], Any]] = {
    "bnb-nf4": by_transformers(four_bit(bnb_4bit_quant_type="nf4")),
    "bnb-fp4": by_transformers(four_bit()),
    "bnb-nested": by_transformers(four_bit(bnb_4bit_use_double_quant=True)),
    "torchao-int8": by_transformers(torchao("Int8WeightOnlyConfig")),
    "torchao-float8": by_transformers(torchao("Float8WeightOnlyConfig")),
    "torchao-in-place": in_place,
    "hqq": hqq,
    "quanto-int8": by_transformers(lambda: transformers.QuantoConfig(weights="int8")),
    "quanto-int4": by_transformers(lambda: transformers.QuantoConfig(weights="int4")),
    "compressed-tensors": compressed,
}
"""Kinds that multiply plain inputs by dequantised weights."""
ACTIVATIONS_TOO: dict[str, Callable[[Path], Any]] = {
    "bnb-int8": by_transformers(lambda: transformers.BitsAndBytesConfig(load_in_8bit=True)),
    "torchao-dynamic": by_transformers(torchao("Int8DynamicActivationInt8WeightConfig")),
}
KINDS = {**WEIGHTS_ONLY, **ACTIVATIONS_TOO}


@pytest.fixture(scope="session")
def quantised(folder: Path) -> Callable[..., Any]:
    """`quantised(kind, fresh=False)`: the plain model, quantised."""

    @cache
    def built(kind: str) -> Any:
        return KINDS[kind](folder).eval()

    return lambda kind, fresh=False: (built.__wrapped__ if fresh else built)(kind)


def logits(model: Any, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits.float()


def apart(a: Tensor, b: Tensor) -> float:
    """Relative difference."""
    return ((a - b).norm() / b.norm()).item()


def digest(model: Any) -> str:
    sha = hashlib.sha256()
    for name, tensor in sorted(models.own_tensors(model), key=lambda pair: pair[0]):
        sha.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        sha.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


SLOW = {"quanto-int4"}
"""Whose library compiles its kernels first, for half a minute."""
EACH = [pytest.param(k, marks=[pytest.mark.slow] if k in SLOW else []) for k in KINDS]


# ---- weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EACH)
def test_weights_are_what_a_layer_multiplies_by(quantised: Callable[..., Any], kind: str) -> None:
    model = quantised(kind, fresh=True)
    module = model.model.layers[0].mlp.down_proj
    first = models.dense_weight(module)
    x = torch.randn(5, 2 * WIDTH, generator=torch.Generator().manual_seed(0))
    logits(model)  # some repack or unpack their weights now
    with torch.no_grad():
        y = module(x)
    again = models.dense_weight(module)
    assert first.shape == again.shape == (WIDTH, 2 * WIDTH)
    tolerance = 0.02 if kind in ACTIVATIONS_TOO or kind.startswith("bnb") else 1e-5
    assert apart(x @ again.T, y) < tolerance  # int8 and bfloat16 inputs round
    assert apart(again, first) < 0.003  # statistics that a first pass rounds to bfloat16
    off = apart(first, plain().model.layers[0].mlp.down_proj.weight)
    assert 0.003 < off < 0.15  # one of 8 bits, or of 4


def test_bitsandbytes_weights_are_its_own_dequantisation(quantised: Callable[..., Any]) -> None:
    from bitsandbytes.functional import dequantize_4bit

    model = quantised("bnb-nf4", fresh=True)
    module = model.model.layers[1].self_attn.q_proj
    expected = dequantize_4bit(module.weight.data.clone(), copy.deepcopy(module.weight.quant_state))
    logits(model)  # on some processors the weights have another layout now
    assert apart(models.dense_weight(module), expected) < 0.003


def test_plain_weights_are_read_as_they_are(tiny: Callable[..., Any]) -> None:
    gpt2, llama = tiny("gpt2"), tiny("llama")
    conv = gpt2.transformer.h[0].mlp.c_fc
    assert torch.equal(models.dense_weight(conv), conv.weight.T)
    half = copy.deepcopy(llama.model.layers[0].mlp.up_proj).bfloat16()
    assert torch.equal(models.dense_weight(half), half.weight.float())


def test_float8_codes_without_their_scale_are_refused() -> None:
    module = nn.Linear(32, 32, bias=False)
    module.weight = nn.Parameter(module.weight.detach().to(torch.float8_e4m3fn), False)
    with pytest.raises(ModelError, match="cannot be read"):
        models.dense_weight(module)


def test_fp8_weights_are_codes_times_scales() -> None:
    from transformers.integrations.finegrained_fp8 import FP8Linear

    module = FP8Linear(64, 96, block_size=(32, 32))
    codes = torch.randn(96, 64).to(torch.float8_e4m3fn)
    scale = torch.rand(3, 2) + 0.5
    module.weight = nn.Parameter(codes, False)
    module.weight_scale_inv = nn.Parameter(scale, False)
    expected = torch.empty(96, 64)
    for i in range(96):
        for j in range(64):
            expected[i, j] = codes[i, j].float() * scale[i // 32, j // 32]
    assert torch.equal(models.dense_weight(module), expected)


class Doubling(nn.Module):
    """A layer of an unknown library: packed, and not linear."""

    def __init__(self, power: float) -> None:
        super().__init__()
        self.in_features, self.out_features, self.power = 8, 8, power
        self.codes = nn.Parameter(torch.arange(64, dtype=torch.uint8).view(8, 8), False)

    def forward(self, x: Tensor) -> Tensor:
        return (x @ (self.codes.float() / 64).T) ** self.power


def test_an_unknown_layer_is_read_by_trying_and_only_if_it_is_linear() -> None:
    assert torch.equal(models.dense_weight(Doubling(1)), Doubling(1).codes.float() / 64)
    with pytest.raises(ModelError, match="no product with a matrix"):
        models.dense_weight(Doubling(2))


# ---- names ---------------------------------------------------------------------------------------


def test_every_quantisation_has_a_name_of_its_own(quantised: Callable[..., Any]) -> None:
    digests = {kind: models.quantisation_digest(quantised(kind)) for kind in KINDS}
    assert digests["torchao-int8"] == digests["torchao-in-place"]  # the same, by another way
    del digests["torchao-in-place"]
    assert len(set(digests.values())) == len(digests)
    assert models.quantisation_digest(plain()) == ""
    assert models.quantisation_name(plain()) == "float32"
    assert models.quantisation_name(quantised("bnb-nf4")) == "bitsandbytes nf4"


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "compressed-tensors"])
def test_running_changes_neither_name_nor_digest(quantised: Callable[..., Any], kind: str) -> None:
    model = quantised(kind, fresh=True)
    before = models.quantisation_of(model), digest(model)
    first = logits(model)
    after = models.quantisation_of(model), digest(model)
    assert len(before[0]) == 21
    assert before == after
    assert torch.equal(logits(model), first)  # reading has changed nothing


def test_quantising_in_place_changes_the_name() -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = plain()
    before = models.quantisation_of(model), digest(model)
    quantize_(model.model.layers[0].mlp, Int8WeightOnlyConfig())
    assert len(models.quantisation_of(model)) == 3
    assert before[1] != digest(model)


def test_the_tensors_of_a_plain_model_are_those_of_its_state(tiny: Callable[..., Any]) -> None:
    for name in ("llama", "gpt2", "mamba"):
        model = tiny(name)
        mine, state = dict(models.own_tensors(model)), model.state_dict()
        assert set(mine) == set(state)
        assert all(torch.equal(mine[k], state[k]) for k in state)


# ---- repacking -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bnb-nf4", "bnb-fp4", "bnb-nested", "compressed-tensors"])
def test_a_settled_model_keeps_its_weights_and_can_be_saved(
    quantised: Callable[..., Any], kind: str
) -> None:
    model = quantised(kind, fresh=True)
    ran = logits(model)
    models.settle(model)
    settled = logits(model)
    assert apart(settled, ran) < 0.05  # bitsandbytes' fast path computes in bfloat16
    model.state_dict()
    assert torch.equal(logits(model), settled)
    hidden = torch.randn(2, WIDTH).requires_grad_()
    model.model.layers[0].mlp.up_proj(hidden).sum().backward()
    assert hidden.grad is not None


# ---- copies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EACH)
def test_a_plain_copy_is_the_same_model(
    quantised: Callable[..., Any], kind: str, tmp_path: Path
) -> None:
    model = quantised(kind, fresh=True)
    models.settle(model)
    result = models.plain_copy(model)
    assert models.quantisation_of(result) == {}
    assert apart(logits(result), logits(model)) < (0.1 if kind in ACTIVATIONS_TOO else 1e-5)
    if kind in ("bnb-nf4", "torchao-int8", "quanto-int4"):
        result.save_pretrained(tmp_path)
        loader: Any = transformers.AutoModelForCausalLM
        assert torch.equal(logits(loader.from_pretrained(tmp_path)), logits(result))


def test_offloaded_weights_are_read_and_copied(folder: Path, tmp_path: Path) -> None:
    where = {"model.embed_tokens": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    where |= {"model.rotary_emb": "cpu", "model.layers.0": "cpu"}
    where |= {"model.layers.1": "disk", "model.layers.2": "disk"}
    loader: Any = transformers.AutoModelForCausalLM
    model = loader.from_pretrained(
        folder, device_map=where, offload_folder=tmp_path, dtype=torch.float32
    )
    bare = plain()
    assert digest(model) == digest(bare)
    path = "model.layers.2.mlp.down_proj"
    assert torch.equal(
        models.dense_weight(model.get_submodule(path)), bare.get_submodule(path).weight
    )
    result = models.plain_copy(model)
    assert not any(p.is_meta for p in result.parameters())
    assert apart(logits(result), logits(bare)) < 1e-6


# ---- loading -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("load_in", "name"), [("4bit", "nf4"), ("8bit", "int8")])
def test_load_in(folder: Path, load_in: str, name: str) -> None:
    model, _ = models.load(str(folder), load_in=load_in)
    assert models.quantisation_name(model) == f"bitsandbytes {name}"
    assert apart(logits(model), logits(plain())) < 0.8
    assert not any(p.requires_grad for p in model.parameters())


def test_load_with_any_config(folder: Path) -> None:
    config = transformers.QuantoConfig(weights="int8")
    model, _ = models.load(str(folder), quantization_config=config)
    assert "QBytes" in models.quantisation_name(model)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"load_in": "2bit"}, "expected one of 4bit, 8bit"),
        ({"load_in": "4bit", "quantization_config": object()}, "one of them"),
        ({"attention": "flex_attention"}, "does not run on a CPU"),
    ],
)
def test_load_refuses(folder: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        models.load(str(folder), device="cpu", **options)


# ---- dials ---------------------------------------------------------------------------------------


def lora(model: nn.Module, seed: int = 0) -> AdapterDial:
    """A LoRA on every linear layer of the blocks, that does something."""
    generator = torch.Generator().manual_seed(seed)
    dial = AdapterDial(linear_modules(model), rank=4, generator=generator)
    for B in dial.B:
        B.data = 0.2 * torch.randn(B.shape, generator=generator)
    return dial.eval().requires_grad_(False)


def vector(model: nn.Module) -> VectorDial:
    step = torch.randn(WIDTH, generator=torch.Generator().manual_seed(3))
    return VectorDial({1: step}, {1: 3.0})


def head(model: nn.Module) -> LogitsDial:
    dial = LogitsDial.for_model(model, rank=4, generator=torch.Generator().manual_seed(0))
    dial.B.data = 0.2 * torch.randn(dial.B.shape, generator=torch.Generator().manual_seed(1))
    return dial.eval().requires_grad_(False)


@pytest.mark.parametrize("make", [lora, vector, head])
@pytest.mark.parametrize("kind", EACH)
def test_merged_is_what_was_hooked(
    quantised: Callable[..., Any], kind: str, make: Callable[[nn.Module], Dial]
) -> None:
    model = quantised(kind, fresh=True)
    models.settle(model)
    dial = make(model)
    bare = logits(model)
    with dial(model, 0.7):
        hooked = logits(model)
    merged = dial.merged(model, 0.7)
    assert torch.equal(logits(model), bare)  # the base is as it was
    assert (hooked - bare).norm() > 0.05 * bare.norm()
    if kind in WEIGHTS_ONLY:
        assert (logits(merged) - hooked).norm() < 1e-4 * (hooked - bare).norm()
    else:  # the same on the weights alone: a plain copy does not round activations
        copied = models.plain_copy(model)
        with dial(copied, 0.7):
            hooked = logits(copied)
        assert (logits(merged) - hooked).norm() < 1e-4 * (hooked - bare).norm()


def quantised_head(folder: Path) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = plain()
    quantize_(model, Int8WeightOnlyConfig())
    return model


def hqq_head(folder: Path) -> Any:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    model, settings = plain(), BaseQuantizeConfig(nbits=4, group_size=64)
    model.lm_head = HQQLinear(model.lm_head, settings, compute_dtype=torch.float32, device="cpu")
    return model


HEADS: dict[str, Callable[[Path], Any]] = {
    "torchao": quantised_head,
    "hqq": hqq_head,
    "bnb-nf4": by_transformers(four_bit(bnb_4bit_quant_type="nf4", llm_int8_skip_modules=["none"])),
    "bnb-int8": by_transformers(
        lambda: transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["none"])
    ),
}


@pytest.mark.parametrize("kind", HEADS)
def test_heads_of_quantised_lm_heads(folder: Path, kind: str, rows: Encoded) -> None:
    model = HEADS[kind](folder)
    models.settle(model)
    assert any("lm_head" in path for path in models.quantisation_of(model))
    assert models.head_shape(model) == (VOCAB, WIDTH)
    weight = models.head_weight(model)
    hidden = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert apart(hidden @ weight.T, model.lm_head(hidden)) < 0.02
        assert apart(models.head_logits(model, hidden), model.lm_head(hidden)) < 1e-6
    dial = LogitsDial.for_model(model, shape="hidden", rank=4)
    dial.B.data = torch.randn(dial.B.shape, generator=torch.Generator().manual_seed(1))
    bare = logits(model)
    seen: list[Tensor] = []
    handle = model.lm_head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with dial(model, 1.0):
        dialled = logits(model)
    handle.remove()
    expected = seen[0] @ (dial.B @ dial.A).T @ weight.T  # type: ignore[operator]
    assert apart(dialled - bare, expected) < 1e-3
    found = read(model, collate(rows, [0], "padded"), logps=True).logps
    assert found is not None
    assert found.isfinite().all()


# ---- gradients -----------------------------------------------------------------------------------


def slopes(model: nn.Module, dial: AdapterDial, rows: Encoded) -> Tensor:
    """The gradient of a DPO-like loss with respect to every weight of a LoRA, in one line."""
    dial.requires_grad_(True)
    batch = collate(rows, [0, 1], "padded")
    with dial(model, 1.0, training=True):
        found = read(model, batch, logps=True).logps
        assert found is not None
        loss = -torch.nn.functional.logsigmoid(found[::2].sum() - found[1::2].sum())
        grads = torch.autograd.grad(loss, [*dial.A, *dial.B])
    return torch.cat([g.flatten() for g in grads])


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "torchao-dynamic"])
def test_the_gradient_of_a_lora_is_that_on_the_dequantised_model(
    quantised: Callable[..., Any], kind: str, rows: Encoded
) -> None:
    model = quantised(kind, fresh=True)
    logits(model)  # as every fit reads its reference first
    check_gradients(model)
    logits(model)
    mine = slopes(model, lora(model), rows)
    expected = slopes(models.plain_copy(model), lora(model), rows)
    assert torch.cosine_similarity(mine, expected, 0) > 0.998


class Frozen(nn.Linear):
    """A layer of a careless library: it computes without a graph."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(input)


class Rounded(nn.Linear):
    """A layer that rounds its input, with no gradient through the rounding but through its scale."""

    def forward(self, input: Tensor) -> Tensor:
        scale = input.abs().amax(-1, keepdim=True) / 127
        return super().forward((input / scale).round() * scale)


class Halved(nn.Module):
    """Scales gradients alone."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return 0.5 * y + (0.5 * y).detach()


def careless(make: Callable[[nn.Linear], nn.Module], name: str = "up_proj") -> Any:
    model = plain()
    for layer in model.model.layers:
        old = getattr(layer.mlp, name)
        setattr(layer.mlp, name, make(old))
    return model


def as_kind(kind: type[nn.Linear]) -> Callable[[nn.Linear], nn.Module]:
    def make(old: nn.Linear) -> nn.Module:
        new = kind(old.in_features, old.out_features, bias=False)
        new.weight = old.weight
        return new

    return make


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: careless(as_kind(Frozen)), "rises otherwise"),
        (lambda: careless(Halved), "rises otherwise"),
        (lambda: careless(Halved, "down_proj"), "rises otherwise"),
    ],
)
def test_a_base_with_wrong_gradients_is_not_trained_on(
    build: Callable[[], Any], said: str, few_pairs: PairSet, tokenizer: Any
) -> None:
    model = build()
    check_gradients(plain())
    with pytest.raises(TrainingError, match=said):
        fit("dpo", model, tokenizer, few_pairs)
    assert fit("mean", model, tokenizer, few_pairs).kind == "vector"


def test_dynamically_quantised_activations_are_not_trained_on(
    quantised: Callable[..., Any], few_pairs: PairSet, tokenizer: Any
) -> None:
    model = quantised("torchao-dynamic", fresh=True)
    for name in ("dpo", "gradient_mean"):
        with pytest.raises(TrainingError, match=r"layers\.0.*torchao.*no gradient to its input"):
            fit(name, model, tokenizer, few_pairs)
    assert fit("mean", model, tokenizer, few_pairs).kind == "vector"


def test_a_gradient_through_rounding_is_told_from_the_weights() -> None:
    layer = as_kind(Rounded)(nn.Linear(64, 64, bias=False))
    weight = models.dense_weight(layer)
    assert "cosine" in _differs(layer, weight, torch.float32)
    assert _differs(nn.Linear(64, 64), torch.eye(64), torch.float32)  # another weight
    plain_layer = nn.Linear(64, 32)
    assert not _differs(plain_layer, plain_layer.weight.detach(), torch.float32)


@pytest.mark.parametrize("kind", ["bnb-nf4", "bnb-nested", "hqq"])
def test_dpo_learns_what_it_learns_on_the_dequantised_model(
    quantised: Callable[..., Any], kind: str, few_pairs: PairSet, tokenizer: Any, tmp_path: Path
) -> None:
    settings = TrainSettings(learning_rate=3e-3, pairs_per_step=6, max_steps=6, epochs=6)
    recipe = replace(method("dpo").recipe, train=settings)
    losses = []
    model = quantised(kind, fresh=True)
    logits(model)
    for name, base in (("quantised", model), ("copy", models.plain_copy(model))):
        fit(recipe, base, tokenizer, few_pairs, out=tmp_path / name)
        history = (tmp_path / name / "training.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in history])
    assert losses[0][0] == pytest.approx(math.log(2), abs=1e-5)
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    assert losses[0][-1] < 0.6


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "qwen3moe", "opt", "mamba"])
def test_sound_bases_pass_the_probe(tiny: Callable[..., Any], name: str) -> None:
    model = tiny(name)
    check_gradients(model)
    assert not any(p.requires_grad for p in model.parameters())


def test_a_kernel_that_would_end_the_process_is_refused(few_pairs: PairSet, tokenizer: Any) -> None:
    model = plain()
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(ModelError, match="does not run on a CPU"):
        fit("mean", model, tokenizer, few_pairs)


# ---- verbs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "to", "make"),
    [
        ("bnb-nf4", "peft", lora),
        ("bnb-nf4", "merged", lora),
        ("bnb-int8", "peft", lora),
        ("torchao-int8", "merged", vector),
        ("hqq", "gguf", vector),
    ],
)
def test_exports_of_dials_on_quantised_bases(
    quantised: Callable[..., Any],
    tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    to: str,
    make: Callable[[nn.Module], Dial],
) -> None:
    def checked(spec: dict[str, Any], stage: Path, python: Any) -> dict[str, Any]:
        return check.compare(spec)  # here, instead of in a process that takes seconds to start

    monkeypatch.setattr(run, "_run_check", checked)
    monkeypatch.setattr(run, "_publish", lambda *_: None)
    model = quantised(kind, fresh=True)
    if to == "merged" and make is vector:
        model.config.mlp_bias = True  # the plain copy is to have a place for it
    dial = make(model)
    receipt = export(dial, model, tokenizer, to, tmp_path / "out")
    assert receipt["within_tolerance"]
    assert receipt["largest_logit_change_by_the_dial"] > 0.1
    assert receipt["base_quantisation"] == models.quantisation_name(model)
    far = receipt["largest_logit_difference_to_the_quantised_base"]
    assert far < (1.5 if kind in ACTIVATIONS_TOO else 1e-3)
    assert models.quantisation_of(model)  # the base is as it was


def test_verbs_take_load_in(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], checked_here: None
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    lines = [
        {"prompt": f"Is {i} blue?", "chosen": " Yes, the sky.", "rejected": " The other answer."}
        for i in range(4)
    ]
    pairs.write_text("".join(json.dumps(line) + "\n" for line in lines))
    base = ["--model", str(folder), "--load-in", "4bit"]
    spec = f"jsonl:{pairs}"
    made = str(tmp_path / "dial")
    for words in (
        ["fit", "mean", "--pairs", spec, "--out", made, *base],
        [
            "evaluate",
            "--pairs",
            f"x={spec}",
            "--dial",
            made,
            "--out",
            str(tmp_path / "eval"),
            *base,
        ],
        ["export", "--dial", made, "--to", "gguf", "--out", str(tmp_path / "gguf"), *base],
        [
            "generate",
            "--prompt",
            "Is",
            "--max-new-tokens",
            "3",
            "--dial",
            made,
            "--alpha",
            "1",
            *base,
        ],
    ):
        with pytest.raises(SystemExit) as done:
            main([*words, "--quiet"])
        assert done.value.code == 0, capsys.readouterr().err
    receipt = json.loads((tmp_path / "gguf" / "receipt.json").read_text())
    assert receipt["base_quantisation"] == "bitsandbytes nf4"


def test_the_command_line_says_nothing_of_quantisers() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "trimtab", "methods"], capture_output=True, text=True, check=True
    )
    assert ran.stderr == ""


def outlying(folder: Path) -> Any:
    """An 8-bit model some of whose inputs are outliers, as those of real models are."""
    model = plain()
    for layer in model.model.layers:
        layer.input_layernorm.weight.data[::7] *= 4
    where = folder.parent / "outlying"
    model.save_pretrained(where)
    return ACTIVATIONS_TOO["bnb-int8"](where)


def test_rows_of_eight_bit_layers_are_read_one_by_one(folder: Path, rows: Encoded) -> None:
    model = outlying(folder)
    truth = []
    for row in rows.rows:
        for answer in row.answers:
            ids = torch.tensor([[*row.prompt, *answer]])
            scored = logits(model, ids)[0, :-1].log_softmax(-1)
            found = scored.gather(-1, ids[0, 1:, None])[len(row.prompt) - 1 :, 0]
            truth.append(found.sum())
    together = collect(model, rows, logps=True).logps
    assert together is not None
    with pytest.warns(UserWarning, match="one by one"):
        assert layout_of(outlying(folder), rows) == "alone"
    assert torch.allclose(together, torch.stack(truth), atol=1e-4)
    batched = read(model, collate(rows, [0, 1, 2], "padded"), logps=True).logps
    assert batched is not None
    assert (batched - torch.stack(truth)).abs().max() > 1e-2  # what it would have been


def test_training_on_eight_bit_layers_starts_at_log_two(
    folder: Path, few_pairs: PairSet, tokenizer: Any, tmp_path: Path
) -> None:
    model = outlying(folder)
    with models.differentiable(model):
        assert models.rows_depend(model) == ""
    assert models.rows_depend(model)
    settings = TrainSettings(pairs_per_step=6, max_steps=1)
    fit(
        replace(method("dpo").recipe, train=settings),
        model,
        tokenizer,
        few_pairs,
        out=tmp_path / "dial",
    )
    first = json.loads((tmp_path / "dial" / "training.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert layout_of(model) == "alone"  # not what training has found to hold


# ---- checkpoints that are quantised --------------------------------------------------------------


def as_folder(model: Any, tokenizer: Any, where: Path, change: Any, settings: Any) -> Path:
    """A folder whose tensors are changed one by one, and whose config says how they are quantised."""
    model.save_pretrained(where)
    tokenizer.save_pretrained(where)
    stored = load_file(where / "model.safetensors")
    changed = {k: v for name, t in stored.items() for k, v in change(name, t).items()}
    save_file(changed, where / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((where / "config.json").read_text())
    (where / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return where


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_fp8_folder_in_any_dtype_on_a_cpu(tokenizer: Any, tmp_path: Path, dtype: str) -> None:
    expected = plain()

    def change(name: str, t: Tensor) -> dict[str, Tensor]:
        if "layers." not in name or t.ndim < 2:
            return {name: t}
        blocks = t.view(t.shape[0] // 32, 32, t.shape[1] // 32, 32)
        scale = blocks.abs().amax((1, 3)) / 448
        codes = (blocks / scale[:, None, :, None]).view(t.shape).to(torch.float8_e4m3fn)
        spread = scale.repeat_interleave(32, 0).repeat_interleave(32, 1)
        expected.get_parameter(name).data = codes.float() * spread
        return {name: codes, f"{name}_scale_inv": scale}

    settings = {"quant_method": "fp8", "weight_block_size": [32, 32], "fmt": "e4m3"}
    where = as_folder(plain(), tokenizer, tmp_path / "fp8", change, settings)
    model, _ = models.load(str(where), dtype=dtype, device="cpu")
    assert {str(p.dtype) for p in model.parameters()} == {f"torch.{dtype}"}
    assert apart(logits(model), logits(expected)) < (1e-2 if dtype == "float32" else 5e-2)
    assert models.source_of(model).quantisation.startswith("fp8")


def test_an_mxfp4_folder_on_a_cpu(tokenizer: Any, tmp_path: Path) -> None:
    config = transformers.GptOssConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=8,
        max_position_embeddings=256,
        eos_token_id=0,
        pad_token_id=1,
    )
    kind: Any = transformers.AutoModelForCausalLM
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    values = torch.cat([values, -values])
    expected: dict[str, Tensor] = {}

    def change(name: str, t: Tensor) -> dict[str, Tensor]:
        if not name.endswith("_proj") or "experts" not in name:
            return {name: t}
        shape = (t.shape[0], t.shape[2], t.shape[1] // 32)
        codes = torch.randint(256, (*shape, 16), generator=generator, dtype=torch.uint8)
        scales = torch.randint(120, 124, shape, generator=generator, dtype=torch.uint8)
        both = torch.stack([values[(codes & 15).long()], values[(codes >> 4).long()]], -1)
        dense = both.flatten(-2) * 2.0 ** (scales.float() - 127)[..., None]
        expected[name] = dense.flatten(-2).mT
        return {f"{name}_blocks": codes, f"{name}_scales": scales}

    left_out = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"]
    settings = {"quant_method": "mxfp4", "modules_to_not_convert": left_out}
    where = as_folder(kind.from_config(config), tokenizer, tmp_path / "mx", change, settings)
    model, _ = models.load(str(where), dtype="float32", device="cpu")
    assert len(expected) == 4
    for name, dense in expected.items():
        assert torch.equal(model.get_parameter(name), dense)
    assert logits(model).isfinite().all()


@pytest.mark.parametrize("method_name", ["gptq", "awq"])
def test_a_folder_whose_library_is_missing_is_refused(
    tokenizer: Any, tmp_path: Path, method_name: str
) -> None:
    settings = {"quant_method": method_name, "bits": 4, "group_size": 64}
    where = as_folder(plain(), tokenizer, tmp_path / "m", lambda n, t: {n: t}, settings)
    with pytest.raises(ModelError, match="gptq"):
        models.load(str(where))


@pytest.mark.parametrize("kind", ["bnb-nf4", "bnb-int8", "torchao-int8"])
def test_a_saved_quantised_model_is_loaded_as_it_was(
    quantised: Callable[..., Any], tokenizer: Any, tmp_path: Path, kind: str
) -> None:
    saved = quantised(kind, fresh=True)
    models.settle(saved)
    saved.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, _ = models.load(str(tmp_path))
    assert models.quantisation_of(model) == models.quantisation_of(saved)
    assert apart(logits(model), logits(saved)) < 1e-5


# ---- identity ------------------------------------------------------------------------------------


def test_a_dial_on_another_quantisation_of_its_base_is_warned_of(
    folder: Path, few_pairs: PairSet, tokenizer: Any
) -> None:
    model, _ = models.load(str(folder))
    four, _ = models.load(str(folder), load_in="4bit")
    eight, _ = models.load(str(folder), load_in="8bit")
    assert models.source_of(model).digest == models.source_of(four).digest
    dials = {"plain": fit("mean", model, tokenizer, few_pairs)}
    dials["four"] = fit("mean", four, tokenizer, few_pairs)
    for name, base, said in (
        ("plain", four, r"another quantisation.*none.*bitsandbytes nf4"),
        ("four", model, r"another quantisation.*bitsandbytes nf4.*none"),
        ("four", eight, r"another quantisation.*bitsandbytes nf4.*bitsandbytes int8"),
    ):
        with pytest.warns(UserWarning, match=said), dials[name](base, 1.0):
            pass
    with pytest.raises(DialError, match="another weights"), dials["plain"](plain(seed=1), 1.0):
        pass


def test_quantising_in_place_is_another_identity(folder: Path) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model, _ = models.load(str(folder))
    before = models.source_of(model)
    quantize_(model.model.layers, Int8WeightOnlyConfig())
    after = models.source_of(model)
    assert before.quantisation == "none"
    assert after.quantisation.startswith("torchao")
    assert before.readings != after.readings


def test_the_identity_of_a_base_that_has_run_is_its_own(quantised: Callable[..., Any]) -> None:
    model = quantised("bnb-nf4", fresh=True)
    before = models.source_of(model)
    first = logits(model)
    assert models.source_of(model) == before
    assert torch.equal(logits(model), first)


# ---- precision -----------------------------------------------------------------------------------


def test_a_vector_that_half_precision_loses_is_told() -> None:
    model = plain().bfloat16()
    generator = torch.Generator().manual_seed(0)
    size = 0.1 * 8.0
    dial = VectorDial({1: torch.randn(WIDTH, generator=generator)}, {1: size})
    with dial(model, 1e-3), pytest.warns(UserWarning, match="too coarse"):
        logits(model)
    with dial(model, 1.0), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        logits(model)
    assert not any("coarse" in str(w.message) for w in said)
    with dial(plain(), 1e-3), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        logits(plain())
    assert not any("coarse" in str(w.message) for w in said)


def test_an_export_says_that_its_base_rounds_its_inputs(
    quantised: Callable[..., Any], tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_run_check", lambda spec, stage, python: check.compare(spec))
    monkeypatch.setattr(run, "_publish", lambda *_: None)
    model = quantised("torchao-dynamic")
    with pytest.warns(UserWarning, match="rounds its inputs"):
        export(vector(model), model, tokenizer, "gguf", tmp_path / "out")
