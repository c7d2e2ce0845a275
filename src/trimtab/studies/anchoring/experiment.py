"""An experiment in its folder: its cells, and the files that gates and pages read.

    result.json         what tables, gates and boxes need, at six digits
    curves.json         what is drawn over steps and nothing else
    arrays.safetensors  other drawings' arrays; git keeps neither of the two
    costs.json          seconds: what differs from run to run

Beside them lie the files of every study, with the metrics a line each.
"""

from __future__ import annotations

import json
import math
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors

from trimtab.bounds import Bounded, Count
from trimtab.errors import ConfigError
from trimtab.files import aside, write_text
from trimtab.foreign import parse_json
from trimtab.provenance import commit, versions
from trimtab.studies.anchoring.registry import entry
from trimtab.study import results
from trimtab.study.cells import Cell, Host
from trimtab.study.forecast import Load
from trimtab.study.made import VERSIONS, made_with
from trimtab.study.records import read_json
from trimtab.study.study import Study

RESULT, CURVES, ARRAYS = "result.json", "curves.json", "arrays.safetensors"
MODELS = "models.safetensors"
DRAWN = ("schedule", "losses", "frames", "cosines")
"""What of a result is drawn and nothing else: the timeline, losses and terms over training, …"""
LEAST = 20
"""Steps of the shortest run."""


@dataclass(frozen=True)
class Settings(Bounded):
    """Which experiments are run, and on how many seeds."""

    experiments: tuple[str, ...] = ()
    """Experiments (see `trimtab anchor list`); none: all whose data are there."""
    seeds: Count | None = None
    """How many seeds; each experiment has its own default."""
    steps: Count | None = None
    """A shorter run with the same sheets, to see that all runs; it proves nothing."""
    data_root: str | None = None
    """Folder of local data, for `natural` (default: TRIMTAB_DATA)."""
    device: Literal["cpu"] = "cpu"
    """Models this small are trained on a CPU."""
    threads: Count = 1
    """CPU threads; models this small lose more to waiting for several than they gain."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.experiments:
            entry(name)
        if self.steps is not None and self.steps < LEAST:
            raise ConfigError(f"--steps {self.steps}: expected at least {LEAST}")


class Experiment(Study[Settings]):
    """One experiment. Kinds of them say what their cells are and what becomes of these (`gathered`)."""

    name, title, Settings = "anchoring", "Anchoring", Settings
    marks = ("cells", RESULT, CURVES, ARRAYS)
    disk: ClassVar[float] = 1e6
    """Bytes of a cell's files, about."""

    def __init__(self, settings: Settings, out: Path, host: Host) -> None:
        super().__init__(settings, out, host)
        self.entry = entry(settings.experiments[0])
        self.what = self.entry.name
        self.steps = settings.steps if self.entry.seeds else None
        self.paces: dict[Any, float] = {}
        count = self.entry.seeds if settings.seeds is None else settings.seeds
        self.seeds = range(count if self.entry.seeds else 0)
        self.common = {"experiment": self.entry.name, "settings": self.entry.settings}
        self.common["steps"] = self.steps

    def gathered(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What all cells have found, and arrays for figures."""
        raise NotImplementedError

    def measured(self, found: Mapping[str, Any]) -> Mapping[str, Mapping[str, Sequence[float]]]:
        """A value a seed, by arm and metric."""
        return {"main": found["metrics"]}

    def write(self, command: str, title: str) -> Path:
        """Write the result files."""
        found, arrays = self.gathered()
        cells = self.cells.items()
        files = [(label, read_json(c.result)) for label, c in cells]
        made, notes = made_with((label, file.get(VERSIONS, {})) for label, file in files)
        made = versions("torch", "python") | {k: made[k] for k in ("torch", "trimtab") if k in made}
        seeds = list(self.seeds)
        head = {
            "name": self.entry.name,
            "kind": self.entry.kind,
            "title": self.entry.title,
            "about": self.entry.said(len(seeds)),
            "seeds": seeds,
            "steps": self.steps,
            "versions": made,
        }
        write_result(self.out, head | found, arrays)
        about = results.About(
            study=self.name,
            title=self.entry.title,
            model=self.entry.name,
            model_digest="",
            suite="",
            train="",
            splits={},
            methods={},
            seeds=tuple(seeds),
            dtype="float32",
            device=self.settings.device,
            versions=made,
            command=command,
            threads=self.settings.threads,
            commit=commit(),
            notes=tuple(notes),
        )
        lines = [
            self._line(arm, metric, value, seed)
            for arm, metrics in (self.measured(found).items() if seeds else ())
            for metric, values in metrics.items()
            for value, seed in [(float(np.mean(values)), None), *zip(values, seeds, strict=True)]
        ]
        if not seeds:  # a figure
            lines = [self._line("main", "arrays", float(len(arrays)), None)]
        took = {c: {"seconds": file.get("seconds", 0.0)} for c, file in files}
        return results.write(self.out, results.Run(about, tuple(lines), costs=took))

    def _line(self, arm: str, metric: str, value: float, seed: int | None) -> results.Measurement:
        """A metric of one seed, or its mean over all."""
        place = (self.entry.name, arm, "", "", seed, seed is None, None, None, metric)
        return results.Measurement(*place, value, low=math.nan, high=math.nan, items=None)

    # ---- what it would take ----

    def load(self, cell: Cell) -> Load:
        """Steps, and their time as a few of them take it now."""
        steps, like, run = self.work(cell)
        if like not in self.paces:
            run(LEAST // 2)
            start = time.perf_counter()
            run(LEAST)
            self.paces[like] = (time.perf_counter() - start) / LEAST
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return Load(steps, steps * self.paces[like], peak, self.disk)

    def work(self, cell: Cell) -> tuple[int, Any, Callable[[int], Any]]:
        """Steps of a cell; what tells its pace from that of others; what runs so many of them."""
        raise NotImplementedError


# ---- files --------------------------------------------------------------------------------------


def write_result(folder: Path, result: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """Write `result.json` and what is drawn."""
    # The figures first: where the result is there, the arrays are, too.
    if arrays:
        write_arrays(folder / ARRAYS, arrays)
    curves = {name: result[name] for name in DRAWN if name in result}
    if curves:
        write_json(folder / CURVES, curves)
    write_json(folder / RESULT, {k: v for k, v in result.items() if k not in curves})


def write_arrays(file: Path, arrays: Mapping[str, Any]) -> None:
    """Arrays and tensors, floats in half precision."""
    made = {k: np.asarray(v.detach().cpu() if torch.is_tensor(v) else v) for k, v in arrays.items()}
    half = (np.float32, np.float64)
    made = {k: v.astype(np.float16) if v.dtype in half else v for k, v in made.items()}
    with aside(file) as writing:
        save_file({k: np.ascontiguousarray(v) for k, v in made.items()}, writing)


def keep(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """A cell's models, and what else of theirs stays."""
    with aside(folder / MODELS) as writing:
        save_tensors({k: v.contiguous() for k, v in tensors.items()}, writing)


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """One JSON file; numbers have six digits, and what is not finite is null."""
    text = json.dumps(_plain(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    write_text(file, text + "\n")


def read_result(folder: Path) -> dict[str, Any]:
    """The result of an experiment that was run.

    Raises:
        ConfigError: it was not run there, or the file is damaged.
    """
    file = folder / RESULT
    if not file.is_file():
        raise ConfigError(f"{folder}: no {RESULT}; run it first: trimtab anchor run {folder.name}")
    try:
        found = parse_json(file.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{file}: damaged: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{file}: damaged: expected an object")
    return found


def _plain(value: Any) -> Any:
    """JSON values: tensors as lists, numbers at six digits, what is not finite as null."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(f"{float(value):.6g}") if math.isfinite(value) else None
    return value
