"""Remembered proofs: made once a model, by its identity and not by its name."""

from __future__ import annotations

import json

import pytest
import torch

from trimtab import models
from trimtab.proofs import proven


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "proofs"


@pytest.fixture
def prove():
    """`prove(model, what, on)`: a proof that counts how often it was made."""

    def run(model, what="a", on=None):
        return proven(model, what, on, make)["made"]

    def make():
        run.made += 1
        return {"made": run.made}

    run.made = 0
    return run


def test_a_proof_is_made_once_a_model_and_kept_in_the_cache(tiny, cache, prove):
    model = tiny("llama", fresh=True)
    assert [prove(model), prove(model)] == [1, 1]
    twin = tiny("llama", fresh=True)  # another object, as in another process
    assert prove(twin) == 1
    assert [json.loads(f.read_text()) for f in cache.iterdir()] == [{"made": 1}]


def test_what_a_proof_depends_on_makes_another(tiny, cache, prove):
    model = tiny("llama", fresh=True)
    seen = [prove(model), prove(model, "b"), prove(model, "a", {"rows": "x"})]
    assert seen == [1, 2, 3]
    other = tiny("llama", fresh=True)
    other.model.norm.weight.data[0] += 1.0
    assert prove(other) == 4
    eager = tiny("llama", "eager", fresh=True)
    assert prove(eager) == 5
    half = tiny("llama", dtype=torch.bfloat16, fresh=True)
    assert prove(half) == 6
    assert models.text_config(model)._attn_implementation == "sdpa"


@pytest.mark.parametrize("damage", ["", "[1, 2]", "{", "\udcff"])
def test_a_damaged_proof_is_made_again(tiny, cache, prove, damage):
    prove(tiny("llama", fresh=True))
    (file,) = cache.iterdir()
    file.write_text(damage, errors="surrogateescape")
    assert prove(tiny("llama", fresh=True)) == 2
    assert json.loads(file.read_text()) == {"made": 2}


def test_what_a_proof_raises_is_not_remembered_and_no_cache_is_needed(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "file"))
    model = tiny("llama", fresh=True)

    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        proven(model, "a", None, fail)
    assert proven(model, "a", None, lambda: {"right": True}) == {"right": True}
