"""What leaves the house can be found, opened and believed: bases, tokenizers, receipts, known traps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_export import close, logits, lora, vector
from test_heads import head

from trimtab import models
from trimtab.errors import ConfigError, DialError
from trimtab.export import check, export
from trimtab.export.facts import FACTS, facts_on, known_to_llama_cpp, told_on
from trimtab.export.handing_over import for_older

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.usefixtures("checked_here"),
]


def config_of(folder: Path, name: str = "adapter_config.json") -> dict[str, Any]:
    return json.loads((folder / name).read_text())


# ---- D1: who has been asked -----------------------------------------------------------------------


def test_d1_a_control_vector_checked_by_plain_hooks_is_not_checked_in_llama_cpp(
    tiny: Any, tokenizer: Any, tmp_path: Path
) -> None:
    model = tiny("llama")
    receipt = export(vector(model), model, tokenizer, "gguf", tmp_path / "v.gguf")
    assert receipt["checked"].startswith("not checked in llama.cpp: ")
    assert receipt["checked_with"] in receipt["checked"]
    for to, tool in (("peft", "peft"), ("merged", "transformers")):
        receipt = export(lora(model), model, tokenizer, to, tmp_path / to)
        assert receipt["checked"] == f"checked in {tool} {receipt['versions'][tool]}"
    vectors = export(vector(model), model, tokenizer, "steering-vectors", tmp_path / "s")
    meant = vectors["checked_with"] == "steering-vectors"
    assert vectors["checked"].startswith("checked in") is meant
    assert check._checked("gguf", "llama.cpp", {"llama_cpp_python": "0.3.36"}) == (
        "checked in llama.cpp (llama_cpp_python 0.3.36)"
    )


@pytest.mark.parametrize("kind", ["hy_v4", "plamo2", "plamo_2"])
def test_d1_architectures_that_never_see_a_control_vector_are_refused(
    tiny: Any, tokenizer: Any, tmp_path: Path, kind: str
) -> None:
    model = tiny("llama", fresh=True)
    model.config.model_type = kind
    with pytest.raises(DialError, match="never applies control vectors"):
        export(vector(model), model, tokenizer, "gguf", tmp_path / "v.gguf", base=tmp_path)
    assert not list(tmp_path.iterdir())
    # repeng acts on the model itself
    assert not any(f.refused for f in facts_on("repeng", kind, head=False, bias=False))


@pytest.mark.parametrize(
    ("kind", "known"),
    [
        *(("llama", True), ("mistral", True), ("qwen3_moe", True), ("gemma3_text", True)),
        *(("gpt_oss", True), ("gpt_neox", True), ("deepseek_v3", True), ("falcon_h1", True)),
        *(("opt", False), ("gpt_neo", False), ("biogpt", False), ("my_model", False)),
    ],
)
def test_d1_architectures_that_llama_cpp_has_no_name_for(tiny: Any, kind: str, known: bool) -> None:
    assert known_to_llama_cpp(kind) is known
    model = tiny("llama", fresh=True)
    model.config.model_type = kind
    lines = told_on("gguf", model, frozenset(), head=False, bias=False)
    assert any("is not known: the gguf package" in line for line in lines) is not known


# ---- D2: what the way to GGUF loses ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "kind", "paths", "head_", "bias", "part"),
    [
        ("merged", "gemma2", (), True, False, "drops an LM head"),
        ("peft", "gemma", ("lm_head",), True, False, "drops an LM head"),
        ("peft", "cohere", ("lm_head",), True, False, "stops at an LM head"),
        ("peft", "deepseek_v3", ("model.layers.0.self_attn.q_a_proj",), False, False, "q_a, q_b"),
        ("peft", "deepseek_v2", ("layers.1.self_attn.kv_a_proj_with_mqa",), False, False, "kv_a"),
        ("gguf-lora", "deepseek_v2", ("lm_head",), True, False, "q_a, q_b"),
        ("peft", "minicpm3", ("layers.1.self_attn.kv_b_proj",), False, False, "kv_b"),
        ("peft", "gpt2", ("h.0.attn.c_attn",), False, False, "refuses this architecture"),
        ("peft", "llama", ("model.layers.1.mlp.down_proj",), False, True, "refuses a LoRA bias"),
        ("gguf", "nemotron-nas", (), False, False, "without a feed-forward"),
        ("gguf", "gemma3n", (), False, False, "another place"),
        ("gguf", "llama", (), False, False, "set before on the same context"),
    ],
)
def test_d2_known_traps_are_told(to, kind, paths, head_, bias, part) -> None:
    found = facts_on(to, kind, frozenset(paths), head=head_, bias=bias)
    assert any(part in fact.what for fact in found)


@pytest.mark.parametrize(
    ("to", "kind", "paths", "head_"),
    [
        ("merged", "gemma2", (), False),
        ("merged", "llama", (), True),
        ("peft", "deepseek_v3", ("model.layers.0.mlp.down_proj",), False),
        ("peft", "gemma3_text", ("lm_head",), True),
    ],
)
def test_d2_and_nothing_else(to, kind, paths, head_) -> None:
    assert facts_on(to, kind, frozenset(paths), head=head_, bias=False) == []


def test_every_fact_says_tool_version_and_source() -> None:
    for fact in FACTS:
        assert any(c.isdigit() for c in fact.tool), fact
        assert fact.source, fact
        assert fact.what, fact


def test_d2_receipts_hold_the_facts(tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    model = tiny("llama")
    told = export(vector(model), model, tokenizer, "peft", tmp_path / "p")["not_carried_over"]
    assert any("LoRA bias, which the vector is" in line for line in told)
    assert any("vLLM" in line for line in told)
    told = export(lora(model), model, tokenizer, "peft", tmp_path / "q")["not_carried_over"]
    assert not any("LoRA bias" in line for line in told)
    export(lora(model, rslora=True), model, tokenizer, "peft", tmp_path / "r")
    config = config_of(tmp_path / "r")
    assert (config["use_rslora"], config["lora_alpha"]) == (False, config["r"])


# ---- D3: bounds, and bases in GGUF ----------------------------------------------------------------


def test_d3_the_bound_is_relative_to_the_change(tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    model = tiny("llama")
    small, large = (
        export(vector(model), model, tokenizer, "gguf", tmp_path / f"{a}.gguf", alpha=a)
        for a in (0.01, 4.0)
    )
    for receipt in (small, large):
        change = receipt["largest_logit_change_by_the_dial"]
        assert receipt["bound"] == pytest.approx(2e-3 * change, rel=0.5, abs=3e-4)
    assert large["bound"] > 20 * small["bound"]


@pytest.mark.parametrize("name", ["missing.gguf", "text.gguf"])
def test_d3_bases_that_are_none(tiny: Any, tokenizer: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / "text.gguf").write_text("no model")
    model = tiny("llama")
    with pytest.raises(ConfigError, match=r"--base-gguf .*: no (such|GGUF) file"):
        export(vector(model), model, tokenizer, "gguf", tmp_path / "v", base_gguf=tmp_path / name)
    for to in ("peft", "merged", "steering-vectors"):
        with pytest.raises(ConfigError, match="checks gguf, gguf-lora and repeng"):
            export(lora(model), model, tokenizer, to, tmp_path / "v", base_gguf=tmp_path / name)


def test_d3_site_0_is_not_checked_in_llama_cpp(tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "base.gguf").write_bytes(b"GGUF")
    model = tiny("llama")
    base = {"base": tmp_path, "base_gguf": tmp_path / "base.gguf"}
    with pytest.raises(DialError, match="no control vector at site 0"):
        export(vector(model, (0, 2)), model, tokenizer, "repeng", tmp_path / "v.gguf", **base)


# ---- D4: bases that can be found ------------------------------------------------------------------


def test_d4_an_adapter_finds_its_base(tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    tiny("llama").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    model, loaded = models.load(str(tmp_path / "model"), dtype="float32")
    dial = lora(model)
    receipt = export(dial, model, loaded, "peft", tmp_path / "out")
    assert "a folder of this machine" in " ".join(receipt["not_carried_over"])
    found = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with dial(model, 1.0):
        close(logits(found), logits(model))
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\n")
    assert "AutoPeftModelForCausalLM" in card


def test_d4_a_tied_head_finds_its_own_base(
    tiny: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import AutoPeftModelForCausalLM

    model = tiny("gpt2")
    dial = head(model, "low_rank")
    export(dial, model, tokenizer, "peft", tmp_path / "out")
    assert config_of(tmp_path / "out")["base_model_name_or_path"] == "./base"
    monkeypatch.chdir(tmp_path / "out")
    found = AutoPeftModelForCausalLM.from_pretrained(".").eval()
    with dial(model, 1.0):
        close(logits(found), logits(model))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match="base"):  # and never a stranger's model
        AutoPeftModelForCausalLM.from_pretrained("out")


@pytest.mark.parametrize(
    ("name", "base"), [("org/model", "org/model"), ("hub:org/model", "org/model"), ("unnamed", "")]
)
def test_d4_names_of_bases(tiny: Any, name: str, base: str, monkeypatch: Any) -> None:
    from trimtab.export.handing_over import base_of

    source = models.Source(name, "0" * 64)
    monkeypatch.setattr("trimtab.export.handing_over.models.source_of", lambda m: source)
    found, said = base_of(tiny("llama"))
    assert found == base
    assert ("no name" in said) is (base == "")


# ---- I3: what transformers 4 reads ----------------------------------------------------------------


def test_i3_a_merged_checkpoint_is_opened_by_older_tools(
    tiny: Any, tokenizer: Any, tmp_path: Path
) -> None:
    import transformers

    model = tiny("llama", fresh=True)
    model.config.rope_parameters = {"rope_theta": 5e5, "rope_type": "default"}
    model = type(model)(model.config).eval()
    export(lora(model), model, tokenizer, "merged", tmp_path / "out")
    saved = config_of(tmp_path / "out", "tokenizer_config.json")
    assert saved["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert isinstance(saved.get("extra_special_tokens", {}), dict)
    config = config_of(tmp_path / "out", "config.json")
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 5e5
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in ("the 1234 sky", "  two  blanks\n", "ünï"):
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.chat_template == tokenizer.chat_template
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert back.config.rope_parameters["rope_theta"] == 5e5


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        (
            {"rope_theta": 1e6, "rope_type": "linear", "factor": 4.0},
            {
                "rope_theta": 1e6,
                "rope_scaling": {"rope_theta": 1e6, "rope_type": "linear", "factor": 4.0},
            },
        ),
        (
            {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.5},
            {"rope_theta": 1e4, "partial_rotary_factor": 0.5},
        ),
        (
            {
                "full_attention": {"rope_theta": 1e6, "rope_type": "default"},
                "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
            },
            {"rope_theta": 1e6, "rope_local_base_freq": 1e4},
        ),
        (None, {}),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_i3_rotary_settings_in_both_spellings(
    rope: Any, expected: Any, nested: bool, tmp_path: Path
) -> None:
    part = {} if rope is None else {"rope_parameters": rope}
    note = {"model_type": "x", "text_config": part} if nested else {"model_type": "x", **part}
    (tmp_path / "config.json").write_text(json.dumps(note))
    for _ in range(2):  # twice is once
        for_older(tmp_path)
        found = config_of(tmp_path, "config.json")
        assert (found["text_config"] if nested else found) == {
            **({} if nested else {"model_type": "x"}),
            **part,
            **expected,
        }


def test_i3_special_tokens_as_a_list(tmp_path: Path) -> None:
    note = {
        "tokenizer_class": "TokenizersBackend",
        "extra_special_tokens": ["<a>"],
        "is_local": True,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(note))
    for_older(tmp_path)
    assert config_of(tmp_path, "tokenizer_config.json") == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": ["<a>"],
    }
    kept = {"tokenizer_class": "LlamaTokenizerFast", "extra_special_tokens": {"image": "<i>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(kept))
    for_older(tmp_path)
    assert config_of(tmp_path, "tokenizer_config.json") == kept
