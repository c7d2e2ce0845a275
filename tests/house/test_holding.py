"""One writer a place: who has it is said, and a writer that was killed has nothing."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from trimtab.errors import BusyError
from trimtab.holding import held, holding

SOURCE = Path(__file__).resolve().parents[2] / "src"
HOLD = """
import sys, time
sys.argv = ["trimtab", "fit", "dpo"]
from trimtab.holding import held
with held(sys.stdin.readline().strip()):
    print("held", flush=True)
    time.sleep(60)
"""
COUNT = """
import sys, time
from pathlib import Path
from trimtab.errors import BusyError
from trimtab.holding import held
place, times = Path(sys.argv[1]), int(sys.argv[2])
while times:
    try:
        with held(place):
            n = int(place.read_text()) if place.exists() else 0
            time.sleep(0.001)
            place.write_text(str(n + 1))
        times -= 1
    except BusyError:
        time.sleep(0.001)
"""


def _python(code, *words, **how):
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    return subprocess.Popen([sys.executable, "-c", code, *words], env=environment, **how)


@pytest.fixture
def other(tmp_path):
    """Another process that holds `out`."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = _python(HOLD, **pipes)
    assert process.stdin
    assert process.stdout
    process.stdin.write(f"{tmp_path / 'out'}\n")
    process.stdin.flush()
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_the_owner_is_named(other, tmp_path):
    with pytest.raises(BusyError) as told, held(tmp_path / "out"):
        raise AssertionError
    assert f"process {other.pid} on " in str(told.value)
    assert "(trimtab fit dpo), since 20" in str(told.value)
    with held(tmp_path / "another"):
        pass


def test_a_link_to_a_place_is_that_place(other, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("out")
    with pytest.raises(BusyError), held(tmp_path / "link"):
        raise AssertionError


@pytest.mark.parametrize("stopped", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_owner_has_nothing(other, tmp_path, stopped):
    other.send_signal(stopped)
    other.wait()
    with held(tmp_path / "out"):
        assert str(os.getpid()) in (tmp_path / ".out.lock").read_text()
    assert not list(tmp_path.iterdir()), "what the dead owner left is cleared away"


def test_a_full_disk_holds_without_a_name(tmp_path, monkeypatch):
    """The lock needs no room; that its owner cannot be written is no reason to try for ever."""

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.write", full)
    with held(tmp_path / "out"):
        assert (tmp_path / ".out.lock").read_text() == ""
    assert not list(tmp_path.iterdir())


def test_within_itself_and_not_beside_itself(tmp_path):
    said = []

    def beside():
        try:
            with held(tmp_path / "out"):
                said.append("held")
        except BusyError as error:
            said.append(str(error))

    with held(tmp_path / "out"), held(tmp_path / "out"):
        thread = threading.Thread(target=beside)
        thread.start()
        thread.join()
    beside()
    assert "another thread" in said[0]
    assert said[1] == "held"
    assert not list(tmp_path.iterdir())


def test_an_argument_is_held(tmp_path, monkeypatch):
    @holding("out")
    def write(text, *, out=None):
        return list(tmp_path.iterdir())

    assert [f.name for f in write("x", out=tmp_path / "out")] == [".out.lock"]
    assert write("x") == []
    monkeypatch.setenv("RANK", "1")
    assert write("x", out=tmp_path / "out") == [], "the main process of several holds it"


def test_four_processes_lose_no_turn(tmp_path):
    began = time.monotonic()
    all_of_them = [_python(COUNT, str(tmp_path / "n"), "40") for _ in range(4)]
    assert [p.wait(timeout=100) for p in all_of_them] == [0] * 4
    assert (tmp_path / "n").read_text() == "160", f"{time.monotonic() - began:.0f} s"
    assert [f.name for f in tmp_path.iterdir()] == ["n"]
