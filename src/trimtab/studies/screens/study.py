"""`screens`: at several blocks the screens of a concept's training items, and the slope that the mean vector
from them has there on items held out.

Two questions. Over concepts: does a screen at the middle block rank them as their slopes there do? Within a
concept: is the block that a screen likes best better than the middle one, which is the default?
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trimtab import models
from trimtab.bounds import Bounded, Count
from trimtab.errors import ConfigError
from trimtab.evaluation import score
from trimtab.evaluation.dose import steerability
from trimtab.pairs import read_pairs
from trimtab.panel.run import random_like
from trimtab.sites import parse_sites
from trimtab.statistics import BOOTSTRAP_SEED, QUANTILES, UNBOUNDED, Interval, paired_difference
from trimtab.statistics.curves import ranks
from trimtab.study.cells import Cell, Host
from trimtab.study.forecast import Load
from trimtab.study.lines import difference, judged, line, measured
from trimtab.study.on_model import OnModel
from trimtab.study.results import Difference, Measurement, Run, Split
from trimtab.training.closed_form import fit_direction
from trimtab.training.screens import screened
from trimtab.training.steering import DirectionRecipe

CONCEPTS = (
    *("agreeableness", "believes-life-has-no-meaning", "conscientiousness"),
    *("desire-for-acquiring-wealth", "desire-to-be-more-creative", "extraversion"),
    *("interest-in-art", "interest-in-science", "narcissism"),
    *("neuroticism", "openness", "politically-conservative"),
    *("politically-liberal", "risk-averse", "risk-seeking"),
)
SCREENS = ("agreement", "separation", "lens")
ALPHAS = (-1.0, 0.0, 1.0)
EVERY = "over concepts"
"""The split of rank correlations over concepts."""
LEAST = 12
"""Concepts below which no correlation over them is written."""
DRAWS = 2000


@dataclass(frozen=True)
class Asked(Bounded):
    """What is asked."""

    pairs: tuple[str, ...] = tuple(f"mwe:persona/{name}" for name in CONCEPTS)
    """Pairs, a concept each."""
    train: Count = 60
    """Items that directions and screens are read from."""
    test: Count = 40
    """The items behind them, on which slopes are measured."""
    blocks: str = "0.2,0.35,0.5,0.65,0.8"
    """Where vectors sit, fractions of the depth or blocks; others are set against 0.5, the default."""
    pool: str = "last"
    """Which positions are averaged; of a lettered answer the last is the letter."""
    data_root: str | None = None
    """Folder of local data sources (default: TRIMTAB_DATA)."""
    model: str = "smollm2-135m"
    dtype: str = "auto"
    device: str = "auto"
    threads: Count = 1
    max_length: Count = 512


class Screening(OnModel[Asked]):
    """Screens beside held-out slopes."""

    name, title, Settings = "screens", "Screens before fitting", Asked

    def __init__(self, settings: Asked, out: Path, host: Host) -> None:
        super().__init__(settings, out, host)
        if "0.5" not in settings.blocks.split(","):
            raise ConfigError(f"blocks {settings.blocks}: expected 0.5 among them")
        both = settings.train + settings.test
        self.pairs = {s: read_pairs(s, settings.data_root, limit=both) for s in settings.pairs}
        for spec, pairs in self.pairs.items():
            if len(pairs.items()) < both:
                raise ConfigError(f"{spec}: {len(pairs.items())} items; expected {both} or more")

    def halves(self, spec: str) -> tuple[Any, Any]:
        """The items that are trained on, and those that are held out."""
        pairs = self.pairs[spec]
        train = pairs.limit(self.settings.train)
        held = [p for p in pairs if p.item not in train.items()]
        return train, type(pairs)(held, f"{spec}, held out")

    def plan(self) -> Iterator[Sequence[Cell]]:
        """A cell a concept."""
        given, split = self.settings, {"train": self.settings.train, "pool": self.settings.pool}
        yield [
            self.cell(
                f"concept-{i}", {"pairs": p.digest, "blocks": given.blocks, **split}, spec=spec
            )
            for i, (spec, p) in enumerate(self.pairs.items())
        ]

    def measure(self, folder: Path, spec: str) -> dict[str, Any]:
        """Screens of a concept's blocks, and slopes of its held-out items there, with a random vector's at
        the middle one."""
        train, test = map(self.encode, self.halves(spec))
        blocks = parse_sites(self.settings.blocks, models.n_layers(self.model))
        middle = parse_sites("0.5", models.n_layers(self.model))[0]
        pool = self.settings.pool
        screens, _ = screened(self.model, train, blocks, pool=pool, store=self.store)
        found: dict[str, Any] = {
            "blocks": list(blocks),
            "middle": middle,
            "items": train.n_items,
            **{name: [list(getattr(s, name) or ()) for s in screens] for name in SCREENS},
            "slopes": [],
        }
        for site in blocks:
            recipe = DirectionRecipe(sites=str(site), pool=pool)
            dial = fit_direction(recipe, self.model, train, store=self.store)
            found["slopes"].append(self._slopes(test, dial))
            if site == middle:
                found["random"] = self._slopes(test, random_like(dial))
        return found

    def _slopes(self, test: Any, dial: Any) -> list[float]:
        made = [score(self.model, test, dial, a, force=True, store=self.store) for a in ALPHAS]
        return steerability(ALPHAS, np.array([s.preference for s in made])).slopes.tolist()

    def load(self, cell: Cell) -> Load:
        """What a cell reads: its training items twice, the held-out ones at every alpha of every block."""
        train, test = self.halves(cell.own["spec"])
        times = 1 + 2 * (len(self.settings.blocks.split(",")) + 1)
        return self.load_of(reads=[(train, 2), (test, times)])

    def compared(self, command: str, title: str) -> Run:
        """Figures a concept and block, rank correlations over concepts, and the block that each screen
        likes best against the middle one."""
        cells = {cell.own["spec"]: cell.read() for cell in self.cells.values()}
        held = {spec: self.halves(spec)[1] for spec in cells}
        splits = {s: Split(s, len(p.items()), len(p), 0) for s, p in held.items()}
        about = self.about(title=title, command=command, train="", splits=splits, more={})
        common = {"model": about.model, "suite": ""}
        lines = [m for spec, cell in cells.items() for m in _figures(spec, cell, common)]
        if len(cells) >= LEAST:
            lines += [
                line(
                    _ranks(list(cells.values()), name),
                    **common,
                    method=name,
                    split=EVERY,
                    metric="rank_correlation",
                    items=len(cells),
                )
                for name in SCREENS
                if all(cell[name][0] for cell in cells.values())
            ]
        told = [d for name in SCREENS if (d := _choice(list(cells.values()), name, common))]
        return Run(about, tuple(lines), tuple(judged(told)))


def _figures(spec: str, cell: dict[str, Any], common: dict[str, str]) -> Iterator[Measurement]:
    for i, block in enumerate(cell["blocks"]):
        own = {**common, "method": f"block {block}", "split": spec}
        for name in SCREENS:
            if cell[name][i]:
                value, low, high, *_ = cell[name][i]
                yield line(Interval(value, low, high), **own, metric=name, items=cell["items"])
        yield from _slope(cell["slopes"][i], own)
    yield from _slope(cell["random"], {**common, "method": "random", "split": spec})


def _slope(slopes: list[float], own: dict[str, Any]) -> Iterator[Measurement]:
    wrong = ((1 - np.sign(slopes)) / 2).tolist()
    yield measured({None: slopes}, within=UNBOUNDED, **own, metric="steerability")
    yield measured({None: wrong}, **own, metric="wrong_way")


def _ranks(cells: Sequence[dict[str, Any]], name: str) -> Interval:
    """Spearman's rank correlation over concepts of a screen at the middle block with the mean slope there,
    its interval by bootstrap over concepts."""
    at = [cell["blocks"].index(cell["middle"]) for cell in cells]
    x = np.array([cell[name][i][0] for cell, i in zip(cells, at, strict=True)])
    y = np.array([np.mean(cell["slopes"][i]) for cell, i in zip(cells, at, strict=True)])
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    drawn = rng.integers(0, len(x), (DRAWS, len(x)))
    found = [_spearman(x[d], y[d]) for d in drawn]
    low, high = np.nanquantile(found, QUANTILES)
    return Interval(_spearman(x, y), float(low), float(high))


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    a, b = ranks(x), ranks(y)
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) and np.ptp(b) else float("nan")


def _choice(
    cells: Sequence[dict[str, Any]], name: str, common: dict[str, str]
) -> Difference | None:
    """Mean slope at the block where a screen is largest less that at the middle one, concepts paired."""
    if not all(cell[name][0] for cell in cells):
        return None
    picked, middle = [], []
    for cell in cells:
        means = [float(np.mean(s)) for s in cell["slopes"]]
        picked.append(means[int(np.argmax([v[0] for v in cell[name]]))])
        middle.append(means[cell["blocks"].index(cell["middle"])])
    found = paired_difference([picked], [middle], UNBOUNDED)
    own: dict[str, Any] = {
        **common,
        "split": EVERY,
        "method": f"best by {name}",
        "against": "middle block",
    }
    own |= {"metric": "steerability", "alpha": None, "at": None}
    return difference(found, 1, items=len(cells), **own)
