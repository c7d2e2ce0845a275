"""Cells, anywhere: `python -m trimtab.study.worker FOLDER` runs the cell that FOLDER describes.

Without a folder it is a hand of `--jobs N`: it reads the path of a job a line from standard input and
answers with a line. It ends when its input does, at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

from safetensors import SafetensorError

from trimtab.errors import CacheError, TrimtabError
from trimtab.progress import Progress
from trimtab.study.cells import ERROR, JOB, Host, read_cell


class Reply(TypedDict):
    """How a cell ended: what went wrong, or None; and whether it would go wrong for every cell."""

    error: str | None
    fatal: bool


def run_described(file: Path, host: Host) -> Reply:
    """Run the cell that a job's file, or a folder with one, describes."""
    job = file / JOB if file.is_dir() else file
    return attempt(lambda: host.run(read_cell(job)), job.parent)


def attempt(run: Callable[[], Any], folder: Path) -> Reply:
    """Run something and say how it ended; Ctrl-C goes through."""
    try:
        run()
    except TrimtabError as error:
        disk = isinstance(error.__cause__, OSError | SafetensorError | RuntimeError)
        return Reply(error=str(error), fatal=disk or isinstance(error, CacheError))
    except OSError as error:
        return Reply(error=f"{error.filename or folder}: {error.strerror or error}", fatal=True)
    except Exception as error:
        file = folder / ERROR
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            file.write_text(traceback.format_exc(), encoding="utf-8")
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return Reply(error=f"{said} (traceback in {file})", fatal=False)
    return Reply(error=None, fatal=False)


# ---- on a Ray cluster ----------------------------------------------------------------------------

_hosts: list[Host] = []


def on_ray(job: str, cwd: str) -> Reply:
    """Run a cell in a process of Ray's, which keeps the model for the next one."""
    if not _hosts:
        _hosts.append(Host())
    if Path(cwd).is_dir():
        os.chdir(cwd)  # specs may name files relative to where the study was started
    return run_described(Path(job), _hosts[0])


# ---- a process of its own ------------------------------------------------------------------------


def main(words: list[str]) -> int:
    """One cell by folder, or jobs from standard input."""
    if words:
        reply = run_described(Path(words[0]).resolve(), Host(Progress()))
        if reply["error"]:
            print(f"error: {reply['error']}", file=sys.stderr)
        return 2 if reply["error"] else 0
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints is no answer
    jobs: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(jobs,), daemon=True).start()
    host = Host()
    while True:
        answers.write(json.dumps(run_described(Path(json.loads(jobs.get())), host)) + "\n")


def _listen(jobs: queue.Queue[str]) -> None:
    for line in sys.stdin:
        jobs.put(line)
    os._exit(0)  # whoever asked is gone; a cell may be stopped at any moment


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
