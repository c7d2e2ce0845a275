"""One writer a place: a lock of the kernel beside what is written, with its owner's name in it."""

from __future__ import annotations

import contextlib
import inspect
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from filelock import lock_descriptor

from trimtab.errors import BusyError

P = ParamSpec("P")
R = TypeVar("R")

_mine: dict[Path, tuple[int, int]] = {}
"""Places that this process holds: by which thread, how often."""


@contextlib.contextmanager
def held(place: str | Path, *, wait: bool = False) -> Iterator[None]:
    """Keep a file or folder, there already or not, to this thread for as long as the block runs.

    The lock is the kernel's own: it ends with its owner, however that ends, and nobody has to guess from a
    file's age whether the owner is still there. On a file system without locks nothing is held.

    Args:
        wait: for another process that has it, however long.

    Raises:
        BusyError: another process or thread has it; the text says who, and since when.
    """
    place = Path(os.path.realpath(Path(place).expanduser()))
    me = threading.get_ident()
    owner, times = _mine.get(place, (me, 0))
    if owner != me:
        raise BusyError(f"{place}: another thread of this process is writing it; wait for it")
    if times:
        _mine[place] = (me, times + 1)
        try:
            yield
        finally:
            _mine[place] = (me, times)
        return
    file = place.with_name(f".{place.name}.lock")
    stream = _locked(place, file, wait)
    _mine[place] = (me, 1)
    try:
        yield
    finally:
        del _mine[place]
        if stream is not None:
            file.unlink(missing_ok=True)  # while it is still held: nobody else has this very file
            os.close(stream)


def holding(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A function that holds its argument `name`, a path or None, while it runs, in the main process of
    several (`RANK`)."""

    def holds(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            place = signature.bind(*args, **kwargs).arguments.get(name)
            if place is None or os.environ.get("RANK", "0") != "0":
                return function(*args, **kwargs)
            with held(place):
                return function(*args, **kwargs)

        return call

    return holds


def _locked(place: Path, file: Path, wait: bool) -> int | None:
    """A descriptor of the lock's file, locked; None where there are no locks."""
    while True:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            stream = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            return None  # whoever writes there will say what is wrong
        try:
            mine = lock_descriptor(stream, blocking=wait)
        except OSError:
            os.close(stream)
            return None
        if not mine:
            said = _owner(file)
            os.close(stream)
            raise BusyError(
                f"{place}: is being written by {said}; wait for it, or choose another place"
            )
        with contextlib.suppress(OSError):
            if os.fstat(stream).st_ino == file.stat().st_ino:  # not one that its owner took away
                with contextlib.suppress(OSError):  # of a full disk the lock is held without a name
                    os.ftruncate(stream, 0)
                    os.write(stream, _me().encode())
                return stream
        os.close(stream)


def _owner(file: Path) -> str:
    with contextlib.suppress(OSError):
        return file.read_text("utf-8", "replace")[:500] or "another process"
    return "another process"


def _me() -> str:
    words = " ".join([Path(sys.argv[0]).name, *sys.argv[1:3]])[:80]
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return f"process {os.getpid()} on {socket.gethostname()} ({words}), since {since}"
