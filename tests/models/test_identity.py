"""Identity: what must change it does, what must not does not; readings, dials and runs follow it."""

from __future__ import annotations

import json
import os
import shutil
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from conftest import CONFIGS, build
from trimtab import fit, models
from trimtab.batching import encode
from trimtab.errors import DialError, ModelError
from trimtab.evaluation import NeutralText
from trimtab.models import digests
from trimtab.models.config import read_of
from trimtab.models.tensors import mark
from trimtab.models.tokenizer import template_digest, tokenizer_digest
from trimtab.progress import Notice
from trimtab.readings import reference
from trimtab.study import evaluate

AUTO = transformers.AutoModelForCausalLM


@pytest.fixture(autouse=True)
def own_cache(request, tmp_path, monkeypatch):
    """What is remembered of files is this test's own, but for the real model's copy."""
    if "smollm2" not in request.fixturenames:
        monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))


def loaded(folder: Path, **how: Any) -> Any:
    return models.load(str(folder), device="cpu", **how)[0]


def source(folder: Path, **how: Any) -> models.Source:
    return models.source_of(loaded(folder, **how))


def edited(folder: Path, **changes: Any) -> Path:
    """A copy of a model's folder with another config; None takes a key out."""
    other = folder.with_name(f"edited-{len(list(folder.parent.iterdir()))}")
    shutil.copytree(folder, other)
    config = json.loads((other / "config.json").read_text()) | changes
    config = {k: v for k, v in config.items() if v is not None}
    (other / "config.json").write_text(json.dumps(config))
    return other


def same(a: models.Source, b: models.Source) -> bool:
    """Whether figures of the two are of one model, on any text."""
    return replace(a, name="", digest="", metadata="") == replace(
        b, name="", digest="", metadata=""
    )


# ---- one checkpoint, one identity ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3", "qwen3moe", "bloom"])
def test_a_checkpoint_is_one_however_it_comes(tiny, saved_model, tokenizer, tmp_path, kind):
    """By folder, loaded in either precision by us or by transformers, built in memory, saved again in
    shards; gpt2, gemma3 and bloom are tied."""
    attention = "eager" if kind == "bloom" else "sdpa"
    tiny(kind, attention).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    folder = tmp_path / "m"
    known = models.identify(str(folder))
    assert known == replace(source(folder), name=known.name)
    found = [source(folder, dtype="bf16")]
    for dtype in (torch.float32, torch.bfloat16):
        found.append(models.source_of(AUTO.from_pretrained(folder, dtype=dtype), tokenizer))
    found.append(models.source_of(build(kind, attention), tokenizer))  # never a file
    again = AUTO.from_pretrained(folder)
    again.save_pretrained(tmp_path / "shards", max_shard_size="30KB")
    tokenizer.save_pretrained(tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    for one in found:
        assert one.digest == known.digest == models.digest_of(str(folder))
    found.append(models.identify(str(tmp_path / "shards")))
    assert all(same(one, known) for one in found)
    assert len({one.whole for one in found}) == 1 == len({one.readings for one in found})


def test_a_checkpoint_is_one_by_its_hub_id(saved_model, tmp_path, monkeypatch):
    from huggingface_hub import constants

    folder = saved_model("gpt2")
    commit = "0123456789abcdef0123456789abcdef01234567"
    place = tmp_path / "hub" / "models--somebody--tiny"
    shutil.copytree(folder, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    known = models.identify(str(folder))
    assert same(models.identify("somebody/tiny"), known)
    model = AUTO.from_pretrained(place / "snapshots" / commit, dtype=torch.bfloat16)
    model.config._name_or_path = "somebody/tiny"  # as from_pretrained leaves it for a Hub id
    found = models.source_of(model)
    assert (found.name, found.digest, found.values) == ("somebody/tiny", known.digest, known.values)


def test_an_untied_copy_of_a_tied_head_is_the_same_model(saved_model):
    folder = saved_model("gpt2")
    model = AUTO.from_pretrained(folder)
    assert model.lm_head.weight is model.transformer.wte.weight
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    assert models.source_of(model).values == models.identify(str(folder)).values
    model.lm_head.weight.data[3] += 1
    assert models.source_of(model).values != models.identify(str(folder)).values


def test_a_head_stored_beside_the_embedding_that_it_is_tied_to_changes_nothing(saved_model):
    folder = saved_model("gpt2")
    known = models.identify(str(folder))
    file = folder / "model.safetensors"
    tensors = load_file(file)
    embedding = next(t for name, t in tensors.items() if name.endswith("wte.weight"))
    save_file({**tensors, "lm_head.weight": embedding.clone()}, file, metadata={"format": "pt"})
    both = models.identify(str(folder))
    assert both.values == known.values
    assert both.digest != known.digest  # which is of the file's own bytes, as ever
    bare = {name.removeprefix("transformer."): t for name, t in tensors.items()}
    save_file(bare, file, metadata={"format": "pt"})  # as the first GPT-2 files are
    assert source(folder).values == known.values


def test_precision_that_loses_nothing_is_no_other_model_and_one_that_does_is(saved_model, tmp_path):
    folder = saved_model()
    half = AUTO.from_pretrained(folder, dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    full = AUTO.from_pretrained(tmp_path / "half", dtype=torch.float32)
    full.save_pretrained(tmp_path / "full")  # the same values in twice the bytes
    a, b, c = (
        models.identity.of_files(f, "") for f in (folder, tmp_path / "half", tmp_path / "full")
    )
    assert b.values == c.values != a.values
    # In memory: bfloat16 made float32 again is no longer the float32 file that it was read from.
    model = loaded(folder, dtype="bf16").float()
    assert models.source_of(model).values == b.values


@pytest.mark.parametrize(
    ("change", "of"),
    [
        (lambda w: w["model.norm.weight"].__setitem__(3, 0.5), "model.norm.weight"),
        (lambda w: w["model.layers.1.mlp.down_proj.weight"].__setitem__((4, 5), 0.125), ""),
        (
            lambda w: w.update(
                {
                    "model.layers.0.mlp.up_proj.weight": w["model.layers.1.mlp.up_proj.weight"],
                    "model.layers.1.mlp.up_proj.weight": w["model.layers.0.mlp.up_proj.weight"],
                }
            ),
            "two layers swapped",
        ),
    ],
)
def test_another_weight_is_another_model(saved_model, change, of):
    folder = saved_model()
    before = models.identify(str(folder))
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(
        {k: v.clone() for k, v in weights.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    after = models.identify(str(folder))
    assert after.values != before.values
    assert after.digest != before.digest


# ---- config -------------------------------------------------------------------------------------

READ = {
    "rms_norm_eps": 1e-3,
    "hidden_act": "gelu",
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    "attention_bias": True,
    "head_dim": 16,
}


@pytest.mark.parametrize("key", READ)
def test_what_a_forward_pass_reads_of_the_config_is_identity(saved_model, key):
    folder = saved_model()
    a = models.identify(str(folder))
    b = models.identify(str(edited(folder, **{key: READ[key]})))
    assert b.values == a.values
    assert b.config != a.config
    assert b.readings != a.readings
    (said,) = models.differences(a.digest, a.parts, b).refused
    assert said.startswith("config (")
    assert key in said


def test_a_sliding_window_and_soft_caps_are_identity(saved_model):
    window = saved_model("mistral", "w")
    assert (
        models.identify(str(edited(window, sliding_window=4))).readings
        != models.identify(str(window)).readings
    )
    config = CONFIGS["gemma2"]()
    before = read_of(config)
    config.final_logit_softcapping = 4.0
    assert read_of(config) != before


def test_what_it_does_not_read_is_not(saved_model):
    folder = saved_model()
    a = models.identify(str(folder))
    plain = json.loads((folder / "config.json").read_text())
    for changes in (
        {"transformers_version": "4.40.0", "_name_or_path": "x", "architectures": ["LlamaModel"]},
        {"use_cache": False, "torch_dtype": "bfloat16", "dtype": "bfloat16"},
        {"initializer_range": 1.0, "attention_dropout": 0.3, "pretraining_tp": 2},
        {"unsloth_version": "2026.1", "remarks": {"a": [1]}, "eos_token_id": [0, 3]},
        {"pad_token_id": 5, "id2label": {"0": "no"}, "task_specific_params": {"x": 1}},
        {"rope_theta": 10000.0, "rope_parameters": None, "rope_scaling": None},
        {"head_dim": None, "hidden_act": None, "mlp_bias": None, "rms_norm_eps": None},
        dict(reversed(plain.items())),
    ):
        b = models.identify(str(edited(folder, **changes)))
        assert (b.config, b.readings) == (a.config, a.readings), changes


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_number_that_a_config_class_declares_is_read_unless_it_is_known_not_to_be(kind):
    """Whatever the class calls them: sizes, scales, windows. A config filled in by itself is the
    same, and so is one that came through JSON."""
    config = CONFIGS[kind]()
    before = read_of(config)
    assert read_of(type(config).from_dict(json.loads(config.to_json_string()))) == before
    aliases = type(config).attribute_map
    unread = ("dropout", "pdrop", "initializer", "_token_id", "aux_loss", "use_cache", "jitter")
    unread += (
        "output_",
        "layerdrop",
        "chunk_size",
        "tie_word",
        "pretraining_tp",
        "is_encoder",
        "return_dict",
    )
    unread += ("time_step_floor", "time_step_min", "time_step_max", "time_step_rank")
    checked = 0
    for name, value in config.to_dict().items():
        known = name in type(config).__dataclass_fields__ or name in aliases.values()
        if type(value) not in (int, float) or not known or any(u in name for u in unread):
            continue
        given = config.to_dict()
        given[name] = value * 2 + (value == 0)
        try:
            other = type(config).from_dict(given)
        except Exception:  # the class refuses the combination
            continue
        assert read_of(other) != before, name
        checked += 1
    assert checked >= 5


def test_the_store_does_not_hand_one_config_anothers_readings(
    saved_model, tokenizer, few_pairs, store
):
    """A1: the same weights, another rotary base."""
    folder = saved_model()
    other = edited(folder, rope_parameters={"rope_type": "default", "rope_theta": 50.0})
    rows = encode(few_pairs, tokenizer)
    a, b = loaded(folder), loaded(other)
    first = reference(a, rows, logps=True, store=store).logps
    second = reference(b, rows, logps=True, store=store).logps
    assert (first - second).abs().max() > 1e-3
    assert torch.equal(second, reference(b, rows, logps=True).logps)
    entries = len(list(store.root.iterdir()))
    copy = edited(folder, transformers_version="4.0", use_cache=False)
    assert torch.equal(reference(loaded(copy), rows, logps=True, store=store).logps, first)
    assert len(list(store.root.iterdir())) == entries  # found, not read again


# ---- tokenizer, template ------------------------------------------------------------------------


def relabelled(folder: Path, **changes: Any) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_tokenizer_and_template_are_parts_and_padding_is_not(saved_model, tokenizer):
    folder = saved_model()
    a = models.identify(str(folder))
    model, own = models.load(str(folder), device="cpu")
    own(["a", "long text of some words"], padding=True, truncation=True, max_length=3)
    own.pad_token, own.padding_side, own.model_max_length = own.eos_token, "left", 7
    assert models.source_of(model, own) == replace(a, name=str(folder))
    own.chat_template = "{{ messages[0]['content'] }}"
    changed = models.source_of(model, own)
    assert changed.template != a.template
    assert changed.tokenizer == a.tokenizer
    own.add_tokens(["<new>"])
    changed = models.source_of(model, own)
    assert changed.tokenizer != a.tokenizer
    assert changed.readings == a.readings
    assert changed.whole != a.whole
    assert template_digest(type("T", (), {"chat_template": None})()) == "none"


def test_another_end_token_is_another_tokenizer_part(saved_model):
    folder = saved_model()
    a = models.identify(str(folder))
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": [0, 3]}))
    b = models.identify(str(folder))
    assert b.tokenizer != a.tokenizer
    assert b.readings == a.readings
    assert source(folder).tokenizer == b.tokenizer


def test_slow_tokenizers_have_a_digest(tokenizer):
    class Slow:
        chat_template = None

        def __init__(self, words: dict[str, int]):
            self.words = words

        def get_vocab(self) -> dict[str, int]:
            return self.words

    a, b = Slow({"a": 0, "b": 1}), Slow({"a": 1, "b": 0})
    assert tokenizer_digest(a, []) == tokenizer_digest(Slow({"b": 1, "a": 0}), [])
    assert len({tokenizer_digest(a, []), tokenizer_digest(b, []), tokenizer_digest(a, [1])}) == 3


SPLITS = {
    "prefix_space": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    "metaspace": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
}  # fmt: skip


@pytest.mark.parametrize(
    "label", ["GPT2TokenizerFast", "Qwen2TokenizerFast", "GPTNeoXTokenizerFast"]
)
@pytest.mark.parametrize("rule", SPLITS)
def test_a_folders_tokenizer_cuts_as_its_own_file_says(saved_model, label, rule):
    """A9: the class that a folder is labelled with brings a rule of its own."""
    from tokenizers import Tokenizer

    folder = saved_model()
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"pre_tokenizer": SPLITS[rule]}))
    relabelled(folder, tokenizer_class=label)
    text = "The capital of France"
    truth = Tokenizer.from_file(str(file)).encode(text, add_special_tokens=False).ids
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert theirs(text, add_special_tokens=False)["input_ids"] != truth
    with pytest.warns(Notice, match="file's own rule is used"):
        _, ours = models.load(str(folder), device="cpu")
    assert ours(text, add_special_tokens=False)["input_ids"] == truth
    assert ours.chat_template == theirs.chat_template
    assert ours.eos_token == "<eos>"
    ours.save_pretrained(folder)  # nor does saving make the other rule permanent
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        _, again = models.load(str(folder), device="cpu")
    assert again(text, add_special_tokens=False)["input_ids"] == truth


# ---- files are remembered -----------------------------------------------------------------------


@pytest.fixture
def old(monkeypatch):
    """Files count as settled at once."""
    monkeypatch.setattr(digests, "FRESH_SECONDS", -1.0)


def test_nothing_is_hashed_twice(saved_model, old, monkeypatch):
    folder = saved_model()
    first = models.identify(str(folder))
    monkeypatch.setattr(digests, "_content", lambda file: pytest.fail("hashed again"))
    assert models.identify(str(folder)) == first
    moved = folder.with_name("moved")
    folder.rename(moved)  # the same inodes: nothing new to read
    assert models.identify(str(moved)).values == first.values


def test_an_edit_that_keeps_size_and_time_is_seen(saved_model, old):
    """A3: only the time of change cannot be put back."""
    folder = saved_model()
    file = folder / "model.safetensors"
    before, stat = models.identify(str(folder)), file.stat()
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(bytes(data))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file.stat().st_size == stat.st_size
    assert file.stat().st_mtime_ns == stat.st_mtime_ns
    assert models.identify(str(folder)).values != before.values


def test_a_file_that_was_just_written_is_not_remembered(saved_model):
    folder = saved_model()
    models.identify(str(folder))
    notes = models.cache_root() / "digests"
    assert not list(notes.glob("*.json"))


def test_a_file_that_changes_while_it_is_read_is_refused(saved_model):
    file = saved_model() / "model.safetensors"

    def compute() -> dict[str, Any]:
        time.sleep(0.02)
        file.write_bytes(file.read_bytes())
        return {}

    with pytest.raises(ModelError, match="changed while it was read"):
        digests.remembered(file, "test", compute)


def note_for(folder: Path, digest: str = "0123") -> None:
    from trimtab.models.copies import write_note

    write_note(folder, digest, "", [])


@pytest.mark.parametrize(
    "harm", ["weights", "config.json", "tokenizer.json", "more weights", "gone"]
)
def test_a_copys_note_holds_as_long_as_its_files_do(saved_model, harm):
    folder = saved_model()
    own = models.digest_of(str(folder))
    note_for(folder)
    assert models.digest_of(str(folder)) == "0123" == source(folder).digest
    shutil.copytree(folder, folder.with_name("elsewhere"))
    assert models.digest_of(str(folder.with_name("elsewhere"))) == "0123"
    file = folder / ("model.safetensors" if "weights" in harm else harm)
    if harm == "weights":
        data = bytearray(file.read_bytes())
        data[-2] ^= 1
        file.write_bytes(bytes(data))
    elif harm == "more weights":
        save_file({"extra": torch.ones(2)}, folder / "more.safetensors", metadata={"format": "pt"})
    elif harm == "gone":
        (folder / "generation_config.json").unlink()
    else:
        content = json.loads(file.read_text())
        file.write_text(json.dumps(content | {"remark": 1}))
    found = models.digest_of(str(folder))
    assert found != "0123"
    assert (found == own) == ("weights" not in harm)


def test_a_note_of_an_earlier_version_is_believed_for_the_same_values_alone(saved_model):
    from trimtab.models.copies import believe

    folder = saved_model()
    (folder / "trimtab.json").write_text(json.dumps({"source_digest": "0123"}))
    own = models.digest_of(str(folder))
    assert own != "0123"
    believe("0123", models.identify(str(folder)).values)
    assert models.digest_of(str(folder)) == "0123"
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert models.digest_of(str(folder)) not in ("0123", own)
    for text in ("{}", "[]", "{", '{"source_digest": 3}'):
        (folder / "trimtab.json").write_text(text)
        assert len(models.digest_of(str(folder))) == 64


# ---- changes in memory --------------------------------------------------------------------------


def train_a_step(model: Any) -> None:
    model.requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(input_ids=torch.tensor([[3, 4, 5]]), labels=torch.tensor([[3, 4, 5]])).loss.backward()
    optimizer.step()
    model.requires_grad_(False)


def merge_a_lora(model: Any) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(model, config).merge_and_unload()


def load_a_state(model: Any) -> None:
    state = {k: v.clone() for k, v in model.state_dict().items()}
    state["model.layers.2.self_attn.v_proj.weight"] *= 1.5
    model.load_state_dict(state)


def through_data(model: Any) -> None:
    model.model.layers[1].mlp.up_proj.weight.data.mul_(1.01)  # raises no version


def another_parameter(model: Any) -> None:
    layer = model.model.layers[0].mlp.gate_proj
    layer.weight = nn.Parameter(layer.weight.detach() * 1.1, requires_grad=False)


def another_layer(model: Any) -> None:
    stack = model.model.layers
    stack[0], stack[1] = stack[1], stack[0]


def half_and_back(model: Any) -> None:
    model.to(torch.bfloat16).to(torch.float32)


def tied(model: Any) -> None:
    model.lm_head.weight = model.model.embed_tokens.weight


def a_shared_module(model: Any) -> None:
    model.model.layers[1].mlp = model.model.layers[0].mlp


def a_shared_layer(model: Any) -> None:
    model.model.layers[2] = model.model.layers[0]


def a_shared_weight(model: Any) -> None:
    mlp = model.model.layers[1].mlp
    mlp.up_proj.weight = mlp.gate_proj.weight


CHANGES = [
    tied, a_shared_module, a_shared_layer, a_shared_weight, train_a_step,
    merge_a_lora, load_a_state, through_data, another_parameter, another_layer,
    half_and_back,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__)
def test_a_change_in_memory_is_seen_at_the_next_use(
    saved_model, tokenizer, few_pairs, store, change
):
    """A2: by the store, by check_base, by what damage keeps, and by `evaluate`."""
    model = loaded(saved_model())
    rows = encode(few_pairs, tokenizer)
    dial = fit("mean", model, tokenizer, few_pairs, store=store)
    neutral = NeutralText(model, tokenizer, ["The capital of France is Paris."])
    neutral.damage(dial, 1.0)
    before = models.source_of(model)
    base = evaluate(model, tokenizer, None, few_pairs, store=store, passages=1)
    with dial(model, 1.0):
        pass
    change(model)
    after = models.source_of(model)
    assert after.values != before.values
    assert after.digest != before.digest
    assert after.readings != before.readings
    assert after.config == before.config
    now = reference(model, rows, logps=True, store=store).logps
    from trimtab.readings import collect

    assert torch.equal(now, collect(model, rows, logps=True).logps)
    with pytest.raises(DialError, match="another weights"), dial(model, 1.0):
        pass
    fresh = NeutralText(model, tokenizer, ["The capital of France is Paris."])
    assert neutral.damage(dial, 0.0, force=True).kl[0] == 0.0
    assert fresh.damage(dial, 0.0, force=True).kl[0] == 0.0
    moved = evaluate(model, tokenizer, None, few_pairs, store=store, passages=1)
    margin = {line["metric"]: line["value"] for line in base}["margin"]
    assert {line["metric"]: line["value"] for line in moved}["margin"] != margin
    again = fit("mean", model, tokenizer, few_pairs, store=store)
    assert again.info.base_digest == after.digest != dial.info.base_digest
    site = dial.sites[0]
    assert torch.equal(again.direction(site), dial.direction(site)) == (change is tied)


def test_what_changes_no_value_changes_no_identity(saved_model, tokenizer):
    folder = saved_model()
    model = loaded(folder)
    before = models.source_of(model)
    model.train().requires_grad_(True)
    assert models.source_of(model) == before
    model.to(torch.bfloat16)  # of the same checkpoint, in another precision
    assert models.source_of(model) == before
    with torch.no_grad():
        p = model.model.norm.weight
        p.copy_(p.clone())  # a write of the same values
    assert models.source_of(model) == before
    assert models.known_source(model) == before


def test_in_memory_the_config_counts_too(saved_model):
    model = loaded(saved_model())
    before = models.source_of(model)
    model.config.rms_norm_eps = 1e-3
    after = models.source_of(model)
    assert after.values == before.values
    assert after.readings != before.readings
    model.config.rms_norm_eps, model.config.pad_token_id, model.config.use_cache = 1e-6, 4, False
    assert models.source_of(model) == before


def test_a_model_whose_files_have_changed_since_is_its_own(saved_model):
    folder = saved_model()
    model = AUTO.from_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert models.source_of(model).values != models.identify(str(folder)).values


def test_looking_for_a_change_is_cheap_and_complete_on_the_real_model(smollm2):
    model, _ = smollm2
    models.source_of(model)
    took = []
    for _ in range(20):
        start = time.thread_time()
        models.source_of(model)
        took.append(time.thread_time() - start)
    assert min(took) < 0.05
    before = mark(model)
    for name in ("model.layers.7.mlp.down_proj.weight", "model.layers.29.self_attn.q_proj.weight"):
        p = model.get_parameter(name)
        kept = p.data.clone()
        p.data.add_(1e-4 * torch.randn(p.shape))
        assert mark(model) != before
        p.data.copy_(kept)
    assert mark(model) == before


def test_the_real_model_is_one_by_name_by_folder_and_in_memory(smollm2):
    folder = models.folder_of("smollm2-135m")
    known = models.source_of(smollm2[0])
    for dtype in (torch.float32, torch.bfloat16):
        found = models.source_of(AUTO.from_pretrained(folder, dtype=dtype), smollm2[1])
        assert same(found, known)
        assert found.digest == known.digest


# ---- eval mode ----------------------------------------------------------------------------------


def test_a_model_in_train_mode_is_read_without_dropout_and_put_back(
    tiny, tokenizer, few_pairs, store
):
    """A6: gpt2's dropouts are at 0.1."""
    from trimtab.evaluation import generate
    from trimtab.evaluation.decoding import decode
    from trimtab.readings import collect, features

    quiet = tiny("gpt2")
    model = tiny("gpt2", fresh=True).train()
    model.transformer.h[1].eval()  # which a plain train(True) afterwards would lose
    modes = [m.training for m in model.modules()]
    rows = encode(few_pairs, tokenizer)
    truth = collect(quiet, rows, logps=True, sites=(2,))
    found = collect(model, rows, logps=True, sites=(2,))
    assert torch.equal(found.logps, truth.logps)
    assert torch.equal(found.states[2], truth.states[2])
    stored = reference(model, rows, logps=True, store=store).logps
    assert torch.equal(stored, truth.logps)
    one, two = (
        features(m, rows, (1,), "completion", store=store).take(torch.arange(3))[0]
        for m in (model, quiet)
    )
    assert torch.equal(one, two)
    text = generate(model, tokenizer, "The capital", sampling=_short())[0].text
    assert text == generate(quiet, tokenizer, "The capital", sampling=_short())[0].text
    assert decode(model, [5, 6, 7], 6) == decode(quiet, [5, 6, 7], 6)
    dial = fit("mean", model, tokenizer, few_pairs)
    site = dial.sites[0]
    assert torch.equal(
        dial.direction(site), fit("mean", quiet, tokenizer, few_pairs).direction(site)
    )
    damage = [
        NeutralText(m, tokenizer, ["Two and two are four."]).damage(dial, 1.0).kl[0]
        for m in (model, quiet)
    ]
    assert damage[0] == damage[1]
    assert [m.training for m in model.modules()] == modes


def _short() -> Any:
    from trimtab.evaluation import Sampling

    return Sampling(max_new_tokens=6)


def test_training_a_dial_puts_the_model_back_too(tiny, tokenizer, few_pairs):
    from helpers_fit import recipe

    model = tiny("gpt2", fresh=True).train()
    fit(recipe(max_steps=1), model, tokenizer, few_pairs)
    assert all(m.training for m in model.modules())


def test_a_dial_in_train_mode_is_read_without_its_dropout(tiny, tokenizer, few_pairs):
    from trimtab.dials import AdapterDial
    from trimtab.dials.adapter import linear_modules
    from trimtab.readings import collect

    model, draw = tiny("llama"), torch.Generator().manual_seed(0)
    dial = AdapterDial(linear_modules(model), rank=2, dropout=0.5, generator=draw)
    for p in dial.parameters():
        p.data.normal_(generator=draw)
    dial.train()
    rows = encode(few_pairs, tokenizer)
    found = []
    for _ in range(2):
        with dial(model, 1.0, force=True):
            found.append(collect(model, rows, logps=True).logps)
    assert torch.equal(*found)
    assert dial.training


# ---- what neither weights nor config say ---------------------------------------------------------


def scaled_frequencies(model: Any) -> None:
    model.model.rotary_emb.inv_freq.mul_(0.5)


def an_epsilon(model: Any) -> None:
    model.model.norm.variance_epsilon = 0.5


def a_scale_of_attention(model: Any) -> None:
    for layer in model.model.layers:
        layer.self_attn.scaling *= 3


def another_activation(model: Any) -> None:
    for layer in model.model.layers:
        del layer.mlp.act_fn
        layer.mlp.act_fn = torch.tanh


def another_activations_module(model: Any) -> None:
    for layer in model.model.layers:
        layer.mlp.act_fn = nn.Tanh()


def a_rounded_table(model: Any) -> None:
    model.to(torch.bfloat16).to(
        torch.float32
    )  # the weights are of bfloat16, the frequencies are not


def a_single_entry(model: Any) -> None:
    model.model.layers[1].mlp.up_proj.weight.data[7, 5] += 3.0


def a_row_of_the_head(model: Any) -> None:
    model.lm_head.weight.data[5].mul_(-1)


def a_hook(model: Any) -> None:
    model.model.layers[0].register_forward_hook(lambda m, x, y: y * 1.5)


def a_hook_before(model: Any) -> None:
    model.lm_head.register_forward_pre_hook(lambda m, x: (x[0] * 2,))


def a_forward_of_their_own(model: Any) -> None:
    mlp, old = model.model.layers[0].mlp, model.model.layers[0].mlp.forward
    mlp.forward = lambda x: 2 * old(x)


def a_class_of_their_own(model: Any) -> None:
    class Louder(type(model.model.norm)):
        def forward(self, x: Any) -> Any:
            return super().forward(x) * 3

    model.model.norm.__class__ = Louder


STATES = [
    scaled_frequencies, an_epsilon, a_scale_of_attention, another_activation,
    another_activations_module, a_rounded_table, a_single_entry, a_row_of_the_head, a_hook,
    a_hook_before, a_forward_of_their_own, a_class_of_their_own,
]  # fmt: skip


@pytest.mark.parametrize("change", STATES, ids=lambda c: c.__name__)
def test_what_acts_in_a_forward_pass_is_seen_wherever_it_stands(
    saved_model, tokenizer, few_pairs, store, change
):
    from trimtab.readings import collect, features

    model = loaded(saved_model(dtype=torch.bfloat16))
    model.to(torch.float32)
    rows = encode(few_pairs, tokenizer)
    neutral = NeutralText(model, tokenizer, ["The capital of France is Paris."])
    dial = fit("mean", model, tokenizer, few_pairs, store=store)
    neutral.damage(dial, 1.0)
    before = reference(model, rows, logps=True, store=store).logps
    features(model, rows, (1,), "completion", store=store)
    change(model)
    for _ in range(2):  # what a hook does may change again
        truth = collect(model, rows, logps=True, sites=(1,))
        assert not torch.equal(truth.logps, before)
        assert torch.equal(reference(model, rows, logps=True, store=store).logps, truth.logps)
    held = len(list(store.root.glob("[!.]*")))
    read = features(model, rows, (1,), "completion", store=store).take(torch.arange(2))[0]
    assert read.isfinite().all()
    lasting = models.source_of(model).lasting
    assert len(list(store.root.glob("[!.]*"))) == held + lasting
    assert neutral.damage(dial, 0.0, force=True).kl[0] == 0.0


def test_a_hook_that_changes_what_it_does_is_read_anew(saved_model, tokenizer, few_pairs, store):
    from trimtab.readings import collect

    model, by = loaded(saved_model()), [1.0]
    model.model.layers[0].register_forward_hook(lambda m, x, y: y * by[0])
    rows = encode(few_pairs, tokenizer)
    for by[0] in (1.5, 0.5):
        truth = collect(model, rows, logps=True).logps
        assert torch.equal(reference(model, rows, logps=True, store=store).logps, truth)


def test_functions_that_were_put_into_a_librarys_place_are_seen(tiny, monkeypatch):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    from transformers.models.llama import modeling_llama as theirs

    model = tiny("llama")
    before = models.source_of(model).in_memory
    assert models.source_of(model).lasting
    with monkeypatch.context() as patch:
        patch.setattr(theirs, "apply_rotary_pos_emb", lambda q, k, *a, **kw: (q, k))
        assert not models.source_of(model).lasting
    with monkeypatch.context() as patch:
        patch.setattr(theirs.LlamaMLP, "forward", lambda self, x: x)
        assert not models.source_of(model).lasting
    mine = lambda *a, **kw: theirs.eager_attention_forward(*a, **kw)  # noqa: E731
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", mine)
    assert not models.source_of(model).lasting
    monkeypatch.undo()
    assert models.source_of(model).in_memory == before


def test_adapters_of_peft_are_told_apart_by_scale_and_switch(saved_model):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model: Any = get_peft_model(AUTO.from_pretrained(saved_model()), config)
    seen = {models.source_of(model).in_memory}
    with model.disable_adapter():
        seen.add(models.source_of(model).in_memory)
    assert models.source_of(model).in_memory in seen
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    layer.scaling["default"] *= 2
    seen.add(models.source_of(model).in_memory)
    model.add_adapter("other", config)
    model.set_adapter("other")
    seen.add(models.source_of(model).in_memory)
    assert len(seen) == 4
    assert models.source_of(model).lasting


@pytest.mark.parametrize("kind", ["llama", "gemma3", "gpt2", "longrope", "dynamic", "mamba"])
def test_use_leaves_no_trace_in_what_readings_depend_on(tiny, tmp_path, kind):
    """Long rows, generation, gradient checkpointing, a dial's context, placing by accelerate,
    compiling, saving again: the same readings."""
    from accelerate import dispatch_model

    from trimtab.dials import VectorDial

    scaled = {
        "longrope": {
            "rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0,
            "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
        },
        "dynamic": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
    }  # fmt: skip
    if kind in scaled:
        config = CONFIGS["llama"]()
        config.max_position_embeddings = config.original_max_position_embeddings = 32
        config.rope_parameters = scaled[kind]
        AUTO.from_config(config).save_pretrained(tmp_path / "m")
    else:
        tiny(kind).save_pretrained(tmp_path / "m")
    model = AUTO.from_pretrained(tmp_path / "m").eval()
    before = models.source_of(model).in_memory
    model(input_ids=torch.arange(3, 203)[None])
    model.generate(torch.arange(3, 9)[None], max_new_tokens=2, pad_token_id=0)
    if kind != "mamba":
        model.train().gradient_checkpointing_enable()
        model(input_ids=torch.arange(3, 43)[None]).logits.sum().backward()
        model.gradient_checkpointing_disable()
        model.eval()
    dial = VectorDial({1: torch.ones(32)}, {1: 0.1})
    with dial(model, 1.0, force=True):
        model(input_ids=torch.arange(3, 9)[None])
        assert models.source_of(model).lasting
    assert models.source_of(torch.compile(model, backend="eager")).in_memory == before
    assert models.source_of(nn.DataParallel(model)).in_memory == before
    model.save_pretrained(tmp_path / "again")
    placed = AUTO.from_pretrained(tmp_path / "again", device_map="cpu").eval()
    dispatch_model(placed, {"": "cpu"}, force_hooks=True)
    assert models.source_of(placed).in_memory == models.source_of(model).in_memory == before


# ---- numbers that overflow -----------------------------------------------------------------------


@pytest.fixture
def loud(saved_model, tokenizer) -> Any:
    """A model of float16 in which one token alone, of one row, makes a state too large."""
    model = loaded(saved_model(), dtype="fp16")
    word = tokenizer.encode("Water boils at", add_special_tokens=False)
    common = tokenizer.encode("The capital of France is Paris. Two and two are four triangle has")
    (token, *_) = [t for t in word if t not in common]
    model.model.embed_tokens.weight.data[token] = 65500.0
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.data.mul_(300)
    return model


def test_log_probs_and_states_that_are_not_finite_are_said_not_averaged(
    loud, tokenizer, few_pairs, store
):
    from trimtab.evaluation import Sampling, generate

    rows = encode(few_pairs, tokenizer)
    with pytest.raises(ModelError, match=r"not finite.*float"):
        reference(loud, rows, logps=True, store=store)
    with pytest.raises(ModelError, match=r"not finite.*float"):
        evaluate(loud, tokenizer, None, few_pairs, store=store, passages=1)
    with pytest.raises(ModelError, match=r"not finite.*float"):
        fit("mean", loud, tokenizer, few_pairs, store=store)
    for temperature in (0.0, 1.0):
        how = Sampling(max_new_tokens=2, temperature=temperature)
        with pytest.raises(ModelError, match="no numbers"):
            generate(loud, tokenizer, ["Water boils at", "The capital"], sampling=how)
        assert generate(loud, tokenizer, ["The capital"], sampling=how)
    quiet = few_pairs[:5]
    assert fit("mean", loud, tokenizer, quiet, store=store).sites
