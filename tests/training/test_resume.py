"""Stopped at any moment and started again, a run ends with the same bytes as one never stopped.

Runs are processes of their own, forked from one that has imported everything.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers_fit import files_of
from helpers_zygote import Zygote
from trimtab.training.trainer import checkpoints

FAST = {"epochs": 3.0}
"""Twelve steps, a checkpoint each."""


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    started = Zygote()
    yield started
    started.close()


class Runs:
    """Runs of one job in a folder, against the bytes of one that was never stopped."""

    def __init__(self, zygote: Zygote, folder: Path):
        self.zygote, self.folder = zygote, folder
        self.out = folder / "dial"
        self.log = folder / "log"
        self.whole: dict[str, bytes] = {}

    def start(self, **job: Any) -> int:
        self.log.unlink(missing_ok=True)
        named = {"out": str(self.out), "cache": str(self.folder / "cache"), "train": FAST}
        return self.zygote.start(log=str(self.log), **{**named, **job})

    def run(self, **job: Any) -> int:
        self.start(**job)
        return self.zygote.wait()

    def error(self) -> tuple[str, str]:
        said = json.loads(self.log.read_text())
        return said["error"], said["text"]

    @property
    def work(self) -> Path:
        return self.out.with_name(".dial.training")

    def check(self) -> None:
        """The run has ended with the same bytes, and nothing else is left."""
        assert files_of(self.out) == self.whole
        assert [p.name for p in self.folder.iterdir() if "dial" in p.name] == ["dial"]


@pytest.fixture(scope="module")
def whole(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of an uninterrupted run."""
    made = Runs(zygote, tmp_path_factory.mktemp("whole"))
    assert made.run() == 0, made.log.read_text()
    return files_of(made.out)


@pytest.fixture
def runs(zygote: Zygote, whole: dict[str, bytes], tmp_path: Path) -> Runs:
    """Runs in a folder of the test's own."""
    made = Runs(zygote, tmp_path)
    made.whole = whole
    return made


def until(what: Callable[[], Any], seconds: float = 30) -> bool:
    """Wait for something, looking all the time; False where it did not come."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if what():
                return True
        except FileNotFoundError:  # a folder that went while it was looked through
            pass
        time.sleep(0.0005)
    return False


def kill(pid: int) -> None:
    """Signal 9, where it is still there."""
    assert pid > 1
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


# ---- kill -9 ------------------------------------------------------------------------------------


def test_killed_twenty_times(runs: Runs) -> None:
    """At random moments of a run; where the run ended before them all, from the start again."""
    rng = random.Random(0)
    start = time.monotonic()
    assert runs.run() == 0
    length = time.monotonic() - start
    shutil.rmtree(runs.out)
    shutil.rmtree(runs.folder / "cache")  # the first kills may also meet the reading of it
    killed = ended = 0
    while killed < 20:
        pid = runs.start()
        time.sleep(rng.uniform(0, 0.8) * length)
        kill(pid)
        code = runs.zygote.wait()
        assert code in (0, -signal.SIGKILL), runs.error()
        if code == 0:
            runs.check()
            shutil.rmtree(runs.out)
            ended += 1
            assert ended < 20
        else:
            killed += 1
    assert runs.run() == 0
    runs.check()


def test_killed_while_a_checkpoint_is_written(runs: Runs) -> None:
    """With each file half on disk in turn; the half-written folder is never taken for a checkpoint."""
    files = ["dial.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"]
    for file in [*files, "optimizer.pt", "dial.safetensors"]:
        done = checkpoints(runs.work)
        step = 2 + (int(done[-1].name.rpartition("-")[2]) if done else 0)
        half = runs.work / ".writing" / f"checkpoint-{step}"
        pid = runs.start(slow=0.02)
        assert until((half / file).exists)
        kill(pid)
        assert runs.zygote.wait() == -signal.SIGKILL
        assert (half / file).exists()
        assert not (half / "trainer_state.json").exists()
        assert checkpoints(runs.work)[-1].name == f"checkpoint-{step - 1}"
    assert runs.run() == 0
    runs.check()


def test_killed_while_the_dial_is_saved(runs: Runs) -> None:
    """After the last step, between training and the finished folder."""
    rng = random.Random(2)
    for _ in range(3):
        pid = runs.start(slow_dial=0.1)
        assert until(lambda: any(runs.work.glob(".dial.*/**/*.safetensors")))
        time.sleep(rng.uniform(0, 0.15))
        kill(pid)
        assert runs.zygote.wait() == -signal.SIGKILL
        assert not runs.out.exists()
        assert checkpoints(runs.work)[-1].name == "checkpoint-12"
        for left in runs.work.glob(".dial.making"):
            shutil.rmtree(left)
    assert runs.run() == 0
    runs.check()


# ---- Ctrl-C -------------------------------------------------------------------------------------


def test_ctrl_c(runs: Runs) -> None:
    """The step is finished, a checkpoint written, KeyboardInterrupt raised; the same call goes on."""
    pid = runs.start(slow=0.02)
    assert until((runs.work / "checkpoint-3").is_dir)
    os.kill(pid, signal.SIGINT)
    assert runs.zygote.wait() == 130
    assert runs.error()[0] == "KeyboardInterrupt"
    assert checkpoints(runs.work)[-1].name in ("checkpoint-4", "checkpoint-5")
    assert not (runs.work / ".writing").exists()
    assert runs.run() == 0
    runs.check()


@pytest.mark.parametrize("at", [1, 5, 12])
def test_ctrl_c_at_a_step(
    at: int, tiny: Any, tokenizer: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """In the first, a middle and the last step; also the last is not lost, nor the Ctrl-C."""
    import trimtab.training.trainer as trainer
    from helpers_fit import random_pairs, recipe
    from trimtab.training import fit

    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    arguments: Any = (recipe(dropout=0.1, epochs=3.0), tiny("llama"), tokenizer, random_pairs(16))
    fit(*arguments, out=tmp_path / "whole")
    real = trainer.DialTrainer.compute_loss

    def press(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == at - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, *args, **kwargs)

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(trainer.DialTrainer, "compute_loss", press)
        with pytest.raises(KeyboardInterrupt):
            fit(*arguments, out=tmp_path / "dial")
    assert signal.getsignal(signal.SIGINT) is handler
    assert [p.name for p in checkpoints(tmp_path / ".dial.training")] == [f"checkpoint-{at}"]
    fit(*arguments, out=tmp_path / "dial")
    assert files_of(tmp_path / "dial") == files_of(tmp_path / "whole")


# ---- a full disk --------------------------------------------------------------------------------


def test_full_disk(runs: Runs) -> None:
    """No file may grow beyond what a checkpoint's optimizer needs: the run says so, keeps what is
    complete, and goes on once there is space."""
    assert runs.run(file_limit=20_000) == 1
    kind, text = runs.error()
    assert kind == "TrainingError"
    assert "cannot write a checkpoint" in text
    assert "Free some space" in text
    assert not runs.out.exists()
    assert not (runs.work / ".writing").exists()
    assert checkpoints(runs.work) == []
    assert runs.run() == 0
    runs.check()


def test_full_disk_at_the_reference(runs: Runs) -> None:
    """The store cannot be written: CacheError, and nothing of it is used later."""
    assert runs.run(file_limit=100) == 1
    assert runs.error()[0] in ("CacheError", "TrainingError")
    assert runs.run(file_limit=1500) == 1
    kind, text = runs.error()
    assert kind in ("CacheError", "TrainingError")
    assert "File too large" in text
    assert runs.run() == 0
    runs.check()


# ---- incomplete checkpoints ---------------------------------------------------------------------


@pytest.fixture
def stopped(runs: Runs) -> Runs:
    """A run that was killed with two or more checkpoints on disk."""
    pid = runs.start(slow=0.003)
    assert until(lambda: len(checkpoints(runs.work)) >= 2)
    kill(pid)
    runs.zygote.wait()
    shutil.rmtree(runs.work / ".writing", ignore_errors=True)
    assert len(checkpoints(runs.work)) >= 2
    return runs


@pytest.mark.parametrize(
    "gone",
    ["dial.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"],
)
def test_an_incomplete_checkpoint_is_passed_over(gone: str, stopped: Runs) -> None:
    """transformers would go on without optimizer or random state, silently, to other weights."""
    *_, older, newest = checkpoints(stopped.work)
    (newest / gone).unlink()
    assert checkpoints(stopped.work)[-1] == older
    assert stopped.run() == 0
    stopped.check()


def test_no_complete_checkpoint(stopped: Runs) -> None:
    """Then from the start."""
    for folder in checkpoints(stopped.work):
        (folder / "optimizer.pt").unlink()
    assert checkpoints(stopped.work) == []
    assert stopped.run() == 0
    stopped.check()


def test_what_looks_like_a_checkpoint(stopped: Runs) -> None:
    """Other names beside them do no harm, and numbers are compared as numbers."""
    (stopped.work / "checkpoint-12x").mkdir()
    (stopped.work / "checkpoint-").mkdir()
    (stopped.work / "checkpoint-99").mkdir()
    numbers = [int(p.name.removeprefix("checkpoint-")) for p in checkpoints(stopped.work)]
    assert numbers == sorted(numbers)
    assert 99 not in numbers
    assert stopped.run() == 0
    stopped.check()


def test_checkpoints_of_several_processes(tmp_path: Path) -> None:
    """Random states of each are wanted: two processes do not go on where one stopped."""
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    for name in ("dial.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"):
        (folder / name).touch()
    (folder / "rng_state.pth").touch()
    assert checkpoints(tmp_path) == [folder]
    assert checkpoints(tmp_path, 2) == []
    (folder / "rng_state_0.pth").touch()
    assert checkpoints(tmp_path, 2) == []
    (folder / "rng_state_1.pth").touch()
    assert checkpoints(tmp_path, 2) == [folder]
