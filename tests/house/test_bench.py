"""The benchmark room: what it counts is right, and its tables and pages hold together. Nothing is
timed here."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bench import data, directions, dpo, floor, positions, repeng_tests, results, steering
from bench.__main__ import main
from bench.naive_rotation import Naive
from bench.sides import Comparison
from torch import nn

from helpers_fit import random_pairs
from trimtab import models
from trimtab.batching import collate, encode, layout_of, make_contrast, plan_training
from trimtab.dials import AdapterDial
from trimtab.dials.adapter import linear_modules
from trimtab.objectives import DPO, InnerDPO
from trimtab.pairs import read_pairs
from trimtab.store import Store
from trimtab.training.methods import method
from trimtab.training.reference import read_reference
from trimtab.training.rotation import ContrastiveModule, new_rotation

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def truthful(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_DATA", str(data_root))


def test_a_table_of_every_subject() -> None:
    ratios = dict.fromkeys(results.SUBJECTS, 2.0)
    details = {
        "states_only_vs_dpo": {
            "ours_s": [1.0, 3.0, 2.0],
            "theirs_s": [4.0],
            "floor_s": 0.5,
            "floor_share": 0.25,
            "predicted_ratio": 2.25,
        },
        "memory_vs_trl": {"ours_bytes": 2**30, "theirs_bytes": 2**31, "notes": ["a note"]},
    }
    table = results.rows(ratios, details)
    lines = results.markdown(table).splitlines()
    assert len(lines) == len(results.SUBJECTS) + 2
    assert len({line.count("|") for line in lines}) == 1
    cells = {row[0]: row for row in table}
    assert cells["states_only_vs_dpo"][1:8] == [
        "2.00×",
        "≥ 1.6",
        "2 s",
        "4 s",
        "0.5 s",
        "25%",
        "2.25×",
    ]
    assert cells["memory_vs_trl"][2:5] == ["≥ 1.33", "1 GiB", "2 GiB"]
    assert "(missed)" in cells["dpo_vs_trl_truthful_qa"][2]
    assert "(missed)" in cells["packed_positions_over_tokens"][2]
    assert results.text(table).splitlines()[0].startswith("name")
    assert results.notes(ratios, details) == ["- `memory_vs_trl`: a note"]


def test_the_page_is_what_the_results_make_it() -> None:
    page = results.PAGE.read_text()
    inside = page.partition(results.BEGIN)[2].partition(results.END)[0].strip()
    made = results.section(results.load(results.RATIOS), results.load(results.DETAILS))
    assert inside == made, "run `python -m bench --render`"


def test_rendering_touches_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"above\n\n{results.BEGIN}\nwhat was\n{results.END}\n\nbelow\n")
    results.render(page)
    once = page.read_text()
    results.render(page)
    assert page.read_text() == once
    assert once.startswith("above\n\n")
    assert once.endswith("\n\nbelow\n")
    assert "what was" not in once
    page.write_text("no markers")
    with pytest.raises(SystemExit, match="expected the lines"):
        results.render(page)


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["dpo_vs_nobody"])
    assert "unknown: dpo_vs_nobody" in capsys.readouterr().err


def test_repeng_runs_on_our_versions() -> None:
    ours, theirs = (
        dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / name).read_text(), re.M))
        for name in ("constraints.txt", "bench/repeng-requirements.txt")
    )
    for package in ("torch", "transformers", "tokenizers", "safetensors"):
        assert theirs[package] == ours[package]


def test_ratios_are_medians_of_ratios() -> None:
    found = Comparison([1.0, 2.0, 4.0], [4.0, 4.0, 20.0], [1e9, 3e9, 2e9])
    assert found.ratio == 4.0
    work = {"tokens": 1, "positions": 1, "scored": 1, "least": 2e9, "counted": 4e9}
    details = found.details(work, 8e9)
    assert details["floor_s"] == 1.0
    assert details["floor_share"] == 0.5
    assert details["predicted_ratio"] == 2.0


def test_every_trl_batch_size_divides_the_pairs(truthful: None) -> None:
    for case in (*dpo.CASES.values(), *(c.quick() for c in dpo.CASES.values())):
        pairs = data.pairs_of(case.pairs, case.items, case.whole)
        assert all(len(pairs) % batch == 0 for batch in case.batches)


def test_contrast_pairs_are_unrelated(truthful: None) -> None:
    pairs = data.contrast_texts(256)
    assert len(pairs) == 256
    assert len({text for pair in pairs for text in pair}) == 512


def test_gradient_difference(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(4), "b": torch.ones(2)}, tmp_path / "x")
    save_file({"a": torch.ones(4), "b": torch.full((2,), 2.0)}, tmp_path / "y")
    whole, worst = dpo.gradient_difference(str(tmp_path / "x"), str(tmp_path / "y"))
    assert whole == pytest.approx((2 / 12) ** 0.5)
    assert worst == pytest.approx(0.5)
    assert directions.least_cosine(str(tmp_path / "x"), str(tmp_path / "y")) == pytest.approx(1)


def test_positions_are_counted_exactly(truthful: None) -> None:
    ratio, details = positions.run_positions()["packed_positions_over_tokens"]
    assert ratio == details["positions"] / details["tokens"]
    assert 1 <= ratio <= 1.2
    assert details["tokens_of_separate_pairs"] > 2 * details["tokens"]


def test_a_second_method_reads_no_reference(truthful: None) -> None:
    most, details = positions.run_forwards()["second_method_reference_forwards"]
    assert all(first > 0 for first, _ in details["forwards"].values())
    assert most == 0


def test_work_is_counted_exactly(truthful: None) -> None:
    model, tokenizer = models.load(data.MODEL)
    encoded = encode(data.pairs_of("genies:truthful_qa/train", 4, False), tokenizer)
    schedule = plan_training(encoded, pairs_per_step=4, epochs=1, seed=0, budget=10**6)
    shapes = linear_modules(model)
    dial = AdapterDial(shapes, rank=2)
    work = floor.training_work(model, dial, encoded, schedule, DPO().needs(30), "packed")
    lengths = [row.packed_length for row in encoded.rows]
    scored = sum(len(a) for row in encoded.rows for a in row.answers)
    weights = sum(
        m.weight.numel() for m in models.layers(model).modules() if isinstance(m, nn.Linear)
    )
    adapter = sum(2 * (a + b) for a, b in shapes.values())
    head = 576 * 49152
    assert (work.tokens, work.positions) == (sum(lengths), max(lengths) * 4)
    assert (work.scored, work.widest_scored) == (scored, scored)
    assert work.least == (4 * weights + 6 * adapter) * sum(lengths) + 4 * head * scored
    half = floor.training_work(
        model, dial, encoded, schedule, InnerDPO(sites="0..0.5", weight_outer=0).needs(30), "packed"
    )
    assert half.scored == 0
    assert half.least == (2 * weights + 6 * adapter) * sum(lengths)
    assert floor.peer_work(weights + head, 0, 10) == 40 * (weights + head)
    assert floor.peer_work(weights + head, 5, 10, reference=True) == 60 * (weights + head) + 300
    assert floor.reading_per_position(model) == 2 * (weights + head)


def test_an_adapter_of_peft_is_not_counted_as_the_model(tiny: Any) -> None:
    from peft import LoraConfig, get_peft_model

    model = tiny("llama", fresh=True)
    floor.reading_per_position(model)
    get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    with pytest.raises(AssertionError, match="before it is wrapped"):
        floor.reading_per_position(model)


def test_the_recorded_predictions_are_those_of_the_operations() -> None:
    """SmolLM2's blocks and head, the adapter of rank 16, the positions that both sides computed."""
    blocks, head, adapter = 106_168_320, 576 * 49152, 4_884_480
    for name in dpo.CASES:
        d = json.loads(results.DETAILS.read_text())[name]
        ours = (4 * blocks + 6 * adapter) * d["positions"] + 4 * head * d["scored"]
        theirs = floor.peer_work(blocks + head, adapter, d["trl_positions"])
        assert d["predicted_ratio"] == pytest.approx(theirs / ours), name


def test_results_are_merged_in_the_order_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    file = tmp_path / "ratios.json"
    results.record(file, {"states_only_vs_dpo": 1.0})
    results.record(file, {"memory_vs_trl": 2.0, "states_only_vs_dpo": 3.0})
    assert list(json.loads(file.read_text()).items()) == [
        ("memory_vs_trl", 2.0),
        ("states_only_vs_dpo", 3.0),
    ]


def test_the_honesty_set_is_every_cut_of_every_suffix(truthful: None) -> None:
    made = steering.honesty_set(3)
    tokenizer = models.load_tokenizer(data.MODEL)
    head = tokenizer(steering.rendered(tokenizer, steering.PERSONAS[0]))["input_ids"]
    wanted = []
    for suffix in made["contrast"]["suffixes"]:
        ids = tokenizer(suffix)["input_ids"]
        wanted += [head + ids[:n] for n in range(1, len(ids))]
    assert [tokenizer(positive)["input_ids"] for positive, _ in made["texts"]] == wanted
    ours = make_contrast(
        steering.TEMPLATE,
        steering.PERSONAS[:1],
        steering.PERSONAS[1:],
        made["contrast"]["suffixes"],
        tokenizer,
    )
    assert [list(ours.ids(pole)) for pole in ours.chosen] == wanted


def test_the_chat_set_is_of_distinct_answers(truthful: None) -> None:
    made = steering.chat_set(256)
    assert len({text for pair in made["texts"] for text in pair}) == 512


def test_the_naive_rotation_has_our_loss(tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    model = tiny("llama", fresh=True)
    recipe: Any = method("rotation").recipe
    encoded = encode(read_pairs("personas:honesty").limit(3), tokenizer)
    # The naive reading of the last block would be after the final norm.
    recipe = replace(recipe, objective=replace(recipe.objective, sites="0.5"))
    needs = recipe.objective.needs(models.n_layers(model))
    dial = new_rotation(replace(recipe.dial, rank=4), model, encoded, needs, 0)
    with torch.no_grad():
        for turn, gain in zip(dial.turn, dial.gain, strict=True):
            turn.mul_(100)
            gain.mul_(100)
    before = read_reference(model, encoded, needs, Store(tmp_path))
    module = ContrastiveModule(model, dial, recipe.objective, needs, before, encoded)
    with dial(model, module.alpha, training=True, force=True):
        ours = module(collate(encoded, range(len(encoded.rows))))[0].mean()
        ours.backward()
    mine = [p.grad.clone() for p in dial.parameters() if p.grad is not None]
    dial.zero_grad()
    naive = Naive(model, dial, recipe.objective, needs, encoded, module.directions)
    grads: list[torch.Tensor] = []
    naive.optimizer.step = lambda: grads.extend(  # type: ignore[method-assign,assignment]
        p.grad.clone() for p in dial.parameters() if p.grad is not None
    )
    assert naive.step().item() == pytest.approx(ours.item(), rel=1e-4)
    assert grads
    for a, b in zip(mine, grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_the_dense_fisher_is_ours() -> None:
    ratio, details = steering.run_fisher(1, quick=True)["fisher_vs_dense"]
    assert ratio > 0
    assert details["cosine"] > 0.999


def test_lines_of_heads(tiny, tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a tiny model: every line that is announced comes out, bytes counted as they are."""
    from bench import heads

    monkeypatch.setattr(models, "load", lambda *_, **__: (tiny("llama"), tokenizer))
    monkeypatch.setattr(data, "pairs_of", lambda *_, **__: random_pairs(8))
    found = {
        **heads.run_decoding(1, True),
        **heads.run_epochs(1, True),
        **heads.run_candidates(1, True),
    }
    own = {name for name in results.SUBJECTS if name.startswith(("head", "iav", "dph", "store"))}
    assert found.keys() == own | {"candidates_packed"}
    assert all(value > 0 for value, _ in found.values())
    # 2 d + 1 bytes of a state, and 4 of each answer's count
    assert 1 + 1 / 64 < found["store_bytes_over_2d"][0] < 1.05
    assert len(results.rows({k: v for k, (v, _) in found.items()}, {})) == 1 + len(found)


def test_tests_of_others_are_run_without_what_one_model_says() -> None:
    text = """
from . import ControlModel

def test_right():
    tokenizer, model = AutoTokenizer.from_pretrained("m"), AutoModelForCausalLM.from_pretrained("m")
    said = tokenizer.decode(model.generate(**tokenizer("a", return_tensors="pt"))[0])
    assert said == "what another model says"
    assert len(model_layer_list(ControlModel(model, [1]))) == 4

def test_wrong():
    assert load_suffixes()[0] == 5
"""
    right, wrong = repeng_tests.run(text)
    assert right == ("test_right", "passed", 1, 1)
    assert wrong == ("test_wrong", "failed: AssertionError: ", 1, 0)


def test_the_gpu_script_computes_prompts_again_where_it_shares_nothing(tokenizer: Any) -> None:
    """The same losses a pair, more positions; a step's time is told."""
    from bench import gpu

    encoded = encode(gpu.pairs_of(gpu.SETS["four"], 2), tokenizer)
    model = gpu.model_of(gpu.TOY | {"vocab_size": 320}, torch.device("cpu"), torch.float32)
    shared, alone = (gpu.ours(model, rows, 4) for rows in (encoded, gpu.unshared(encoded)))
    assert (
        layout_of(model, gpu.unshared(encoded)) == "shared"
    )  # several rows a line, answers scored in part
    assert shared.loss == pytest.approx(alone.loss, abs=1e-5)
    assert 0 < shared.step < 60
    assert shared.work is not None
    assert alone.work is not None
    prompts = sum(3 * len(row.prompt) for row in encoded.rows)
    assert alone.work.tokens - shared.work.tokens == prompts
