"""Result files of a run, read and checked: the one way in which figures reach a page.

    run/study.json           what was run                            required
    run/results.jsonl        one measurement a line                  required
    run/verdicts.jsonl       paired differences from the baseline    absent without a baseline
    run/gains.jsonl          paired differences from the bare model  optional
    run/curves.jsonl         training curves                         optional
    run/generations.jsonl    texts at several alphas                 optional
    run/costs.json           seconds, parameters, … by method        optional

A comparison of several models or suites is a folder of such folders, which `grid.json` names.

Fields that are not known here are passed over, so that a study may write more than a page shows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from trimtab.errors import TrimtabError

BASE = "base"
"""The bare model, as results name it."""

TRAIN, DOSE, NEUTRAL = "train", "dose", "neutral"
"""Splits with a part of their own: training items, the dose–response part, neutral text."""

ALPHA_1, EQUAL_KL = "alpha_1", "equal_kl"
"""Where dials are compared: all at alpha 1, or each where its KL equals the baseline's."""


@dataclass(frozen=True)
class Split:
    """An evaluation split: its spec string, items and pairs scored, over-long pairs dropped."""

    spec: str
    items: int
    pairs: int
    dropped: int = 0


@dataclass(frozen=True)
class Study:
    """`study.json`: what was run, on what, with which versions."""

    title: str
    model: str
    model_digest: str
    suite: str
    train: str
    splits: dict[str, Split]
    methods: dict[str, str]
    seeds: tuple[int, ...]
    dtype: str
    device: str
    versions: dict[str, str]
    command: str
    limit: int | None
    notes: tuple[str, ...]
    train_items: int | None
    train_pairs: int | None
    published: Published | None = None
    trials: dict[str, int] = field(default_factory=dict)
    """How many trials chose each trained method's settings."""
    equivalent: dict[str, str] = field(default_factory=dict)
    """Methods that were not run, being provably another one that was."""


@dataclass(frozen=True)
class Published:
    """Accuracies of an earlier publication on the same splits, as shares of 1, and what they are."""

    note: str
    rows: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Measurement:
    """One line of `results.jsonl`. Accuracies are shares of 1; `kl`, `nll_rise` nats per token.

    `seed` is None for the bare model and for a mean over seeds, `alpha` None for a summary over
    alphas. Values and bounds that were not estimable are NaN.
    """

    method: str
    suite: str
    split: str
    seed: int | None
    alpha: float | None
    metric: str
    value: float
    ci_low: float
    ci_high: float
    items: int | None
    pairs: int | None
    at: str | None
    suite_digest: str | None
    commit: str | None
    line: int


@dataclass(frozen=True)
class Comparison:
    """One line of `verdicts.jsonl`: method minus baseline, accuracies as shares of 1."""

    method: str
    split: str
    at: str
    alpha: float | None
    baseline: str
    difference: float
    ci_low: float
    ci_high: float
    p: float
    p_holm: float
    verdict: str
    in_this_run: bool
    seeds: int
    mde: float
    underpowered: bool
    items: int | None

    @property
    def told(self) -> bool:
        """Whether the verdict is "better" or "worse"."""
        return self.verdict in ("better", "worse")


@dataclass(frozen=True)
class CurvePoint:
    """One line of `curves.jsonl`: a training metric at an optimiser step."""

    method: str
    seed: int | None
    step: int
    metric: str
    value: float


@dataclass(frozen=True)
class Generation:
    """One line of `generations.jsonl`: what a model with a dial at alpha answered."""

    method: str
    seed: int | None
    alpha: float
    prompt: str
    text: str


@dataclass(frozen=True)
class Grid:
    """Results of several models and suites that were compared together."""

    title: str
    command: str
    notes: tuple[str, ...]
    studies: tuple[Results, ...]
    names: tuple[str, ...]
    """Their folders within the grid's."""


@dataclass(frozen=True)
class Results:
    """All result files of one run."""

    study: Study
    measurements: tuple[Measurement, ...]
    comparisons: tuple[Comparison, ...] = ()
    gains: tuple[Comparison, ...] = ()
    curves: tuple[CurvePoint, ...] = ()
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
        seen = dict.fromkeys(m.split for m in self.measurements if m.metric == "accuracy")
        known = [s for s in self.study.splits if s in seen]
        apart = (TRAIN, DOSE, NEUTRAL)
        return tuple(s for s in dict.fromkeys([*known, *seen]) if s not in apart)

    @cached_property
    def baseline(self) -> str | None:
        """The method that the comparisons are against, or None where there are none."""
        return self.comparisons[0].baseline if self.comparisons else None

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
            nothing = {"seed": None, "alpha": 0.0, "value": 0.0, "ci_low": 0.0, "ci_high": 0.0}
            by_alpha[0.0] = [replace(rows[0], **nothing)]  # where nothing is attached: exactly none
        points = [_over_seeds(by_alpha[alpha]) for alpha in sorted(by_alpha)]
        return [point for point in points if point is not None]

    def summary(self, method: str, metric: str) -> Measurement | None:
        """A summary of the dose–response over alphas (`slope`, `r2`, `monotone`), or None."""
        rows = self._index.get((method, DOSE, metric), [])
        return _over_seeds([m for m in rows if m.alpha is None])

    def at(self, where: str) -> list[Comparison]:
        """The comparisons at `"alpha_1"` or `"equal_kl"`, by split, then by method."""
        rows = [c for c in self.comparisons if c.at == where]
        order = {name: i for i, name in enumerate(self.splits)}
        rank = {name: i for i, name in enumerate(self.methods)}
        return sorted(rows, key=lambda c: (order.get(c.split, 99), rank.get(c.method, 99)))

    def alpha_of_equal_kl(self, method: str) -> float | None:
        """The alpha at which the method's KL equals the baseline's, or None if never reached."""
        for row in (*self.comparisons, *self.measurements):
            if row.method == method and row.at == EQUAL_KL and row.alpha is not None:
                return row.alpha
        return None

    def _at(self, method: str, split: str, metric: str, at: str) -> list[Measurement]:
        rows = self._index.get((method, split, metric), [])
        if method == BASE:
            return rows
        return [m for m in rows if (m.at or (ALPHA_1 if m.alpha == 1 else None)) == at]


def read_results(run_dir: str | Path) -> Results:
    """Read and check the result files of a run.

    Raises:
        TrimtabError: a required file is missing or a file is malformed; the text names file, line
            and field.
    """
    run = Path(run_dir)
    if not run.is_dir():
        raise TrimtabError(f"{run}: no such run directory; give the --out of a comparison")
    for name in ("study.json", "results.jsonl"):
        if not (run / name).is_file():
            raise TrimtabError(
                f"{run / name}: missing; a finished comparison writes study.json and results.jsonl"
            )
    results = Results(
        study=_study(_Record(run / "study.json", _json(run / "study.json"))),
        measurements=tuple(_measurement(r) for r in _lines(run / "results.jsonl")),
        comparisons=tuple(_comparison(r) for r in _lines(run / "verdicts.jsonl")),
        gains=tuple(_comparison(r) for r in _lines(run / "gains.jsonl")),
        curves=tuple(_curve_point(r) for r in _lines(run / "curves.jsonl")),
        generations=tuple(_generation(r) for r in _lines(run / "generations.jsonl")),
        costs=_costs(run / "costs.json"),
    )
    if not results.measurements:
        raise TrimtabError(f"{run / 'results.jsonl'}: empty; expected one measurement a line")
    for key, rows in results._index.items():
        places: dict[tuple[float | None, str | None], set[int | None]] = {}
        for m in rows:
            places.setdefault((m.alpha, m.at), set()).add(m.seed)
        for seeds in places.values():
            if len(seeds) > 1 and None not in seeds:
                raise TrimtabError(
                    f"{run / 'results.jsonl'}:{rows[0].line}: {len(seeds)} seeds of "
                    f"{' / '.join(key)} but no mean over them; expected a line with seed null"
                )
    return results


GRID = "grid.json"


def is_grid(run_dir: str | Path) -> bool:
    """Whether a folder holds a comparison of several models or suites."""
    return (Path(run_dir) / GRID).is_file()


def read_grid(run_dir: str | Path) -> Grid:
    """Read and check the result files of a comparison of several models or suites.

    Raises:
        TrimtabError: as `read_results`, for any of them.
    """
    file = Path(run_dir) / GRID
    record = _Record(file, _json(file))
    names = tuple(str(name) for name in record.array("studies"))
    for name in names:
        if name in ("", ".", "..") or {"/", "\\", "\0"} & set(name):
            raise TrimtabError(
                f"{file}: 'studies' names {name!r}; expected names of folders beside the file"
            )
    if not names:
        raise TrimtabError(f"{file}: 'studies' is empty; expected the folders of its studies")
    return Grid(
        title=record.text("title"),
        command=record.text("command"),
        notes=tuple(str(note) for note in record.array("notes")),
        studies=tuple(read_results(file.parent / name) for name in names),
        names=names,
    )


def _over_seeds(rows: Sequence[Measurement]) -> Measurement | None:
    """The line over seeds where there is one, else the only seed's."""
    for m in rows:
        if m.seed is None:
            return m
    return rows[0] if rows else None


class _Record:
    """One JSON object with its place, so that every complaint names file and line."""

    def __init__(self, where: object, value: Any, line: int = 0):
        self.line = line
        self.where = f"{where}:{line}" if line else str(where)
        if not isinstance(value, dict):
            raise TrimtabError(f"{self.where}: expected a JSON object, got {_kind(value)}")
        self.fields: dict[str, Any] = value

    def text(self, name: str) -> str:
        value = self._get(name)
        if not isinstance(value, str):
            raise self._wrong(name, "text", value)
        return value

    def text_or_none(self, name: str) -> str | None:
        return None if self.fields.get(name) is None else self.text(name)

    def integer(self, name: str) -> int:
        value = self._get(name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(name, "a whole number", value)
        return value

    def integer_or_none(self, name: str) -> int | None:
        return None if self.fields.get(name) is None else self.integer(name)

    def number(self, name: str) -> float:
        """A number; null, which strict JSON writes for NaN, is NaN."""
        value = self._get(name)
        if value is None:
            return math.nan
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(name, "a number", value)
        return float(value)

    def number_or_none(self, name: str) -> float | None:
        return None if self.fields.get(name) is None else self.number(name)

    def truth(self, name: str) -> bool:
        value = self._get(name)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false", value)
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        value = self._get(name)
        if not isinstance(value, dict):
            raise self._wrong(name, "an object", value)
        return value

    def texts(self, name: str) -> dict[str, str]:
        return {key: str(value) for key, value in self.mapping(name).items()}

    def array(self, name: str) -> list[Any]:
        value = self._get(name)
        if not isinstance(value, list):
            raise self._wrong(name, "a list", value)
        return value

    def _get(self, name: str) -> Any:
        if name not in self.fields:
            known = ", ".join(self.fields) or "none"
            raise TrimtabError(f"{self.where}: field {name!r} is missing; it has {known}")
        return self.fields[name]

    def _wrong(self, name: str, expected: str, value: Any) -> TrimtabError:
        return TrimtabError(f"{self.where}: {name!r} should be {expected}, got {_kind(value)}")


def _kind(value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= 40 else f"{shown[:37]}…"


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise TrimtabError(f"{path}: not UTF-8 text ({error.reason})") from error
    except json.JSONDecodeError as error:
        raise TrimtabError(f"{path}:{error.lineno}: not JSON ({error.msg})") from error


def _lines(path: Path) -> Iterator[_Record]:
    if not path.is_file():
        return
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TrimtabError(f"{path}: not UTF-8 text ({error.reason})") from error
    # Not splitlines(): a generated text may hold U+2028, which JSON does not escape.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise TrimtabError(
                f"{path}:{number}: not a JSON object ({error.msg}); was the file cut short?"
            ) from error
        yield _Record(path, value, number)


def _study(r: _Record) -> Study:
    splits = {}
    for name, value in r.mapping("splits").items():
        split = _Record(f"{r.where}: split {name!r}", value)
        splits[name] = Split(
            spec=split.text("spec"),
            items=split.integer("items"),
            pairs=split.integer("pairs"),
            dropped=split.integer_or_none("dropped") or 0,
        )
    seeds = r.array("seeds")
    if any(isinstance(s, bool) or not isinstance(s, int) for s in seeds):
        raise TrimtabError(f"{r.where}: 'seeds' should be a list of whole numbers, got {seeds}")
    return Study(
        title=r.text("title"),
        model=r.text("model"),
        model_digest=r.text("model_digest"),
        suite=r.text("suite"),
        train=r.text("train"),
        splits=splits,
        methods=r.texts("methods"),
        seeds=tuple(seeds),
        dtype=r.text("dtype"),
        device=r.text("device"),
        versions=r.texts("versions"),
        command=r.text("command"),
        limit=r.integer_or_none("limit"),
        notes=tuple(str(note) for note in (r.fields.get("notes") or [])),
        train_items=r.integer_or_none("train_items"),
        train_pairs=r.integer_or_none("train_pairs"),
        published=_published(r),
        trials={k: int(v) for k, v in (r.fields.get("trials") or {}).items()},
        equivalent={k: str(v) for k, v in (r.fields.get("equivalent") or {}).items()},
    )


def _published(r: _Record) -> Published | None:
    if r.fields.get("published") is None:
        return None
    inner = _Record(f"{r.where}: published", r.mapping("published"))
    rows = {}
    for name in inner.mapping("rows"):
        row = _Record(f"{inner.where}: {name}", inner.mapping("rows")[name])
        rows[name] = {split: row.number(split) for split in row.fields}
    return Published(inner.text("note"), rows)


def _measurement(r: _Record) -> Measurement:
    metric, low, high = r.text("metric"), r.number("ci_low"), r.number("ci_high")
    if metric.startswith("accuracy") and low <= high:  # a t interval knows of no 0 and 1
        low, high = max(low, 0.0), min(high, 1.0)
    return Measurement(
        method=r.text("method"),
        suite=r.text("suite"),
        split=r.text("split"),
        seed=r.integer_or_none("seed"),
        alpha=r.number_or_none("alpha"),
        metric=metric,
        value=r.number("value"),
        ci_low=low,
        ci_high=high,
        items=r.integer_or_none("items"),
        pairs=r.integer_or_none("pairs"),
        at=_where(r) if r.fields.get("at") is not None else None,
        suite_digest=r.text_or_none("suite_digest"),
        commit=r.text_or_none("commit"),
        line=r.line,
    )


def _comparison(r: _Record) -> Comparison:
    verdict = r.text("verdict")
    if verdict not in ("better", "worse", "cannot tell"):
        raise TrimtabError(
            f"{r.where}: 'verdict' should be better, worse or cannot tell, got {verdict!r}"
        )
    return Comparison(
        method=r.text("method"),
        split=r.text("split"),
        at=_where(r),
        alpha=r.number_or_none("alpha"),
        baseline=r.text("baseline"),
        difference=r.number("difference"),
        ci_low=r.number("ci_low"),
        ci_high=r.number("ci_high"),
        p=r.number("p"),
        p_holm=r.number("p_holm"),
        verdict=verdict,
        in_this_run=r.truth("in_this_run"),
        seeds=r.integer("seeds"),
        mde=r.number("mde"),
        underpowered=r.truth("underpowered"),
        items=r.integer_or_none("items"),
    )


def _where(r: _Record) -> str:
    where = r.text("at")
    if where not in (ALPHA_1, EQUAL_KL):
        raise TrimtabError(f"{r.where}: 'at' should be {ALPHA_1} or {EQUAL_KL}, got {where!r}")
    return where


def _curve_point(r: _Record) -> CurvePoint:
    return CurvePoint(
        method=r.text("method"),
        seed=r.integer_or_none("seed"),
        step=r.integer("step"),
        metric=r.text("metric"),
        value=r.number("value"),
    )


def _generation(r: _Record) -> Generation:
    return Generation(
        method=r.text("method"),
        seed=r.integer_or_none("seed"),
        alpha=r.number("alpha"),
        prompt=r.text("prompt"),
        text=r.text("text"),
    )


def _costs(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    record = _Record(path, _json(path))
    return {method: record.mapping(method) for method in record.fields}
