"""The result files of `trimtab dose`, as their page looks them up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trimtab.study.reading import read
from trimtab.study.results import EQUAL_KL, PERSONA, Difference, Generation, Measurement

RANDOM = "random"


@dataclass(frozen=True)
class Cell:
    """One way to steer: a method, a half of one, a random direction, or the persona."""

    name: str
    """The method's, of a random direction with its seed: `random-0`."""
    method: str
    figures: Mapping[str, Measurement]
    """By metric: at equal damage, and summaries over doses."""
    curve: tuple[Mapping[str, float], ...]
    """By metric, a dose each in order: `alpha`, `dose`, `shift`, `kl`, `nll_rise`, `valid`."""
    seconds: float | None
    """Processor time of fitting."""
    reached: bool
    """Whether there is an alpha of the persona's damage."""

    @property
    def half(self) -> bool:
        """Whether it was fitted to a half of the data."""
        return self.method.endswith(("-first", "-second"))

    def value(self, metric: str) -> float | None:
        """A figure; None where it is not finite."""
        found = self.figures[metric].value
        return found if found == found else None


class Doses:
    """The result files of one trait.

    Raises:
        TrimtabError: one is missing or malformed.
    """

    def __init__(self, folder: Path):
        self.run = read(folder)
        self.about = self.run.about
        self.trait = self.about.suite
        rows: dict[str, list[Measurement]] = {}
        for m in self.run.measurements:
            rows.setdefault(name_of(m), []).append(m)
        self.cells = {name: self._cell(name, of) for name, of in rows.items()}
        """All cells by name, in order."""
        self._differences = {
            (name_of(d), d.against, d.metric): d for d in reversed(self.run.differences)
        }

    def _cell(self, name: str, rows: list[Measurement]) -> Cell:
        points: dict[float, dict[str, float]] = {}
        for m in rows:
            if m.alpha is not None and m.at is None:
                points.setdefault(m.alpha, {"alpha": m.alpha})[m.metric] = m.value
        return Cell(
            name,
            rows[0].method,
            {m.metric: m for m in rows if m.alpha is None or m.at == EQUAL_KL},
            tuple(points[a] for a in sorted(points)),
            self.run.costs.get(name, {}).get("fit_cpu_seconds"),
            name not in self.about.more.get("not_reached", ()),
        )

    def against(self, name: str, rival: str, metric: str = "per_damage") -> Difference | None:
        """A cell's difference from another."""
        return self._differences.get((name, rival, metric))

    @property
    def methods(self) -> list[Cell]:
        """Whole methods: neither halves nor controls."""
        return [c for c in self.cells.values() if not c.half and c.method not in (RANDOM, PERSONA)]

    @property
    def best(self) -> Cell | None:
        """The method with the steepest slope per unit damage."""
        known = [c for c in self.methods if c.value("per_damage") is not None]
        return max(known, key=lambda c: c.value("per_damage") or 0.0, default=None)


def name_of(line: Measurement | Difference | Generation) -> str:
    """The name of a line's cell."""
    return f"{RANDOM}-{line.seed}" if line.method == RANDOM else line.method
