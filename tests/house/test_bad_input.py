"""What a user may give that cannot be used: one line that says so, exit code 2, no model loaded."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers_study import SMALL, at_home, rows, trimtab, write_lines, write_suite
from trimtab import models
from trimtab.dials import VectorDial

NOWHERE = "http://127.0.0.1:9"
"""A Hub that is not there."""


@pytest.fixture(scope="module")
def here(tmp_path_factory, tiny, tokenizer) -> Iterator[Path]:
    """A folder with a tiny model, a suite, and a dial of the model."""
    folder = tmp_path_factory.mktemp("bad")
    with at_home(folder, tiny("llama"), tokenizer):
        dial = VectorDial({1: torch.ones(32)}, {1: 1.0})
        base = models.identify(str(folder / "model"))
        dial.info.method, dial.info.base_model = "mean", base.name
        dial.info.base_digest, dial.info.base = base.digest, base.parts
        dial.save_pretrained(folder / "dial")
        yield folder


@pytest.fixture
def refused(here, monkeypatch):
    """`refused(*words)`: the one line of a command that must fail before it loads a model."""
    loaded: list[str] = []
    monkeypatch.setattr(models, "load", lambda *a, **k: loaded.append(a[0]))

    def run(*words: object) -> str:
        done = trimtab(*words)
        assert done.code == 2, (done.code, done.err)
        news = [line for line in done.err.splitlines() if not line.startswith("error: ")]
        assert not [line for line in news if "Traceback" in line]
        errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, done.err
        assert done.err.endswith(errors[0] + "\n"), "nothing follows the error"
        assert done.out == ""
        assert loaded == [], "a model was loaded first"
        assert len(errors[0]) < 700
        return errors[0].removeprefix("error: ")

    return run


def fit_words(here: Path, pairs: object, out: Path) -> list[object]:
    return ["fit", "mean", "--model", here / "model", "--pairs", pairs, "--out", out]


# ---- pairs --------------------------------------------------------------------------------------

FINE = rows(1, "fine")[0]


@pytest.mark.parametrize("method", ["dpo", "innerdpo", "genarm"])
def test_whole_sequences_are_no_answers(here, refused, tmp_path, method):
    """What tells personas in contrast apart stands before the answer: nothing there to prefer."""
    rest = fit_words(here, "personas:honesty[:2]", tmp_path / "x")[2:]
    said = refused("fit", method, *rest)
    assert f"{method} trains on answers to prompts" in said
    assert "`personas:honesty/answers` has the personas as answers" in said
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({**FINE, "chosen": ""}, "a.jsonl:2: column 'chosen' is an empty answer"),
        ({**FINE, "rejected": "  \n"}, "a.jsonl:2: column 'rejected' is an empty answer"),
        ({**FINE, "rejected": FINE["chosen"]}, "a.jsonl:2: chosen equals rejected"),
        ({**FINE, "chosen": 3}, "a.jsonl:2: column 'chosen': expected text or a list of chat"),
        ({**FINE, "chosen": None}, "a.jsonl:2: column 'chosen': expected text"),
        ({**FINE, "prompt": 1.5}, "a.jsonl:2: column 'prompt': expected text, given float 1.5"),
        ({**FINE, "item": [1]}, "a.jsonl:2: column 'item': expected text or an integer"),
        (
            {"prompt": "x", "chosen": "y"},
            "a.jsonl:2: column 'rejected' is missing; the columns given",
        ),
        (["x", "y"], "a.jsonl:2: expected an object with named columns"),
    ],
)
def test_lines_that_are_no_pairs(here, refused, tmp_path, line, message):
    file = write_lines(tmp_path / "a.jsonl", [rows(1, "first")[0], line])
    assert message in refused(*fit_words(here, file, tmp_path / "dial"))
    assert not (tmp_path / "dial").exists()


def test_files_that_cannot_be_read(here, refused, tmp_path):
    words = lambda spec: fit_words(here, spec, tmp_path / "dial")  # noqa: E731
    assert "none.jsonl: there is no such file" in refused(*words(tmp_path / "none.jsonl"))
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps(FINE) + '\n{"prompt": "x", \n')
    assert "bad.jsonl:2: malformed JSON at column" in refused(*words(bad))
    bad.write_text("")
    assert "there is no pair in it" in refused(*words(bad))
    bad.write_bytes(b"\xff\xfe")
    assert "not UTF-8" in refused(*words(bad))
    table = tmp_path / "bad.parquet"
    table.write_text("no parquet")
    assert "bad.parquet" in refused(*words(table))
    csv = tmp_path / "bad.csv"
    csv.write_text("prompt,chosen,rejected\na,b\n")
    assert "bad.csv:2: expected one field for each column" in refused(*words(csv))


def test_specs_that_name_nothing(here, refused, tmp_path, data_root):
    words = lambda spec: [*fit_words(here, spec, tmp_path / "dial"), "--data-root", data_root]  # noqa: E731
    said = refused(*words("genies:truthfulqa/train"))
    assert "did you mean 'genies:truthful_qa/train'" in said
    assert "looked for " in said
    assert "the slice reaches past the end: there are 640 pairs" in refused(
        *words("facts:train[:9999]")
    )
    assert "[a:b] needs b greater than a" in refused(*words("facts:train[5:5]"))
    assert "expected a slice such as" in refused(*words("facts:train[5]"))
    assert "unknown kind of data 'fact'; did you mean 'facts'" in refused(*words("fact:train"))
    assert "expected KIND:NAME" in refused(*words("something"))
    assert "facts:trian" in refused(*words("facts:trian"))
    no_root = fit_words(here, "genies:truthful_qa/train", tmp_path / "dial")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRIMTAB_DATA", raising=False)
        assert "no data folder is known; give --data-root" in refused(*no_root)


def test_a_dial_where_pairs_are_wanted_and_the_reverse(here, refused, tmp_path):
    said = refused(*fit_words(here, here / "dial", tmp_path / "x"))
    assert "a folder; expected a spec of pairs" in said
    words = ["generate", "--model", here / "model", "--prompt", "x"]
    for spec in ("facts:test", "genies:truthful_qa/train"):
        assert "looks like a spec of pairs; expected a dial's folder" in refused(
            *words, "--dial", spec
        )
    assert "expected name=SPEC" in refused(
        "evaluate", "--model", here / "model", "--pairs", "facts:test", "--out", tmp_path / "x"
    )


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one(here, refused, tmp_path, limit):
    file = here / "train.jsonl"
    assert "1 or more" in refused(*fit_words(here, file, tmp_path / "x"), "--limit", limit)
    assert "1 or more" in refused(*compare_words(here, tmp_path / "x"), "--limit", limit)
    assert "1 or more" in refused(*compare_words(here, tmp_path / "x"), "--train-limit", limit)
    assert "1 or more" in refused(*evaluate_words(here, tmp_path / "x"), "--limit", limit)
    assert "1 or more" in refused("inspect", file, "--model", here / "model", "--limit", limit)


# ---- models, dials, devices ---------------------------------------------------------------------


def evaluate_words(here: Path, out: Path) -> list[object]:
    start = ["evaluate", "--model", here / "model", "--dial", here / "dial", "--out", out]
    return [*start, "--pairs", f"test=jsonl:{here}/test.jsonl"]


def compare_words(here: Path, out: Path) -> list[object]:
    suite = here / "suite.yaml"
    start = ["compare", "--model", here / "model", "--suite", suite, "--methods", "mean"]
    return [*start, "--out", out, *SMALL]


def verbs(here: Path, out: Path) -> list[list[object]]:
    """Each verb that loads a model."""
    return [
        fit_words(here, here / "train.jsonl", out),
        evaluate_words(here, out),
        compare_words(here, out),
        ["generate", "--model", here / "model", "--dial", here / "dial", "--prompt", "x"],
    ]


def test_models_that_are_not_there(here, refused, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    for model, message in (
        ("./none", "no such folder or .gguf file"),
        (tmp_path / "none.gguf", "no such GGUF file"),
        (tmp_path / "empty", "the folder has no config.json"),
        ("someone/never-heard-of", "not a local folder nor in the Hub cache"),
        ("smollm3", "not a local folder nor in the Hub cache"),
    ):
        for words in verbs(here, tmp_path / "out"):
            assert message in refused(*words, "--model", model)
    assert not (tmp_path / "out").exists()


def test_offline_is_one_line_and_quick(tmp_path):
    """In a process of its own: no retries, no traceback, whether offline is declared or a fact."""
    environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    environment |= {"HF_ENDPOINT": NOWHERE, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    words = ["generate", "--model", "someone/never-heard-of", "--prompt", "x"]
    done = subprocess.run(
        [sys.executable, "-m", "trimtab", *words],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: someone/never-heard-of: ")
    assert "the Hub cannot be reached" in done.stderr
    assert done.stderr.count("\n") == 1


def test_types_and_devices_that_do_not_exist(here, refused, tmp_path):
    for words in verbs(here, tmp_path / "out"):
        assert "--dtype float31: expected one of auto, " in refused(*words, "--dtype", "float31")
        assert "--device gpu: " in refused(*words, "--device", "gpu")
        assert "--device cuda:77: " in refused(*words, "--device", "cuda:77")


@pytest.mark.parametrize("alpha", ["nan", "inf", "-inf"])
def test_alphas_that_are_no_numbers(here, refused, tmp_path, alpha):
    evaluate, compare, generate = verbs(here, tmp_path / "out")[1:]
    assert "alpha: expected finite numbers" in refused(*evaluate, "--alpha", "1", alpha)
    assert "alpha: expected finite numbers" in refused(*generate, "--alpha", alpha)
    assert "alphas: expected finite numbers" in refused(*compare, "--measuring.alphas", "0", alpha)


def test_dials_that_are_not_there_or_damaged(here, refused, tmp_path):
    def words(dial: object) -> list[list[object]]:
        return [[*w[:3], "--dial", dial, *w[5:]] for w in verbs(here, tmp_path / "out")[1::2]]

    for broken, message in (
        (lambda d: (d / "dial.json").unlink(), "no dial.json (nor adapter_config.json)"),
        (lambda d: (d / "dial.json").write_text("{"), "dial.json: damaged"),
        (lambda d: (d / "dial.safetensors").unlink(), "dial.safetensors: missing"),
        (lambda d: flip_a_byte(d / "dial.safetensors"), "dial.safetensors: damaged: its sha256"),
        (lambda d: (d / "dial.safetensors").write_bytes(b"\0" * 8), "dial.safetensors: damaged"),
    ):
        dial = tmp_path / "broken"
        copy(here / "dial", dial)
        broken(dial)
        for command in words(dial):
            assert message in refused(*command)
        assert message in refused("inspect", dial)
    for command in words(tmp_path / "none"):
        assert "no such folder" in refused(*command)


def copy(source: Path, target: Path) -> None:
    """A folder's files, whatever was there before."""
    target.mkdir(exist_ok=True)
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())


def flip_a_byte(file: Path) -> None:
    """Damage in the last tensor value."""
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(bytes(data))


def test_a_dial_of_another_model(here, refused, tiny, tokenizer, tmp_path):
    tiny("qwen3").save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    evaluate, _, generate = verbs(here, tmp_path / "out")[1:]
    for words in (evaluate, generate):
        said = refused(*words, "--model", tmp_path / "other")
        assert f"made for {here}/model" in said
        assert "use --force to go on" in said


def test_force_goes_on(here, tiny, tokenizer, tmp_path):
    tiny("qwen3").save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    evaluate, _, generate = verbs(here, tmp_path / "out")[1:]
    for words in (evaluate, generate):
        done = trimtab(*words, "--model", tmp_path / "other", "--force")
        assert done.code == 0, done.err


# ---- methods, suites, settings ------------------------------------------------------------------


def test_names_that_do_not_exist(here, refused, tmp_path):
    assert "unknown verb 'evalute'; did you mean 'evaluate'" in refused("evalute")
    said = refused("fit", "innerpo", "--pairs", "facts:train", "--out", tmp_path / "x")
    assert "unknown method 'innerpo'; did you mean 'innerdpo'" in said
    assert "expected a method first" in refused("fit")
    assert "expected a method first" in refused("fit", "--pairs", "facts:train")
    words = compare_words(here, tmp_path / "x")
    assert "unknown method 'dop'; did you mean 'dpo'" in refused(*words, "--methods", "dop")
    assert "no suite 'fact'; did you mean 'facts'" in refused(*words, "--suite", "fact")
    evaluate = ["evaluate", "--model", here / "model", "--out", tmp_path / "x"]
    assert "no suite 'fact'; did you mean 'facts'" in refused(*evaluate, "--suite", "fact")
    assert "give --suite NAME or --pairs" in refused(*evaluate)
    assert "no such folder" in refused("report", tmp_path / "none")
    assert "not a run" in refused("report", tmp_path)


def test_grids_with_nothing_or_something_twice(here, refused, tmp_path):
    words = compare_words(here, tmp_path / "x")
    seeds = "seeds: expected at least one number of 0 or more, each once"
    assert seeds in refused(*words, "--seeds")
    assert seeds in refused(*words, "--seeds", 1, 0, 1)
    assert "methods: expected at least one, each once" in refused(*words, "--methods")
    assert "methods: expected at least one" in refused(*words, "--methods", "mean", "mean")
    evaluate = evaluate_words(here, tmp_path / "x")
    assert "there is a split 'test' already" in refused(*evaluate, "--pairs", "test=facts:test")
    assert "cannot be called 'neutral'" in refused(*evaluate, "--pairs", "neutral=facts:test")
    assert "alpha: expected finite numbers, at least one" in refused(*evaluate, "--alpha")


def test_a_suite_whose_splits_share_items_with_training(here, refused, tmp_path):
    suite = write_suite(tmp_path)
    write_lines(tmp_path / "oos.jsonl", [*rows(4, "oos"), rows(10, "train")[2]])
    said = refused(*compare_words(here, tmp_path / "out"), "--suite", suite)
    assert "split 'oos'" in said
    assert "shares 1 items (1 pairs) with the training data" in said
    assert "oos.jsonl:5" in said


def test_prompts_that_say_nothing(here, refused, tmp_path):
    words = ["generate", "--model", here / "model"]
    assert "give --prompt TEXT, --prompts FILE or --pairs SPEC" in refused(*words)
    assert "no such file" in refused(*words, "--prompts", tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text("\n\n")
    assert "or give --prompt TEXT" in refused(*words, "--prompts", tmp_path / "empty.txt")
    assert "a prompt is empty" in refused(*words, "--prompt", " ")
    assert "max_new_tokens is 0" in refused(*words, "--prompt", "x", "--max-new-tokens", 0)
    assert "temperature is -1" in refused(*words, "--prompt", "x", "--temperature", -1)


def test_folders_that_are_taken(here, refused, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    for words in verbs(here, tmp_path / "taken")[:3]:
        assert "not empty" in refused(*words)
    for words in verbs(here, tmp_path / "taken" / "notes.txt")[:3]:
        assert "a file; --out names a folder" in refused(*words)
    said = refused(*fit_words(here, here / "train.jsonl", here / "dial"))
    assert "holds a dial of another run; choose another --out, or --overwrite" in said
    assert (tmp_path / "taken" / "notes.txt").read_text() == "mine"


def test_folders_that_cannot_be_written(here, tmp_path):
    """Found out when it is written to; the text names the folder."""
    if os.geteuid() == 0:
        target = Path("/proc/nothing")  # not even root writes there
    else:
        target = tmp_path / "shut"
        target.mkdir(mode=0o500)
    for words in verbs(here, target / "out")[:3]:
        done = trimtab(*words, "--quiet")
        assert done.code == 2
        assert done.err.startswith("error: ")
        assert str(target) in done.err
        assert done.err.count("\n") == 1


# ---- while it runs ------------------------------------------------------------------------------


def test_a_damaged_cache_is_refused_with_the_remedy(here, tmp_path, monkeypatch):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    words = evaluate_words(here, tmp_path / "out")
    assert trimtab(*words).code == 0
    (shard,) = (tmp_path / "cache").glob("readings/*/*.safetensors")
    tensors = load_file(shard)
    save_file({k: t + 1 for k, t in tensors.items()}, shard)
    done = trimtab(*words, "--quiet")
    assert done.code == 2
    assert done.err.startswith(f"error: {shard}: its content is not what was written; delete ")
    assert done.err.count("\n") == 1


def test_a_loss_that_is_not_finite_stops_the_run(here, tmp_path):
    done = trimtab(
        *("fit", "dpo", "--model", here / "model", "--pairs", here / "train.jsonl"),
        *(
            "--out",
            tmp_path / "dial",
            "--train.learning_rate",
            "1e30",
            "--train.max_grad_norm",
            "1e9",
        ),
        *("--train.pairs_per_step", 2, "--train.warmup", 0, "--quiet"),
    )
    assert done.code == 2
    assert done.err.startswith("error: the loss is ")
    assert "item train" in done.err
    assert "lower --train.learning_rate" in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "dial").exists()


@pytest.mark.parametrize("name", ["items.parquet", "results.jsonl", "summary.json"])
def test_a_full_disk_while_a_comparison_writes(here, tmp_path, monkeypatch, name):
    """The file is not half there, the error names it, and the same command goes on."""
    import trimtab.files as files

    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        replace(source, target)

    words = [*compare_words(here, tmp_path / "run"), "--quiet"]
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", full)
        done = trimtab(*words)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert f"{name}: No space left on device" in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "run" / "results.jsonl").exists()
    assert trimtab(*words).code == 0
    assert (tmp_path / "run" / "results.jsonl").is_file()
