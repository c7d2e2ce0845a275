"""Result files of an experiment: `result.json`, and `arrays.safetensors` for its figures.

Both are written aside and renamed, so a reader sees a whole run or none.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from trimtab.errors import ConfigError

RESULT, ARRAYS = "result.json", "arrays.safetensors"


def write(folder: Path, result: Mapping[str, Any], arrays: Mapping[str, Any]) -> Path:
    """Write both files; gives the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: np.ascontiguousarray(_array(v)) for k, v in arrays.items()}
    # The figures first: where the result is there, the arrays are, too.
    for name, fill in (
        (ARRAYS, lambda path: save_file(tensors, path)),
        (RESULT, lambda path: path.write_text(_text(result), encoding="utf-8")),
    ):
        aside = folder / f".{name}.{os.getpid()}.tmp"
        try:
            fill(aside)
            os.replace(aside, folder / name)
        finally:
            aside.unlink(missing_ok=True)
    return folder


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """One JSON file, written aside and renamed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        aside.write_text(_text(value), encoding="utf-8")
        os.replace(aside, file)
    finally:
        aside.unlink(missing_ok=True)


def read(folder: Path) -> dict[str, Any]:
    """The result of an experiment that was run.

    Raises:
        ConfigError: it was not run there, or the file is damaged.
    """
    file = folder / RESULT
    if not file.is_file():
        raise ConfigError(f"{folder}: no {RESULT}; run it first: trimtab anchor run {folder.name}")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{file}: damaged: {error}") from error


def versions() -> dict[str, str]:
    """What the numbers were made with."""
    from trimtab import __version__

    return {
        "trimtab": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def summary(values: list[float]) -> dict[str, float]:
    """A distribution over seeds in a few numbers."""
    a = np.asarray([v for v in values if math.isfinite(v)], dtype=float)
    if not len(a):
        return {"n": 0}
    return {
        "n": len(a),
        "mean": float(a.mean()),
        "sd": float(a.std(ddof=1)) if len(a) > 1 else 0.0,
        "min": float(a.min()),
        "p10": float(np.quantile(a, 0.1)),
        "median": float(np.median(a)),
        "p90": float(np.quantile(a, 0.9)),
        "max": float(a.max()),
    }


def _array(value: Any) -> np.ndarray:
    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    return array.astype(np.float16) if array.dtype in (np.float32, np.float64) else array


def _text(result: Mapping[str, Any]) -> str:
    return json.dumps(_plain(result), ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """JSON values: tensors as lists, numbers at six digits, what is not finite as null."""
    if isinstance(value, torch.Tensor):
        return _plain(value.tolist())
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(f"{float(value):.6g}") if math.isfinite(value) else None
    return value
