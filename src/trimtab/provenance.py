"""Where a result comes from: versions, the commit, digests of what it depends on."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from importlib import import_module
from pathlib import Path
from typing import Any


def digest(value: Any) -> str:
    """sha256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def versions(*packages: str) -> dict[str, str]:
    """Versions of trimtab and of what else a result depends on, by default torch and transformers;
    `python` is the interpreter's."""
    found = {}
    for name in ("trimtab", *(packages or ("torch", "transformers"))):
        known = platform.python_version() if name == "python" else import_module(name).__version__
        found[name] = str(known)
    return found


def commit() -> str:
    """The commit of the code that runs, or its version where it is not run from a repository."""
    from trimtab import __version__

    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return __version__
    return done.stdout.strip() if done.returncode == 0 else __version__
