"""LoRAs for llama.cpp: at every scale its own server gives the dial's log-probs; what does not fit is
refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from test_experts import on_experts
from test_export import lora, rotation, vector
from test_heads import head

from conftest import _GQA, CONFIGS, build
from trimtab.errors import ConfigError, DialError
from trimtab.export import export

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.usefixtures("checked_here"),
]


def add_vocabulary(writer: Any, size: int) -> None:
    """Made-up tokens: prompts are given as numbers."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([f"t{i}" for i in range(size)])
    writer.add_token_types([1] * size)
    writer.add_token_merges(["t 1"])
    writer.add_eos_token_id(0)


def rotated(weight: np.ndarray, heads: int) -> np.ndarray:
    """A projection's rows as llama.cpp's rotary embedding of the llama family wants them."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_base(model: Any, file: Path, kind: str = "F32") -> Path:
    """A tiny Llama as a GGUF file, by hand."""
    config, names = model.config, gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 4)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    add_vocabulary(writer, config.vocab_size)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        data = tensor.numpy()
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", 2)):
            data = rotated(data, heads) if part in name else data
        wide = kind == "F32" or data.ndim == 1 or data.shape[1] % 32
        as_ = gguf.GGMLQuantizationType.F32 if wide else gguf.GGMLQuantizationType[kind]
        data = gguf.quants.quantize(np.ascontiguousarray(data), as_)
        writer.add_tensor(names.get_name(name, (".weight",)), data, raw_dtype=as_)
    for step in ("header_to_file", "kv_data_to_file", "tensors_to_file"):
        getattr(writer, f"write_{step}")()
    writer.close()
    return file


@pytest.fixture(scope="module")
def bases(tiny: Any, tmp_path_factory: Any) -> dict[str, Any]:
    """An untied and a tied tiny Llama, each with its GGUF file."""
    folder, found = tmp_path_factory.mktemp("bases"), {}
    tied = transformers.LlamaConfig(**_GQA, tie_word_embeddings=True)
    torch.manual_seed(1)
    model = transformers.LlamaForCausalLM(tied).eval().requires_grad_(False)
    for name, m in (("untied", tiny("llama")), ("tied", model)):
        m.save_pretrained(folder / name)
        found[name] = (m, write_base(m, folder / f"{name}.gguf"), folder / name)
    return found


def made(bases: Any, name: str, dial: Callable[[Any], Any], tokenizer: Any, out: Path, **options):
    model, file, base = bases[name]
    options = {"base_gguf": file, "base": base, **options}
    return export(dial(model), model, tokenizer, "gguf-lora", out, **options)


def in_bound(receipt: dict[str, Any], scales: set[str]) -> None:
    assert receipt["checked"].startswith("checked in llama.cpp (xllamacpp ")
    change = receipt["largest_logit_change_by_the_dial"]
    assert receipt["largest_logit_difference"] <= 2e-3 * change
    assert set(receipt.get("largest_logit_difference_by_scale", {"1"})) == scales


@pytest.mark.parametrize(
    ("base", "dial", "alpha", "scales"),
    [
        ("untied", lora, 1.0, {"1", "0.5", "-0.5"}),
        ("untied", lambda m: lora(m) + 0.5 * head(m), -0.7, {"1", "0.5", "-0.5"}),
        ("untied", rotation, 0.8, {"1"}),
        ("tied", head, 1.0, {"1", "0.5", "-0.5"}),
    ],
    ids=["lora", "lora and head", "rotation", "head on a tied one"],
)
def test_llama_cpp_gives_the_dials_log_probs(
    bases: Any, tokenizer: Any, tmp_path: Path, base: str, dial: Any, alpha: float, scales: set
) -> None:
    receipt = made(bases, base, dial, tokenizer, tmp_path / "out", alpha=alpha)
    in_bound(receipt, scales)
    own = (tmp_path / "out" / "base.gguf").is_file()
    assert own is (base == "tied")
    assert any("LM head of its own" in line for line in receipt["not_carried_over"]) is own
    run = " ".join(receipt["run"])
    for part in ("--lora-scaled", "/lora-adapters", "--lora-init-without-apply", '"lora": [{'):
        assert part in run
    assert ("base.gguf" in run) is own


def test_rows_are_found_where_the_file_has_them(bases: Any, tokenizer: Any, tmp_path: Path) -> None:
    """The llama family's queries and keys stand in another order; everything else as it is."""
    model = bases["untied"][0]
    dial = lora(model)
    made(bases, "untied", lambda m: dial, tokenizer, tmp_path / "out")
    written = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "out" / "adapter.gguf").tensors}
    low = dial.low_rank(model)
    A, B = low["model.layers.2.self_attn.q_proj"]
    np.testing.assert_allclose(written["blk.2.attn_q.weight.lora_a"], A, atol=1e-7)
    np.testing.assert_allclose(
        written["blk.2.attn_q.weight.lora_b"], rotated(B.numpy(), 4), atol=1e-7
    )
    B = low["model.layers.1.mlp.down_proj"][1]
    np.testing.assert_allclose(written["blk.1.ffn_down.weight.lora_b"], B, atol=1e-7)
    assert len(written) == 2 * len(low)


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_a_base_in_half_precision_is_recognised(
    bases: Any, tokenizer: Any, tmp_path: Path, kind: str
) -> None:
    from trimtab.export.gguf_lora import export_gguf_lora

    model = bases["untied"][0]
    file = write_base(model, tmp_path / "half.gguf", kind)
    export_gguf_lora(lora(model), model, 1.0, tmp_path / "out", file)
    assert (tmp_path / "out" / "adapter.gguf").is_file()


def test_what_does_not_fit_is_refused(bases: Any, tokenizer: Any, tmp_path: Path) -> None:
    model = bases["untied"][0]
    with pytest.raises(ConfigError, match="give --base-gguf FILE"):
        made(bases, "untied", lora, tokenizer, tmp_path / "out", base_gguf=None)
    with pytest.raises(DialError, match=r"q_proj.weight: the base file has no tensor with these"):
        made(bases, "untied", lora, tokenizer, tmp_path / "out", base_gguf=bases["tied"][1])
    file = write_base(model, tmp_path / "q8.gguf", "Q8_0")
    with pytest.raises(DialError, match="no tensor with these rows"):
        made(bases, "untied", lora, tokenizer, tmp_path / "out", base_gguf=file)
    with pytest.raises(DialError, match="vector dial is no low-rank change"):
        made(bases, "untied", vector, tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_base_that_is_another_is_not_handed_over(
    bases: Any, tokenizer: Any, tmp_path: Path
) -> None:
    """The same weights under another rotary base: rows fit, and llama.cpp's check does not pass."""
    model = bases["untied"][0]
    other = transformers.LlamaForCausalLM(transformers.LlamaConfig(**_GQA)).eval()
    other.load_state_dict(model.state_dict())
    other.config.rope_parameters = {"rope_theta": 3.0, "rope_type": "default"}
    write_base(other, tmp_path / "other.gguf")
    with pytest.raises(DialError, match=r"differs from the dial .* loaded by llama.cpp"):
        made(bases, "untied", lora, tokenizer, tmp_path / "o", base_gguf=tmp_path / "other.gguf")


# ---- real architectures, by llama.cpp's own converter ---------------------------------------------

CONVERT = """
import json, runpy, sys
folder, model, out = sys.argv[1:]
sys.path[:0] = [folder, folder + "/gguf-py"]
import conversion
sys.path.insert(0, {tests!r})
from test_gguf_lora import add_vocabulary
size = json.load(open(model + "/config.json"))["vocab_size"]
find = conversion.get_model_class
def with_made_up_tokens(*a, **k):
    found = find(*a, **k)
    found.set_vocab = lambda self: add_vocabulary(self.gguf_writer, size)
    return found
conversion.get_model_class = with_made_up_tokens
sys.argv = ["convert", model, "--outfile", out, "--outtype", "f32"]
runpy.run_path(folder + "/convert_hf_to_gguf.py", run_name="__main__")
"""

MORE = {
    # llama.cpp takes every sixth layer of a Gemma 3 to see everything, whatever the config says
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **{**_GQA, "num_hidden_layers": 6},
        head_dim=8,
        sliding_window=8,
        layer_types=["sliding_attention"] * 5 + ["full_attention"],
        query_pre_attn_scalar=8,
    ),
    # and the weights of Qwen 3's chosen experts to sum up to 1
    "qwen3moe": lambda: transformers.Qwen3MoeConfig(
        **_GQA,
        head_dim=8,
        moe_intermediate_size=24,
        num_experts=4,
        num_experts_per_tok=2,
        norm_topk_prob=True,
    ),
    "mixtral": lambda: transformers.MixtralConfig(
        **_GQA, num_local_experts=4, num_experts_per_tok=2
    ),
    "gpt_oss": lambda: transformers.GptOssConfig(
        **{**_GQA, "intermediate_size": 32},
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"] * 2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    ),
    "mamba2": lambda: transformers.Mamba2Config(
        vocab_size=320,
        hidden_size=32,
        num_hidden_layers=4,
        state_size=16,
        num_heads=8,
        head_dim=8,
        expand=2,
        n_groups=1,
        eos_token_id=0,
        pad_token_id=1,
        bos_token_id=0,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dial"),
    [
        *((name, "lora") for name in ("llama", "qwen3", "gemma3", "gpt_oss", "mixtral", "mamba2")),
        *((name, "head") for name in ("llama", "qwen3", "gemma3", "mamba2")),
        *((name, "experts") for name in ("mixtral", "qwen3moe", "gpt_oss")),
    ],
)
def test_architectures_in_llama_cpp(
    name: str, dial: str, tokenizer: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """`make llama` fetches the converter; figures are printed (-s) for docs/exports.md."""
    folder = os.environ.get("TRIMTAB_LLAMA_CPP", "")
    if not (Path(folder) / "convert_hf_to_gguf.py").is_file():
        pytest.skip("no converter of llama.cpp: make llama")
    monkeypatch.setitem(CONFIGS, name, MORE.get(name) or CONFIGS[name])
    model = build(name, "eager")
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    code = CONVERT.format(tests=str(Path(__file__).parent))
    paths = os.pathsep.join(sys.path)
    command = [
        sys.executable,
        "-c",
        code,
        folder,
        str(tmp_path / "model"),
        str(tmp_path / "b.gguf"),
    ]
    ran = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    make = {"lora": lora, "head": head, "experts": on_experts}[dial]
    bases = {"it": (model, tmp_path / "b.gguf", tmp_path / "model")}
    receipt = made(bases, "it", make, tokenizer, tmp_path / "out")
    in_bound(receipt, {"1", "0.5", "-0.5"})
    change = receipt["largest_logit_change_by_the_dial"]
    cells = [f"{v / change:.1e}" for v in receipt["largest_logit_difference_by_scale"].values()]
    print(
        "|", " | ".join([name, dial, f"{change:.3g}", *cells]), "|", json.dumps(receipt["versions"])
    )
