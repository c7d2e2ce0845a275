"""The page of whatever a folder holds: a run, several, or committed results such as `docs/results`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from trimtab.report import compare, heads, innerpo, render, steering
from trimtab.report.blocks import On, Page
from trimtab.study.reading import is_grid, kind_of, runs_in

Reader = Callable[[Path], Page | None]
"""From a folder of results to its page; None where there is nothing to show yet."""

NAMED: dict[str, Reader] = {"innerpo": innerpo.page}
"""Pages of a form of their own, by the name of the folder that their results lie in."""
PARTS: dict[str, Reader] = {
    "heads": heads.page,
    "rewards": heads.page,
    "steering": steering.page,
}
"""The same, by the study that was run."""


def read_page(folder: Path) -> Page | None:
    """The page over a folder of results; None where there is nothing to show.

    Raises:
        TrimtabError: result files are missing or malformed.
    """
    if folder.name in NAMED:
        return NAMED[folder.name](folder)
    kind = next((kind for kind in PARTS if runs_in(folder, kind)), None)
    if kind:
        return PARTS[kind](folder)
    return compare.read_page(folder) if kind_of(folder) or is_grid(folder) else None


def write_pages(root: Path, only: Collection[str] | None = None) -> list[Path]:
    """Write the page of every folder of results in `root` beside it, as `NAME.md` with its figure.

    Args:
        only: the folders to do, by name; by default all.

    Returns:
        the pages; a folder without results has none.

    Raises:
        TrimtabError: result files are missing or malformed, or a page cannot be written.
    """
    folders = sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else ()
    return [
        render.write(page, root / f"{folder.name}.md")
        for folder in folders
        if (only is None or folder.name in only) and (page := read_page(folder))
    ]


def write_own_page(run: Path) -> list[Path]:
    """Write the page of a run of `dose` (of one trait or several) or of a comparison of heads into its
    folder, as `report.md` and `report.html`; none for another folder."""
    if not runs_in(run, *PARTS) or not (page := read_page(run)):
        return []
    made = {"report.md": On.MARKDOWN, "report.html": On.HTML}
    return [render.write(page, run / name, to) for name, to in made.items()]
