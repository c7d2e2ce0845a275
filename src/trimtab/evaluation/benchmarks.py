"""Tasks of lm-evaluation-harness, ours, and local files, found and loaded."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

from trimtab.errors import ConfigError, near

ReadOut = Literal["logprob", "reward", "sum"]
"""What ranks the choices of a task."""

TASKS = Path(__file__).parent / "tasks"
"""Tasks that the harness lacks."""
SHORT = {"glue": ("cola", "mnli", "mnli_mismatch", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb")}
"""Names for several tasks at once: GLUE as it was, STS-B included, WNLI left out."""


def require() -> None:
    """Raise ConfigError where the harness is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(
            "bench-tasks: install lm-evaluation-harness (pip install 'trimtab[eval]')"
        )


def check_tasks(names: Sequence[Any], root: str | None = None) -> list[Any]:
    """Tasks by the harness's names, ours, `choices:NAME/SPLIT` for local files, or a task's own YAML
    file; what is no text (a task's configuration, a task) stays as it is.

    Raises:
        ConfigError: unknown names, with near ones; a local file that is not there.
    """
    require()
    found: list[Any] = []
    parts = (SHORT.get(n, (n,)) if isinstance(n, str) else (n,) for n in names)
    for name in (n for part in parts for n in part):
        if not isinstance(name, str):
            found.append(name)
        elif name.startswith("choices:"):
            found.append(_local(name, root))
        elif name.endswith((".yaml", ".yml")):
            if not Path(name).is_file():
                raise ConfigError(f"task {name}: no such file")
            found.append(name)
        elif name in _manager(True).all_tasks:
            found.append(name)
        else:
            known = [*_manager(True).all_subtasks, *SHORT]
            raise ConfigError(
                f"unknown task {name!r}{near(name, known)} (also: choices:FILE, a task's .yaml)"
            )
    if not found:
        raise ConfigError("bench-tasks: no tasks")
    return found


def load_tasks(tasks: Sequence[Any], read_out: ReadOut = "logprob") -> dict[str, dict[str, Any]]:
    """The tasks of `check_tasks` with their data: the harness's `tasks`, `groups`, `group_map`.

    Raises:
        ConfigError: one that cannot be loaded (its data are not to be had, its file is wrong), needs
            more than text, runs code of the model's, or does not rank choices where a reward does.
    """
    found: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}, "group_map": {}}
    for task in tasks:
        try:
            loaded = _manager(_named(tasks)).load([task])
        except Exception as error:  # whatever a task's own file, code or download raises
            name = task.get("task") if isinstance(task, dict) else task
            reason = str(error).strip().partition("\n")[0]
            raise ConfigError(
                f"task {name}: cannot be loaded ({type(error).__name__}: {reason})"
            ) from error
        for leaf in loaded["tasks"].values():
            _refuse(leaf, read_out)
        for part, members in found.items():
            members.update(loaded.get(part) or {})
    return found


class Loader:
    """What the harness asks for its tasks."""

    def __init__(self, tasks: Sequence[Any], read_out: ReadOut):
        self.read_out: ReadOut = read_out
        self.task_index = _manager(_named(tasks)).task_index

    def load(self, tasks: Sequence[Any]) -> dict[str, dict[str, Any]]:
        return load_tasks(tasks, self.read_out)


def _named(tasks: Sequence[Any]) -> bool:
    """Whether some of them are to be found by name, among more than ten thousand files."""
    return any(isinstance(t, str) and not t.endswith((".yaml", ".yml")) for t in tasks)


@cache
def _manager(named: bool) -> Any:
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    with hushed("lm_eval.tasks._index"):  # that `stsb` is ours
        return TaskManager(include_path=str(TASKS), include_defaults=named)


def _refuse(task: Any, read_out: ReadOut) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise ConfigError(f"task {task.task_name} runs code that the model writes: not supported")
    if getattr(task, "MULTIMODAL", False):
        raise ConfigError(f"task {task.task_name} needs images or sound: not supported")
    if read_out != "logprob" and task.OUTPUT_TYPE != "multiple_choice":
        raise ConfigError(
            f"task {task.task_name} is of type {task.OUTPUT_TYPE}; a reward ranks the choices of "
            "multiple_choice alone"
        )


def _local(name: str, root: str | None) -> dict[str, Any]:
    """A task of a file with `question`, `choices` and `label` a line. Examples come from the split
    `train` beside it, or else from the file's other lines."""
    where = name.removeprefix("choices:")
    task, _, split = where.rpartition("/")
    named = root or os.environ.get("TRIMTAB_DATA")
    folder = Path(named) if named else None

    def files(split: str) -> list[Path]:
        if folder is None or not task:
            return []
        return [folder / "choices" / f"{task}.{split}.jsonl{gz}" for gz in (".gz", "")]

    tried = [Path(where), *files(split)]
    file = next((f for f in tried if f.is_file()), None)
    if file is None:
        raise ConfigError(f"{name}: no such file (looked for {', '.join(map(str, tried))})")
    examples = next((f for f in files("train") if f.is_file() and file != tried[0]), file)
    data = {"test": str(file.absolute())}
    if examples != file:
        data["train"] = str(examples.absolute())
    return {
        "task": file.stem if file == tried[0] else name.replace("/", "_").replace(":", "_"),
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": data},
        "output_type": "multiple_choice",
        "test_split": "test",
        "fewshot_split": "train" if examples != file else "test",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "label",
        "doc_to_choice": "choices",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }


@contextmanager
def hushed(name: str) -> Iterator[None]:
    """A logger silent but for errors."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
