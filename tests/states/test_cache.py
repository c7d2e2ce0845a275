"""The store of readings: the same as read live, read once, and never used where it is damaged."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import trimtab.readings
import trimtab.store
from conftest import count_calls
from helpers_fit import random_pairs, recipe
from trimtab import models
from trimtab.batching import Encoded, layout_of
from trimtab.errors import CacheError
from trimtab.objectives import InnerDPO
from trimtab.readings import collect, reference
from trimtab.store import Store
from trimtab.training import fit

WHAT = {"model": "m", "read": "logps"}


def shards(*values: float) -> list[Callable[[], dict[str, torch.Tensor]]]:
    """A shard of two rows a value."""
    return [lambda v=v: {"a": torch.full((2, 3), v), "b": torch.arange(2)} for v in values]


def filled(tmp_path: Path, *values: float) -> tuple[Store, Path]:
    """A store with one entry, and its folder."""
    store = Store(tmp_path / "store")
    store.put(WHAT, shards(*(values or (1.0, 2.0))))
    return store, store.folder(WHAT)


# ---- readings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["completion", "predicting"])
def test_stored_equals_live(pool: Any, tiny: Any, rows: Encoded, store: Store) -> None:
    """Log-probs and states come back to the bit, in the order of the answers."""
    model = tiny("llama")
    arguments: Any = {"logps": True, "sites": (1, "final"), "pool": pool}
    live = collect(model, rows, **arguments)
    for _ in range(2):  # read, then found
        found = reference(model, rows, store=store, **arguments)
        assert torch.equal(found.logps, live.logps)
        assert torch.equal(found.tokens, live.tokens)
        for site in (1, "final"):
            assert torch.equal(found.states[site], live.states[site])
            assert torch.equal(found.norms[site], live.norms[site])
    # In whatever batches it was read, an answer has the place that its row gives it.
    each = [collect(model, Encoded((row,), 0, 0, "one"), **arguments) for row in rows.rows]
    assert torch.allclose(torch.cat([e.logps for e in each]), live.logps, atol=1e-4)
    assert torch.allclose(torch.cat([e.states[1] for e in each]), live.states[1], atol=1e-4)


def test_many_shards(
    tiny: Any, rows: Encoded, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut small, an entry is joined again."""
    monkeypatch.setattr(trimtab.store, "SHARD_BYTES", 300)
    model = tiny("llama")
    written = reference(model, rows, sites=(0,), store=store)
    found = reference(model, rows, sites=(0,), store=store)
    assert len(list(store.root.glob("*/*.safetensors"))) > 2
    assert torch.equal(found.states[0], written.states[0])


def test_only_what_is_missing_is_read(tiny: Any, rows: Encoded, store: Store) -> None:
    """Each of log-probs and sites is read once; log-probs alone need the head."""
    model = tiny("llama")
    layout_of(model)
    stack = models.layers(model)
    runs, done = count_calls(models.head(model), stack[1], stack[3])
    reference(model, rows, sites=(0, 1), store=store)
    assert runs[0] == runs[2] == 0 < runs[1]
    before = list(runs)
    reference(model, rows, sites=(0, 1), store=store)
    assert runs == before
    reference(model, rows, logps=True, sites=(1,), store=store)
    assert runs[0] > 0
    before = list(runs)
    reference(model, rows, logps=True, sites=(1, 0), store=store)
    assert runs == before
    done()


def test_other_models_and_data_have_other_entries(tiny: Any, rows: Encoded, store: Store) -> None:
    """Another model, dtype, attention, pool or token: read anew."""
    model = tiny("llama")
    first = reference(model, rows, logps=True, store=store).logps
    other = tiny("llama", fresh=True)
    models.layers(other)[0].mlp.down_proj.weight.data *= 1.1
    assert not torch.equal(reference(other, rows, logps=True, store=store).logps, first)
    n = len(list(store.root.glob("*/manifest.json")))
    reference(tiny("llama", dtype=torch.float64), rows, logps=True, store=store)
    reference(tiny("llama", attention="eager"), rows, logps=True, store=store)
    row = rows.rows[0]
    changed = Encoded(
        (type(row)(row.item, (5, *row.prompt[1:]), row.answers, row.pairs, row.pair_ids),),
        0,
        0,
        "x",
    )
    reference(model, changed, logps=True, store=store)
    reference(model, rows, sites=(1,), store=store)
    reference(model, rows, sites=(1,), pool="last", store=store)
    reference(model, rows, sites=(1,), token_map="l2", store=store)
    assert len(list(store.root.glob("*/manifest.json"))) == n + 6


def test_a_second_method_runs_no_reference(
    tiny: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After innerdpo, dpo and mean on the same pairs run the model for training alone."""
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    model, pairs = tiny("llama"), random_pairs(8)
    forwards: list[int] = []
    real = trimtab.readings.collect

    def counted(*args: Any, **kwargs: Any) -> Any:
        forwards.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(trimtab.readings, "collect", counted)
    fit(recipe(InnerDPO(sites="0..1"), max_steps=1), model, tokenizer, pairs)
    assert forwards == [1]
    runs, done = count_calls(model)
    fit(recipe(max_steps=2, microbatch_tokens=10_000), model, tokenizer, pairs, seed=7)
    assert runs == [2]  # two steps, a microbatch each
    fit("mean", model, tokenizer, pairs)
    done()
    assert runs == [2]
    assert forwards == [1]


# ---- damage -------------------------------------------------------------------------------------


def edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a manifest."""
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


def spoil(folder: Path, how: str) -> None:
    shard = sorted(folder.glob("*.safetensors"))[0]
    manifest = folder / "manifest.json"
    if how == "flipped":
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1
        shard.write_bytes(bytes(data))
    elif how == "cut":
        shard.write_bytes(shard.read_bytes()[:-7])
    elif how == "gone":
        shard.unlink()
    elif how == "manifest cut":
        manifest.write_text(manifest.read_text()[:40])
    elif how == "manifest empty":
        manifest.write_text("")
    elif how == "manifest a list":
        manifest.write_text("[]")
    elif how == "fewer shards":
        edit(manifest, lambda m: m["shards"].popitem())
    elif how == "no shards":
        edit(manifest, lambda m: m["shards"].clear())
    elif how == "other model":
        edit(manifest, lambda m: m["what"].update(model="other"))
    elif how == "foreign format":
        edit(manifest, lambda m: m.update(format=99))
    elif how == "not utf-8":
        manifest.write_bytes(b"\xff\xfe" + manifest.read_bytes())
    else:
        raise AssertionError(how)


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ("flipped", "safetensors"),
        ("cut", "safetensors"),
        ("gone", "safetensors"),
        ("manifest cut", "manifest.json"),
        ("manifest empty", "manifest.json"),
        ("manifest a list", "manifest.json"),
        ("fewer shards", "manifest.json"),
        ("no shards", "manifest.json"),
        ("other model", "manifest.json"),
        ("foreign format", "format 99"),
        ("not utf-8", "manifest.json"),
    ],
)
def test_damage_is_refused(how: str, named: str, tmp_path: Path) -> None:
    """The error names the file and says what to do; deleting the entry mends it."""
    store, folder = filled(tmp_path)
    spoil(folder, how)
    with pytest.raises(CacheError) as error:
        store.get(WHAT)
    assert named in str(error.value)
    assert f"delete {folder}" in str(error.value)


def test_a_moved_entry_is_refused(tmp_path: Path) -> None:
    """An entry under the address of another."""
    store, folder = filled(tmp_path)
    other = {**WHAT, "model": "other"}
    folder.rename(store.folder(other))
    with pytest.raises(CacheError, match="made for other data or another model"):
        store.get(other)


def test_damage_reaches_fit(
    tiny: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`fit` stops at a damaged reference."""
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    arguments: Any = (recipe(max_steps=1), tiny("llama"), tokenizer, random_pairs(8))
    fit(*arguments)
    for manifest in tmp_path.glob("readings/*/manifest.json"):
        spoil(manifest.parent, "flipped")
    with pytest.raises(CacheError, match="delete"):
        fit(*arguments)


def test_an_entry_without_manifest_is_none(tmp_path: Path) -> None:
    """What was never finished is made again, and replaced."""
    store, folder = filled(tmp_path)
    (folder / "manifest.json").unlink()
    assert store.get(WHAT) is None
    store.put(WHAT, shards(5.0))
    found = store.get(WHAT)
    assert found is not None
    assert torch.equal(found["a"], torch.full((2, 3), 5.0))


# ---- interruptions ------------------------------------------------------------------------------


def test_interrupted_writing_goes_on(tmp_path: Path) -> None:
    """Shards that were complete are kept; the one in hand is made again."""
    store = Store(tmp_path / "store")
    made: list[float] = []

    def shard(value: float, stop: bool = False) -> Callable[[], dict[str, torch.Tensor]]:
        def make() -> dict[str, torch.Tensor]:
            made.append(value)
            if stop:
                raise KeyboardInterrupt
            return {"a": torch.full((2,), value)}

        return make

    with pytest.raises(KeyboardInterrupt):
        store.put(WHAT, [shard(1), shard(2), shard(3, stop=True)])
    assert store.get(WHAT) is None
    store.put(WHAT, [shard(1), shard(2), shard(3)])
    assert made == [1, 2, 3, 3]
    found = store.get(WHAT)
    assert found is not None
    assert found["a"].tolist() == [1, 1, 2, 2, 3, 3]
    assert not list(store.root.glob(".*.partial"))


def test_shards_of_another_cut_are_not_mixed(tmp_path: Path) -> None:
    """An interrupted entry of three shards is not continued as one of two."""
    store = Store(tmp_path / "store")

    def stop() -> dict[str, torch.Tensor]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.put(WHAT, [*shards(1.0, 1.0), stop])
    store.put(WHAT, shards(2.0, 3.0))
    found = store.get(WHAT)
    assert found is not None
    assert found["a"][:, 0].tolist() == [2, 2, 3, 3]


@pytest.mark.parametrize("when", ["shard", "manifest"])
def test_full_disk(when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that says so, nothing half-written is used, and it goes on once there is space."""
    store = Store(tmp_path / "store")
    real = Path.write_text

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def half(tensors: Any, file: Path) -> None:
        file.write_bytes(b"half")
        full()

    if when == "shard":
        monkeypatch.setattr(trimtab.store, "save_file", half)
    else:
        monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(CacheError, match="No space left") as error:
        store.put(WHAT, shards(1.0, 2.0))
    assert "TRIMTAB_CACHE" in str(error.value)
    monkeypatch.undo()
    assert Path.write_text is real
    assert store.get(WHAT) is None
    assert not list(store.root.rglob("*.writing"))
    store.put(WHAT, shards(1.0, 2.0))
    found = store.get(WHAT)
    assert found is not None
    assert found["a"][:, 0].tolist() == [1, 1, 2, 2]


def _put(root: str, value: float, answer: Any) -> None:
    try:
        for number in range(20):
            Store(root).put({"n": number}, shards(value, value))
        answer.put("ok")
    except Exception as error:
        answer.put(repr(error))


def test_two_processes_write_one_entry(tmp_path: Path) -> None:
    """Whoever is second keeps what the first wrote."""
    context = multiprocessing.get_context("fork")
    answer = context.Queue()
    both = [context.Process(target=_put, args=(str(tmp_path), v, answer)) for v in (1.0, 2.0)]
    for process in both:
        process.start()
    assert [answer.get(timeout=60) for _ in both] == ["ok", "ok"]
    for process in both:
        process.join(20)
    for number in range(20):
        found = Store(tmp_path).get({"n": number})
        assert found is not None
        assert found["a"].unique().numel() == 1
    assert not list(tmp_path.glob(".*.partial"))


def test_unwritable_root(tmp_path: Path) -> None:
    """A file where the folder should be."""
    (tmp_path / "store").write_text("")
    with pytest.raises(CacheError, match="cannot be written"):
        Store(tmp_path / "store").put(WHAT, shards(1.0))
