"""One cell, anywhere: `python -m trimtab.studies.compare.worker FOLDER` runs the cell that FOLDER describes.

Without a folder it is a hand of `compare --jobs N`: it reads a job a line from standard input,
`{"folder": ..., "target": null}`, and answers with a line. With a `target` the finished cell is
measured again at the alpha of that KL. It ends when its input does, at once.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, TypedDict

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from trimtab.errors import CacheError, ConfigError, TrimtabError
from trimtab.progress import SILENT, Progress
from trimtab.studies.compare.cell import Cell, Setting, cell_at, read_job, setting_of
from trimtab.studies.compare.measure import Stage, run_cell, run_equal_kl
from trimtab.study.cells import Models

LOCK_SECONDS = 30.0
"""How long to wait for a process that still holds a cell: one that was killed lets go at once."""


class Reply(TypedDict):
    """How a job ended: what went wrong, or None; and whether it would go wrong for every cell."""

    error: str | None
    fatal: bool


class Stages:
    """The stage that was used last, and the model that was loaded last."""

    def __init__(self, progress: Progress = SILENT) -> None:
        self.progress = progress
        self.models = Models()
        self.last: tuple[Any, Stage] | None = None

    def of(self, setting: Setting) -> Stage:
        """The stage of a setting."""
        if self.last is None or self.last[0] is not setting:
            self.last = (setting, Stage(setting, self.progress, self.models))
        return self.last[1]

    def described(self, job: dict[str, Any]) -> Stage:
        """The stage of a job's setting; its pairs are read unless they were the last ones."""
        if self.last is None or self.last[0] != job["setting"]:
            self.last = (job["setting"], Stage(setting_of(job["setting"]), SILENT, self.models))
        return self.last[1]


def run_described(folder: Path, target: float | None, stages: Stages) -> Reply:
    """Run the cell that a folder describes."""

    def run() -> None:
        job = read_job(folder)
        stage = stages.described(job)
        _run(cell_at(folder, job, stage.setting), target, stage)

    return attempt(run, folder)


def run_here(cell: Cell, setting: Setting, target: float | None, stages: Stages) -> Reply:
    """Run a planned cell in this process."""
    return attempt(lambda: _run(cell, target, stages.of(setting)), cell.folder)


def _run(cell: Cell, target: float | None, stage: Stage) -> None:
    lock = cell.folder.with_name(f".{cell.folder.name}.lock")
    try:
        with FileLock(lock, timeout=LOCK_SECONDS):
            if target is None:
                run_cell(cell, stage)
            else:
                run_equal_kl(cell, stage, target)
    except Timeout:
        raise ConfigError(f"{cell.folder}: another process is at work on this cell") from None


def attempt(run: Any, folder: Path) -> Reply:
    """Run something and say how it ended; Ctrl-C goes through."""
    try:
        run()
    except TrimtabError as error:
        disk = isinstance(error.__cause__, OSError | SafetensorError | RuntimeError)
        return {"error": str(error), "fatal": disk or isinstance(error, CacheError)}
    except OSError as error:
        return {"error": f"{error.filename or folder}: {error.strerror or error}", "fatal": True}
    except Exception as error:
        file = folder / "error.txt"
        file.write_text(traceback.format_exc(), encoding="utf-8")
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return {"error": f"{said} (traceback in {file})", "fatal": False}
    return {"error": None, "fatal": False}


# ---- on a Ray cluster ----------------------------------------------------------------------------

_stages: list[Stages] = []


def on_ray(folder: str, target: float | None, cwd: str) -> Reply:
    """Run a cell in a process of Ray's, which keeps the model for the next one."""
    if not _stages:
        _stages.append(Stages())
    if Path(cwd).is_dir():
        os.chdir(cwd)  # specs may name files relative to where the comparison was started
    return run_described(Path(folder), target, _stages[0])


# ---- a process of its own ------------------------------------------------------------------------


def main(words: list[str]) -> int:
    """One cell by folder, or jobs from standard input."""
    if words:
        reply = run_described(Path(words[0]).resolve(), None, Stages(Progress()))
        if reply["error"]:
            print(f"error: {reply['error']}", file=sys.stderr)
        return 2 if reply["error"] else 0
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints is no answer
    jobs: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(jobs,), daemon=True).start()
    stages = Stages()
    while True:
        job = json.loads(jobs.get())
        answers.write(json.dumps(run_described(Path(job["folder"]), job["target"], stages)) + "\n")


def _listen(jobs: queue.Queue[str]) -> None:
    for line in sys.stdin:
        jobs.put(line)
    os._exit(0)  # whoever asked is gone; a cell may be stopped at any moment


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
