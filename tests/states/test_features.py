"""The store of token states: what was read, mapped, within 2 d + 1 % bytes, whole after a kill."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import trimtab.readings
import trimtab.store
from conftest import TINY, _tokenizer, build, random_rows
from helpers_fit import files_of, random_pairs
from trimtab import models
from trimtab.batching import Encoded, Where, answer_spans, collate, encode, layout_for
from trimtab.errors import CacheError
from trimtab.models.heads import head_site
from trimtab.readings import _packed, _unpacked, features
from trimtab.states import read_tokens
from trimtab.store import Store


def alone(model: Any, encoded: Encoded, site: Any, where: Where) -> list[torch.Tensor]:
    """States of each answer from a pass over its prompt and itself alone."""
    found = []
    for row in encoded.rows:
        for answer in row.answers:
            ids = torch.tensor([[*row.prompt, *answer]])
            seen: list[torch.Tensor] = []
            with torch.no_grad(), trimtab.states.seeing(model, site, seen.append):
                model(input_ids=ids)
            h, n = seen[0][0].float(), len(row.prompt)
            if where == "predicting":
                h = h[max(n - 1, 0) : -1]
            elif where == "answer":
                h = h[n:]
            found.append(h)
    return found


@pytest.mark.parametrize("where", ["predicting", "answer", "all"])
@pytest.mark.parametrize("name", [*TINY, "bloom"])
def test_tokens_equal_each_answer_run_alone(
    name: str, where: Where, tiny: Any, store: Store
) -> None:
    model, rows = tiny(name, "eager" if name == "bloom" else "sdpa"), random_rows()
    site = head_site(model)
    kept = features(model, rows, (1, site), where, store=store)
    states, counts = kept.take(torch.arange(rows.n_answers))
    for place, site_ in enumerate((1, site)):
        wanted = alone(model, rows, site_, where)
        assert counts.tolist() == [len(h) for h in wanted]
        whole = torch.cat(wanted)
        # float16 with a power of two: 2^-11 an entry, beside what packing leaves in float32.
        tolerance = whole.abs() * 2**-11 + 3e-5 * whole.abs().max()
        assert ((states[:, place] - whole).abs() <= tolerance).all()
    some = torch.tensor([4, 0, 5])
    part, n = kept.take(some)
    starts = counts.cumsum(0) - counts
    assert torch.equal(
        part, torch.cat([states[starts[i] : starts[i] + counts[i]] for i in some.tolist()])
    )
    assert torch.equal(n, counts[some])


def test_empty_prompt(tiny: Any, store: Store) -> None:
    """The first token of an answer to nothing is predicted by none."""
    model = tiny("llama")
    rows = random_rows(shapes=((0, (5, 4)), (3, (2, 2))))
    kept = features(model, rows, ("final",), "predicting", store=store)
    assert kept.counts.tolist() == [5, 4, 3, 3]
    wanted = torch.cat(alone(model, rows, "final", "predicting"))
    assert torch.allclose(kept.take(torch.arange(4))[0][:, 0], wanted, atol=1e-2)


def test_half_precision_states_are_kept_to_the_bit() -> None:
    """bfloat16 over 25 powers of two, far beyond float16's range; and of float32 2^-11 an entry."""
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(200, 1, 64, generator=generator)
    h = (h.bfloat16() * torch.tensor(2.0) ** torch.randint(-110, 120, (200, 1, 1))).bfloat16()
    assert torch.equal(_unpacked(*_packed(h.float())).bfloat16(), h)
    small = torch.randn(50, 1, 64, generator=generator)
    small[..., 0] = 4e4  # one entry a hundred thousand times the others
    error = (_unpacked(*_packed(small)) - small).abs() / small.abs()
    assert error.max() <= 2**-11
    assert _unpacked(*_packed(torch.zeros(2, 1, 4))).abs().max() == 0
    with pytest.raises(CacheError, match="not finite"):
        _packed(torch.tensor([[[1.0, float("inf")]]]))


def test_bytes_a_token(tiny: Any, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 2 d + 1 % on disk, manifest and headers included, at a real model's width."""
    real = read_tokens

    def wide(*args: Any, **kwargs: Any) -> Any:
        states, counts, readings = real(*args, **kwargs)
        return states.repeat(1, 1, 18), counts, readings  # 32 to 576

    monkeypatch.setattr(trimtab.readings, "read_tokens", wide)
    rows = random_rows(shapes=tuple((4, (40, 40)) for _ in range(60)))
    kept = features(tiny("llama"), rows, ("final",), "predicting", store=store)
    size = sum(p.stat().st_size for p in store.root.rglob("*") if p.is_file())
    assert size <= 1.01 * 2 * 576 * int(kept.counts.sum())


def test_need_is_announced_and_a_full_disk_refused(
    tiny: Any, rows: Encoded, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    features(tiny("llama"), rows, ("final",), "answer", store=store, say=said.append)
    assert len(said) == 1
    assert "42 token states of random: 0.0 MiB in" in said[0]
    features(tiny("llama"), rows, ("final",), "answer", store=store, say=said.append)
    assert len(said) == 1  # what is there needs nothing
    usage = type("usage", (), {"free": 100})
    monkeypatch.setattr(trimtab.store.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CacheError, match=r"the disk has 0\.0 MiB free; name another folder"):
        features(tiny("llama"), rows, (1,), "answer", store=store)


@pytest.mark.parametrize("how", ["cut", "flipped", "format", "foreign", "other data"])
def test_damage_is_refused_with_the_command(
    how: str, tiny: Any, rows: Encoded, store: Store
) -> None:
    model, command = tiny("llama"), "trimtab cache iav --model M --pairs P"
    features(model, rows, ("final",), "answer", store=store)
    manifest = next(store.root.glob("*/manifest.json"))
    shard = next(store.root.glob("*/*.safetensors"))
    if how == "cut":
        shard.write_bytes(shard.read_bytes()[:-9])
    elif how == "flipped":
        data = bytearray(shard.read_bytes())
        data[-3] ^= 4
        shard.write_bytes(bytes(data))
    elif how == "format":
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 1}))
    elif how == "foreign":
        other = Store(store.root.with_name("pickles"))
        other.root.mkdir()
        (other.root / "cache_seq1024.pkl").write_bytes(b"x")
        with pytest.raises(CacheError, match="no store of trimtab's") as error:
            other.check(command)
        assert command in str(error.value)
        return
    else:
        moved = store.folder({"other": 1})
        manifest.parent.rename(moved)
        with pytest.raises(CacheError, match="made for other data"):
            store.open({"other": 1}, command)
        return
    with pytest.raises(CacheError) as error:
        features(model, rows, ("final",), "answer", store=store, command=command)
    assert command in str(error.value)
    assert "delete" in str(error.value)
    if how == "format":
        with pytest.raises(CacheError, match="format 1, expected 2") as error:
            store.check(command)
        assert command in str(error.value)


def test_spans(tiny: Any, tokenizer: Any) -> None:
    """The last turn is its content and its end mark; the headers before and the newline behind are in
    none."""
    turns = [{"role": "assistant", "content": "sky"}, {"role": "user", "content": "why?"}]
    last = {"role": "assistant", "content": "blue"}
    from trimtab.pairs import Pair, PairSet

    tokenizer = _tokenizer()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    prompt = ({"role": "user", "content": "a"},)
    pairs = PairSet([Pair(prompt, (*turns, last), (last,), "i")], "chat")
    encoded = encode(pairs, tokenizer)
    row = encoded.rows[0]
    for over in ("answer", "last_turn", "all"):
        found = answer_spans(encoded, over)
        for place, answer in enumerate(row.answers):
            ids = [*row.prompt, *answer] if over == "all" else list(answer)
            start, stop, marker = (int(t[place]) for t in (found.start, found.end, found.marker))
            assert ids[marker] == end
            assert stop == marker + 1 < len(ids)  # the newline
            if over != "last_turn":
                assert start == 0
            else:
                assert tokenizer.decode(ids[start:stop]) == "blue<|im_end|>"


# ---- kill -9 ------------------------------------------------------------------------------------


def _fill(root: str, pause: float) -> None:
    torch.set_num_threads(1)
    trimtab.readings.SHARD_BYTES = 2000
    real = trimtab.store._write

    def slowly(tensors: Any, file: Path) -> None:
        aside = file.with_suffix(".writing")
        aside.write_bytes(b"half a shard")
        time.sleep(pause)
        real(tensors, file)

    trimtab.store._write = slowly
    rows = encode(random_pairs(24), _tokenizer())
    features(build("llama"), rows, ("final",), "answer", store=Store(root))


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """While shards are written, again and again: the same command goes on, to the same bytes."""
    context = multiprocessing.get_context("fork")
    _fill(str(tmp_path / "whole"), 0)
    whole = {k: v for k, v in files_of(tmp_path / "whole").items() if ".locks" not in k}
    kept = 0
    for more in (1, 2, 1):  # shards that each attempt gets to write
        process = context.Process(target=_fill, args=(str(tmp_path / "killed"), 0.03))
        process.start()
        end = time.monotonic() + 30
        while len(list((tmp_path / "killed").rglob("*.safetensors"))) < kept + more:
            assert time.monotonic() < end
            time.sleep(0.002)
        time.sleep(0.01 * more)  # into the next one
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kept = len(list((tmp_path / "killed").rglob("*.safetensors")))
        assert not list((tmp_path / "killed").glob("*/manifest.json"))
    assert kept >= 4
    made: list[Any] = []
    real = trimtab.readings._read_shard
    try:
        trimtab.readings._read_shard = lambda *a: made.append(1) or real(*a)
        _fill(str(tmp_path / "killed"), 0)
    finally:
        trimtab.readings._read_shard = real
    files = {k: v for k, v in files_of(tmp_path / "killed").items() if ".locks" not in k}
    assert files == whole
    assert len(made) == sum(k.endswith("safetensors") for k in whole) - kept


@pytest.fixture(autouse=True)
def _as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trimtab.readings, "SHARD_BYTES", trimtab.readings.SHARD_BYTES)
    monkeypatch.setattr(trimtab.store, "_write", trimtab.store._write)


def test_collated_order(tiny: Any, rows: Encoded) -> None:
    """Token positions, packed and padded, are in the order of answers and texts."""
    model = tiny("llama")
    for layout in ("packed", "padded"):
        batch = collate(rows, [2, 0, 1], layout)  # type: ignore[arg-type]
        states, counts, found = read_tokens(model, batch, ("embed",), "all", logps=True)
        table = models.embed(model).weight
        ids = [
            [*rows.rows[i].prompt, *answer] for i in (2, 0, 1) for answer in rows.rows[i].answers
        ]
        assert counts.tolist() == [len(i) for i in ids]
        assert torch.equal(states[:, 0], table[torch.tensor([i for line in ids for i in line])])
        assert found.logps is not None
    assert layout_for(model, "all") == "packed"
