"""The result files of every study, read and checked; no torch."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.errors import TrimtabError
from trimtab.study.records import made, one, read_json, read_lines
from trimtab.study.results import ABOUT, COSTS, FILES, GRID, PARTS, About, Grid, Measurement, Run

if TYPE_CHECKING:
    from pandas import DataFrame


OLD = ("heads.json", "dose.json")
"""What said so in earlier versions, beside `study.json` without a key `study`."""


def kind_of(folder: str | Path) -> str | None:
    """Which study a folder holds the result files of; None for none.

    Raises:
        TrimtabError: the file that says so is malformed, or of an earlier version.
    """
    run = Path(folder)
    about = read_json(run / ABOUT) if (run / ABOUT).is_file() else {}
    old = [run / name for name in OLD if (run / name).is_file()]
    if (about and isinstance(about, dict) and "study" not in about) or (old and not about):
        raise TrimtabError(
            f"{old[0] if old else run / ABOUT}: of an earlier version, which this one does not read; run the "
            "study again over the same folder, where its finished cells are found again"
        )
    said = about.get("study") if isinstance(about, dict) else None
    return said if isinstance(said, str) else None


def runs_in(folder: str | Path, *kinds: str) -> list[Path]:
    """The folder itself where it holds such a study, else the folders within it that do."""
    root = Path(folder)
    if kind_of(root) in kinds:
        return [root]
    inner = sorted(d for d in root.iterdir() if d.is_dir()) if root.is_dir() else []
    return [d for d in inner if kind_of(d) in kinds]


def check(folder: str | Path) -> list[str]:
    """Read the result files of a run, or of every run in a folder; a line for each, and for cells that
    were planned and are not done.

    Raises:
        TrimtabError: no run there, or a file is malformed or is missing.
    """
    root, said = Path(folder).expanduser(), []
    for run in (found for found in _folders(root) if kind_of(found)):
        done = read(run)
        counts = f"{len(done.measurements)} figures, {len(done.differences)} differences"
        said.append(f"{run}: {done.about.study}, {counts}")
    for file in sorted(root.glob("**/cells/*/job*.json")):
        job = read_json(file)
        try:
            done, label = (file.parent / job["out"] / job["result"]).is_file(), job["label"]
        except (KeyError, TypeError) as error:
            raise TrimtabError(f"{file}: not what a study writes ({error})") from None
        if not done:
            said.append(f"{file.parent}: not done ({label})")
    if not said:
        raise TrimtabError(f"{root}: no {ABOUT} there, nor in a folder below: not a run")
    return said


def is_grid(folder: str | Path) -> bool:
    """Whether a folder holds a comparison of several models or suites."""
    return (Path(folder) / GRID).is_file()


def read(folder: str | Path) -> Run:
    """Read and check the result files of a study.

    Raises:
        TrimtabError: a required file is missing or a file is malformed; the text names file, line
            and field.
    """
    run = Path(folder)
    if not run.is_dir():
        raise TrimtabError(f"{run}: no such run directory; give the --out of a comparison")
    if kind_of(run) is None and not (run / ABOUT).is_file():
        raise TrimtabError(
            f"{run / ABOUT}: missing; a finished comparison writes {ABOUT} and results.jsonl"
        )
    about = one(About, str(run / ABOUT), read_json(run / ABOUT))
    lines = {name: read_lines(run / name, needed=name == "results.jsonl") for name in FILES}
    parts = (tuple(made(kind, lines[name])) for name, kind in FILES.items())
    costs = read_json(run / COSTS) if (run / COSTS).is_file() else {}
    if not isinstance(costs, dict) or not all(isinstance(v, dict) for v in costs.values()):
        raise TrimtabError(f"{run / COSTS}: expected an object for each method")
    found = Run(about, *parts, costs=costs)
    if not found.measurements:
        raise TrimtabError(f"{run / 'results.jsonl'}: empty; expected one measurement a line")
    _check_seeds(run, found.measurements)
    return found


def read_grid(folder: str | Path) -> Grid:
    """Read and check `grid.json`.

    Raises:
        TrimtabError: it is missing or malformed, or names a folder that is not beside it.
    """
    file = Path(folder) / GRID
    grid = one(Grid, str(file), read_json(file))
    for name in grid.studies:
        if name in ("", ".", "..") or {"/", "\\", "\0"} & set(name):
            raise TrimtabError(
                f"{file}: 'studies' names {name!r}; expected names of folders beside the file"
            )
    if not grid.studies:
        raise TrimtabError(f"{file}: 'studies' is empty; expected the folders of its studies")
    return grid


def results(folder: str | Path, what: str = "results") -> DataFrame:
    """The lines of a run, or of every run in a folder, as a pandas DataFrame; the column `run` names each
    one's folder.

    Args:
        what: `results`, `verdicts`, `curves` or `generations`.

    Raises:
        TrimtabError: no run there, or a file is malformed.
    """
    import pandas

    if f"{what}.jsonl" not in FILES:
        known = ", ".join(name.removesuffix(".jsonl") for name in FILES)
        raise TrimtabError(f"results: no {what!r} (known: {known})")
    root = Path(folder).expanduser()
    runs = sorted(found for found in _folders(root) if kind_of(found))
    if not runs:
        raise TrimtabError(f"{root}: no {ABOUT} there, nor in a folder below: not a run")
    part, kind = PARTS[f"{what}.jsonl"], FILES[f"{what}.jsonl"]
    columns = ["run", *(f.name for f in dataclasses.fields(kind))]
    rows = [
        {"run": str(run), **{f: getattr(line, f) for f in columns[1:]}}
        for run in runs
        for line in getattr(read(run), part)
    ]
    frame = pandas.DataFrame(rows, columns=columns)
    whole = [c for c in ("seed", "items", "pairs", "seeds") if c in columns]
    return frame.astype(dict.fromkeys(whole, "Int64"))


@contextmanager
def as_written(where: Path) -> Iterator[None]:
    """Raise TrimtabError where what is made of result files finds values in them that no study writes."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        said = f"{type(error).__name__}: {str(error)[:200]}"
        raise TrimtabError(f"{where}: not what a study writes ({said}); run it again") from error


def _folders(root: Path) -> Iterator[Path]:
    """A folder and those within, but for cells."""
    for at, inner, _ in os.walk(root):
        inner[:] = [name for name in inner if name not in ("cells", "dials")]
        yield Path(at)


def _check_seeds(run: Path, lines: Sequence[Measurement]) -> None:
    """Several seeds at one place have a line over them."""
    places: dict[tuple[Any, ...], set[int | None]] = {}
    for m in lines:
        place = (m.method, m.split, m.metric, m.alpha, m.at, m.read_out)
        places.setdefault(place, set()).add(m.seed)
    for place, seeds in places.items():
        if len(seeds) > 1 and None not in seeds and place[0] != "random":
            raise TrimtabError(
                f"{run / 'results.jsonl'}: {len(seeds)} seeds of {' / '.join(place[:3])} but no mean "
                "over them; expected a line with seed null"
            )
