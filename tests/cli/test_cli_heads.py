"""Heads on the command line: stored, trained, generated, judged; and what cannot be used."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from helpers_study import rows, trimtab, write_lines
from trimtab import models
from trimtab import store as disk
from trimtab.dials import Dial, LogitsDial, RewardDial
from trimtab.store import Store

FAST = ("--train.pairs-per-step", "4", "--train.epochs", "2")


@pytest.fixture(scope="module")
def here(tmp_path_factory, tiny, tokenizer) -> Iterator[Path]:
    """A folder with a tiny model, pairs, an alignment head and a reward head."""
    folder = tmp_path_factory.mktemp("heads")
    tiny("llama").save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    write_lines(folder / "pairs.jsonl", rows(10, "train"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_CACHE", str(folder / "cache"))
        for name in ("iav", "dph"):
            done = trimtab(*fit_words(folder, name, folder / name), *FAST)
            assert done.code == 0, done.err
        yield folder


def fit_words(here: Path, method: str, out: Path) -> list[object]:
    common = ["--model", here / "model", "--pairs", f"jsonl:{here}/pairs.jsonl"]
    return ["fit", method, *common, "--out", out]


def test_cached_ahead(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`cache`, then `fit --store`: nothing is read twice; the command again does nothing."""
    data = ["--model", here / "model", "--pairs", f"jsonl:{here}/pairs.jsonl"]
    words = ["cache", *data, "--out", tmp_path / "store"]
    done = trimtab(*words)
    assert done.code == 0, done.err
    assert "token states of 20 answers, 66 bytes a token" in done.out  # 2 x 32 + 1, and counts
    assert "GiB free" in done.err
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "store").rglob("*.safetensors")}
    assert len(files) == 1
    again = trimtab(*words)
    assert again.out == done.out
    monkeypatch.setattr("trimtab.readings._read_shard", None)
    fit = trimtab(*fit_words(here, "iav", tmp_path / "iav"), "--store", tmp_path / "store", *FAST)
    assert fit.code == 0, fit.err
    assert "from stored hidden states" in fit.err
    assert files == {p: p.stat().st_mtime_ns for p in (tmp_path / "store").rglob("*.safetensors")}
    a, b = (Dial.from_pretrained(p / "iav").state_dict() for p in (tmp_path, here))
    assert all(torch.equal(a[k], b[k]) for k in b)
    monkeypatch.undo()
    one = trimtab(*words, "--sites", "1,final", "--where", "answer", "--limit", "2", "--quiet")
    assert (one.code, one.err) == (0, "")
    assert "131 bytes a token" in one.out


def test_generate_shows_the_difference(here: Path) -> None:
    words = ["generate", "--model", here / "model", "--prompt", "The train of 3 is"]
    bare = trimtab(*words, "--max-new-tokens", "5", "--prompt-style", "plain")
    done = trimtab(
        *words, "--dial", here / "iav", "--alpha", "0", "-3", "maximum", "--max-new-tokens", "5"
    )
    assert done.code == 0, done.err
    lines = [line for line in done.out.splitlines() if line.startswith("alpha")]
    assert [line.split(":")[0] for line in lines] == ["alpha 0", "alpha -3", "alpha 2"]
    assert lines[0] in bare.out.replace("\r", "")
    assert "warning: alpha -3 is out of the range" in done.err
    assert "(-1 to 2)" in done.err
    assert "prompts go in as plain text, as the dial iav was fitted" in done.err
    chat = trimtab(*words, "--max-new-tokens", "5")
    same = ["--dial", here / "iav", "--alpha", "0", "--prompt-style", "auto"]
    told = trimtab(*words, *same, "--max-new-tokens", "5")
    assert (told.out, told.err) == (chat.out, f"loading {here}/model\n"), "told otherwise"
    assert chat.out != bare.out


def test_evaluation_files(here: Path, tmp_path: Path) -> None:
    """AlpacaEval's and Arena-Hard's formats, one of each a strength; then judged by a reward dial."""
    words = ["generate", "--model", here / "model", "--dial", here / "iav", "--max-new-tokens", "4"]
    prompts = ["--pairs", f"jsonl:{here}/pairs.jsonl", "--n", "3"]
    out = tmp_path / "out"
    done = trimtab(*words, *prompts, "--alpha", "0", "1.5", "--name", "t", "--out", out)
    assert done.code == 0, done.err
    alpaca = sorted(p.name for p in (out / "alpaca_eval").iterdir())
    assert alpaca == ["t-alpha-0.json", "t-alpha-1.5.json"]
    first = json.loads((out / "alpaca_eval" / alpaca[0]).read_text())
    assert [row["instruction"] for row in first] == [f"The train of {i} is" for i in range(3)]
    arena = (out / "arena_hard" / "t-alpha-1.5.jsonl").read_text().splitlines()
    assert json.loads(arena[0])["model_id"] == "t-alpha-1.5"
    assert len((out / "generations.jsonl").read_text().splitlines()) == 6
    written = {f: f.read_bytes() for f in out.rglob("*") if f.is_file()}
    again = trimtab(*words, *prompts, "--alpha", "0", "1.5", "--name", "t", "--out", out)
    assert (again.code, "these very generations" in again.out) == (0, True)
    assert "holds other generations" in trimtab(*words, *prompts, "--out", out).err
    assert written == {f: f.read_bytes() for f in out.rglob("*") if f.is_file()}
    bare = trimtab(*words[:3], "--prompt", "a", "--max-new-tokens", "2", "--out", tmp_path / "bare")
    assert bare.code == 0, bare.err
    files = [out / "alpaca_eval" / name for name in alpaca]
    reward = ["--reward", here / "dph", "--model", here / "model"]
    judged = trimtab("judge", *files, *reward, "--out", tmp_path / "verdicts.jsonl")
    assert judged.code == 0, judged.err
    assert judged.out.startswith("t-alpha-0 against t-alpha-1.5: win rate ")
    assert "on 3 prompts" in judged.out
    verdicts = [json.loads(x) for x in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert all(v["win"] in (0, 0.5, 1) for v in verdicts)
    back = trimtab("judge", *reversed(files), *reward)
    share = [float(d.out.split("win rate ")[1].split(" %")[0]) for d in (judged, back)]
    assert sum(share) == pytest.approx(100, abs=0.11)


def test_candidates(here: Path) -> None:
    """Best of n and a weighted draw; with the alignment head in the same pass; other decoders."""
    words = ["generate", "--model", here / "model", "--reward", here / "dph", "--prompt", "The sky"]
    draws = ["--temperature", "1", "--best-of", "3", "--max-new-tokens", "4"]
    for more in (
        [],
        ["--drawing.pick", "sample"],
        ["--dial", here / "iav"],
        ["--decoder", "args"],
    ):
        done = trimtab(*words, *draws, "--alpha", "1", *more)
        assert done.code == 0, done.err
        assert "alpha 1:" in done.out


def test_explained(here: Path) -> None:
    done = trimtab(
        *("explain", "--model", here / "model", "--dial", here / "iav", "--prompt", "The sky"),
        *("--alpha", "strong", "--max-new-tokens", "2", "--top", "2"),
    )
    assert done.code == 0, done.err
    assert "alpha 1.5" in done.out
    assert "promoted" in done.out


def test_prompts_of_files(here: Path, tmp_path: Path) -> None:
    words = ["generate", "--model", here / "model", "--max-new-tokens", "2", "--prompts"]
    for name, text in (
        ("a.txt", "one\n\ntwo\n"),
        ("a.json", '[{"instruction": "one"}, "two"]'),
        ("a.jsonl", '{"prompt": "one"}\n{"turns": [{"content": "two"}]}\n'),
    ):
        (tmp_path / name).write_text(text)
        done = trimtab(*words, tmp_path / name)
        assert done.code == 0, done.err
        assert "\none\n" in done.out
        assert "\ntwo\n" in done.out


# ---- bad input ----------------------------------------------------------------------------------


@pytest.fixture
def refused(here, monkeypatch):
    """`refused(*words)`: the one line of a command that fails before it loads a model."""

    def loaded(*_, **__):
        raise AssertionError("a model was loaded first")

    monkeypatch.setattr(models, "load", loaded)

    def run(*words: object) -> str:
        done = trimtab(*words)
        assert done.code == 2, (done.code, done.err)
        errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, done.err
        assert done.out == ""
        return errors[0].removeprefix("error: ")

    return run


def test_what_is_refused(here: Path, refused, tmp_path: Path) -> None:
    model = ["--model", here / "model"]
    generate = ["generate", *model, "--prompt", "a"]
    text = tmp_path / "a.json"
    text.write_text('[{"output": "x"}]')
    answers = tmp_path / "answers.json"
    answers.write_text('[{"instruction": "a", "output": "b"}]')
    for words, message in (
        ([*generate, "--alpha", "lite"], "or none, light, standard, strong, maximum"),
        ([*generate, "--alpha", "inf"], "--alpha: expected finite numbers"),
        ([*generate, "--dial", here / "dph"], "give it as --reward"),
        ([*generate, "--reward", here / "iav"], "a logits dial; expected a reward dial"),
        ([*generate, "--reward", here / "dph"], "add --temperature 1"),
        ([*generate, "--decoder", "genarm"], "give one --dial"),
        ([*generate, "--decoder", "args"], "give --reward"),
        ([*generate, "--limit", "0"], "expected 1 or more"),
        ([*generate, "--drawing.keep", "2"], "keep is 2"),
        (["generate", *model], "give --prompt TEXT, --prompts FILE or --pairs SPEC"),
        (
            ["generate", *model, "--prompts", text],
            "a.json: entry 1: expected a text, or an object with",
        ),
        (["judge", answers, answers], "give --endpoint URL or --reward DIR"),
        (["judge", text, answers, "--endpoint", "http://127.0.0.1:9/v1"], "expected AlpacaEval's"),
        (["judge", answers, answers, "--endpoint", "here"], "no address"),
        (["judge", answers, answers, "--reward", here / "iav", *model], "expected a reward dial"),
        (["explain", *model, "--dial", here / "dph", "--prompt", "a"], "moves no token"),
        (["explain", *model, "--dial", here / "iav", "--prompt", " "], "a prompt is empty"),
        (["explain", *model, "--dial", here / "iav", "--prompt", "a", "--top", "0"], "1 or more"),
        (["cache", *model, "--pairs", "jsonl:nowhere"], "nowhere"),
        (["cache", "--model", "./nowhere", "--pairs", "facts:train"], "no such folder"),
    ):
        assert message in refused(*words), words
    assert not (tmp_path / "nothing").exists()


def test_a_store_that_is_none(here: Path, refused, tmp_path: Path) -> None:
    """A folder of other things, and a store of another format, with the command that makes one."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "cache_seq1024.pkl").write_bytes(b"x")
    words = fit_words(here, "iav", tmp_path / "out")
    said = refused(*words, "--store", tmp_path / "other")
    assert "holds cache_seq1024.pkl, no store of trimtab's" in said
    assert f"trimtab cache --model {here / 'model'}" in said
    store = Store(tmp_path / "old")
    store.put({"a": 1}, [lambda: {"x": torch.zeros(1)}])
    manifest = next(store.root.glob("*/manifest.json"))
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 1}))
    said = refused(*words, "--store", store.root)
    assert "format 1, expected 2" in said
    assert "run: trimtab cache" in said
    assert not (tmp_path / "out").exists()
    said = refused("cache", *words[2:-2], "--out", tmp_path / "other")
    assert "no store of trimtab's" in said


def test_heads_of_another_model(here: Path, refused, tmp_path: Path) -> None:
    for dial in (LogitsDial(32, 320), RewardDial(32)):
        dial.info.base_model, dial.info.base_digest = "other", "1" * 64
        dial.save_pretrained(tmp_path / dial.kind)
    model = ["--model", here / "model", "--prompt", "a"]
    said = refused("generate", *model, "--dial", tmp_path / "logits")
    assert "made for other" in said
    said = refused("generate", *model, "--reward", tmp_path / "reward", "--temperature", "1")
    assert "made for other" in said


def test_heads_that_do_not_fit(here: Path, tmp_path: Path) -> None:
    """Another hidden size or vocabulary, told before anything is generated or written."""
    flags = {"logits": ["--dial"], "reward": ["--temperature", "1", "--best-of", "2", "--reward"]}
    for number, (dial, message) in enumerate(
        (
            (LogitsDial(32, 999), "maps 32 to 999 values, the model's LM head 32 to 320"),
            (LogitsDial(48, 320), "maps 48 to 320 values, the model's LM head 32 to 320"),
            (RewardDial(48), "reads states of width 48, the model's have 32"),
        )
    ):
        folder, out = tmp_path / f"dial-{number}", tmp_path / f"out-{number}"
        dial.save_pretrained(folder)
        words = ["generate", "--model", here / "model", "--prompt", "a", "--out", out, "--force"]
        done = trimtab(*words, *flags[dial.kind], folder)
        assert done.code == 2, done.err
        assert message in done.err
        assert "Traceback" not in done.err
        assert not out.exists()


def test_a_disk_that_fills_up(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While states are stored: one line that names the folder; no entry, no dial, and with room again
    the same command ends."""
    written = disk.save_file

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = tmp_path / "store"
    words = [*fit_words(here, "iav", tmp_path / "out"), "--store", store, *FAST]
    monkeypatch.setattr(disk, "save_file", full)
    done = trimtab(*words)
    assert done.code == 2
    assert "No space left on device" in done.err
    assert str(store) in done.err
    assert not list(store.rglob("manifest.json"))
    assert not list(store.rglob("*.safetensors"))
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(disk, "save_file", written)
    assert trimtab(*words).code == 0
    a, b = (Dial.from_pretrained(p).state_dict() for p in (tmp_path / "out", here / "iav"))
    assert all(torch.equal(a[k], b[k]) for k in b)


@pytest.mark.parametrize("kind", ["iav", "dph"])
def test_damaged_heads(kind: str, here: Path, refused, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(here / kind, tmp_path / "dial")
    file = tmp_path / "dial" / "dial.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    flag = "--dial" if kind == "iav" else "--reward"
    words = ["generate", "--model", here / "model", "--prompt", "a", flag, tmp_path / "dial"]
    assert "damaged" in refused(*words, "--temperature", "1")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["iav", "dph"])
def test_two_processes(method: str, here: Path, tmp_path: Path) -> None:
    """Started by `--processes 2`: one gradient, the same weights within rounding."""
    import os
    import subprocess
    import sys

    words = fit_words(here, method, tmp_path / "two")
    command = [sys.executable, "-m", "trimtab", *map(str, words), *FAST, "--processes", "2"]
    environment = {**os.environ, "TRIMTAB_CACHE": str(here / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--device", "cpu"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("saved:") == 1
    two, one = (Dial.from_pretrained(p).state_dict() for p in (tmp_path / "two", here / method))
    for name, wanted in one.items():
        torch.testing.assert_close(two[name], wanted, rtol=1e-3, atol=1e-5)


def test_processes_that_make_no_sense(here: Path, refused, tmp_path: Path) -> None:
    words = fit_words(here, "iav", tmp_path / "out")
    for count in ("0", "two", "-1"):
        assert "expected a number above 0, or auto" in refused(*words, f"--processes={count}")


def test_chats_and_system_texts_of_prompts(here: Path, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    asked = {"prompt": [*chat, {"role": "user", "content": "three"}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(asked) + "\n")
    words = ["generate", "--model", here / "model", "--max-new-tokens", "4"]
    done = trimtab(*words, "--prompts", tmp_path / "a.jsonl")
    assert done.code == 0, done.err
    assert "user: one\n\nassistant: two\n\nuser: three\n" in done.out
    asked["prompt"].insert(0, {"role": "system", "content": "Be brief."})
    (tmp_path / "b.jsonl").write_text(json.dumps(asked) + "\n")
    led = trimtab(*words, "--prompts", tmp_path / "b.jsonl").out.splitlines()[-1]
    given = trimtab(*words, "--prompts", tmp_path / "a.jsonl", "--system", "Be brief.")
    assert given.out.splitlines()[-1] == led != done.out.splitlines()[-1]
    (tmp_path / "c.jsonl").write_text('{"prompt": "a"}\n{"prompt": 3}\n')
    bad = trimtab(*words, "--prompts", tmp_path / "c.jsonl")
    assert (bad.code, bad.out) == (2, "")
    assert f"{tmp_path / 'c.jsonl'}:2: expected a text" in bad.err
