"""Architectures that were read wrong or refused once, tiny, and the page that the sweep writes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from sweep import page, rows, sizes, tiny
from sweep.checks import Kind

from trimtab import models
from trimtab.batching import encode, layout_of
from trimtab.errors import ModelError
from trimtab.trunk import try_trunk

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))


def read(name, folder):
    """A kind after loading, finding its layers and scoring answers on both sides of each threshold."""
    kind, _, image = name.partition(":")
    under_test = Kind(kind, bool(image), folder)
    for check in (under_test.upstream, under_test.load, under_test.layers, under_test.scores):
        if not under_test.check(check.__name__, check):
            break
    return under_test


IMAGE_TEXT = {
    "qwen3_vl": "model.language_model.layers",
    "mistral3": "model.language_model.layers",
    "llava": "model.language_model.layers",
    "internvl": "model.language_model.layers",
    "smolvlm": "model.text_model.layers",
    "idefics3": "model.text_model.layers",
    "gemma3": "model.language_model.layers",
}


@pytest.mark.parametrize("kind", IMAGE_TEXT)
def test_image_text_models_are_read_for_their_text(kind, tmp_path):
    found = read(f"{kind}:image", tmp_path)
    assert list(found.found["checks"]) == ["upstream", "load", "layers", "scores"]
    assert found.found["checks"]["layers"] == {"right": IMAGE_TEXT[kind]}
    assert found.found["checks"]["scores"]["right"] < 1e-3


@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        ("openai-gpt", "padded"),  # layers give lists
        ("minimax_m3_vl_text", None),  # a sparse attention that counts keys by index
        ("gemma3n_text", None),  # several residual streams
        ("mamba2", "padded"),
        ("llama +ntk", "alone"),
        ("phi3 +longrope", "alone"),
        ("gpt2 +short", "shared"),
    ],
)
def test_kinds_that_were_read_wrong(kind, layout, tmp_path):
    found = read(kind, tmp_path)
    assert found.found["checks"]["scores"].get("right", 9) < 1e-3, found.found
    assert found.found["layout"] == layout or layout is None


@pytest.mark.parametrize(
    ("kind", "left_out"),
    [
        ("mixtral", ()),
        ("jamba", ()),  # recurrent, attention, experts
        ("mamba2", ()),
        ("zamba2", ()),  # upper blocks read the embedding again: it is computed
        ("openai-gpt", ()),
        ("gemma4_text", (2, 3, 4)),  # keys and values of lower blocks
        ("gemma3n_text", (0, 1, 2, 3, 4, 5)),  # several residual streams
        ("zaya", (0, 1, 2)),  # what a router had before
    ],
)
def test_after_which_blocks_passes_start_from_stored_states(kind, left_out):
    model = tiny.build(kind, False)
    encoded = encode(rows.pairs(), tiny.tokenizer())
    layout = layout_of(model, encoded)
    found = {k: try_trunk(model, encoded, k, layout) for k in range(models.n_layers(model))}
    assert tuple(k for k, tried in found.items() if not tried["holds"]) == left_out
    listed = f"| `{kind}` | {', '.join(map(str, left_out))} |"
    assert (listed in page.PAGE.read_text()) == bool(left_out)


@pytest.mark.parametrize("kind", ["bert +encoder", "paligemma:image", "roberta +encoder"])
def test_what_is_no_causal_model_is_refused_in_words(kind, tmp_path):
    """PaliGemma takes text alone for a prefix, all of which sees all of it."""
    found = read(kind, tmp_path)
    assert "it is no causal language model" in found.found["checks"]["scores"]["refused"]


@pytest.mark.parametrize("deep", ["vision", "both"])
def test_a_vision_tower_as_deep_as_the_decoder_is_not_taken_for_it(deep):
    """Heavier, too, and first in the model."""
    tower = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "image_size": 32}
    tower["num_attention_heads"] = 4
    config = transformers.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", "patch_size": 8, **tower},
        text_config={
            "model_type": "llama",
            "vocab_size": 320,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
        },
    )
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(config).eval()
    assert models.layer_paths(model) == [f"model.language_model.layers.{k}" for k in range(4)]
    assert models.final_norm(model) is model.model.language_model.norm
    compiled: Any = torch.compile(model, backend="eager")
    assert models.layers(model) is models.layers(compiled)
    if deep == "both":  # a stack that text does not pass is none, however many there are
        model.model.other = torch.nn.ModuleList(torch.nn.Linear(999, 999) for _ in range(4))
        assert models.layers(model) is model.model.language_model.layers


def test_lists_of_experts_are_no_layers(tiny_moe):
    assert models.layer_paths(tiny_moe)[0] == "layers.0"


@pytest.fixture
def tiny_moe():
    """Four layers of four experts each, the experts in lists."""

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(4))

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.config = transformers.LlamaConfig(num_hidden_layers=4)
            self.layers = torch.nn.ModuleList(Layer() for _ in range(4))

    return Model()


def test_a_model_without_such_layers_says_so():
    model: Any = torch.nn.Linear(2, 2)
    model.config = transformers.LlamaConfig(num_hidden_layers=3)
    with pytest.raises(ModelError, match="no list of 3 found"):
        models.layers(model)


# ---- the sweep ----------------------------------------------------------------------------------

RIGHT = {"upstream": {"right": "X"}, "scores": {"right": 1e-6}}


@pytest.mark.parametrize(
    ("found", "outcome"),
    [
        ({"checks": RIGHT, "layout": "shared"}, ("works", "")),
        ({"checks": RIGHT, "layout": "alone"}, ("works row by row", "")),
        (
            {"checks": {**RIGHT, "mean": {"refused": "streams"}}, "layout": "packed"},
            ("works", "mean: streams"),
        ),
        ({"checks": {**RIGHT, "dpo": {"refused": "why"}}}, ("refused", "why")),
        (
            {"checks": {**RIGHT, "dpo": {"refused": "why"}, "mean": {"wrong": 0.5}}},
            ("silently wrong", "mean: off by 0.5"),
        ),
        ({"checks": {"upstream": {"fault": "TypeError: x"}}}, ("wrong upstream", "TypeError: x")),
        (
            {"checks": {**RIGHT, "load": {"fault": "KeyError: x"}}},
            ("not judged", "load: KeyError: x"),
        ),
        ({"checks": {}, "died": "within 9 s"}, ("not judged", "its checks did not end within 9 s")),
    ],
)
def test_outcomes(found, outcome):
    assert page.outcome(found) == outcome


def test_the_page_counts_every_kind_once(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "PAGE", tmp_path / "page.md")
    used = {"transformers": "5", "torch": "2"}
    bad = {**RIGHT, "mean": {"wrong": 0.5}}
    page.write(
        [
            {"kind": "a", "checks": RIGHT, "layout": "shared", "versions": used},
            {"kind": "b", "checks": RIGHT, "layout": "shared", "versions": used},
            {"kind": "c", "checks": bad, "layout": "shared", "versions": used},
            {"kind": "d:image", "checks": RIGHT, "layout": "alone", "versions": used},
        ]
    )
    text = (tmp_path / "page.md").read_text()
    assert "| works | 2 |\n| silently wrong | 1 |" in text
    assert "`a`, `b`." in text
    assert "| `c` | mean: off by 0.5 |" in text
    assert "| works row by row | 1 |\n| silently wrong | 0 |" in text


def test_the_tables_name_configs_that_there_are():
    known = {c.__name__ for c in transformers.CONFIG_MAPPING.values()}
    for config in list(transformers.CONFIG_MAPPING.values()):
        known |= {part.__name__ for part in (getattr(config, "sub_configs", None) or {}).values()}
    assert set(sizes.OWN) <= known
    assert {v.partition(" +")[0] for v in sizes.VARIANTS} <= set(transformers.CONFIG_MAPPING)


def test_tiny_models_are_tiny_and_their_logits_differ():
    for kind in ("mistral", "qwen3_moe", "deepseek_v3"):
        model = tiny.build(kind, False)
        assert sum(p.numel() for p in model.parameters()) < 1e6
        logits = model(input_ids=torch.arange(3, 23)[None]).logits
        assert logits.std() > 0.3
