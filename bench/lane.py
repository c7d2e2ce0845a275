"""A lane: one measured side in a process of its own, which does a unit of work when it is told to.

The parent starts a lane a side, lets each set itself up and warm up, then tells them in turn to go
on; the other waits without using the processor. A lane talks to its parent in JSON lines on the
descriptors that standard input and output had when it started.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "bench" / "out"


class LaneError(Exception):
    """A lane ended before its work was done."""


class Lane:
    """The parent's end of a lane."""

    def __init__(self, module: str, spec: dict[str, Any], python: str | None = None):
        """
        Args:
            module: what to run, `bench.ours` or a script's path.
            spec: what it gets as its one argument, as JSON.
            python: the interpreter, by default this one.
        """
        self.name = f"{module} {spec.get('name', '')}".strip()
        OUT.mkdir(parents=True, exist_ok=True)
        self.log = OUT / (re.sub(r"[^\w.-]+", "-", self.name) + ".log")
        target = [module] if module.endswith(".py") else ["-m", module]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [python or sys.executable, *target, json.dumps(spec)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
                env=os.environ | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"},
            )

    def __enter__(self) -> Lane:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def hear(self) -> dict[str, Any]:
        """The next message. Raises LaneError with the end of the log when there is none."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-25:])
            raise LaneError(f"{self.name} ended (code {self.process.wait()}):\n{tail}")
        return json.loads(line)

    def go(self) -> dict[str, Any]:
        """Let it do one unit of work; what it reports of it, with `seconds`, and `foreign`: the
        cores' worth of time that went to other processes meanwhile."""
        assert self.process.stdin
        start, busy, own = time.perf_counter(), busy_seconds(), self._own_seconds()
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        found = self.hear()
        others = (busy_seconds() - busy) - (self._own_seconds() - own)
        return found | {"foreign": max(0.0, others / (time.perf_counter() - start))}

    def _own_seconds(self) -> float:
        """Processor time of the lane so far."""
        try:
            text = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(text[11]) + int(text[12])) / os.sysconf("SC_CLK_TCK")


class Channel:
    """The lane's end. Whatever else prints to standard output goes to standard error."""

    def __init__(self) -> None:
        self.out: TextIO = os.fdopen(os.dup(1), "w")
        self.into: TextIO = os.fdopen(os.dup(0), "r")
        os.dup2(2, 1)

    def say(self, **message: Any) -> None:
        """Send a message."""
        self.out.write(json.dumps(message) + "\n")
        self.out.flush()

    def wait(self) -> bool:
        """Wait for the word to go on; False when the parent has gone."""
        return bool(self.into.readline())

    def serve(self, work: Callable[[], dict[str, Any] | None], ready: dict[str, Any]) -> None:
        """Say what was found in setting up, then work once each time that the parent says so."""
        self.say(**ready)
        while self.wait():
            start = time.perf_counter()
            found = work()
            self.say(seconds=time.perf_counter() - start, **(found or {}))


def usable_cores() -> set[int]:
    """The cores that this process, and the lanes it starts, may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def busy_seconds() -> float:
    """Processor time that those cores have spent on anything, stolen time included."""
    names, busy = {f"cpu{n}" for n in usable_cores()}, 0
    try:
        for line in Path("/proc/stat").read_text().splitlines():
            name, *rest = line.split()
            if name in names:
                values = list(map(int, rest[:8]))
                busy += sum(values) - values[3] - values[4]
    except OSError:
        return 0.0
    return busy / os.sysconf("SC_CLK_TCK")


def reset_peak() -> None:
    """Start the process's peak resident memory anew (Linux)."""
    with contextlib.suppress(OSError):  # elsewhere the peak counts from the process's start
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Peak resident memory of this process, in bytes."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert found
        return int(found[1]) * 1024
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
