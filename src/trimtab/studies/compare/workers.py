"""Who runs the cells: this process, several processes, or a Ray cluster. All run the same cell from
the same description with the same number of threads, and leave the same bytes."""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.errors import ConfigError
from trimtab.models.files import trusts_code
from trimtab.progress import Progress
from trimtab.studies.compare.cell import Cell, Setting, write_job
from trimtab.studies.compare.worker import Reply, Stages, on_ray, run_here

GRACE_SECONDS = 120.0
"""How long after Ctrl-C a worker may take to end its training step and keep a checkpoint."""


@dataclass(frozen=True)
class Task:
    """A cell to run, or with a `target` a done one to measure at the alpha of that KL."""

    cell: Cell
    setting: Setting
    target: float | None = None

    @property
    def label(self) -> str:
        """For progress and errors."""
        at = "" if self.target is None else ", at equal KL"
        return f"{self.setting.data.suite.name}: {self.cell.label}{at}"


Replies = Generator[tuple[Task, Reply], None, None]
Runner = Callable[[Sequence[Task]], Replies]
"""Takes tasks, yields each with how it ended, in any order."""


def check(jobs: int, ray: bool) -> None:
    """Raise ConfigError where the workers that were asked for cannot be had."""
    if jobs < 1:
        raise ConfigError(f"jobs is {jobs}; expected 1 or more cells at once")
    if ray and jobs > 1:
        raise ConfigError("--jobs and --ray: give one of them; Ray runs as many cells as fit")
    if ray and not importlib.util.find_spec("ray"):
        raise ConfigError("--ray: Ray is not installed (pip install 'trimtab[cluster]')")


def runner(jobs: int, ray: bool, threads: int, progress: Progress) -> Runner:
    """The workers that were asked for."""
    if ray:
        return lambda tasks: on_cluster(tasks, threads, progress)
    if jobs > 1:
        return lambda tasks: in_processes(tasks, jobs, threads)
    stages = Stages(progress)
    return lambda tasks: in_turn(tasks, stages)


def in_turn(tasks: Sequence[Task], stages: Stages) -> Replies:
    """One after the other in this process."""
    for task in tasks:
        write_job(task.cell, task.setting)
        yield task, run_here(task.cell, task.setting, task.target, stages)


# ---- processes -----------------------------------------------------------------------------------


class Worker:
    """A process that runs one job at a time. It is in a session of its own, so that a terminal's
    Ctrl-C reaches the parent alone, which passes it on once."""

    def __init__(self, threads: int) -> None:
        self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115
        many = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "trimtab.studies.compare.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            text=True,
            start_new_session=True,
            env={**os.environ, **many},
        )

    def run(self, task: Task) -> Reply:
        """Have a task run; a process that ends without an answer has failed it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        line = ""
        try:
            job = {"folder": str(task.cell.folder), "target": task.target}
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except (BrokenPipeError, ValueError):
            pass  # it is gone, or was ended by us
        if line:
            return json.loads(line)
        code = self.process.wait()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        self.said.seek(0)
        last = (self.said.read().strip().splitlines() or [""])[-1]
        return {
            "error": f"its process ended with {how}{f': {last}' if last else ''}",
            "fatal": False,
        }

    def stop(self, number: int) -> None:
        """Send the process a signal."""
        if self.process.poll() is None:
            self.process.send_signal(number)


def in_processes(tasks: Sequence[Task], jobs: int, threads: int) -> Replies:
    """Several at once, each in a process that is started once and kept."""
    waiting: queue.Queue[Task] = queue.Queue()
    ended: queue.Queue[tuple[Task, Reply]] = queue.Queue()
    for task in tasks:
        write_job(task.cell, task.setting)
        waiting.put(task)
    workers: dict[int, Worker] = {}
    stopping = threading.Event()

    def serve(number: int) -> None:
        while not stopping.is_set():
            try:
                task = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                if number not in workers or workers[number].process.poll() is not None:
                    workers[number] = Worker(threads)
                reply = workers[number].run(task)
            except (OSError, ValueError) as error:  # no process to be had, or half an answer
                reply = Reply(error=f"its process: {error}", fatal=False)
            ended.put((task, reply))

    hands = [
        threading.Thread(target=serve, args=(n,), daemon=True) for n in range(min(jobs, len(tasks)))
    ]
    try:
        for hand in hands:
            hand.start()
        for _ in tasks:
            yield ended.get()
    except BaseException:
        stopping.set()
        for worker in workers.values():
            worker.stop(signal.SIGINT)
        _wait(list(workers.values()))
        raise
    finally:
        stopping.set()
        for worker in workers.values():
            worker.stop(signal.SIGKILL)  # those that are idle, or would not end


def _wait(workers: list[Worker]) -> None:
    """Until all have ended; a second Ctrl-C does not wait."""
    until = time.monotonic() + GRACE_SECONDS
    for worker in workers:
        try:
            worker.process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            return


# ---- Ray -----------------------------------------------------------------------------------------


def on_cluster(tasks: Sequence[Task], threads: int, progress: Progress) -> Replies:
    """Spread over a Ray cluster: the one at RAY_ADDRESS, or one on this machine. Ray is told that a
    cell takes `threads` CPUs, and a GPU where it runs on one. Every node has to see `--out`, the
    data and the model under the same paths."""
    ray: Any = importlib.import_module("ray")
    if not tasks:
        return
    own = not ray.is_initialized()
    if own:
        ray.init(log_to_driver=False, logging_level="error", include_dashboard=False)
    try:
        there = ray.cluster_resources()
        if there.get("CPU", 0) < threads:
            raise ConfigError(
                f"--threads {threads}: the Ray cluster has {there.get('CPU', 0):g} CPUs in all"
            )
        progress.say(
            f"Ray: {there.get('CPU', 0):g} CPUs, {there.get('GPU', 0):g} GPUs on "
            f"{sum(node['Alive'] for node in ray.nodes())} nodes"
        )
        gpus = 0 if tasks[0].setting.device.startswith("cpu") else 1
        how: dict[str, Any] = {"num_cpus": threads, "num_gpus": gpus, "max_retries": 0}
        if trusts_code():  # a node's processes do not inherit what was set here
            how["runtime_env"] = {"env_vars": {"TRIMTAB_TRUST_REMOTE_CODE": "1"}}
        remote = ray.remote(**how)(on_ray)
        running: dict[Any, Task] = {}
        for task in tasks:
            write_job(task.cell, task.setting)
            running[remote.remote(str(task.cell.folder), task.target, str(Path.cwd()))] = task
        try:
            while running:
                done, _ = ray.wait(list(running), num_returns=1)
                yield running.pop(done[0]), _reply(ray, done[0])
        except BaseException:
            for reference in running:
                ray.cancel(reference)  # as Ctrl-C in the process that runs it
            if running:
                ray.wait(list(running), num_returns=len(running), timeout=GRACE_SECONDS)
            raise
    finally:
        if own:
            ray.shutdown()


def _reply(ray: Any, reference: Any) -> Reply:
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return {"error": f"its Ray process ended: {first}", "fatal": False}
