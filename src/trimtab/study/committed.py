"""Result files as they are committed: what pages read, with as many digits as say anything."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from trimtab import files
from trimtab.study.reading import kind_of, read
from trimtab.study.results import ALPHA_1, EQUAL_KL, FILES, Measurement, write

DIGITS = 7
"""Significant ones: single precision."""


def thin(folder: Path) -> None:
    """Leave out of the result files of a run, or of the runs in a folder, what no page reads: the lines of
    single seeds that have a line over them, which then says of how many, but for accuracies at α = 1, and
    ways of scoring where pages have another (`_read`).
    Numbers keep `DIGITS`. The cells of a run keep all, and the study writes it anew from there.

    Raises:
        TrimtabError: a result file is missing or malformed.
    """
    inner = sorted(folder.iterdir()) if folder.is_dir() else ()
    for run in (d for d in (folder, *inner) if d.is_dir() and kind_of(d)):
        _thin(run)


def _thin(folder: Path) -> None:
    run = read(folder)
    own = Counter(_place(m) for m in run.measurements if m.seed is not None)
    over = {_place(m) for m in run.measurements if m.aggregate}
    kept = [
        dataclasses.replace(m, seeds=m.seeds or own[_place(m)] or None) if m.aggregate else m
        for m in filter(_read, run.measurements)
        if m.seed is None or _place(m) not in over or (m.metric, m.at) == ("accuracy", ALPHA_1)
    ]
    write(folder, dataclasses.replace(run, measurements=tuple(kept)))
    for file in (folder / name for name in FILES):
        rows = [json.loads(line) for line in file.read_text("utf-8").split("\n")[:-1]]
        short = [{k: _short(v) for k, v in row.items()} for row in rows]
        lines = [json.dumps(r, ensure_ascii=False, separators=(",", ":")) for r in short]
        files.write_text(file, "".join(f"{line}\n" for line in lines)) if rows else file.unlink()


def _read(m: Measurement) -> bool:
    """Whether pages have the metric there: beside accuracy other scores at α = 1 alone, and of steering the
    share of valid readings over all strengths alone."""
    scores = ("accuracy_sum", "accuracy_choice")
    if m.split == "dose":
        return m.metric not in (*scores, "rising")
    if m.at == EQUAL_KL:
        return m.metric not in (*scores, "margin")
    return m.metric != "valid" or m.alpha is None


def _place(m: Measurement) -> Hashable:
    return m.method, m.split, m.metric, m.alpha, m.at, m.read_out


def _short(value: Any) -> Any:
    """A number with fewer digits, unless a page would show another one (0.01250000001 in points)."""
    if not isinstance(value, float):
        return value
    short = float(f"{value:.{DIGITS}g}")
    shown = ((scale, digits) for scale in (1, 100) for digits in range(4))
    same = all(f"{scale * short:.{d}f}" == f"{scale * value:.{d}f}" for scale, d in shown)
    return short if same else value
