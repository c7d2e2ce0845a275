"""What the comparisons of heads share: cells kept as files, shares with intervals, differences."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trimtab import models, statistics
from trimtab.errors import ConfigError
from trimtab.files import write_json
from trimtab.progress import Progress
from trimtab.provenance import commit, digest, versions
from trimtab.statistics import SHARE, Range, mean_interval, paired_difference
from trimtab.study.files import Rows, free_folder
from trimtab.study.made import VERSIONS, made_with, say_older

FORMAT = 1
STUDY = "heads.json"
CELL = "cell.json"

Scores = dict[int | None, list[float]]
"""Values by item, a list a seed; the seed is None where nothing is drawn."""

Weights = list[float] | None
"""How much each item counts; None where all count alike."""


class Cells:
    """Cells of one comparison, a folder each, named by a digest of all that the cell depends on: a
    finished one is never run again, an unfinished one goes on where it was stopped."""

    def __init__(self, out: str | Path, common: Mapping[str, Any], progress: Progress):
        """
        Args:
            common: what every cell depends on, as JSON values.

        Raises:
            ConfigError: `out` holds something else.
        """
        self.out = free_folder(out, "cells", STUDY).absolute()
        self.common, self.progress = {"format": FORMAT, **common}, progress
        self.used: dict[Path, float] = {}
        self.made: dict[str, dict[str, str]] = {}
        say_older((self.out / "cells").glob(f"*/{CELL}"), progress)

    def folder(self, name: str, own: Mapping[str, Any]) -> Path:
        """A cell's folder."""
        key = digest({**self.common, **own})[:16]
        return self.out / "cells" / f"{name}-{key}"

    def get(self, name: str, own: Mapping[str, Any], make: Callable[[Path], Any]) -> Any:
        """What a cell's file holds; where there is none, what `make` returns for the cell's folder,
        with the seconds of processor time that it took."""
        folder = self.folder(name, own)
        file = folder / CELL
        if not file.is_file():
            self.progress.say(name)
            folder.mkdir(parents=True, exist_ok=True)
            start = time.process_time()
            found = make(folder)
            write_json(
                file,
                {
                    "found": found,
                    "seconds": time.process_time() - start,
                    VERSIONS: versions(),
                },
            )
        content = json.loads(file.read_text(encoding="utf-8"))
        self.used[folder] = content["seconds"]
        self.made[name] = content.get(VERSIONS, {})
        return content["found"]

    def versions(self) -> dict[str, str]:
        """The versions that the cells were made with; said where they are several."""
        made, mixed = made_with(self.made.items())
        for line in mixed:
            self.progress.say(line)
        return made

    def seconds(self) -> float:
        """Processor time that the cells took."""
        return sum(self.used.values())


@contextmanager
def threads_of(count: int) -> Any:
    """So many threads, and those of before at the end."""
    if count < 1:
        raise ConfigError(f"threads is {count}; expected 1 or more")
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_seeds(name: str, seeds: Sequence[int]) -> None:
    """Raise ConfigError unless there is at least one seed of 0 or more, each once."""
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ConfigError(f"{name}: expected at least one number of 0 or more, each once")


def mean_line(
    scores: Scores, weights: Weights = None, within: Range = SHARE, **labels: Any
) -> dict[str, Any]:
    """A mean over items, and over seeds, with its 95 % interval."""
    found = mean_interval(list(scores.values()), within, weights)
    return {
        **labels,
        "value": found.value,
        "ci_low": _number(found.low),
        "ci_high": _number(found.high),
        "seed": next(iter(scores)) if len(scores) == 1 else None,
        "aggregate": len(scores) > 1,
        "seeds": len(scores),
        "items": len(next(iter(scores.values()))),
    }


def identified(model: Any, lines: Rows) -> Rows:
    """Lines that begin with the model's name and their arm's, as every `results.jsonl` has them."""
    name = models.source_of(model).name
    return [{"model": name, "method": line["arm"], **line} for line in lines]


def difference_line(
    mine: Scores, theirs: Scores, weights: Weights = None, **labels: Any
) -> dict[str, Any]:
    """A share, `mine` less `theirs` on the same items, without a verdict. Seeds are paired by their number; a
    side with one is set against every seed of the other."""
    if len(mine) > 1 and len(theirs) > 1:
        both = [seed for seed in mine if seed in theirs]
        mine, theirs = ({s: side[s] for s in both} for side in (mine, theirs))
    found = paired_difference(list(mine.values()), list(theirs.values()), SHARE, weights)
    return {
        **labels,
        "difference": found.value,
        "difference_low": _number(found.low),
        "difference_high": _number(found.high),
        "p": found.p,
        "mde": _number(found.mde),
        "seeds": max(len(mine), len(theirs)),
        "items": len(next(iter(mine.values()))),
        "_difference": found,
    }


def judged(lines: Rows) -> Rows:
    """Lines of one table with verdicts."""
    told = statistics.judged([(line["_difference"], line["seeds"]) for line in lines])
    return [
        {k: v for k, v in line.items() if k != "_difference"} | found._asdict()
        for line, found in zip(lines, told, strict=True)
    ]


def averaged(parts: Sequence[Scores]) -> tuple[Scores, list[float]]:
    """Items of several tasks, and weights by which their mean is the unweighted mean of the tasks' means.
    An interval over such items counts the tasks' different means as spread, and is rather too wide than
    too narrow."""
    sizes = [len(next(iter(part.values()))) for part in parts]
    weights = [sum(sizes) / (len(parts) * size) for size in sizes for _ in range(size)]
    return {seed: [value for part in parts for value in part[seed]] for seed in parts[0]}, weights


def described(model: Any, settings: Any, command: str, threads: int, **more: Any) -> dict[str, Any]:
    """What was run, for `heads.json`."""
    source = models.source_of(model)
    parameter = next(model.parameters())
    return {
        **more,
        "model": source.name,
        "model_digest": source.digest,
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": parameter.device.type,
        "threads": threads,
        "settings": json.loads(json.dumps(asdict(settings))),
        "commit": commit(),
        "command": command,
    }


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
