"""In this process, in several, on Ray: the same bytes; failures, Ctrl-C, kills; what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers_study import SMALL, result_bytes, rows, trimtab, write_lines, write_suite
from trimtab.errors import ConfigError, StudyError
from trimtab.progress import Progress
from trimtab.studies.compare.cell import Measuring
from trimtab.study import Comparison, compare
from trimtab.study.cells import Host
from trimtab.study.worker import run_described
from trimtab.study.workers import on_cluster
from trimtab.training import METHODS

LITTLE = Measuring(
    alphas=(-1.0, 1.0),
    dose_items=4,
    train_items=4,
    passages=1,
    prompts=1,
    generate_alphas=(0.0, 1.0),
    new_tokens=4,
)


@pytest.fixture(scope="module")
def here(tmp_path_factory, tiny, tokenizer) -> Iterator[Path]:
    """A folder with two tiny models, two suites, and the cache that this module uses."""
    folder = tmp_path_factory.mktemp("workers")
    for name in ("llama", "qwen3"):
        tiny(name).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    write_suite(folder)
    write_suite(folder / "more")
    (folder / "more" / "suite.yaml").rename(folder / "second.yaml")
    write_lines(folder / "more" / "oos.jsonl", rows(7, "far"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_CACHE", str(folder / "cache"))
        yield folder


def small(here: Path, **changes: Any) -> Comparison:
    """DPO and a mean difference at one seed, with the controls."""
    start = Comparison(
        model=str(here / "llama"),
        suite=str(here / "suite.yaml"),
        methods=("dpo", "mean"),
        seeds=(0,),
        device="cpu",
        measuring=LITTLE,
    )
    return replace(start, **changes)


@pytest.fixture(scope="module")
def run(here) -> Path:
    """A finished comparison in this process; leave it as it is."""
    return compare(small(here), here / "run", command="trimtab compare")


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_several_processes_give_the_same_bytes(here, run):
    there = compare(small(here), here / "jobs", jobs=2, command="trimtab compare")
    assert result_bytes(there) == result_bytes(run)


@pytest.mark.slow
def test_one_cell_is_one_command(here, run, tmp_path):
    """Any process that sees the folder can run the cell that it describes."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    cell = next(copy.glob("cells/mean-*"))
    before = (cell / "items.parquet").read_bytes()
    for file in [*cell.glob("*.parquet"), cell / "summary.json"]:
        file.unlink()
    shutil.rmtree(cell / "dial")
    assert set(json.loads((cell / "job.json").read_text())["own"]) == {
        "method",
        "seed",
        "instruction",
    }
    words = [sys.executable, "-m", "trimtab.study.worker", str(cell)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (cell / "items.parquet").read_bytes() == before


def test_the_controls_are_in_every_table(run):
    found = lines(run / "results.jsonl")
    assert {r["method"] for r in found} == {"base", "dpo", "mean", "random", "instruction"}
    verdicts = lines(run / "verdicts.jsonl")
    told = [v for v in verdicts if v["against"] == "dpo"]
    assert {v["method"] for v in told if v["at"] == "alpha_1"} == {"mean", "random", "instruction"}
    assert {v["method"] for v in told if v["at"] == "equal_kl"} <= {"mean", "random"}
    gains = [v for v in verdicts if v["against"] == "base"]
    assert {v["method"] for v in gains} == {"dpo", "mean", "random", "instruction"}
    assert {(v["against"], v["at"]) for v in gains} == {("base", "alpha_1")}
    study = json.loads((run / "study.json").read_text())
    assert list(study["methods"]) == ["dpo", "mean", "random", "instruction"]
    assert "Answer truthfully" in study["methods"]["instruction"]
    told = {(r["split"], r["metric"]) for r in found if r["method"] == "instruction"}
    assert told == {
        (split, metric)
        for split in ("train", "test", "oos")
        for metric in ("accuracy", "accuracy_sum", "accuracy_choice", "margin")
    }


def test_a_random_direction_is_as_long_as_the_mean(run):
    """The same blocks and strengths, another direction."""
    from trimtab.dials import Dial

    own = {
        name: Dial.from_pretrained(next(run.glob(f"cells/{name}-*")) / "dial")
        for name in ("mean", "random")
    }
    mean, random = own["mean"], own["random"]
    assert mean.scales == random.scales  # type: ignore[attr-defined]
    pairs = zip(mean.tensors()["vectors"], random.tensors()["vectors"], strict=True)
    for other, direction in pairs:
        assert direction.norm().item() == pytest.approx(1, rel=1e-5)
        assert abs((direction @ other).item()) < 0.9
    assert (mean.info.seed, random.info.seed) == (None, 0)


def test_several_models_and_suites(here, run):
    models = (str(here / "llama"), str(here / "qwen3"))
    suites = (str(here / "suite.yaml"), str(here / "second.yaml"))
    grid = small(here, models=models, suites=suites, methods=("dpo",), controls=("random",))
    out = compare(grid, here / "grid")
    names = json.loads((out / "grid.json").read_text())["studies"]
    assert names == ["llama--suite", "llama--second", "qwen3--suite", "qwen3--second"]
    verdicts = [v for name in names for v in lines(out / name / "verdicts.jsonl")]
    assert {v["metric"] for v in verdicts} == {"accuracy", "margin", "steerability"}
    verdicts = [v for v in verdicts if v["metric"] == "accuracy"]
    first = [v for v in verdicts if (v["at"], v["against"]) == ("alpha_1", "dpo")]
    assert len(first) == 8, "two splits each"
    least = min(first, key=lambda v: v["p"])
    assert least["p_holm"] == pytest.approx(min(1, 8 * least["p"])), "Holm over the whole grid"
    # The cells are those of a comparison of one model and suite.
    alone = lines(run / "results.jsonl")
    same = [r for r in lines(out / "llama--suite" / "results.jsonl") if r["method"] == "dpo"]
    assert same == [r for r in alone if r["method"] == "dpo"]
    shown = trimtab("report", out)
    assert shown.code == 0, shown.err
    assert (out / "report.html").is_file()


def test_a_cell_that_fails_loses_no_other(here, tmp_path):
    dpo: Any = METHODS["dpo"].recipe
    wild = replace(dpo, train=replace(dpo.train, learning_rate=1e9, pairs_per_step=2, warmup=0))
    methods = [METHODS["mean"], replace(METHODS["dpo"], name="wild", recipe=wild)]
    comparison = small(here, controls=())
    out = tmp_path / "run"
    with pytest.raises(StudyError, match=r"1 cell of 3 failed; .*wild, seed 0: (the loss|a grad)"):
        compare(comparison, out, methods=methods)
    assert not (out / "results.jsonl").exists()
    done = {f.parent.name.split("-")[0] for f in out.glob("cells/*/summary.json")}
    assert done == {"base", "mean"}
    compare(comparison, out, methods=methods[:1])
    assert (out / "results.jsonl").is_file()


@pytest.mark.slow
def test_a_worker_that_is_killed_is_reported(here, tmp_path, monkeypatch):
    from trimtab.study import workers

    run = workers.Worker.run
    victims: list[str] = []

    def killed(self: Any, task: Any) -> Any:
        if task.label.endswith(": mean") and not victims:
            victims.append(task.label)
            self.stop(signal.SIGKILL)
            self.process.wait()
        return run(self, task)

    monkeypatch.setattr(workers.Worker, "run", killed)
    comparison = small(here, controls=())
    with pytest.raises(StudyError, match=r"suite: mean: its process ended with signal 9"):
        compare(comparison, tmp_path / "run", jobs=2)
    assert (compare(comparison, tmp_path / "run", jobs=2) / "results.jsonl").is_file()


def test_other_data_than_planned_are_refused(here, run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    cell = next(copy.glob("cells/mean-*"))
    job = json.loads((cell / "job.json").read_text())
    job["setting"]["limit"] = 3
    (cell / "job.json").write_text(json.dumps(job))
    (cell / "summary.json").unlink()
    reply = run_described(cell, Host())
    assert "planned with other data" in str(reply["error"])
    assert "cannot be read" in str(run_described(tmp_path / "gone", Host())["error"])


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"jobs": 0}, "jobs is 0"),
        ({}, {"jobs": 2, "ray": True}, "give one of them"),
        ({"threads": 0}, {}, "threads is 0"),
        ({"seeds": (0, 0)}, {}, "seeds"),
        ({"controls": ("randon",)}, {}, "controls: 'randon' is none"),
        ({"methods": ("dpo", "dpo")}, {}, "each once"),
        ({"methods": ("dppo",)}, {}, "unknown method 'dppo'; did you mean"),
        ({"models": ("a", "a")}, {}, "models: expected each once"),
        ({"suites": ("facts", "facts")}, {}, "suites: expected each once"),
        ({"recipes": ("none.yaml",)}, {}, r"none.yaml: No such file"),
        ({"measuring": Measuring(equal_kl=("oss",))}, {}, "no split 'oss'; did you mean 'oos'"),
    ],
)
def test_what_is_refused_before_a_model_loads(here, tmp_path, changes, options, message):
    with pytest.raises(ConfigError, match=message):
        compare(small(here, **changes), tmp_path / "run", **options)


def test_ray_that_is_not_installed(here, tmp_path, monkeypatch):
    from trimtab.study import workers

    monkeypatch.setattr(workers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"trimtab\[cluster\]"):
        compare(small(here), tmp_path / "run", ray=True)


@pytest.mark.slow
def test_ctrl_c_stops_the_workers_and_the_run_goes_on(here, run, tmp_path):
    """Only the parent gets the signal, as from `kill`; its workers end with it."""
    out = tmp_path / "run"
    words = ["compare", "--model", f"{here}/llama", "--suite", f"{here}/suite.yaml"]
    words += ["--methods", "dpo", "mean", "--device", "cpu", "--jobs", "2", "--out", f"{out}"]
    words += ["--seeds", "0", "1", "2", "3", *SMALL]  # work enough to be stopped in
    command = [sys.executable, "-m", "trimtab", *words]
    with (tmp_path / "said").open("w+") as said:
        started = subprocess.Popen(command, stderr=said, stdout=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while not list(out.glob("cells/*/items.parquet")) and time.monotonic() < until:
            time.sleep(0.05)
        started.send_signal(signal.SIGINT)
        assert started.wait(60) == 130
        said.seek(0)
        text = said.read()
    assert "Traceback" not in text
    assert text.splitlines()[-1].startswith("interrupted: ")
    left = [p for p in _children() if "trimtab.study.worker" in p]
    assert not left
    assert trimtab(*words).code == 0


def _children() -> list[str]:
    """Command lines of the processes that are workers of this test's runs."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = entry.read_bytes().replace(b"\0", b" ").decode()
            environment = (entry.parent / "environ").read_bytes()
        except OSError:
            continue
        if os.environ["TRIMTAB_CACHE"].encode() in environment:
            found.append(text)
    return found


def test_progress_names_suite_and_cell(here, run, capsys):
    compare(small(here), run, progress=Progress())
    assert "suite: 5 cells, 5 of them done already" in capsys.readouterr().err


@pytest.mark.parametrize("trusted", [True, False])
def test_nodes_run_a_models_code_where_the_flag_was_given(tmp_path, monkeypatch, trusted):
    """A node's processes do not inherit the environment of the one that was started with the flag."""
    seen: dict[str, Any] = {}

    class Stop(Exception):
        pass

    def remote(**how: Any) -> Any:
        seen.update(how)
        raise Stop

    ray = SimpleNamespace(
        is_initialized=lambda: True, cluster_resources=lambda: {"CPU": 2}, nodes=list, remote=remote
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setenv("TRIMTAB_TRUST_REMOTE_CODE", "1" if trusted else "0")
    task: Any = SimpleNamespace(setting=SimpleNamespace(device="cpu"))
    with pytest.raises(Stop):
        list(on_cluster([task], 1, SimpleNamespace(say=lambda _: None)))  # type: ignore[arg-type]
    there = {"env_vars": {"TRIMTAB_TRUST_REMOTE_CODE": "1"}}
    assert seen.get("runtime_env") == (there if trusted else None)
