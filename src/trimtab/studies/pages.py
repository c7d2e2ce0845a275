"""The pages of runs, and the Markdown pages of a folder of results, such as `docs/results`. What a study's
page shows is said by the function that the study names; one without, and one of a package of your own that
nobody has imported, has a table of all its figures (`trimtab study run NAME` over it makes its page)."""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path

from trimtab.errors import ConfigError
from trimtab.report import compare, innerpo, render, trained, wording
from trimtab.report.blocks import On, Page, Table, Text, plain
from trimtab.studies import STUDIES, named, package
from trimtab.study.reading import as_written, is_grid, kind_of, read, runs_in
from trimtab.study.results import Difference, Measurement

NAMED = {"innerpo": innerpo.page, "trained": trained.page}
"""Pages of a form of their own, by the name of the folder that their results lie in."""
COMPARED = ("compare", "evaluate")
"""Studies whose results have the page of a comparison."""


def page_of(folder: Path) -> Page | None:
    """The page of a run, or of the runs of one study in a folder; None where there is none yet.

    Raises:
        TrimtabError: result files are missing or malformed.
    """
    with as_written(folder):
        return _page_of(folder)


def _page_of(folder: Path) -> Page | None:
    kind = kind_of(folder)
    if is_grid(folder) or kind in COMPARED:
        return compare.read_page(folder)
    if kind is None and folder.is_dir():
        inner = sorted(d for d in folder.iterdir() if d.is_dir())
        kind = next((k for d in inner if (k := kind_of(d)) and k not in COMPARED), None)
    if kind is None:
        return None
    if kind not in STUDIES and kind not in sys.modules:  # a file of others names no code
        return _tables(folder, kind)
    try:
        write = named(package(kind).PAGE)
    except (ConfigError, AttributeError):  # a study that is not here, or has no page of its own
        return _tables(folder, kind)
    return write(folder)


def _tables(folder: Path, kind: str) -> Page:
    """All figures and differences of the runs of a study."""

    def row(line: Measurement | Difference, name: str) -> list[str]:
        alpha = wording.NOTHING if line.alpha is None else wording.alpha(line.alpha)
        value = wording.figure(line, wording.number, ", ")
        return [name, plain(line.split), plain(line.metric), alpha, value]

    runs = [read(each) for each in runs_in(folder, kind)]
    header, about = ["method", "split", "metric", "α", "value"], runs[0].about
    figures = [row(m, plain(m.method)) for run in runs for m in run.measurements]
    told = [
        [*row(d, f"{plain(d.method)} − {plain(d.against)}"), wording.verdict(d)]
        for run in runs
        for d in run.differences
    ]
    made = ", ".join(f"{k} {v}" for k, v in about.versions.items())
    blocks = [
        Table(header, figures, (3, 5)),
        Table([*header, "verdict"], told, (3, 5)),
        Text(f"{made}; commit `{about.commit}`"),
    ]
    return Page(plain(about.title), blocks, kind)


def write_pages(root: Path, only: Collection[str] | None = None) -> list[Path]:
    """Write the page of every folder of results in `root` beside it, as `NAME.md`.

    Args:
        only: the folders to do, by name; by default all.

    Returns:
        the pages; a folder without results has none.

    Raises:
        TrimtabError: result files are missing or malformed, or a page cannot be written.
    """
    made = []
    for folder in sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else ():
        if only is None or folder.name in only:
            with as_written(folder):
                page = NAMED.get(folder.name, page_of)(folder)
            made += [render.write(page, root / f"{folder.name}.md")] if page else []
    return made


def write_page(run: Path) -> Path:
    """Write the page of a run, and those of its parts where it is a comparison of several models or suites,
    into its folder as `report.html`.

    Raises:
        ConfigError: there is none.
    """
    if is_grid(run) or kind_of(run) in COMPARED:
        with as_written(run):
            return compare.write_page(run)
    if (page := page_of(run)) is None:
        raise ConfigError(f"{run}: no study.json there, nor in a folder below: not a run")
    return render.write(page, run / "report.html", On.HTML)
