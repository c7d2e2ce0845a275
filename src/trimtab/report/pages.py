"""The Markdown pages of a folder of results, such as `docs/results`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from trimtab.report.heads import write_heads
from trimtab.report.innerpo import write_innerpo
from trimtab.report.markdown import write_markdown
from trimtab.report.steering import write_steering

OWN: dict[str, Callable[[Path, Path], Path | None]] = {
    "heads": write_heads,
    "innerpo": write_innerpo,
    "steering": write_steering,
}
"""Pages of a form of their own, by the name of the folder that their results lie in: each takes that
folder and the page to write, and gives None where there is nothing to show yet."""


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
        page = root / f"{folder.name}.md"
        if folder.name in OWN:
            made.append(OWN[folder.name](folder, page))
        elif any((folder / name).is_file() for name in ("study.json", "grid.json")):
            made.append(write_markdown(folder, page))
    return [page for page in made if page is not None]
