"""The verbs that turn dials into ranges and exports, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers_study import rows, trimtab, write_lines
from trimtab import models
from trimtab.dials import Dial, RotationDial, VectorDial
from trimtab.export import read_control_vector, write_control_vector


@pytest.fixture(scope="module")
def here(tmp_path_factory, tiny, tokenizer) -> Iterator[Path]:
    """A folder with a tiny model, a dial of it, and one of another model."""
    folder = tmp_path_factory.mktemp("dials")
    tiny("llama").save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_CACHE", str(folder / "cache"))
        g = torch.Generator().manual_seed(1)
        dial = VectorDial({1: torch.randn(32, generator=g)}, {1: 2.0})
        dial.info.method, dial.info.base_model = "mean", str(folder / "model")
        dial.info.base_digest = models.digest_of(str(folder / "model"))
        dial.save_pretrained(folder / "dial", {"training.jsonl": "{}\n"})
        dial.info.base_digest, dial.info.base_model = "0" * 64, "another"
        dial.save_pretrained(folder / "other")
        yield folder


def words(here: Path, verb: str, dial: str, *more: object) -> list[Any]:
    return [verb, "--dial", here / dial, "--model", here / "model", *more]


def test_calibrate_writes_the_range_into_the_dial(here):
    done = trimtab(*words(here, "calibrate", "dial", "--budget", "kl=0.02", "--passages", 3))
    assert done.code == 0, done.err
    measured = Dial.from_pretrained(here / "dial").info.measured["range"]
    low, high = measured["alpha"]
    assert low < 0 < high
    assert measured["budget"] == "kl=0.02"
    assert f"alpha {low:.3g} to {high:.3g} within kl=0.02" in done.out
    assert (here / "dial" / "training.jsonl").is_file()
    shown = trimtab("inspect", here / "dial")
    assert "range.budget kl=0.02" in shown.out


def test_calibrate_on_a_text_file(here, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The capital of France is Paris.\n\nWater boils at one hundred degrees.\n")
    done = trimtab(*words(here, "calibrate", "dial", "--text", text, "--largest", 0.01))
    assert done.code == 0, done.err
    assert "the budget is not met up to 0.01" in done.out


def test_export_to_gguf_and_back(here, tmp_path, checked_here):
    out = tmp_path / "v.gguf"
    done = trimtab(*words(here, "export", "dial", "--to", "gguf", "--alpha", -2, "--out", out))
    assert done.code == 0, done.err
    assert "logits differ by at most" in done.out
    assert "not carried over:\n  alpha: strength 1 is the dial at -2" in done.out
    dial = Dial.from_pretrained(here / "dial")
    assert isinstance(dial, VectorDial)
    torch.testing.assert_close(read_control_vector(out).directions[1], -2 * dial.step(1))
    receipt = json.loads((tmp_path / "v.gguf.receipt.json").read_text())
    assert receipt["dial"]["method"] == "mean"
    back = trimtab(
        "export", "--dial", out, "--to", "dial", "--model", here / "model", "--out", tmp_path / "d"
    )
    assert back.code == 0, back.err
    assert f"is trimtab import {out} now" in back.err
    again = Dial.from_pretrained(tmp_path / "d")
    assert isinstance(again, VectorDial)
    torch.testing.assert_close(again.step(1), -2 * dial.step(1))
    assert again.info.base_digest == dial.info.base_digest


def test_generate_tells_conflicts_of_dials(here):
    two = ["--dial", here / "dial", "--dial", here / "dial"]
    done = trimtab(
        "generate", "--model", here / "model", *two, "--prompt", "a", "--max-new-tokens", 2
    )
    assert done.code == 0, done.err
    assert "directions alike (cosine 1.00 at site 1)" in done.err


def test_fit_rotation_quick_from_the_command_line(here, tmp_path):
    pairs = write_lines(tmp_path / "train.jsonl", rows(12, "train"))
    done = trimtab(
        *("fit", "rotation", "--quick", "--pairs", f"jsonl:{pairs}", "--model", here / "model"),
        *("--out", tmp_path / "d", "--dial.rank", 4, "--dial.targets", "down_proj"),
    )
    assert done.code == 0, done.err
    assert "the log-prob gap rises" in done.err
    dial = Dial.from_pretrained(tmp_path / "d")
    assert isinstance(dial, RotationDial)
    assert len(dial.paths) == 2


@pytest.mark.parametrize("tuner", ["ia3", "road", "vera", "delora"])
def test_fit_a_tuner_from_the_command_line(here, tmp_path, tuner):
    pairs = write_lines(tmp_path / "train.jsonl", rows(6, "train"))
    done = trimtab(
        *("fit", "dpo", "--dial.tuner", tuner, "--dial.rank", 2, "--train.max-steps", 2),
        *("--pairs", f"jsonl:{pairs}", "--model", here / "model", "--out", tmp_path / "d"),
    )
    assert done.code == 0, done.err
    assert Dial.from_pretrained(tmp_path / "d").kind == tuner


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["calibrate", "dial", "--budget", "0.1"], "expected kl=NATS above 0"),
        (["calibrate", "dial", "--budget", "kl=nan"], "expected kl=NATS above 0"),
        (["calibrate", "dial", "--budget", "kl_p95=1"], "did you mean 'kl_p95_rollout'"),
        (["calibrate", "dial", "--largest", "0"], "--largest 0: expected a number above 0"),
        (["calibrate", "dial", "--text", "none.txt"], "none.txt: cannot be read as text"),
        (["calibrate", "dial", "--passages", "1"], "1 passages; two or more are needed"),
        (["calibrate", "none"], "no such folder"),
        (["calibrate", "other"], "made for another (000000000000)"),
        (["export", "dial", "--to", "gguv", "--out", "o"], "did you mean 'gguf'"),
        (["export", "dial", "--to", "lm-eval", "--out", "o"], "weights_only=False"),
        (["export", "dial", "--to", "gguf", "--alpha", "nan", "--out", "o"], "expected finite"),
        (["export", "other", "--to", "gguf", "--out", "o"], "made for another (000000000000)"),
        (
            ["export", "dial", "--to", "gguf", "--out", "o", "--base-gguf", "no.gguf"],
            "--base-gguf no.gguf: no such file",
        ),
    ],
)
def test_what_the_verbs_refuse_before_a_model_is_loaded(here, monkeypatch, tmp_path, more, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    done = trimtab(*words(here, *more))
    assert done.code == 2
    assert message in done.err
    assert len(done.err.splitlines()) == 1


def test_a_damaged_control_vector_is_refused_before_a_model_is_loaded(here, monkeypatch, tmp_path):
    file = write_control_vector(tmp_path / "v.gguf", {1: torch.ones(32)}, "llama")
    file.write_bytes(file.read_bytes()[:-8])
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    done = trimtab(
        "export", "--dial", file, "--to", "dial", "--model", here / "model", "--out", tmp_path / "d"
    )
    assert done.code == 2
    assert "v.gguf: not a readable control vector: truncated" in done.err


def test_dials_of_two_models_are_refused_together(here, tmp_path):
    """Even with --force, which takes a dial to another model: two of them say two things."""
    two = ["--dial", here / "dial", "--dial", here / "other"]
    done = trimtab("generate", "--model", here / "model", *two, "--prompt", "a", "--force")
    assert done.code == 2
    assert "dials of different base models do not compose" in done.err
