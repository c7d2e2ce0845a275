"""Adapters on stacked expert parameters, and PEFT's names and patterns for them."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

from helpers_kinds import IDS, build, kind, logits, lora
from trimtab import fit, models
from trimtab.batching import collate
from trimtab.dials import AdapterDial, Dial, VectorDial
from trimtab.dials.experts import stacked
from trimtab.dials.peft import matches
from trimtab.errors import ConfigError, DialError
from trimtab.export import export
from trimtab.progress import Progress
from trimtab.training.methods import method

MIXTURES = ("mixtral", "qwen3_moe", "gpt_oss")
"""Two layouts, `[experts, out, in]` and (gpt_oss) `[experts, in, out]` with biases."""


def close(a: Tensor, b: Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(a, b, atol=atol, rtol=1e-4)


def on_experts(model: Any, seed: int = 3, spread: float = 0.3, **options: Any) -> AdapterDial:
    """An adapter on stacked experts that acts."""
    generator = torch.Generator().manual_seed(seed)
    options = {"rank": 2, "lora_alpha": 3.0} | options
    dial = AdapterDial.for_model(model, "experts", generator=generator, **options)
    with torch.no_grad():
        for B in dial.stack_B:
            B.copy_(spread * torch.randn(B.shape, generator=generator))
    return dial.eval()


def by_peft(name: str, folder: Path) -> Tensor:
    model = peft.PeftModel.from_pretrained(build(name), str(folder)).eval()
    return logits(model)


@pytest.mark.parametrize("name", [*MIXTURES, "llama4", "jamba", "qwen4_exp"])
def test_stacked_experts_are_found(name):
    model = kind(name)
    found = stacked(model)
    leaves = {path.rpartition(".")[2] for path in found}
    assert leaves == {"gate_up_proj", "down_proj"}
    assert len(found) == {"llama4": 2, "jamba": 2}.get(name, 4)
    for path, (experts, n_in, n_out) in found.items():
        shape = tuple(model.get_parameter(path).shape)
        assert shape in ((experts, n_out, n_in), (experts, n_in, n_out))
    assert list(stacked(model, range(1, 2))) == [p for p in found if ".1." in p]


def test_what_has_three_axes_and_is_no_expert(tiny):
    """A convolution's kernels; a parameter that nobody reads; one that is read from outside."""
    assert stacked(kind("mamba")) == {}
    model = tiny("llama", fresh=True)
    mlp = model.model.layers[1].mlp
    mlp.spare = torch.nn.Parameter(torch.randn(3, 32, 32), requires_grad=False)
    mlp.holder = torch.nn.Module()
    mlp.holder.weight = torch.nn.Parameter(torch.randn(3, 32, 32), requires_grad=False)
    mlp.forward = lambda x: x @ mlp.holder.weight.sum(0)
    assert stacked(model) == {}
    with pytest.raises(DialError, match="'experts' match no linear layer"):
        AdapterDial.for_model(model, "experts")


# ---- what it does -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MIXTURES)
def test_the_invariants_hold_on_experts(name):
    model = kind(name)
    dial, bare = on_experts(model), logits(model)
    new = AdapterDial.for_model(model, "experts", rank=2)
    with new(model, 1.0):
        close(logits(model), bare, 1e-6)
    with dial(model, 0.0):
        assert torch.equal(logits(model), bare)
    with pytest.raises(RuntimeError, match="stop"), dial(model, 1.0):
        raise RuntimeError("stop")
    assert torch.equal(logits(model), bare)
    alphas = [1.0, 0.0, -0.5]
    with dial(model, alphas):
        rows = logits(model)
    close(rows[1], bare[1], 1e-5)  # in a mixture other rows change the shapes of products
    for row, alpha in enumerate(alphas):
        with dial(model, alpha):
            close(rows[row], logits(model, IDS[row : row + 1])[0])
    assert (rows[0] - bare[0]).abs().max() > 0.1
    alone = on_experts(model)
    alone.flip()
    with alone(model, -1.0):
        close(logits(model)[0], rows[0])


def test_rows_at_0_are_to_the_bit_in_the_first_layer_that_differs():
    """What comes before is the same: there no product has another shape."""
    model = kind("mixtral")
    dial, bare = on_experts(model), logits(model)
    with dial(model, [0.0, 0.0, 0.0]):
        assert torch.equal(logits(model), bare)
    with dial(model, torch.tensor([[0.0] * 9, [1.0] * 9, [0.0] * 9])):
        close(logits(model)[[0, 2]], bare[[0, 2]], 1e-5)


def test_an_alpha_a_token_and_beams():
    model = kind("qwen3_moe")
    dial, bare = on_experts(model), logits(model)
    alpha = torch.zeros(3, 9)
    alpha[1, 5:] = 1.0
    with dial(model, alpha):
        found = logits(model)
    close(found[0], bare[0])
    close(found[1, :5], bare[1, :5])
    assert (found[1, 5:] - bare[1, 5:]).abs().max() > 0.05
    with dial(model, [1.0, -1.0, 0.0]):
        twice = logits(model, IDS.repeat_interleave(2, 0))
        close(twice[::2], logits(model))


def test_llama4_deals_its_tokens_out_so_that_rows_are_refused():
    model = kind("llama4")
    dial, bare = on_experts(model), logits(model)
    with dial(model, 1.0):
        assert (logits(model) - bare).abs().max() > 0.05
    with pytest.raises(ConfigError, match="cannot be told"):
        dial(model, [1.0, 0.0, 1.0]).__enter__()


@pytest.mark.parametrize("name", MIXTURES)
def test_dials_on_the_same_experts_add_up(name):
    """Composed, nested, at alphas of a number and of rows; left in any order."""
    model = kind(name)
    a, b = on_experts(model, 3), on_experts(model, 4)
    v = torch.randn(32, generator=torch.Generator().manual_seed(5))
    site = next(iter(stacked(model))).rpartition(".")[0]
    c = VectorDial({f"{site}:out": v}, {f"{site}:out": 1.0})
    both = copy.deepcopy(model)
    for dial, weight in ((a, 1.0), (b, 0.5)):
        for path, W in dial.weights_at(both, weight).items():
            both.get_parameter(path).data = W
    truth = logits(both)
    with (a + 0.5 * b)(model, 1.0):
        close(logits(model), truth)
    with a(model, 1.0), b(model, [0.5, 0.0, 0.5]):
        rows = logits(model)
    close(rows[::2], truth[::2])
    with a(model, 1.0):
        close(rows[1], logits(model)[1])
    with c(both, 1.0):
        with_vector = logits(both)
    contexts = [c(model, 1.0), b(model, 0.5), a(model, 1.0)]
    for context in contexts:
        context.__enter__()
    close(logits(model), with_vector)
    contexts[0].__exit__(None, None, None)
    close(logits(model), truth)
    contexts[1].__exit__(None, None, None)
    on = logits(model)
    contexts[2].__exit__(None, None, None)
    with a(model, 1.0):
        close(on, logits(model), 1e-6)


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("alpha", [1.0, -0.5])
def test_merged_equals_hooked(name, alpha):
    model = kind(name)
    dial, bare = on_experts(model), logits(model)
    with dial(model, alpha):
        on = logits(model)
    close(logits(dial.merged(model, alpha)), on)
    assert torch.equal(logits(model), bare)


def test_gradients_are_those_of_the_weights():
    """A and B through the hook, against A and B through weights put in by hand."""
    model = kind("gpt_oss")
    dial = on_experts(model)

    def gradients(run: Any) -> list[Tensor]:
        dial.zero_grad()
        run().square().mean().backward()
        return [p.grad.clone() for p in dial.parameters()]

    def hooked() -> Tensor:
        with dial(model, 1.0, training=True):
            return model(input_ids=IDS, use_cache=False).logits

    def substituted() -> Tensor:
        weights = {}
        for swap in dial.edits(model):
            for name, make in swap.deltas.items():
                path = f"{swap.path}.{name}"
                weights[path] = model.get_parameter(path) + make()
        call = {"input_ids": IDS, "use_cache": False}
        return torch.func.functional_call(model, weights, (), call).logits

    for mine, theirs in zip(gradients(hooked), gradients(substituted), strict=True):
        close(mine, theirs, 1e-6)
        assert theirs.abs().max() > 0


def test_checkpointing_gives_the_same_gradients():
    plain, model = build("mixtral"), build("mixtral")
    dial = on_experts(plain)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    found = []
    for m in (plain.train(), model.train()):
        dial.zero_grad()
        with dial(m, 1.0, training=True):
            m(input_ids=IDS, use_cache=False).logits.square().mean().backward()
        found.append([p.grad.clone() for p in dial.parameters()])
    for a, b in zip(*found, strict=True):
        close(b, a, 1e-6)


def test_half_precision():
    model = build("qwen3_moe").to(torch.bfloat16)
    dial = on_experts(model, spread=1.0)
    with dial(model, 1.0):
        on = logits(model).float()
    merged = logits(dial.merged(model, 1.0)).float()
    assert (merged - on).abs().max() < 0.2 < (on - logits(model).float()).abs().max()


# ---- fitting ------------------------------------------------------------------------------------


class Heard(Progress):
    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def recipe_of(targets: str, **options: Any) -> Any:
    recipe = method("dpo").recipe
    return dataclasses.replace(
        recipe,
        dial=dataclasses.replace(recipe.dial, targets=targets, rank=2, **options),
        train=dataclasses.replace(recipe.train, max_steps=3, learning_rate=0.01),
    )


def shares(model: Any) -> dict[str, float]:
    weights: dict[str, int] = {}
    for layer in models.layers(model):
        for name, p in layer.named_parameters():
            weights[name] = weights.get(name, 0) + (p.numel() if p.ndim > 1 else 0)
    return {k: n / sum(weights.values()) for k, n in weights.items()}


@pytest.mark.parametrize("name", MIXTURES)
def test_what_all_linear_leaves_out_of_a_mixture_is_said(name, few_pairs, tokenizer):
    model, heard = build(name), Heard()
    fit(recipe_of("all-linear"), model, tokenizer, few_pairs, progress=heard)
    (line,) = [s for s in heard.said if "sits on" in s]
    out = {
        k: v for k, v in shares(model).items() if "expert" in k or "router" in k or "gate.w" in k
    }
    assert f"sits on {1 - sum(out.values()):.0%} of the decoder layers' weights" in line
    assert f"mlp.experts.gate_up_proj {out['mlp.experts.gate_up_proj']:.1%}" in line
    assert line.endswith("--dial.targets experts adapts stacked experts")


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_are_trained_saved_and_equal_peft_s(name, few_pairs, tokenizer, tmp_path):
    model, heard = build(name), Heard()
    dial = fit(
        recipe_of("experts"), model, tokenizer, few_pairs, out=tmp_path / "d", progress=heard
    )
    assert isinstance(dial, AdapterDial)
    assert not dial.paths
    assert all(B.abs().max() > 0 for B in dial.stack_B)
    losses = [
        json.loads(s)["loss"] for s in (tmp_path / "d/training.jsonl").read_text().splitlines()
    ]
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)
    assert losses[-1] < losses[0]
    config = json.loads((tmp_path / "d/adapter_config.json").read_text())
    assert config["target_parameters"] == list(stacked(model))
    with dial(model, 1.0):
        on = logits(model)
    assert (on - logits(model)).abs().max() > 1e-3
    close(by_peft(name, tmp_path / "d"), on)
    again = Dial.from_pretrained(tmp_path / "d")
    with again(model, 1.0):
        assert torch.equal(logits(model), on)


def test_what_experts_cannot_have():
    for options in ({"tuner": "ia3"}, {"dropout": 0.1}):
        with pytest.raises(ConfigError, match="LoRA alone, dropout 0"):
            recipe_of("experts", **options)
    with pytest.raises(DialError, match="dropout"):
        on_experts(kind("mixtral"), dropout=0.1)


def test_exports_of_experts(tokenizer, tmp_path, checked_here):
    model = kind("qwen3_moe")
    dial = on_experts(model)
    with pytest.raises(DialError, match=r"own folder loads in PEFT.*--to merged"):
        export(dial, model, tokenizer, "peft", tmp_path / "peft")
    receipt = export(dial, model, tokenizer, "merged", tmp_path / "merged")
    assert receipt["largest_logit_difference"] < 1e-4
    assert receipt["largest_logit_change_by_the_dial"] > 0.1


# ---- PEFT's folders -----------------------------------------------------------------------------


def peft_folder(name: str, folder: Path, **options: Any) -> Tensor:
    """A PEFT adapter with B drawn at random, saved, and its logits."""
    config = peft.LoraConfig(**{"r": 2, "lora_alpha": 5, "task_type": "CAUSAL_LM"} | options)
    model = peft.get_peft_model(build(name), config)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "lora_B" in n:
                p.copy_(0.2 * torch.randn(p.shape, generator=generator))
    model.eval().save_pretrained(folder)
    return logits(model)


FOLDERS = {
    "all-linear": {"target_modules": "all-linear"},
    "ends of names": {"target_modules": [], "target_parameters": ["gate_up_proj", "down_proj"]},
    "one of two": {"target_modules": [], "target_parameters": ["experts.gate_up_proj"]},
    "the other": {"target_modules": ["q_proj"], "target_parameters": ["experts.down_proj"]},
    "rsLoRA": {"target_modules": [], "target_parameters": ["down_proj"], "use_rslora": True},
    "patterns": {
        "target_modules": ["q_proj", "v_proj"],
        "target_parameters": ["gate_up_proj", "down_proj"],
        "rank_pattern": {"gate_up_proj": 3, r"layers\.0\.self_attn\.q_proj": 4},
        "alpha_pattern": {r".*\.down_proj": 1, r"1\.self_attn\.v_proj": 9},
    },
}


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("how", FOLDERS)
def test_peft_s_folders_load_and_are_written_again(name, how, tmp_path):
    truth = peft_folder(name, tmp_path / "theirs", **FOLDERS[how])
    model, dial = kind(name), Dial.from_pretrained(tmp_path / "theirs")
    with dial(model, 1.0):
        close(logits(model), truth)
    assert (truth - logits(model)).abs().max() > 0.1
    dial.save_pretrained(tmp_path / "ours")
    with Dial.from_pretrained(tmp_path / "ours")(model, 1.0):
        close(logits(model), truth)
    close(by_peft(name, tmp_path / "ours"), truth)
    close(logits(dial.merged(model, 1.0)), truth)


@pytest.mark.parametrize(
    ("key", "path", "true"),
    [
        ("q_proj", "model.layers.0.self_attn.q_proj", True),
        ("proj", "model.layers.0.self_attn.q_proj", False),
        (".*_proj", "model.layers.0.self_attn.q_proj", True),
        ("0.self_attn.q_proj", "model.layers.10.self_attn.q_proj", False),
        (r"1.\.self_attn\.q_proj", "model.layers.10.self_attn.q_proj", True),
        ("model.layers.0", "model.layers.0.self_attn.q_proj", False),
        ("q_proj|k_proj", "model.layers.0.self_attn.k_proj", True),
        ("", "model.layers.0.self_attn.k_proj", False),
    ],
)
def test_patterns_are_read_as_peft_reads_them(key, path, true):
    from peft.utils.other import get_pattern_key

    assert matches(key, path) == true
    assert (get_pattern_key([key], path) == key) == true


def edited(folder: Path, **options: Any) -> Path:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | options))
    return folder


def test_the_first_of_several_keys_counts_and_doubt_is_said(tmp_path):
    """PEFT sorts the keys when it saves: what was trained may have been another adapter."""
    folder = tmp_path / "theirs"
    peft_folder("mixtral", folder, target_modules=["q_proj"])
    path = "model.layers.0.self_attn.q_proj"
    for pattern in ({"q_proj": 4, ".*": 8}, {".*": 8, "q_proj": 4}):
        edited(folder, alpha_pattern=pattern)
        with pytest.warns(UserWarning, match="several keys of alpha_pattern"):
            dial = Dial.from_pretrained(folder)
        assert isinstance(dial, AdapterDial)
        first = next(iter(pattern.values()))
        factor = dial.low_rank(kind("mixtral"))[path][1]
        close(factor, first / 2 * dial.B[0].detach(), 1e-6)
        with dial(kind("mixtral"), 1.0):
            close(by_peft("mixtral", folder), logits(kind("mixtral")))
    with pytest.raises(DialError, match="PEFT's file keeps them sorted"):
        Dial.from_pretrained(edited(folder, alpha_pattern={"q_proj": 4, ".*": 8})).save_pretrained(
            tmp_path / "sorted"
        )


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ({"rank_pattern": {"q_proj": 3}}, "rank 2, but its PEFT config says 3"),
        ({"rank_pattern": {"q_proj": 0}}, r"whole number|config says 0"),
        ({"rank_pattern": {"(": 2}}, "not a regular expression"),
        ({"alpha_pattern": {"q_proj": float("inf")}}, "finite"),
        ({"alpha_pattern": {"q_proj": float("nan")}}, "finite"),
        ({"alpha_pattern": {"q_proj": "two"}}, "finite number"),
        ({"alpha_pattern": ["q_proj"]}, "damaged"),
        ({"rank_pattern": "q_proj"}, "damaged"),
        ({"lora_alpha": float("inf")}, "lora_alpha inf"),
        ({"lora_alpha": float("nan")}, "lora_alpha nan"),
        ({"lora_alpha": "big"}, "lora_alpha 'big'"),
        ({"lora_alpha": None}, "lora_alpha None"),
        ({"r": 0}, "rank 0"),
        ({"r": 2.5}, "rank 2.5"),
        ({"r": True}, "rank True"),
        ({"r": 4}, "rank 2, but its PEFT config says 4"),
        ({"lora_dropout": 2}, "dropout 2"),
        ({"lora_dropout": float("nan")}, "dropout nan"),
    ],
)
def test_settings_out_of_range_are_refused(harm, message, tmp_path):
    folder = tmp_path / "theirs"
    peft_folder("mixtral", folder, target_modules=["q_proj"])
    with pytest.raises(DialError, match=message):
        Dial.from_pretrained(edited(folder, **harm))


def test_an_adapter_of_other_experts_is_refused():
    dial = on_experts(kind("mixtral"))
    with pytest.raises(DialError, match="the adapter's factors are"):
        dial(kind("qwen3_moe"), 1.0).__enter__()
    with pytest.raises(DialError, match=r"is not in the model|more parameters than"):
        dial(kind("mamba"), 1.0).__enter__()


def test_experts_beside_reading_and_generation(rows, tiny):
    """Readings and cached decoding go through the same hooks."""
    from trimtab.states import read

    model = kind("mixtral")
    dial = on_experts(model)
    with dial(model, 1.0), torch.no_grad():
        found = read(model, collate(rows, [0], "padded"), logps=True).logps
        text = model.generate(input_ids=IDS[:1], max_new_tokens=4, do_sample=False)
    merged = dial.merged(model, 1.0)
    with torch.no_grad():
        close(found, read(merged, collate(rows, [0], "padded"), logps=True).logps, 1e-3)
        assert torch.equal(
            text, merged.generate(input_ids=IDS[:1], max_new_tokens=4, do_sample=False)
        )


def test_a_linear_adapter_is_as_it_was():
    model = kind("mixtral")
    dial = lora(model)
    assert "stacks" not in dial.settings()
    assert set(dial.peft_config().target_modules) == set(dial.paths)
