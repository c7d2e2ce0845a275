"""The windows in which a run can be killed: before each step of each write, and within it.

Python's audit events tell of files opened, renamed and removed and of folders made and removed. What is
written aside (`trimtab.files.aside`) is opened once more to be synced: there a kill comes with half of the
file on disk, and with all of it; so it does where a folder made aside is moved to its place.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")
_OWN = f"{os.sep}trimtab{os.sep}"


def watch(under: str, at: int = 0) -> list[str]:
    """Note each window of this process's writes in a folder, and be killed in the one of that number,
    counted from 1. Gives the list that they are noted in."""
    seen: list[str] = []

    def window(step: str, path: str, half: Path | None = None) -> None:
        seen.append(f"{step} {_plain(path)} by {_caller()}")
        if len(seen) == at:
            for file in [half, *half.rglob("*")] if half else ():
                if file.is_file():
                    os.truncate(file, file.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, flags = args[0], args[2] if isinstance(args[2], int) else 0
            if not isinstance(path, str | bytes | os.PathLike):
                return
            path = os.fsdecode(path)
            if not path.startswith(under):
                return
            if flags & (os.O_WRONLY | os.O_RDWR):
                window("open", path)
            elif path.endswith(".writing"):
                window("half of", path, Path(path))
                window("sync", path)
        elif event in CHANGES:
            path = _whole(args[0], args[{"os.rename": 2, "os.mkdir": 2}.get(event, 1)])
            if not path.startswith(under) or (event == "os.mkdir" and os.path.isdir(path)):
                return
            made = os.path.isdir(path) and re.search(r"\.(making|writing)/", path)
            if event == "os.rename" and made and os.path.basename(path) != "old":
                window("half of", path, Path(path))
            window(event.removeprefix("os."), path)

    sys.addaudithook(hook)
    return seen


def _whole(path: Any, folder: Any) -> str:
    """A path of an event, which may be one within an open folder."""
    path = os.fsdecode(path)
    if isinstance(folder, int) and folder >= 0 and not path.startswith("/"):
        return f"{os.readlink(f'/proc/self/fd/{folder}')}/{path}"
    return os.path.abspath(path)


def _plain(path: str) -> str:
    """A name without what differs between files of one kind: numbers, digests and what is before them."""
    return re.sub(r".*([0-9a-f]{8,}|\d+)", "#", os.path.basename(path))


def _caller() -> str:
    """Which of our functions writes."""
    frame: Any = sys._getframe(3)
    while frame is not None:
        file, name = frame.f_code.co_filename, frame.f_code.co_name
        if _OWN in file and not file.endswith(("/files.py", "/holding.py")):
            return f"{file.rpartition(_OWN)[2].removesuffix('.py')}.{name}"
        frame = frame.f_back
    return "?"
