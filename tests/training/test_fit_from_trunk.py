"""Training from stored states below a dial, against training on the whole model."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from conftest import count_calls
from trimtab import fit, models, trunk
from trimtab.dials import VectorDial
from trimtab.store import Store
from trimtab.training.methods import method
from trimtab.training.settings import AdapterSettings

UPPER = r"layers\.[23]\."


@pytest.fixture(autouse=True)
def paying(monkeypatch):
    monkeypatch.setattr(trunk, "PAYS", 0)


def upper(name="dpo", **options):
    recipe = method(name).recipe
    rate = 1e-2 if isinstance(recipe.dial, AdapterSettings) else 0.1
    train = replace(recipe.train, pairs_per_step=3, epochs=2, learning_rate=rate, **options)
    dial = recipe.dial
    if isinstance(dial, AdapterSettings):
        dial = replace(dial, rank=2, targets=UPPER)
    return replace(recipe, train=train, dial=dial)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dpo", {}),
        ("dpo", {"activation_checkpointing": True}),
        ("orpo", {}),
        ("bipo", {}),  # a vector, at both poles
        ("direft", {}),
    ],
)
def test_a_fit_from_the_trunk_is_the_whole_model_s(
    name, options, tiny, tokenizer, few_pairs, tmp_path
):
    model, found = tiny("llama"), []
    for on in (True, False):
        out = tmp_path / f"{on}"
        store = Store(tmp_path / f"store-{on}", trunk=on)
        dial = fit(
            upper(name, **options),
            model,
            tokenizer,
            few_pairs,
            out=out,
            store=store,
            prompt_style="plain",
        )
        losses = [
            json.loads(line)["loss"] for line in (out / "training.jsonl").read_text().splitlines()
        ]
        found.append((torch.tensor(losses), dial.tensors()))
    entries = [len(list((tmp_path / f"store-{on}").glob("[!.]*"))) for on in (True, False)]
    assert entries[0] > entries[1]  # the trunk
    (one, ours), (other, whole) = found
    assert len(one) >= 4
    assert (one - other).abs().max() <= 1e-5
    assert abs(one[0] - one[-1]) > 1e-2
    for key, value in whole.items():
        assert (ours[key] - value).abs().max() <= 1e-4


@pytest.mark.parametrize("site", [0, 2, 3])
def test_a_dial_that_stays_on_is_not_added_twice(site, tiny, tokenizer, few_pairs, tmp_path):
    """Below the trained vector (block 2), with it and above it: the trunk is the bare model's."""
    model, found = tiny("llama"), []
    fit(upper("bipo"), model, tokenizer, few_pairs, store=Store(tmp_path / "before"))  # proofs
    held = VectorDial({site: torch.arange(32.0)}, {site: 3.0})
    for on in (True, False):
        store = Store(tmp_path / f"store-{on}", trunk=on)
        how: Any = {"store": store, "held": held, "held_alpha": 0.7}
        dial = fit(upper("bipo"), model, tokenizer, few_pairs, **how)
        found.append(dial.tensors()["vectors"])
    assert (found[0] - found[1]).abs().max() <= 1e-4


def test_blocks_below_run_once_however_many_epochs(tiny, tokenizer, few_pairs, store):
    model = tiny("llama")
    fit(upper(), model, tokenizer, few_pairs, store=store, seed=1)  # proofs
    trunk._kept.clear()
    store.root.rename(store.root.with_name("other"))
    calls, done = count_calls(*(layer.get_submodule("mlp") for layer in models.layers(model)))
    fit(upper(), model, tokenizer, few_pairs, store=store)
    first = list(calls)
    fit(upper(), model, tokenizer, few_pairs, store=store, seed=2)
    done()
    assert first[0] == first[1] == 0  # read while dials are paused, which is not counted
    assert calls[0] == calls[1] == 0
    assert calls[2] == calls[3] > first[3] > 4
