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
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

from trimtab import models
from trimtab.errors import ConfigError, StudyError
from trimtab.models.files import trusts_code
from trimtab.progress import Progress
from trimtab.study.cells import Cell, Host
from trimtab.study.worker import Reply, attempt, on_ray

GRACE_SECONDS = 120.0
"""How long after Ctrl-C a worker may take to end its training step and keep a checkpoint."""


Replies = Generator[tuple[Cell, Reply], None, None]


def check(jobs: int, ray: bool) -> None:
    """Raise ConfigError where the workers that were asked for cannot be had."""
    if jobs < 1:
        raise ConfigError(f"jobs is {jobs}; expected 1 or more cells at once")
    if ray and jobs > 1:
        raise ConfigError("--jobs and --ray: give one of them; Ray runs as many cells as fit")
    if ray and not importlib.util.find_spec("ray"):
        raise ConfigError("--ray: Ray is not installed (pip install 'trimtab[cluster]')")


def work(
    name: str,
    waves: Iterable[Sequence[Cell]],
    host: Host,
    *,
    jobs: int = 1,
    ray: bool = False,
    threads: int = 1,
) -> None:
    """Run every cell that is not done. A cell that fails is reported at the end; the others are run all the
    same.

    Args:
        name: of the study, for progress.
        waves: cells that need no other of their wave, only those before; each wave is asked for when the
            one before has ended.
        host: runs the cells where they run in this process, and has the progress.
        jobs: cells at once, each in a process of its own.
        ray: spread the cells over a Ray cluster. All three ways leave the same bytes.
        threads: of a cell.

    Raises:
        StudyError: cells failed, or one met what all others would meet, too; the text says which and why.
        ConfigError: workers that cannot be had.
    """
    check(jobs, ray)
    failed: dict[str, str] = {}
    count, progress = 0, host.progress
    for wave in waves:
        cells = list({cell.result: cell for cell in wave}.values())
        todo = [cell for cell in cells if not cell.done]
        if cells:
            done = len(cells) - len(todo)
            progress.say(f"{name}: {len(cells)} cells, {done} of them done already")
        count += len(cells)
        if ray:
            run = on_cluster(todo, threads, progress)
        else:
            run = in_processes(todo, jobs, threads) if jobs > 1 else in_turn(todo, host)
        with closing(run) as replies:  # whatever stops us stops the workers, too
            for number, (cell, reply) in enumerate(replies, start=1):
                if reply["error"] is None:
                    if len(todo) > 1:
                        progress.say(f"{cell.label}: {number} of {len(todo)}")
                    continue
                if reply["fatal"]:
                    raise StudyError(reply["error"])
                failed[cell.label] = reply["error"]
                progress.say(f"{cell.label}: failed: {reply['error']}")
    if failed:
        many = "1 cell" if len(failed) == 1 else f"{len(failed)} cells"
        said = "; ".join(f"{label}: {error}" for label, error in failed.items())
        raise StudyError(
            f"{many} of {count} failed; the others are kept, and the same command tries "
            f"{'it' if len(failed) == 1 else 'them'} again: {said}"
        )


def in_turn(cells: Sequence[Cell], host: Host) -> Replies:
    """One after the other in this process."""
    for cell in cells:
        cell.write()
        yield cell, attempt(partial(host.run, cell), cell.folder)


# ---- processes -----------------------------------------------------------------------------------


class Worker:
    """A process that runs one job at a time. It is in a session of its own, so that a terminal's
    Ctrl-C reaches the parent alone, which passes it on once."""

    def __init__(self, threads: int) -> None:
        self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115
        many = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "trimtab.study.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            text=True,
            start_new_session=True,
            env={**os.environ, **many},
        )

    def run(self, cell: Cell) -> Reply:
        """Have a cell run; a process that ends without an answer has failed it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        line = ""
        try:
            self.process.stdin.write(json.dumps(str(cell.folder / cell.job)) + "\n")
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
        said = f"its process ended with {how}{f': {last}' if last else ''}"
        return Reply(error=said, fatal=False)

    def stop(self, number: int) -> None:
        """Send the process a signal."""
        if self.process.poll() is None:
            self.process.send_signal(number)


def in_processes(cells: Sequence[Cell], jobs: int, threads: int) -> Replies:
    """Several at once, each in a process that is started once and kept."""
    waiting: queue.Queue[Cell] = queue.Queue()
    ended: queue.Queue[tuple[Cell, Reply]] = queue.Queue()
    for cell in cells:
        cell.write()
        waiting.put(cell)
    workers: dict[int, Worker] = {}
    stopping = threading.Event()

    def serve(number: int) -> None:
        while not stopping.is_set():
            try:
                cell = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                if number not in workers or workers[number].process.poll() is not None:
                    workers[number] = Worker(threads)
                reply = workers[number].run(cell)
            except (OSError, ValueError) as error:  # no process to be had, or half an answer
                reply = Reply(error=f"its process: {error}", fatal=False)
            ended.put((cell, reply))

    hands = [
        threading.Thread(target=serve, args=(n,), daemon=True) for n in range(min(jobs, len(cells)))
    ]
    try:
        for hand in hands:
            hand.start()
        for _ in cells:
            yield ended.get()
    except BaseException:
        stopping.set()
        for worker in workers.values():
            worker.stop(signal.SIGINT)
        until = time.monotonic() + GRACE_SECONDS
        for worker in workers.values():  # a second Ctrl-C does not wait
            with suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.1, until - time.monotonic()))
        raise
    finally:
        stopping.set()
        for worker in workers.values():
            worker.stop(signal.SIGKILL)  # those that are idle, or would not end


# ---- Ray -----------------------------------------------------------------------------------------


def on_cluster(cells: Sequence[Cell], threads: int, progress: Progress) -> Replies:
    """Spread over a Ray cluster: the one at RAY_ADDRESS, or one on this machine. Ray is told that a
    cell takes `threads` CPUs, and a GPU where it runs on one. Every node has to see `--out`, the
    data and the model under the same paths."""
    ray: Any = importlib.import_module("ray")
    if not cells:
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
        gpus = 0 if models.resolve_device(cells[0].setting.device).type == "cpu" else 1
        how: dict[str, Any] = {"num_cpus": threads, "num_gpus": gpus, "max_retries": 0}
        if trusts_code():  # a node's processes do not inherit what was set here
            how["runtime_env"] = {"env_vars": {"TRIMTAB_TRUST_REMOTE_CODE": "1"}}
        remote = ray.remote(**how)(on_ray)
        running: dict[Any, Cell] = {}
        for cell in cells:
            cell.write()
            running[remote.remote(str(cell.folder / cell.job), str(Path.cwd()))] = cell
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
        return Reply(error=f"its Ray process ended: {first}", fatal=False)
