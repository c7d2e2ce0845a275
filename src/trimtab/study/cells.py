"""Cells: pieces of a study's work, each in a folder of its own, run by whoever sees the folder.

A cell is a method of a stage, called with JSON values. The stage is what all cells of one setting share
(pairs, the loaded model), made of the setting, the study's folder and a `Host`; its `read` makes the setting
again of JSON values, its `common` is what all their figures depend on. The cell's folder is named by a
digest of everything that it depends on, so that a finished cell is never run twice and an unfinished one
goes on where it was stopped. `job.json` in the folder says what is to be done
(`python -m trimtab.study.worker FOLDER`).
"""

from __future__ import annotations

import dataclasses
import json
import time
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from trimtab import models
from trimtab.errors import ConfigError, StudyError
from trimtab.files import write_json
from trimtab.foreign import parse_json
from trimtab.progress import SILENT, Progress
from trimtab.provenance import digest, versions
from trimtab.rendering import Rendering
from trimtab.study.made import VERSIONS

JOB, RESULT, PLAN = "job.json", "cell.json", "plan/plan.json"
ERROR = "error.txt"
LOCK_SECONDS = 30.0
"""How long to wait for a process that still holds a cell: one that was killed lets go at once."""


@dataclass(frozen=True)
class Cell:
    """One piece of work."""

    out: Path
    """The study's folder."""
    folder: Path
    """The cell's own, two below."""
    run: str
    """`module:Stage.method`. The method takes the folder and `own`; what it returns is kept in `result`,
    unless it returns None, having written that itself."""
    setting: Any
    """What the stage is made of: a dataclass with `device` and `threads`."""
    own: Mapping[str, Any]
    """Arguments of the method, as JSON values."""
    label: str
    """For progress and errors."""
    common: str
    """Digest of the stage's `common` as it was planned."""
    result: Path
    """Written last, all or nothing."""
    job: str = JOB
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """What its figures depend on, as JSON values: `common` and its own."""

    @property
    def done(self) -> bool:
        """Whether it has been run."""
        return self.result.is_file()

    def read(self) -> Any:
        """What a finished cell has found. Raises StudyError where its file is damaged."""
        try:
            return parse_json(self.result.read_bytes())["found"]
        except (ValueError, KeyError, TypeError) as error:
            raise StudyError(
                f"{self.result}: damaged ({error}); delete it to have the cell run again"
            ) from error

    def write(self) -> None:
        """Say in the cell's folder what is to be done there."""
        values = {"run": self.run, "setting": values_of(self.setting), "own": dict(self.own)}
        values |= {"label": self.label, "common": self.common, "out": "../.."}
        values["result"] = str(self.result.relative_to(self.out))
        write_json(self.folder / self.job, values)


def read_cell(file: Path) -> Cell:
    """The cell of a job's file.

    Raises:
        ConfigError: there is none, or this machine does not see the folder.
    """
    try:
        values = parse_json(file.read_bytes())
        kind = _stage(values["run"])
        setting = kind.read(values["setting"])
        rest = {k: values[k] for k in ("run", "own", "label", "common")}
        result = file.parent.parent.parent / values["result"]
    except OSError as error:
        raise ConfigError(
            f"{file}: cannot be read ({error.strerror}); cells run where the --out of the study can be "
            "seen under the same path"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise ConfigError(f"{file}: damaged ({error})") from error
    out = file.parent.parent.parent
    return Cell(out, file.parent, setting=setting, result=result, job=file.name, **rest)


def _key(kind: Any, setting: Any, out: Path) -> Any:
    return kind, json.dumps(values_of(setting)), out


def _stage(run: str) -> Any:
    module, _, name = run.partition(":")
    return getattr(import_module(module), name.partition(".")[0])


@dataclass
class Host:
    """Who runs cells, one after the other: keeps the model and the stage that were used last."""

    progress: Progress = SILENT
    last: tuple[Any, Any] | None = None
    loaded: tuple[Any, tuple[Any, Any]] | None = None
    """Other suites on the last model need not load it again."""

    def stage(self, cell: Cell) -> Any:
        """The stage of a cell: the last one, where it is that."""
        kind = _stage(cell.run)
        key = _key(kind, cell.setting, cell.out)
        if self.last is None or self.last[0] != key:
            self.last = (key, kind(cell.setting, cell.out, self))
        return self.last[1]

    def keep(self, stage: Any) -> None:
        """Have a stage that is there already be the last one."""
        self.last = (_key(type(stage), stage.settings, stage.out), stage)

    def load(self, setting: Any) -> tuple[Any, Any]:
        """Model and tokenizer that a setting names, and progress said of it."""
        self.progress.say(f"loading {setting.model}")
        name, how = setting.model, {"dtype": setting.dtype, "device": setting.device}
        if self.loaded is None or self.loaded[0] != (name, how):
            self.loaded = None  # two models may not fit in memory
            self.loaded = (name, how), models.load(name, **how)
        return self.loaded[1]

    def run(self, cell: Cell) -> None:
        """Run a cell that is not done.

        Raises:
            ConfigError: another process is at it, or the data here are not those that were planned with.
        """
        lock = cell.folder.with_name(f".{cell.folder.name}.lock")
        try:
            with FileLock(lock, timeout=LOCK_SECONDS):
                if not cell.done:
                    self._run(cell)
        except Timeout:
            raise ConfigError(f"{cell.folder}: another process is at work on this cell") from None

    def _run(self, cell: Cell) -> None:
        stage = self.stage(cell)
        if digest(stage.common) != cell.common:
            raise ConfigError(
                f"{cell.folder}: planned with other data, or by another version of trimtab, than are here"
            )
        start = time.process_time()
        with threads(cell.setting.threads):
            found = getattr(stage, cell.run.rpartition(".")[2])(cell.folder, **cell.own)
        if found is not None:
            took = {"seconds": time.process_time() - start, VERSIONS: versions()}
            write_json(cell.result, {"found": found, **took})
        (cell.folder / ERROR).unlink(missing_ok=True)  # of an earlier try


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads of torch for as long as it lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ---- settings as JSON, for workers --------------------------------------------------------------


def values_of(setting: Any) -> dict[str, Any]:
    """A setting as JSON values: its own `as_json`, or its fields."""
    if hasattr(setting, "as_json"):
        return setting.as_json()
    return json.loads(json.dumps(plain(setting)))


def plain(value: Any) -> Any:
    if isinstance(value, Rendering):
        return value.record()
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return value


def setting_of(kind: Any, values: Mapping[str, Any]) -> Any:
    """The dataclass whose fields `values_of` gave."""
    made: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    for name, hint in typing.get_type_hints(kind).items():
        if name in made and dataclasses.is_dataclass(hint):
            made[name] = setting_of(hint, made[name])
    return kind(**made)
