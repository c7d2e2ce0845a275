"""`fit`: what it saves, what it refuses, and that the same call gives the same bytes."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers_fit import files_of, random_pairs, recipe
from trimtab import models
from trimtab.batching import Encoded, Row, Schedule, encode, plan_training
from trimtab.dials import Dial
from trimtab.errors import ConfigError, DataError, TrainingError
from trimtab.objectives import DPO, InnerDPO
from trimtab.pairs import PairSet
from trimtab.progress import Progress
from trimtab.readout import Needs
from trimtab.training import METHODS, fit, method
from trimtab.training.estimate import estimate_training, operations
from trimtab.training.recipes import TrainSettings
from trimtab.training.steering import DirectionRecipe


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def llama(tiny: Any, tokenizer: Any) -> tuple[Any, Any]:
    return tiny("llama"), tokenizer


PAIRS = random_pairs(8)
SHORT = recipe(max_steps=3, dropout=0.1)


class Heard(Progress):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.text = ""

    def say(self, text: str) -> None:
        self.text += text + "\n"


# ---- the same bytes -----------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["dpo", "innerdpo", "mean", "pca"])
def test_same_seed_same_bytes(what: str, llama: Any, tmp_path: Path) -> None:
    """The dial and the curve; another seed gives others, but not to a closed form."""
    settings: Any = method(what).recipe
    if not isinstance(settings, DirectionRecipe):
        settings = dataclasses.replace(settings, dial=SHORT.dial, train=SHORT.train)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(ord(name))  # what the caller drew does not matter
        fit(settings, *llama, PAIRS, out=tmp_path / name, seed=seed)
    a, b, c = (files_of(tmp_path / name) for name in "abc")
    assert a == b
    trained = METHODS[what].trained
    assert ("training.jsonl" in a) == trained
    weights = "adapter_model.safetensors" if trained else "dial.safetensors"
    assert (a[weights] != c[weights]) == trained
    if trained:
        assert a["training.jsonl"] != c["training.jsonl"]
    else:
        assert a == c


def test_the_store_does_not_reach_the_result(
    llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes with the reference read live, found in the store, or left there by a run with
    other microbatches or another method."""
    found = []
    for name, before in (("live", None), ("tokens", recipe(max_steps=1, microbatch_tokens=60))):
        monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / f"cache-{name}"))
        if before:
            fit(before, *llama, PAIRS)
            fit("mean", *llama, PAIRS)
        fit(recipe(InnerDPO(), max_steps=3), *llama, PAIRS, out=tmp_path / name)
        found.append(files_of(tmp_path / name))
    assert found[0] == found[1]


def test_what_is_saved(llama: Any, tmp_path: Path) -> None:
    """A dial that says where it comes from, a curve, and no trace of the run, no pickle."""
    out = tmp_path / "deep" / "dial"
    made = fit(SHORT, *llama, PAIRS, out=out, seed=4)
    assert {p.name for p in out.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "dial.json",
        "training.jsonl",
    }
    assert [p.name for p in out.parent.iterdir()] == ["dial"]
    loaded: Any = Dial.from_pretrained(out)
    assert loaded.info == made.info
    assert (loaded.info.method, loaded.info.seed) == ("dpo", 4)
    assert loaded.info.data == {"random": PAIRS.digest}
    assert loaded.info.base_digest == models.source_of(llama[0]).digest
    assert loaded.info.config["train"]["pairs_per_step"] == 4
    for a, b in zip(loaded.parameters(), made.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not loaded.training
    curve = [json.loads(line) for line in (out / "training.jsonl").open()]
    assert [r["step"] for r in curve] == [1, 2, 3]
    for record in curve:
        assert {"loss", "grad_norm", "learning_rate", "margin", "accuracy"} <= set(record)


def test_nothing_is_left_without_out(llama: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """Neither in the working folder nor on the model."""
    monkeypatch.chdir(tmp_path)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in llama[0].modules()]
    made = fit(SHORT, *llama, PAIRS)
    assert {p.name for p in tmp_path.iterdir()} <= {"cache"}
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in llama[0].modules()]
    assert any(B.abs().sum() > 0 for B in made.B)  # type: ignore[union-attr]


# ---- folders ------------------------------------------------------------------------------------


def test_a_finished_run_does_nothing(
    llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is encoded, read or written; leftovers of its own cleaning are taken away."""
    out = tmp_path / "dial"
    fit(SHORT, *llama, PAIRS, out=out)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    (tmp_path / ".dial.training" / "checkpoint-9").mkdir(parents=True)
    monkeypatch.setattr("trimtab.training.run.encode", None)
    heard = Heard()
    again = fit(SHORT, *llama, PAIRS, out=out, progress=heard)
    assert "nothing to do" in heard.text
    assert again.info.method == "dpo"
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    assert not (tmp_path / ".dial.training").exists()


def test_measured_values_do_not_make_another_run(llama: Any, tmp_path: Path) -> None:
    """What evaluation writes into a dial."""
    out = tmp_path / "dial"
    dial = fit("mean", *llama, PAIRS, out=out)
    dial.info.measured = {"alpha": [-1, 1]}
    dial.save_pretrained(out)
    assert fit("mean", *llama, PAIRS, out=out).info.measured == {"alpha": [-1, 1]}


@pytest.mark.parametrize("change", ["seed", "setting", "data", "method", "limit"])
def test_another_run_in_out(change: str, llama: Any, tmp_path: Path) -> None:
    """Refused, and what is there stays; overwrite replaces it."""
    out = tmp_path / "dial"
    fit(SHORT, *llama, PAIRS, out=out)
    before = files_of(out)
    settings: Any = {"setting": recipe(DPO(beta=0.5), max_steps=3), "method": "mean"}.get(
        change, SHORT
    )
    data = random_pairs(8, seed=5) if change == "data" else PAIRS
    options: Any = {"seed": {"seed": 1}, "limit": {"limit": 6}}.get(change, {})
    with pytest.raises(ConfigError, match=r"another run.*--overwrite"):
        fit(settings, *llama, data, out=out, **options)
    assert files_of(out) == before
    fit(settings, *llama, data, out=out, overwrite=True, **options)
    assert files_of(out) != before
    assert [p.name for p in tmp_path.iterdir() if "dial" in p.name] == ["dial"]


@pytest.mark.parametrize("what", ["files", "file"])
def test_something_else_in_out(what: str, llama: Any, tmp_path: Path) -> None:
    """What is no dial is never replaced, not even with overwrite."""
    out = tmp_path / "thesis"
    if what == "file":
        out.write_text("years of work")
    else:
        out.mkdir()
        (out / "chapter1").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="choose another --out"):
            fit("mean", *llama, PAIRS, out=out, overwrite=overwrite)
    assert (out if what == "file" else out / "chapter1").read_text() == "years of work"


def test_an_empty_folder_is_free(llama: Any, tmp_path: Path) -> None:
    """`mkdir` beforehand does no harm."""
    (tmp_path / "dial").mkdir()
    fit("mean", *llama, PAIRS, out=tmp_path / "dial")
    assert (tmp_path / "dial" / "dial.json").is_file()


@pytest.mark.parametrize("what", ["dpo", "mean"])
def test_leftovers_of_another_run(what: str, llama: Any, tmp_path: Path) -> None:
    """Checkpoints that another run left are refused, and go with overwrite alone."""
    work = tmp_path / ".dial.training"
    (work / "checkpoint-1").mkdir(parents=True)
    (work / "run.json").write_text('{"method": "dpo"}')
    settings = SHORT if what == "dpo" else "mean"
    with pytest.raises(ConfigError, match=r"\.dial\.training: left by another run"):
        fit(settings, *llama, PAIRS, out=tmp_path / "dial")
    assert (work / "checkpoint-1").is_dir()
    fit(settings, *llama, PAIRS, out=tmp_path / "dial", overwrite=True)
    assert not work.exists()


def test_leftovers_of_nobody(llama: Any, tmp_path: Path) -> None:
    """Checkpoints without a note of whose they are do not reach the result: here those of a run
    with another seed, as a clearing that was stopped halfway would leave them."""
    fit(SHORT, *llama, PAIRS, out=tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trimtab.training.run._publish", lambda *_: None)
        settings = recipe(max_steps=3, dropout=0.1, checkpoint_seconds=0)
        fit(settings, *llama, PAIRS, out=tmp_path / "dial", seed=9)
    (tmp_path / ".dial.training" / "run.json").unlink()
    assert list((tmp_path / ".dial.training").glob("checkpoint-*"))
    fit(SHORT, *llama, PAIRS, out=tmp_path / "dial")
    assert files_of(tmp_path / "dial") == files_of(tmp_path / "whole")


def test_full_disk_before_the_run(llama: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """The note of whose run it is cannot be written."""

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(TrainingError, match="No space left"):
        fit(SHORT, *llama, PAIRS, out=tmp_path / "dial")


# ---- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"pairs_per_step": 0}, "pairs_per_step is 0"),
        ({"epochs": -1.0}, "epochs is -1.0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"microbatch_tokens": 0}, "microbatch_tokens is 0"),
        ({"scheduler": "cosinus"}, "scheduler is 'cosinus'.*cosine"),
        ({"report_to": "abacus"}, "report_to is 'abacus'.*tensorboard"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], text: str) -> None:
    """Refused where they are written, long before a model is loaded."""
    with pytest.raises(ConfigError, match=text):
        TrainSettings(**settings)


def test_a_tracker_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said at once, with what to install."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        TrainSettings(report_to="wandb")
    assert TrainSettings(report_to="all").report_to == "all"


def test_every_scheduler_trains(llama: Any) -> None:
    """Each name is one that transformers knows, and takes no further settings."""
    for name in ("cosine", "linear", "constant_with_warmup"):
        fit(recipe(scheduler=name, max_steps=1), *llama, PAIRS)


def test_unknown_method(llama: Any) -> None:
    """With the near names."""
    with pytest.raises(ConfigError, match="innerdpo"):
        fit("inerdpo", *llama, PAIRS)


def test_an_item_wider_than_a_step(llama: Any) -> None:
    """Five pairs of one item do not fit a step of four."""
    with pytest.raises(DataError, match="pairs_per_step"):
        fit(recipe(), *llama, random_pairs(10, items=2))


def test_long_pairs_are_dropped_and_counted(llama: Any) -> None:
    """And said."""
    heard = Heard()
    long = PairSet([*PAIRS, *random_pairs(8, seed=1)[:1]], "some")
    lengths = [row.longest for row in encode(long, llama[1]).rows]
    limit = sorted(lengths)[len(lengths) // 2]
    fit("mean", *llama, long, max_length=limit, progress=heard)
    lost = sum(n > limit for n in lengths)
    assert lost
    assert f"{lost} of 9 pairs exceed {limit} tokens" in heard.text


# ---- the estimate -------------------------------------------------------------------------------


def test_operations_by_hand(tiny: Any) -> None:
    """A tiny Llama: d = 32, MLP 48, 4 heads of 8, 2 of them for keys and values, V = 320."""
    attention = 32 * 32 + 2 * 32 * 16 + 32 * 32
    block = attention + 3 * 32 * 48 + 2 * 32  # and two norms
    model = tiny("llama")
    everything = Needs(logps=True)
    assert operations(model, everything, 100, 7, backward=False) == 2 * (
        4 * block * 100 + 320 * 32 * 7
    )
    assert operations(model, everything, 100, 7, backward=True) == 4 * (
        4 * block * 100 + 320 * 32 * 7
    )
    states = Needs(sites=(0, 1))
    assert operations(model, states, 100, 7, backward=False) == 2 * 2 * block * 100
    assert operations(model, Needs(sites=("embed",)), 100, 7, backward=False) == 0
    assert operations(model, Needs(sites=("final",)), 100, 7, backward=False) == 2 * 4 * block * 100


def test_estimate_by_hand(tiny: Any) -> None:
    """Two microbatches: rows of 10 and 6 positions together, one of 6 alone."""
    rows = (
        Row("a", (1,) * 4, ((2,) * 4, (3,) * 2), ((0, 1),), (0,)),
        Row("b", (1,) * 2, ((2,) * 2, (3,) * 2), ((0, 1),), (1,)),
    )
    encoded = Encoded(rows, 0, None, "by hand")
    schedule = Schedule(((0, 1), (1,)), 2, 2)
    model = tiny("llama")
    needs = Needs(logps=True)
    found = estimate_training(model, needs, encoded, schedule, "packed")
    assert found.positions == 2 * 10 + 6
    assert found.operations == operations(model, needs, 26, 6 + 4 + 4, backward=True)
    # Padded: an answer a line, (4 + 4) x 4 lines and (2 + 2) x 2.
    assert estimate_training(model, needs, encoded, schedule, "padded").positions == 8 * 4 + 4 * 2
    assert found.seconds > 0
    assert found.bytes > sum(p.numel() * 4 for p in model.parameters())


def test_estimate_is_said_before_the_run(llama: Any) -> None:
    """With steps, pairs and parameters."""
    heard = Heard()
    fit(SHORT, *llama, PAIRS, progress=heard)
    encoded = encode(PAIRS, llama[1])
    schedule = plan_training(encoded, pairs_per_step=4, epochs=2, seed=0, max_steps=3)
    assert f"8 pairs of 8 items, {schedule.steps} steps of 4 pairs" in heard.text
    assert "GiB" in heard.text
