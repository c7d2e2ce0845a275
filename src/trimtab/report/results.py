"""A run as its page sees it: the result files, with what a page looks up in them.

What the files hold is said by `trimtab.study.results`, which reads them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from trimtab.study import reading
from trimtab.study.results import (
    ALPHA_1,
    BASE,
    EQUAL_KL,
    PANEL,
    About,
    Curve,
    Difference,
    Generation,
    Grid,
    Measurement,
)

TRAIN, DOSE, NEUTRAL = "train", "dose", "neutral"
"""Splits with a part of their own: training items, the dose–response part, neutral text."""


@dataclass(frozen=True)
class Results:
    """All result files of one run."""

    study: About
    measurements: tuple[Measurement, ...]
    comparisons: tuple[Difference, ...] = ()
    gains: tuple[Difference, ...] = ()
    margins: tuple[Difference, ...] = ()
    """Comparisons of the mean margin, against the baseline and against the bare model."""
    steered: tuple[Difference, ...] = ()
    """Differences of slopes over α."""
    curves: tuple[Curve, ...] = ()
    generations: tuple[Generation, ...] = ()
    costs: dict[str, dict[str, Any]] = field(default_factory=dict)

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """Methods with measurements, in the study's order, the bare model left out."""
        seen = dict.fromkeys(m.method for m in self.measurements if m.method != BASE)
        known = [m for m in self.study.methods if m in seen]
        return tuple(dict.fromkeys([*known, *seen]))

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """Evaluation splits with an accuracy, in the study's order."""
        every = [m.split for m in self.measurements if m.metric == "accuracy"]
        seen = dict.fromkeys(split for split in every if not split.startswith(PANEL))
        known = [s for s in self.study.splits if s in seen]
        apart = (TRAIN, DOSE, NEUTRAL)
        return tuple(s for s in dict.fromkeys([*known, *seen]) if s not in apart)

    @cached_property
    def baseline(self) -> str | None:
        """The method that the comparisons are against, or None where there are none."""
        return self.comparisons[0].against if self.comparisons else None

    @cached_property
    def _index(self) -> dict[tuple[str, str, str], list[Measurement]]:
        index: dict[tuple[str, str, str], list[Measurement]] = {}
        for m in self.measurements:
            index.setdefault((m.method, m.split, m.metric), []).append(m)
        return index

    def seeds(
        self, method: str, split: str, metric: str = "accuracy", at: str = ALPHA_1
    ) -> list[Measurement]:
        """The measurements of the single seeds, in file order."""
        return [m for m in self._at(method, split, metric, at) if m.seed is not None]

    def read(
        self, method: str, split: str, metric: str = "accuracy", at: str = ALPHA_1
    ) -> Measurement | None:
        """The measurement over seeds at alpha 1 or equal KL (the bare model: at 0), or None."""
        return _over_seeds(self._at(method, split, metric, at))

    def curve(self, method: str, split: str, metric: str) -> list[Measurement]:
        """A metric over alpha, ascending; alpha 0 may come from the bare model, whose damage is none."""
        rows = [*self._index.get((method, split, metric), [])]
        if not any(m.alpha == 0 for m in rows):
            rows += self._index.get((BASE, split, metric), [])
        by_alpha: dict[float, list[Measurement]] = {}
        for m in rows:
            if m.alpha is not None and m.at != EQUAL_KL:
                by_alpha.setdefault(m.alpha, []).append(m)
        if split == NEUTRAL and len(by_alpha) > 1 and 0 not in by_alpha:
            nothing = {"seed": None, "alpha": 0.0, "value": 0.0, "low": 0.0, "high": 0.0}
            by_alpha[0.0] = [replace(rows[0], **nothing)]  # where nothing is attached: exactly none
        points = [_over_seeds(by_alpha[alpha]) for alpha in sorted(by_alpha)]
        return [point for point in points if point is not None]

    def summary(self, method: str, metric: str) -> Measurement | None:
        """A summary of the dose–response over alphas (`slope`, `r2`, `monotone`), or None."""
        rows = self._index.get((method, DOSE, metric), [])
        return _over_seeds([m for m in rows if m.alpha is None])

    def at(self, where: str) -> list[Difference]:
        """The comparisons at `"alpha_1"` or `"equal_kl"`, by split, then by method."""
        return self._in_order(c for c in self.comparisons if c.at == where)

    @property
    def told(self) -> list[Difference]:
        """What is judged at alpha 1: the comparisons, or without any the gains."""
        return self.at(ALPHA_1) or [c for c in self.over_base if c.at == ALPHA_1]

    @property
    def over_base(self) -> list[Difference]:
        """The gains over the bare model by split, then by method."""
        known = (c for c in self.gains if c.split in self.splits and c.method in self.methods)
        return self._in_order(known)

    def _in_order(self, rows: Iterable[Difference]) -> list[Difference]:
        order = {name: i for i, name in enumerate((*self.splits, *self.methods))}
        return sorted(rows, key=lambda c: (order.get(c.split, 99), order.get(c.method, 99)))

    def alpha_of_equal_kl(self, method: str) -> float | None:
        """The alpha at which the method's KL equals the baseline's, or None if never reached."""
        if method == self.baseline:
            return 1.0
        rows = (*self.comparisons, *self.measurements)
        here = (r.alpha for r in rows if r.method == method and r.at == EQUAL_KL)
        return next((alpha for alpha in here if alpha is not None), None)

    def damage(self, method: str, metric: str) -> float | None:
        """`kl` or `nll_rise` on neutral text at alpha 1."""
        return next((p.value for p in self.curve(method, NEUTRAL, metric) if p.alpha == 1), None)

    def _at(self, method: str, split: str, metric: str, at: str) -> list[Measurement]:
        rows = self._index.get((method, split, metric), [])
        if method == BASE:
            return rows
        return [m for m in rows if (m.at or (ALPHA_1 if m.alpha == 1 else None)) == at]


def read_results(run_dir: str | Path) -> Results:
    """The result files of a run.

    Raises:
        TrimtabError: a required file is missing or a file is malformed; the text names file, line
            and field.
    """
    run = reading.read(run_dir)
    parts: tuple[list[Difference], ...] = ([], [], [], [])
    for d in run.differences:
        apart = {"margin": 2, "steerability": 3} if not d.split.startswith(PANEL) else {}
        parts[apart.get(d.metric, d.against == BASE)].append(d)
    against, bare, margins, steered = map(tuple, parts)
    told = (against, bare, margins, steered)
    return Results(run.about, run.measurements, *told, run.curves, run.generations, run.costs)


def read_grid(run_dir: str | Path) -> tuple[Grid, list[Results]]:
    """What a comparison of several models or suites is, and the result files of each.

    Raises:
        TrimtabError: as `read_results`, for any of them.
    """
    grid = reading.read_grid(run_dir)
    return grid, [read_results(Path(run_dir) / name) for name in grid.studies]


def _over_seeds(rows: Sequence[Measurement]) -> Measurement | None:
    """The line over seeds where there is one, else the only seed's."""
    for m in rows:
        if m.seed is None:
            return m
    return rows[0] if rows else None
