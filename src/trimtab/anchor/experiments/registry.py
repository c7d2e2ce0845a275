"""All experiments by name: what each is, how it runs, what it has to show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.anchor.experiments import colour, gates, mixing, recovery, results
from trimtab.anchor.experiments.catalogue import COLOUR
from trimtab.anchor.experiments.gates import Gate
from trimtab.errors import ConfigError, near
from trimtab.progress import SILENT, Progress


@dataclass(frozen=True)
class Entry:
    """An experiment as the command line sees it."""

    name: str
    title: str
    about: str
    seeds: int
    """Seeds where none are asked for; 0 for a figure."""
    run: Callable[..., Path]
    gates: Callable[[dict[str, Any]], list[Gate]] | None = None


def _colour(name: str) -> Entry:
    e = COLOUR[name]

    def run(out: Path, seeds: Sequence[int], **options: Any) -> Path:
        return colour.run(e, out, seeds, **options)

    return Entry(name, e.title, e.about, 0 if e.figure else e.seeds, run, gates.GATES.get(name))


def _order(name: str) -> list[int]:
    return [int(part) for part in name.split(".")]


_STORIES = (
    "stories",
    "A language model with a landmark and a lie anchored",
    "A language model trained from scratch on generated stories; a landmark and dishonesty are "
    "anchored by sparse, noisy labels, then projected out.",
    1,
)


def _stories(out: Path, seeds: Sequence[int], **options: Any) -> Path:
    from trimtab.anchor.experiments import stories  # it brings transformers

    return stories.run(out, seeds, **options)


def _stories_gates(result: dict[str, Any]) -> list[Gate]:
    from trimtab.anchor.experiments import stories

    return stories.gates(result)


ENTRIES: dict[str, Entry] = {name: _colour(name) for name in sorted(COLOUR, key=_order)}
ENTRIES |= {
    recovery.NAME: Entry(
        recovery.NAME, recovery.TITLE, recovery.ABOUT, recovery.SEEDS, recovery.run, recovery.gates
    ),
    mixing.NAME: Entry(
        mixing.NAME, mixing.TITLE, mixing.ABOUT, mixing.SEEDS, mixing.run, mixing.gates
    ),
    "stories": Entry(*_STORIES, _stories, _stories_gates),
}
"""In the order of the series."""


def entry(name: str) -> Entry:
    """An experiment. Raises ConfigError where there is none of this name."""
    if name not in ENTRIES:
        raise ConfigError(
            f"unknown experiment {name!r}{near(name, ENTRIES)} (known: {', '.join(ENTRIES)})"
        )
    return ENTRIES[name]


def run(
    name: str,
    root: Path,
    *,
    seeds: int | None = None,
    steps: int | None = None,
    progress: Progress = SILENT,
) -> Path:
    """Run an experiment on seeds 0 to `seeds` - 1; result files go to `root / name`.

    Raises:
        ConfigError: unknown experiment, no seeds, too few steps.
    """
    e = entry(name)
    count = e.seeds if seeds is None else seeds
    if e.seeds and count < 1:
        raise ConfigError(f"--seeds {seeds}: expected at least 1")
    if steps is not None and steps < 20:
        raise ConfigError(f"--steps {steps}: expected at least 20")
    return e.run(root / name, range(count), steps=steps, progress=progress)


def judge(name: str, root: Path) -> list[Gate]:
    """The gates of an experiment that was run.

    Raises:
        ConfigError: it was not run, or was cut short.
    """
    e = entry(name)
    result = results.read(root / name)
    if result.get("steps") is not None:
        raise ConfigError(f"{root / name}: a short run of {result['steps']} steps proves nothing")
    return e.gates(result) if e.gates else []
