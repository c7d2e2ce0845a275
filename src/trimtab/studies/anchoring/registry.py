"""All experiments by name: what each is, how it runs, what it has to show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from trimtab.errors import ConfigError, near
from trimtab.progress import SILENT, Progress
from trimtab.studies.anchoring import colour, gates, mixing, recovery, results
from trimtab.studies.anchoring.catalogue import COLOUR
from trimtab.studies.anchoring.gates import Gate


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

    return Entry(
        name, e.title, e.said(e.seeds), 0 if e.figure else e.seeds, run, gates.GATES.get(name)
    )


def _order(name: str) -> list[int]:
    return [int(part) for part in name.split(".")]


def _language(name: str, title: str, about: str) -> Entry:
    """An experiment whose module brings transformers, so that it is imported late."""

    def run(out: Path, seeds: Sequence[int], **options: Any) -> Path:
        return import_module(f"trimtab.studies.anchoring.{name}").run(out, seeds, **options)

    def gates(result: dict[str, Any]) -> list[Gate]:
        return import_module(f"trimtab.studies.anchoring.{name}").gates(result)

    return Entry(name, title, about, 3, run, gates)


ENTRIES: dict[str, Entry] = {name: _colour(name) for name in sorted(COLOUR, key=_order)}
ENTRIES |= {
    recovery.NAME: Entry(
        recovery.NAME, recovery.TITLE, recovery.ABOUT, recovery.SEEDS, recovery.run, recovery.gates
    ),
    mixing.NAME: Entry(
        mixing.NAME, mixing.TITLE, mixing.ABOUT, mixing.SEEDS, mixing.run, mixing.gates
    ),
    "stories": _language(
        "stories",
        "A language model with a landmark and a lie anchored",
        "A language model trained from scratch on generated stories; a landmark and dishonesty are "
        "anchored by sparse, noisy labels, then projected out.",
    ),
    "natural": _language(
        "natural",
        "A language model on natural text with code and cooking anchored",
        "The same on documents of public data sets, which a data folder must hold.",
    ),
}
"""In the order of the series."""
NATURAL = ("natural",)
"""Experiments on data that trimtab does not bring."""


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
    data_root: Path | None = None,
    progress: Progress = SILENT,
) -> Path:
    """Run an experiment on seeds 0 to `seeds` - 1; result files go to `root / name`.

    Args:
        data_root: folder of local data, for those in `NATURAL`; by default TRIMTAB_DATA names it.

    Raises:
        ConfigError: unknown experiment, no seeds, too few steps.
        DataError: data that it needs are not there.
    """
    e = entry(name)
    count = e.seeds if seeds is None else seeds
    if e.seeds and count < 1:
        raise ConfigError(f"--seeds {seeds}: expected at least 1")
    if steps is not None and steps < 20:
        raise ConfigError(f"--steps {steps}: expected at least 20")
    options = {"data_root": data_root} if name in NATURAL else {}
    return e.run(root / name, range(count), steps=steps, progress=progress, **options)


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
