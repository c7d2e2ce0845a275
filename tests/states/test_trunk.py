"""The trunk: passes that start from stored states after a block, against the whole model's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from conftest import TINY, count_calls, random_rows
from trimtab import models, readings, states, trunk
from trimtab.batching import collate, layout_of
from trimtab.dials import AdapterDial, VectorDial
from trimtab.evaluation import NeutralText, score, scores
from trimtab.models.places import before
from trimtab.store import Store
from trimtab.trunk import try_trunk

collect: Any = readings.collect
read: Any = states.read
read_at: Any = scores.read_at
trunk_of: Any = trunk.trunk_of
layers: Any = models.layers
BLOCK = 1


@pytest.fixture(autouse=True)
def paying(monkeypatch):
    """Tiny models compute faster than a disk reads."""
    monkeypatch.setattr(trunk, "PAYS", 0)


def vector(site: Any = BLOCK, seed=0, **options):
    draw = torch.Generator().manual_seed(seed)
    return VectorDial({site: torch.randn(32, generator=draw)}, {site: 2.0}, **options)


@pytest.mark.parametrize("name", [*TINY, "granite", "opt", "mamba", "recurrentgemma", "lfm2"])
def test_passes_from_a_trunk_are_the_whole_model_s(name, tiny, rows, store):
    """Log-probs and states above, with and without a dial, and the gradient of what is trained, in
    microbatches of other rows than those the trunk was read in."""
    model, dial = tiny(name), vector()
    whole_bare = collect(model, rows, logps=True, sites=(BLOCK, 3))
    with dial(model, 1.0, force=True):
        whole = collect(model, rows, logps=True, sites=(BLOCK, 3))
        found = trunk_of(model, rows, store, sites=(BLOCK, 3))
        assert found is not None
        above = collect(model, rows, logps=True, sites=(BLOCK, 3), trunk=found)
    bare = collect(model, rows, logps=True, sites=(BLOCK, 3), trunk=found)
    for a, b in ((whole, above), (whole_bare, bare)):
        assert torch.equal(a.logps, b.logps)  # the same batches: to the bit
        assert all(torch.equal(a.states[s], b.states[s]) for s in (BLOCK, 3))
    assert (whole.logps - whole_bare.logps).abs().max() > 1e-2

    step = torch.zeros(32, requires_grad=True)
    edited: Any = layers(model)[BLOCK]
    slopes = []
    for t in (None, found):
        for of in ([0, 2], [1]):
            batch = collate(rows, of, layout_of(model, rows))
            handle = edited.register_forward_hook(
                lambda _, __, out: (
                    (out[0] + step, *out[1:]) if isinstance(out, tuple) else out + step
                )
            )
            try:
                logps = read(model, batch, trunk=t, logps=True).logps
            finally:
                handle.remove()
            slopes += torch.autograd.grad(logps.sum(), step)
    for a, b in zip(slopes[:2], slopes[2:], strict=True):
        assert (a - b).abs().max() <= 1e-4 * a.abs().max()


def test_blocks_below_compute_nothing(tiny, rows, store):
    model, dial = tiny("llama"), vector()
    read_at(model, rows, dial, 1.0, force=True, store=store)  # proofs, and the trunk
    calls, done = count_calls(*(layer.get_submodule("mlp") for layer in layers(model)))
    for alpha in (-1.0, 0.5, 2.0):
        read_at(model, rows, dial, alpha, force=True, store=store)
    done()
    batches = calls[-1] // 3
    assert batches > 0
    assert calls == [0, 0, 3 * batches, 3 * batches]


def test_scores_are_the_same_with_and_without(tiny, rows, store, tmp_path):
    """At five alphas, the bare model's among them: to the bit."""
    model, dial = tiny("qwen3"), vector(positions="completion")
    off = Store(tmp_path / "off", trunk=False)
    for alpha in (0.0, -1.0, -0.5, 0.5, 1.0):
        a = read_at(model, rows, dial, alpha, force=True, store=store)
        b = read_at(model, rows, dial, alpha, force=True, store=off)
        assert torch.equal(a.logps, b.logps)
    assert _entries(store) > _entries(off) == 1  # the bare model's log-probs


def test_where_a_dial_begins(tiny):
    model = tiny("llama")
    path = models.layer_paths(model)[2]
    assert before(model, [2]) == 2
    assert before(model, [2, 1]) == 1
    assert before(model, [f"{path}.mlp.up_proj:out"]) == 1
    assert before(model, [f"{path}.mlp.up_proj:out", 0]) == 0
    assert before(model, ["final"]) == before(model, ["lm_head:in"]) == 3
    assert before(model, ["embed"]) == before(model, ["embed", 2]) == -1
    assert before(tiny("gpt2"), ["transformer.wpe:out"]) == -1


def test_what_acts_below_turns_it_off(tiny, rows, store):
    """An adapter on all layers, a dial at the embedding, a second dial below the first."""
    model = tiny("llama")
    with AdapterDial.for_model(model, "all-linear", rank=2)(model, 1.0, force=True):
        assert trunk_of(model, rows, store) is None
    with vector("embed")(model, 1.0, force=True):
        assert trunk_of(model, rows, store) is None
    with vector(2)(model, 1.0, force=True):
        assert trunk_of(model, rows, store).block == 2
        with vector(0)(model, 1.0, force=True):
            assert trunk_of(model, rows, store).block == 0
    upper = AdapterDial.for_model(model, "all-linear", range(2, 4), rank=2)
    with upper(model, 1.0, force=True):
        assert trunk_of(model, rows, store).block == 1
    assert trunk_of(model, rows, store) is None  # nothing is done to the model


def test_a_row_s_states_are_its_own(tiny, rows, store):
    """Whatever shares its prompt: rows that begin alike are read in batches of other prefixes."""
    model, row = tiny("llama"), rows.rows[0]
    same = random_rows(1, ((14, (5, 4)),)).rows[0]
    alike = replace(rows, rows=(row, replace(same, prompt=row.prompt), rows.rows[1]))
    found = trunk_of(model, alike, store, block=BLOCK)
    for n, one in enumerate(alike.rows):
        alone = trunk_of(model, replace(alike, rows=(one,)), store, block=BLOCK)
        a = found.take(torch.arange(*alike.places[n : n + 2]))
        b = alone.take(torch.arange(one.packed_length))
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


def _entries(store):
    return len([p for p in store.root.iterdir() if not p.name.startswith(".")])


def _files(store):
    return sorted(store.root.glob("*/*.safetensors"))


def test_a_damaged_entry_is_made_again(tiny, rows, store):
    model = tiny("llama")
    first = trunk_of(model, rows, store, block=BLOCK).take(torch.arange(10))
    (file,) = _files(store)
    whole = file.read_bytes()
    for damage in (whole[:-8] + bytes(8), whole[: len(whole) // 2], None):
        trunk._kept.clear()
        if damage is None:
            file.unlink()
        else:
            file.write_bytes(damage)
        assert torch.equal(trunk_of(model, rows, store, block=BLOCK).take(torch.arange(10)), first)
        assert file.read_bytes() == whole


def test_other_data_depth_or_weights_have_entries_of_their_own(tiny, rows, store):
    model = tiny("llama", fresh=True)
    first = trunk_of(model, rows, store, block=BLOCK)
    assert trunk_of(model, rows, store, block=BLOCK) is first
    trunk_of(model, rows, store, block=BLOCK + 1)
    trunk_of(model, random_rows(3), store, block=BLOCK)
    layers(model)[0].mlp.up_proj.weight.data += 0.1
    changed = trunk_of(model, rows, store, block=BLOCK)
    assert not torch.equal(changed.take(torch.arange(9)), first.take(torch.arange(9)))
    assert _entries(store) == 4


def test_it_is_no_reason_not_to_run(tiny, rows, store, monkeypatch):
    """No room, a disk that cannot be written, states that are slower to read than to compute."""
    model = tiny("llama")
    monkeypatch.setattr(trunk, "PAYS", 1e9)
    assert trunk_of(model, rows, store, block=BLOCK) is None
    monkeypatch.setattr(trunk, "PAYS", 0)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: type("", (), {"free": 10_000}))
        assert trunk_of(model, rows, store, block=BLOCK) is None  # 20 kB of states
    with monkeypatch.context() as patch:
        patch.setattr("trimtab.store.save_file", _full)
        assert trunk_of(model, rows, store, block=BLOCK) is None
    assert not store.root.exists() or not list(store.root.glob(".*.partial"))
    assert trunk_of(model, rows, store, block=BLOCK) is not None


def _full(*_):
    raise OSError("No space left on device")


def test_upper_blocks_that_read_more_are_left_out(tiny, rows):
    """Of a model whose third block reads what the first one's attention gave."""
    model = tiny("llama", fresh=True)
    kept = []
    model.register_forward_pre_hook(lambda *_: kept.clear())
    first, third = layers(model)[0].self_attn, layers(model)[2].mlp
    first.register_forward_hook(lambda _, __, out: kept.append(out[0]))
    third.register_forward_hook(lambda _, __, out: out + kept.pop() if kept else out)
    found = try_trunk(model, rows, BLOCK, "packed")
    assert not found["holds"]
    assert "differ" in found["why"]


def test_damage_from_a_trunk(tiny, tokenizer):
    model, dial = tiny("llama"), vector()
    passages = ["The sky is blue and water boils.", "Two and two are four.", "Paris is a capital."]
    whole, ours = (NeutralText(model, tokenizer, passages, trunk=t) for t in (False, True))
    for alpha in (1.0, -0.5, 0.25):
        a, b = (text.damage(dial, alpha, force=True) for text in (whole, ours))
        assert (a.kl == b.kl).all()
        assert (a.nll_rise == b.nll_rise).all()
    assert len(ours._trunks[BLOCK]) == 2
    calls, done = count_calls(layers(model)[0].mlp)
    ours.damage(dial, 2.0, force=True)
    done()
    assert calls == [0]


def test_scores_of_a_half_precision_model(tiny, rows, store):
    """Kept in its own dtype: to the bit."""
    model, dial = tiny("llama", dtype=torch.bfloat16), vector()
    ours = score(model, rows, dial, 1.0, force=True, store=store)
    assert trunk_of(model, rows, store, block=BLOCK).shards[0].dtype == torch.bfloat16
    whole = score(model, rows, dial, 1.0, force=True, store=Store(store.root, trunk=False))
    assert (ours.margin == whole.margin).all()
