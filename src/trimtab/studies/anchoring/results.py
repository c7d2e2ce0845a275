"""Result files of an experiment: `result.json`; for its figures alone, `curves.json` and
`arrays.safetensors`, which a run keeps and git does not.

All are written aside and renamed, so a reader sees a whole run or none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from trimtab.errors import ConfigError
from trimtab.files import aside, write_text

RESULT, CURVES, ARRAYS = "result.json", "curves.json", "arrays.safetensors"
DRAWN = ("schedule", "losses", "frames", "cosines")
"""What of a result is drawn and nothing else: the timeline, losses and terms over training, …"""


def write(folder: Path, result: Mapping[str, Any], arrays: Mapping[str, Any]) -> Path:
    """Write the files; gives the folder."""
    tensors = {k: np.ascontiguousarray(_array(v)) for k, v in arrays.items()}
    # The figures first: where the result is there, the arrays are, too.
    with aside(folder / ARRAYS) as writing:
        save_file(tensors, writing)
    curves = {name: result[name] for name in DRAWN if name in result}
    if curves:
        write_json(folder / CURVES, curves)
    write_json(folder / RESULT, {k: v for k, v in result.items() if k not in curves})
    return folder


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """One JSON file; numbers have six digits, and what is not finite is null."""
    text = json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)
    write_text(file, text + "\n")


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
