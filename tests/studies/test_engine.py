"""What the engine gives every study: kills change no byte, jobs 1, 2 and Ray are the same, `--dry-run`;
and the study of CONTRIBUTING.md, built from its text."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_head_studies import questions

from helpers_study import SMALL, Commands, rows, trimtab, write_lines, write_suite
from trimtab import models
from trimtab.pairs import read_pairs
from trimtab.pairs.neutral import NEUTRAL
from trimtab.studies import STUDIES, about, study
from trimtab.study.reading import read

ROOT = Path(__file__).resolve().parents[2]
BYTES = ("results.jsonl", "verdicts.jsonl", "generations.jsonl", "cells/*/dial/*.safetensors")
BYTES = (*BYTES, "dials/*/*.safetensors", "items.parquet")
"""What must not differ."""


@pytest.fixture(scope="module")
def here(tmp_path_factory, tiny, tokenizer) -> Iterator[Path]:
    """A folder with a tiny model, tasks, pairs and a suite."""
    folder = tmp_path_factory.mktemp("engine")
    tiny("llama").save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for task in ("a", "b", "c"):
        for split in ("train", "test"):
            write_lines(folder / "choices" / f"{task}.{split}.jsonl", questions(task + split, 4))
    for name in ("train", "test"):
        write_lines(folder / f"{name}.jsonl", rows(4, name))
    write_suite(folder / "suite")
    (folder / "panel.yaml").write_text(
        f"mine: {{kind: choices, sources: ['{folder}/test.jsonl']}}\n"
        "texts: {kind: texts, new_tokens: 2}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_CACHE", str(folder / "cache"))
        yield folder


def words(name: str, here: Path, out: Path, *more: object) -> list[object]:
    """A study on very little."""
    own: dict[str, list[object]] = {
        "compare": ["--suite", here / "suite" / "suite.yaml", "--methods", "dpo", "mean", *SMALL],
        "heads": [
            *("--train", f"jsonl:{here}/train.jsonl", "--tests", f"jsonl:{here}/test.jsonl"),
            *("--alpha", "1", "--kl-items", "2", "--args-answers", "2", "--k", "3"),
            *("--head-seeds", "0", "--max-new-tokens", "0", "--head-epochs", "1", "--epochs", "1"),
        ],
        "rewards": [
            *("--data-root", here, "--tasks", "a", "b", "--held-out", "c", "--train-limit", "4"),
            *("--test-limit", "3", "--head-seeds", "0", "--no-ablation"),
        ],
        "panel": [
            *("--train", f"jsonl:{here}/train.jsonl", "--methods", "mean", "--panel-items", "2"),
            *("--panel", here / "panel.yaml"),
        ],
        "steering": [
            *("--traits", "honesty", "--limit", "4", "--items", "3", "--passages", "2"),
            *("--max-new-tokens", "2", "--steps", "1", "--random-seeds", "0", "--kl", "0.001"),
            *("--methods", "mean", "contrastive", "--halves"),
        ],
    }
    start = ["study", "run", name, "--model", here / "model", "--device", "cpu", "--out", out]
    return [*start, "--quiet", *own[name], *more]


def files(run: Path) -> dict[str, bytes]:
    """The bytes that must not differ, by file."""
    return {
        str(f.relative_to(run)): f.read_bytes() for form in BYTES for f in sorted(run.glob(form))
    }


@pytest.fixture(scope="module")
def commands(here: Path) -> Iterator[Commands]:
    started = Commands(here / "cache-of-commands")
    yield started
    started.close()


@pytest.fixture(scope="module")
def whole(here: Path, commands: Commands) -> dict[str, tuple[Path, int]]:
    """Each study, but for compare's, run through, and how often it wrote to its folder."""
    found = {}
    for name in ("heads", "rewards", "steering"):
        out, err, count = here / name, here / "err", here / "count"
        assert commands.run(*words(name, here, out), err=err, count=count) == 0, err.read_text()
        found[name] = out, int(count.read_text())
    return found


@pytest.mark.parametrize("name", ["heads", "rewards", "steering"])
def test_kills_change_no_byte(name, here, commands, whole):
    run, writes = whole[name]
    out, ends = here / f"{name}-killed", []
    shutil.rmtree(here / "cache-of-commands", ignore_errors=True)
    for at in (writes // 5, writes // 3):
        stop = (signal.SIGKILL, at, 0.0)
        ends.append(commands.run(*words(name, here, out), signal_at=stop))
        assert not (out / "study.json").exists()
    assert ends == [-signal.SIGKILL] * 2
    err = here / "err"
    assert commands.run(*words(name, here, out), err=err) == 0, err.read_text()
    assert len(files(out)) >= 4
    assert files(out) == files(run)


@pytest.mark.parametrize("name", ["heads", "rewards"])
def test_two_at_once_give_the_same_bytes(name, here, whole):
    """Made again from a pack of the run."""
    pack, out = here / f"{name}.pack.json", here / f"{name}-two"
    made = trimtab("pack", whole[name][0])
    assert made.code == 0, made.err
    own = ("--data-root", here) if name == "rewards" else ()
    done = trimtab("reproduce", pack, "--jobs", "2", "--out", out, "--quiet", *own)
    assert done.code == 0, done.out + done.err
    assert files(here / f"{name}-two") == files(whole[name][0])


@pytest.mark.slow
def test_ray_gives_the_same_bytes(here, whole):
    """All studies on one cluster of this machine."""
    ray = pytest.importorskip("ray")
    assert trimtab(*words("compare", here, here / "compare")).code == 0
    runs = {name: run for name, (run, _) in whole.items()} | {"compare": here / "compare"}
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    try:
        for name, run in runs.items():
            done = trimtab(*words(name, here, here / f"{name}-ray", "--ray"))
            assert done.code == 0, done.err
            assert files(here / f"{name}-ray") == files(run)
    finally:
        ray.shutdown()


@pytest.mark.parametrize("name", ["compare", "heads", "panel", "rewards", "steering"])
def test_a_dry_run_says_what_it_takes_and_stops(name, here, tmp_path):
    done = trimtab(*words(name, here, tmp_path / "run", "--dry-run", "--jobs", "2"))
    assert done.code == 0, done.err
    said = re.match(r"(\w+): (\d+) cells, 0 of them done already; (\d+) training steps", done.out)
    assert said, done.out
    cells, steps = said[2], said[3]
    many = {"compare": (3, 1), "heads": (7, 4), "rewards": (6, 4), "steering": (4, 1)}
    many = {**many, "panel": (3, 0)}[name]
    assert int(cells) == many[0]
    assert int(steps) >= many[1]
    for what, unit in (("minutes", ""), ("memory", "GiB"), ("disk", "MiB")):
        said = re.search(rf"{what} +(?:about|at most) ([\d.e-]+) ?{unit}", done.out)
        assert float(said[1] if said else 0) > 0, done.out
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").rglob("*.json"))


def test_a_pack_of_a_trait_over_its_own_run_runs_nothing(here, whole):
    run = whole["steering"][0]
    made = trimtab("pack", run, "--out", here / "trait.json")
    assert "trait.json: steering, 4 cells, " in made.out, made.err
    done = trimtab("reproduce", here / "trait.json", "--out", run, "--quiet")
    assert done.code == 0, done.out + done.err
    assert re.search(r"(\d{2,}) figures: \1 the same", done.out), done.out


def test_a_dry_run_knows_what_is_done(here, whole):
    done = trimtab(*words("rewards", here, whole["rewards"][0], "--dry-run"))
    assert "6 cells, 6 of them done already; 0 training steps" in done.out


def test_studies_are_listed_run_checked_and_reported(here, whole, tmp_path):
    listed = trimtab("study", "list").out.splitlines()
    assert [line.split()[0] for line in listed] == list(STUDIES)
    assert all(about(name) for name in STUDIES)
    copy = tmp_path / "run"
    shutil.copytree(whole["heads"][0], copy)
    done = trimtab("study", "check", copy)
    assert done.out.strip() == f"{copy}: heads, 9 figures, 5 differences"
    (gone,) = copy.glob("cells/dpo-s0-*")
    (gone / "cell.json").unlink()
    assert f"{gone}: not done (dpo-s0)" in trimtab("study", "check", copy).out
    assert trimtab("study", "report", copy).out.split() == [
        str(copy / name) for name in ("report.md", "report.html")
    ]
    refused = trimtab("study", "run", "haeds", "--out", copy)
    assert refused.code == 2
    assert "no study 'haeds'; did you mean 'heads'" in refused.err


def test_a_study_names_itself_by_its_folder():
    assert {name: study(name).name for name in STUDIES} == {name: name for name in STUDIES}


# ---- cells of earlier versions -------------------------------------------------------------------


def key_by_hand(common: dict, inputs: dict) -> str:
    """As cells were named when the schema came: sha256 of the JSON, keys in order."""
    text = json.dumps({**common, **inputs}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def test_cells_are_named_as_they_were(here, whole):
    """Since models are told apart by config, tokenizer and template (2026-11-29)."""
    model = models.identify(str(here / "model")).whole
    on = {"format": 1, "model": model, "dtype": "auto", "device": "cpu", "threads": 1}
    tests = {name: read_pairs(f"choices:{name}/test", here).limit(3) for name in "abc"}
    rewards = {**on, "max_length": 1024, "tests": {t: p.digest for t, p in tests.items()}}
    assert (whole["rewards"][0] / f"cells/base-{key_by_hand(rewards, {'arm': 'base'})}").is_dir()
    train, test = (read_pairs(f"jsonl:{here}/{name}.jsonl") for name in ("train", "test"))
    heads = {**on, "max_length": 256, "train": train.digest, "kl_items": 2, "alphas": [1.0]}
    heads["tests"] = {f"jsonl:{here}/test.jsonl": test.digest}
    assert (whole["heads"][0] / f"cells/zero-{key_by_hand(heads, {'arm': 'zero'})}").is_dir()
    train, test = (
        read_pairs("personas:honesty").limit(4),
        read_pairs("traits:honesty/test").limit(3),
    )
    neutral = hashlib.sha256("\n".join(NEUTRAL[:2]).encode()).hexdigest()
    dose = {**on, "train": train.digest, "test": test.digest, "neutral": neutral, "items": 3}
    dose |= {"passages": 2, "prompts": 1, "new_tokens": 2}
    key = key_by_hand(dose, {"method": None})
    assert (whole["steering"][0] / f"cells/prompt-{key}.json").is_file()


def test_finished_cells_are_found_again_and_older_ones_named(here, whole, monkeypatch):
    """Cells of `dose` held their figures without a frame, and jobs named other modules; what was done before
    models were told apart is not used, and said to be there."""
    out = here / "earlier"
    shutil.copytree(whole["steering"][0], out)
    for file in out.glob("cells/*.json"):
        content = json.loads(file.read_text())
        file.write_text(
            json.dumps({**content["found"], "versions": content["versions"], "seconds": 1})
        )
    for file in out.glob("cells/*/job.json"):
        run = "trimtab.studies.steering.cells:Stage.measure"
        file.write_text(json.dumps({**json.loads(file.read_text()), "run": run}))
    old = out / "cells" / "pca-0123456789abcdef.json"
    old.write_text(json.dumps({"name": "pca"}))
    for name in ("results.jsonl", "verdicts.jsonl", "study.json"):
        (out / name).unlink()
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    command = [word for word in words("steering", here, out) if word != "--quiet"]
    done = trimtab(*command)
    assert done.code == 0, done.err
    assert "3 cells, 3 of them done already" in done.err
    assert f"{old.parent}: 1 done by an earlier version of trimtab, which did not tell" in done.err
    assert files(out) == files(whole["steering"][0])


# ---- the study of the documentation --------------------------------------------------------------


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """A folder with the package that CONTRIBUTING.md shows, file by file."""
    folder = tmp_path_factory.mktemp("toy")
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = re.findall(r"```python\n# (lengths/\S+)\n(.*?)```", text, flags=re.S)
    assert [name for name, _ in found] == [f"lengths/{n}.py" for n in ("__init__", "study", "page")]
    for name, code in found:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(code, encoding="utf-8")
    return folder


def test_the_study_of_the_documentation(here, toy, tmp_path, monkeypatch):
    """Two at once, killed and gone on with: the bytes of a run in this process; its page."""
    specs = [f"jsonl:{here}/{name}.jsonl" for name in ("train", "test")]
    command = ["study", "run", "lengths", "--model", here / "model", "--pairs", *specs, "--out"]
    monkeypatch.syspath_prepend(str(toy))
    one = trimtab(*command, tmp_path / "one")
    assert one.code == 0, one.err
    there = [p for p in [os.environ.get("PYTHONPATH")] if p]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(toy), *there]))
    two = [
        sys.executable,
        "-m",
        "trimtab",
        *map(str, command),
        str(tmp_path / "two"),
        "--jobs",
        "2",
    ]
    started = subprocess.Popen(two, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not list(tmp_path.glob("two/cells/*/job.json")) and time.monotonic() < until:
        time.sleep(0.02)
    started.kill()
    assert started.wait() == -signal.SIGKILL
    assert not (tmp_path / "two" / "study.json").exists()
    again = subprocess.run(two, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert files(tmp_path / "two") == files(tmp_path / "one")
    found = read(tmp_path / "one")
    assert found.about.study == "lengths"
    assert {(m.method, m.split) for m in found.measurements} == {
        (method, spec) for method in ("sum", "mean") for spec in specs
    }
    assert [d.split for d in found.differences] == specs
    page = (tmp_path / "one" / "report.html").read_text()
    assert "sum − mean, points" in page
    assert "lengths" in trimtab("study", "check", tmp_path / "two").out
    assert trimtab("pack", tmp_path / "one").code == 0
    again = ["reproduce", tmp_path / "one.pack.json", "--out", tmp_path / "one"]
    assert "where you have and trust its package, give --study NAME" in trimtab(*again).err
    done = trimtab(*again, "--study", "lengths")
    assert done.code == 0, done.out + done.err
    assert re.search(r"(\d+) figures: \1 the same", done.out), done.out


def test_a_wave_without_cells_is_not_the_last():
    """A comparison without DPO has nothing to measure at DPO's KL, and a panel all the same."""
    from types import SimpleNamespace

    from trimtab.study.study import _waves

    one, two, three = (SimpleNamespace(done=True) for _ in range(3))
    part = SimpleNamespace(plan=lambda: iter([[one], [], [two]]))
    other = SimpleNamespace(plan=lambda: iter([[three]]))
    assert [wave for wave in _waves([part, other]) if wave] == [[one, three], [two]]
