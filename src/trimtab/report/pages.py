"""The Markdown pages of a folder of results, such as `docs/results`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from trimtab.report.blocks import On
from trimtab.report.compare import write_markdown
from trimtab.report.heads import write_heads
from trimtab.report.innerpo import write_innerpo
from trimtab.report.steering import write_steering
from trimtab.study.reading import is_grid, kind_of, runs_in

Writer = Callable[..., Path | None]
"""Takes a folder of results, the page to write and in which form; gives None where there is
nothing to show yet."""

NAMED: dict[str, Writer] = {"innerpo": write_innerpo}
"""Pages of a form of their own, by the name of the folder that their results lie in."""
PARTS: dict[str, Writer] = {
    "heads": write_heads,
    "rewards": write_heads,
    "steering": write_steering,
}
"""The same, by the study that was run."""


def write_pages(root: Path, only: Collection[str] | None = None) -> list[Path]:
    """Write the page of every folder of results in `root` beside it, as `NAME.md`.

    Args:
        only: the folders to do, by name; by default all.

    Returns:
        the pages; a folder without results has none.

    Raises:
        TrimtabError: result files are missing or malformed, or a page cannot be written.
    """
    made: list[Path | None] = []
    for folder in sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else ():
        if only is not None and folder.name not in only:
            continue
        if write := _writer(folder):
            made.append(write(folder, root / f"{folder.name}.md"))
    return [page for page in made if page is not None]


def write_own_page(run: Path) -> list[Path]:
    """Write the page of a run of `dose` (of one trait or several) or of a comparison of heads into its
    folder, as `report.md` and `report.html`; none for another folder."""
    for kind, write in PARTS.items():
        if runs_in(run, kind):
            made = write(run, run / "report.md"), write(run, run / "report.html", On.HTML)
            return [page for page in made if page is not None]
    return []


def _writer(folder: Path) -> Writer | None:
    if folder.name in NAMED:
        return NAMED[folder.name]
    for kind, write in PARTS.items():
        if runs_in(folder, kind):
            return write
    return write_markdown if kind_of(folder) or is_grid(folder) else None
