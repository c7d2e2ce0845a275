"""Inputs of others that once ended in a traceback or were lost work, through the public interface alone."""

from __future__ import annotations

import json
import re

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import save_file

from trimtab import fit, models
from trimtab.dials import Dial
from trimtab.errors import TrimtabError
from trimtab.pairs import read_pairs

ROWS = [
    {"prompt": f"The train of {i} is", "chosen": " Paris.", "rejected": " blue."} for i in range(4)
]


def test_text_that_is_not_utf_8_in_parquet(tmp_path):
    columns = {k: [row[k].encode() for row in ROWS] for k in ROWS[0]}
    columns["chosen"][1] = b"\xff\xfe"
    table = pa.table({k: pa.array(v, pa.binary()).view(pa.string()) for k, v in columns.items()})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(TrimtabError, match=r"a\.parquet"):
        read_pairs(str(tmp_path / "a.parquet"))


def test_half_a_character_in_a_spec():
    with pytest.raises(TrimtabError, match="surrogate"):
        read_pairs("jsonl:\ud800.jsonl")


@pytest.mark.parametrize("note", ["{}", "[]", "null", '{"source_digest": 3, "files": []}'])
def test_a_note_of_a_copy_that_says_nothing(saved_model, note):
    folder = saved_model()
    before = models.digest_of(str(folder))
    (folder / "trimtab.json").write_text(note)
    assert models.digest_of(str(folder)) == before
    assert models.load(str(folder))


@pytest.mark.parametrize("shape", [(2,), (), (0,), (2, 0), (2, 32, 1)])
def test_weights_of_another_rank_or_none(tmp_path, shape):
    with pytest.raises(TrimtabError, match=re.escape(str(tmp_path))):
        Dial.from_pretrained(adapter(tmp_path, torch.ones(shape)))


def adapter(folder, A, **config):
    """A PEFT folder."""
    usual = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(usual | config))
    at = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    weights = {f"{at}A.weight": A, f"{at}B.weight": torch.ones(32, 2)}
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(
    "change", [{"peft_type": []}, {"lora_alpha": "two"}, {"lora_alpha": []}, {"bias": 3}]
)
def test_adapters_with_values_of_another_kind(tmp_path, change):
    with pytest.raises(TrimtabError):
        Dial.from_pretrained(adapter(tmp_path, torch.ones(2, 32), **change))


@pytest.mark.parametrize("method", ["pca", "rotation"])
def test_a_model_with_nan_is_said_to_have_them(tiny, tokenizer, tmp_path, monkeypatch, method):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    model = tiny("llama", fresh=True)
    model.model.layers[1].mlp.down_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(TrimtabError, match=r"finite|NaN"):
        fit(method, model, tokenizer, read_pairs(ROWS))


def test_a_list_of_rows_is_fitted_on(tiny, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    dials = [fit("mean", tiny("llama"), tokenizer, pairs) for pairs in (ROWS, read_pairs(ROWS))]
    one, other = (dict(dial.tensors()) for dial in dials)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_refused_fit_leaves_nothing_in_the_way(tiny, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    model, out = tiny("llama"), tmp_path / "dials" / "d"
    with pytest.raises(TrimtabError):
        fit("mean", model, tokenizer, read_pairs(ROWS), out=out, max_length=2)
    assert not list(tmp_path.glob("dials/.*"))
    broken = tiny("llama", fresh=True)
    broken.model.layers[1].mlp.down_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(TrimtabError):
        fit("mean", broken, tokenizer, read_pairs(ROWS), out=out)
    fit("mean", model, tokenizer, read_pairs(ROWS), out=out)
    assert [f.name for f in out.parent.iterdir()] == ["d"]
