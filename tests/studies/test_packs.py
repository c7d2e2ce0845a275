"""Packs: a run's figures made again from one file, and which of data, model, version, setting or number is
not the pack's; the example of docs/comparing.md."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers_study import SMALL, rows, trimtab, write_lines, write_suite
from trimtab import models
from trimtab.provenance import digest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def here(tmp_path_factory, tiny, tokenizer) -> Iterator[Path]:
    """A folder with a tiny model, a suite, and a comparison of three parts that was packed."""
    folder = tmp_path_factory.mktemp("packs")
    tiny("llama").save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    write_suite(folder / "suite")
    write_lines(folder / "data/mine.jsonl", rows(6, "mine"))
    (folder / "panel.yaml").write_text(
        f"mine: {{kind: choices, sources: ['jsonl:{folder}/data/mine.jsonl']}}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        command = ["compare", "--model", "model", "--suites", "suite/suite.yaml", "facts"]
        command += ["--limit", "6", "--methods", "dpo", "--device", "cpu", *SMALL]
        done = trimtab(*command, "--panel", "panel.yaml", "--out", "run", "--quiet")
        assert done.code == 0, done.err
        made = trimtab("pack", "run")
        assert made.code == 0, made.err
        assert re.search(r"run.pack.json: compare, 8 cells, \d+ figures", made.out), made.out
        yield folder


def changed(file: Path, out: Path, **own: object) -> Path:
    """A pack with other content, whole."""
    content = {**json.loads(file.read_text()), **own}
    content["sha256"] = digest({k: v for k, v in content.items() if k not in ("format", "sha256")})
    out.write_text(json.dumps(content))
    return out


def test_a_pack_needs_nothing_of_the_run_but_data_and_model(here, tmp_path, monkeypatch):
    """From another folder, without the suite's and the panel's files, to the same digits."""
    moved = tmp_path / "elsewhere"
    shutil.copytree(here / "model", moved / "model")
    monkeypatch.chdir(moved)
    held = json.loads((here / "run.pack.json").read_text())
    assert {Path(name).name for name in held["files"]} == {"suite.yaml", "panel.yaml"}
    done = trimtab("reproduce", here / "run.pack.json", "--out", "again", "--quiet")
    assert done.code == 0, done.out + done.err
    said = dict(line.split(maxsplit=1) for line in done.out.splitlines())
    assert {said[k] for k in ("model", "data", "setting", "version")} == {"the same"}
    count = len(held["expected"]["model--suite"]) + len(held["expected"]["model--facts"])
    assert said["number"] == f"{count} figures: {count} the same, 0 within their tolerance, 0 not"


def test_numbers_beyond_their_tolerance_and_other_versions_are_said(here, tmp_path):
    held = json.loads((here / "run.pack.json").read_text())
    mine = held["expected"]["model--suite"]
    shares = [k for k, (v, _) in mine.items() if isinstance(v, float) and 0.2 < v < 0.8][:2]
    verdict = next(k for k in mine if k.endswith("verdict"))
    half = mine[shares[0]][1]
    mine[shares[0]][0] += 0.9 * half
    mine[shares[1]][0] += 1.1 * mine[shares[1]][1]
    mine[verdict][0] = "better"
    other = {**held["versions"], "torch": "1.0"}
    file = changed(
        here / "run.pack.json", tmp_path / "p", expected=held["expected"], versions=other
    )
    done = trimtab("reproduce", file, "--out", here / "run", "--quiet")  # where all is done already
    assert done.code == 1, done.err
    assert "version  torch: 1.0 in the pack, " in done.out
    assert ", 1 within their tolerance, 2 not" in done.out
    assert f"model--suite: {shares[1]}: " in done.out
    assert f"model--suite: {verdict}: better, here cannot tell" in done.out


def test_other_data_and_another_model_are_said_before_anything_runs(
    here, tmp_path, tiny, tokenizer
):
    tiny("gpt2").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    pack, out = here / "run.pack.json", tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "load", lambda *a, **k: pytest.fail("loaded"))
        done = trimtab("reproduce", pack, "--out", out, "--model", tmp_path / "model")
        assert done.code == 1
        assert re.search(r"^model +model: .* in the pack, .* here$", done.out, re.M)
        assert "nothing was run" in done.out
        assert not out.exists()
        file = here / "suite/oos.jsonl"
        text = file.read_text()
        try:
            file.write_text(text.replace("is", "was"))
            done = trimtab("reproduce", pack, "--out", out)
            assert done.code == 1
            assert re.search(r"^data +splits: ", done.out, re.M)
            assert "model    the same" in done.out
            file.unlink()
            gone = trimtab("reproduce", pack, "--out", out)
            assert gone.code == 2
            assert f"{pack}: " in gone.err
            assert str(file) in gone.err
        finally:
            file.write_text(text)
        gone = trimtab("reproduce", pack, "--out", out, "--model", tmp_path / "nowhere")
        assert gone.code == 2
        assert "nowhere" in gone.err
    assert not out.exists()
    assert not list(tmp_path.glob(".*"))


def test_items_of_a_panel_are_data(here, tmp_path):
    """What is known of them only once the cells before are done."""
    shutil.copytree(here / "run", out := tmp_path / "run")
    file = here / "data/mine.jsonl"
    text = file.read_text()
    try:
        file.write_text(text.replace(" is", " was"))
        done = trimtab("reproduce", here / "run.pack.json", "--out", out, "--quiet")
    finally:
        file.write_text(text)
    assert done.code == 1, done.err
    assert re.search(r"^data +panel: \w+… in the pack, \w+… here$", done.out, re.M), done.out


def test_bad_packs_and_runs_that_cannot_be_packed(here, tmp_path):
    held, out = json.loads((here / "run.pack.json").read_text()), tmp_path / "out"

    def refused(content: object) -> str:
        file = tmp_path / "bad.json"
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        done = trimtab("reproduce", file, "--out", out)
        assert done.code == 2, done.out
        assert not out.exists()
        return done.err

    newer = refused({**held, "format": 2, "versions": {"trimtab": "9.1"}})
    assert (
        "made by a newer version of trimtab (9.1): format 2, and this version reads up to 1"
        in newer
    )
    assert "damaged" in refused({**held, "settings": {}})
    assert "damaged" in refused({k: v for k, v in held.items() if k != "inputs"})
    assert "no pack, or a damaged one" in refused(json.dumps(held)[:-200])
    assert "no pack; expected a file that trimtab pack wrote" in refused([1])
    strange = changed(here / "run.pack.json", tmp_path / "p", study="antigravity")
    said = trimtab("reproduce", strange, "--out", out).err
    assert "of the study 'antigravity', which is none of trimtab's" in said
    strange = changed(here / "run.pack.json", tmp_path / "p", settings={"modle": "x"})
    assert (
        "whose settings this version does not take"
        in trimtab("reproduce", strange, "--out", out).err
    )
    strange = changed(here / "run.pack.json", tmp_path / "p", files=["x"])
    assert "'files' should be an object" in trimtab("reproduce", strange, "--out", out).err
    assert "cannot be read" in trimtab("reproduce", tmp_path / "none", "--out", out).err
    assert not out.exists()
    full = trimtab("reproduce", here / "run.pack.json", "--out", here / "suite")
    assert "not empty, and not from an earlier run" in full.err

    def unpacked(run: Path) -> str:
        done = trimtab("pack", run, "--out", tmp_path / "pack.json")
        assert done.code == 2
        assert not (tmp_path / "pack.json").exists()
        return done.err

    committed = ROOT / "docs/results/innerpo/facts"
    assert "packed from the folder that holds its cells, not from committed results" in unpacked(
        committed
    )
    copy = tmp_path / "copy"
    shutil.copytree(here / "run", copy)
    assert f"several runs, each with a pack of its own: {copy}" in unpacked(tmp_path)
    gone = next(copy.glob("cells/dpo-*/summary.json"))
    gone.unlink()
    assert re.search(r"\d cells are not done .* dpo, seed 0; run the study again", unpacked(copy))


def test_the_example_of_the_documentation(here, tmp_path, monkeypatch):
    text = (ROOT / "docs/comparing.md").read_text("utf-8").partition("## Packs")[2]
    block = re.findall(r"```sh\n(.*?)```", text, flags=re.S)[0]
    monkeypatch.chdir(tmp_path)
    last = ""
    for line in block.replace("smollm2-135m", str(here / "model")).splitlines():
        words = shlex.split(line)[1:]
        less = [f"--measuring.{k}" for k in ("passages", "dose-items", "train-items")]
        own = {"compare": [w for flag in less for w in (flag, "2")]}
        done = trimtab(*words, *own.get(words[0], []))
        assert done.code == 0, done.err
        last = done.out
    shown = re.findall(r"```text\n(.*?)```", text, flags=re.S)[0]
    assert re.sub(r"\d+", "N", last) == re.sub(r"\d+", "N", shown)
