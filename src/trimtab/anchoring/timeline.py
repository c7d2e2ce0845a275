"""Keyframe sheets: how weights and learning rate change over training.

A sheet is a table, from a CSV file or from rows in Python. Its columns are `STEP`, optionally
`PHASE` and `ACTION`, and a column a property, `name[:space][:timing]`: space `linear` or `log`,
timing `minjerk` (default), `linear` or `step`. A number is a keyframe, a blank cell is none.

STEP is an absolute step (an anchor row), or relative to the anchor rows around it: `+N` steps after
the one before, `-N` before the one after, `+0.3` or `-0.3` a share of the way between the two. A
property holds its first value from the start and its last to the end. PHASE lasts until the next;
ACTION is a list of events at that step. `Sheet.table()` gives every value at every step, before
training; `Reactive` (`paths`) is one property whose target may change on the way.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from trimtab.anchoring.paths import LOG_FLOOR, SPACES, TIMINGS, Reactive, minjerk
from trimtab.errors import ConfigError, near

MOST_STEPS = 10_000_000
"""Of a sheet: each property is an array over all of them."""

__all__ = ["Column", "Reactive", "Row", "Sheet", "Table", "minjerk", "parse_sheet", "read_sheet"]


@dataclass(frozen=True)
class Column:
    """A property of the sheet."""

    name: str
    space: str = "linear"
    timing: str = "minjerk"


@dataclass(frozen=True)
class Row:
    """A row of the sheet: where it is, what starts or happens there, keyframes by property."""

    step: int | str
    values: Mapping[str, float] = field(default_factory=dict)
    phase: str = ""
    actions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sheet:
    """Keyframes of a training run.

    Raises:
        ConfigError: steps out of order, a step that cannot be placed, a value that is not finite, a
            column without any value, a value of an unknown column. It names the sheet, the row and
            the column.
    """

    rows: tuple[Row, ...]
    columns: tuple[Column, ...] = ()
    name: str = "sheet"

    def __post_init__(self) -> None:
        if not self.columns:
            names = dict.fromkeys(key for row in self.rows for key in row.values)
            object.__setattr__(self, "columns", tuple(_column(n, self.name) for n in names))
            plain = {n: _column(n, self.name).name for n in names}
            rows = tuple(
                Row(r.step, {plain[k]: v for k, v in r.values.items()}, r.phase, r.actions)
                for r in self.rows
            )
            object.__setattr__(self, "rows", rows)
        known = [c.name for c in self.columns]
        for name in known:
            if known.count(name) > 1:
                raise ConfigError(f"{self.name}: column {name!r} twice")
        for number, row in enumerate(self.rows, 1):
            for name, value in row.values.items():
                where = f"{self.name}: row {number}, column {name!r}"
                if name not in known:
                    raise ConfigError(f"{where}: no such column (it has {', '.join(known)})")
                if not math.isfinite(value):
                    raise ConfigError(f"{where}: {value}: expected a finite number")
                if value < 0 and self._column(name).space == "log":
                    raise ConfigError(f"{where}: {value:g}: log space needs 0 or more")
        for name in known:
            if not any(name in row.values for row in self.rows):
                raise ConfigError(f"{self.name}: column {name!r} has no value in any row")
        _place(self)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the properties."""
        return tuple(c.name for c in self.columns)

    def check(self, weights: Iterable[str], others: Iterable[str] = ("lr",)) -> None:
        """Hold the sheet against what training will look up, in both directions.

        Args:
            weights: names of terms; each must have a column, whose values are 0 or more.
            others: further properties that training reads, also 0 or more.

        Raises:
            ConfigError: a column that nothing reads, a name without a column, a negative value.
        """
        wanted = [*weights, *others]
        for name in self.names:
            if name not in wanted:
                raise ConfigError(
                    f"{self.name}: column {name!r} matches no term{near(name, wanted)} "
                    f"(known: {', '.join(wanted)})"
                )
        for name in wanted:
            if name not in self.names:
                raise ConfigError(
                    f"{self.name}: no column for {name!r}{near(name, self.names)} "
                    f"(it has {', '.join(self.names)})"
                )
        for number, row in enumerate(self.rows, 1):
            for name, value in row.values.items():
                if value < 0:
                    raise ConfigError(
                        f"{self.name}: row {number}, column {name!r}: {value:g}: "
                        "a weight or rate cannot be negative"
                    )

    def table(self) -> Table:
        """Every property at every step; the last row's step is the last of training."""
        steps = _place(self)
        length = steps[-1] + 1
        if length > MOST_STEPS:
            raise ConfigError(f"{self.name}: {length:,} steps; expected at most {MOST_STEPS:,}")
        keys: dict[str, list[tuple[int, float]]] = {name: [] for name in self.names}
        phases: list[tuple[int, str]] = []
        actions: dict[int, tuple[str, ...]] = {}
        for step, row in zip(steps, self.rows, strict=True):
            for name, value in row.values.items():
                keys[name].append((step, float(value)))
            if row.phase and (not phases or phases[-1][1] != row.phase):
                phases.append((step, row.phase))
            if row.actions:
                actions[step] = (*actions.get(step, ()), *row.actions)
        values = {c.name: _realise(c, keys[c.name], length) for c in self.columns}
        return Table(length, values, tuple(phases), actions)

    def stretched(self, steps: int) -> Sheet:
        """The same sheet over another number of steps: rows keep their share of the way."""
        placed = _place(self)
        last = placed[-1]
        if steps < 2 or last < 1:
            raise ConfigError(f"{self.name}: {steps} steps: expected 2 or more")
        rows: dict[int, Row] = {}
        for step, row in zip(placed, self.rows, strict=True):
            at = round(step * (steps - 1) / last)
            old = rows.get(at, Row(at))
            values, actions = {**old.values, **row.values}, (*old.actions, *row.actions)
            rows[at] = Row(at, values, row.phase or old.phase, actions)
        return Sheet(tuple(rows.values()), self.columns, self.name)

    def _column(self, name: str) -> Column:
        return next(c for c in self.columns if c.name == name)


@dataclass(frozen=True)
class Table:
    """A realised sheet.

    Attributes:
        steps: how many; the first is step 0.
        values: an array a property, `[steps]`, float64.
        phases: where each phase starts, and its name.
        actions: events by step.
    """

    steps: int
    values: Mapping[str, np.ndarray]
    phases: tuple[tuple[int, str], ...] = ()
    actions: Mapping[int, tuple[str, ...]] = field(default_factory=dict)

    def at(self, step: int) -> dict[str, float]:
        """The properties at a step; after the last step, as at the last."""
        index = min(max(step, 0), self.steps - 1)
        return {name: float(array[index]) for name, array in self.values.items()}

    def phase(self, step: int) -> str:
        """The phase at a step, or an empty string."""
        started = [name for first, name in self.phases if first <= step]
        return started[-1] if started else ""

    def starts(self, step: int) -> bool:
        """Whether a phase starts at a step."""
        return any(first == step for first, _ in self.phases)

    def ends(self, step: int) -> bool:
        """Whether a phase has its last step here."""
        return step == self.steps - 1 or any(first == step + 1 for first, _ in self.phases[1:])


# ---- reading ------------------------------------------------------------------------------------


def read_sheet(path: str | Path) -> Sheet:
    """A sheet from a CSV file.

    Raises:
        ConfigError: the file cannot be read or is not a sheet; it names file, row and column (rows
            are counted below the header, from 1).
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a sheet: {error}") from error
    return parse_sheet(text, path.name)


def parse_sheet(text: str, name: str = "sheet") -> Sheet:
    """A sheet from CSV text. Raises ConfigError as `read_sheet` does."""
    lines = [row for row in csv.reader(io.StringIO(text.strip())) if row]
    if not lines:
        raise ConfigError(f"{name}: empty; expected a header and rows")
    header = [cell.strip() for cell in lines[0]]
    if "STEP" not in header:
        raise ConfigError(f"{name}: no STEP column (it has {', '.join(header)})")
    fixed = {"STEP", "PHASE", "ACTION"}
    if unknown := [h for h in header if h.isupper() and h not in fixed]:
        raise ConfigError(f"{name}: unknown column {unknown[0]!r}{near(unknown[0], fixed)}")
    columns = {
        i: _column(cell, name) for i, cell in enumerate(header) if cell not in fixed and cell
    }
    if blank := [i for i, cell in enumerate(header) if not cell]:
        raise ConfigError(f"{name}: column {blank[0] + 1} has no name")
    rows = []
    for number, line in enumerate(lines[1:], 1):
        if len(line) != len(header):
            raise ConfigError(
                f"{name}: row {number} has {len(line)} cells, the header {len(header)}"
            )
        cells = dict(zip(header, (cell.strip() for cell in line), strict=True))
        if not cells["STEP"]:
            raise ConfigError(f"{name}: row {number}, column 'STEP': no value")
        values = {}
        for i, column in columns.items():
            cell = line[i].strip()
            if cell:
                try:
                    values[column.name] = float(cell)
                except ValueError:
                    raise ConfigError(
                        f"{name}: row {number}, column {column.name!r}: "
                        f"{cell!r}: expected a number or nothing"
                    ) from None
        actions = tuple(a.strip() for a in cells.get("ACTION", "").split(",") if a.strip())
        rows.append(Row(cells["STEP"], values, cells.get("PHASE", ""), actions))
    if not rows:
        raise ConfigError(f"{name}: no row below the header")
    return Sheet(tuple(rows), tuple(columns.values()), name)


def _column(header: str, sheet: str) -> Column:
    name, *modifiers = (part.strip() for part in header.split(":"))
    # One modifier alone may be either; of two, the space comes first.
    alone = len(modifiers) == 1
    space = modifiers[0] if modifiers and not (alone and modifiers[0] not in SPACES) else ""
    timing = modifiers[-1] if modifiers and not (alone and space) else ""
    timing = timing.removesuffix("-end")
    space, timing = space or "linear", timing or "minjerk"
    if len(modifiers) > 2 or space not in SPACES or timing not in TIMINGS:
        wrong = space if space not in SPACES else timing
        raise ConfigError(
            f"{sheet}: column {header!r}: unknown {wrong!r}{near(wrong, [*SPACES, *TIMINGS])}; "
            f"expected name[:space][:timing] (spaces {', '.join(SPACES)}; "
            f"timings {', '.join(TIMINGS)})"
        )
    return Column(name, space, timing)


def _place(sheet: Sheet) -> list[int]:
    """The step of every row."""
    if not sheet.rows:
        raise ConfigError(f"{sheet.name}: no rows")
    parsed = [_step(sheet, number, row.step) for number, row in enumerate(sheet.rows, 1)]
    absolute = {i: int(size) for i, (sign, size) in enumerate(parsed) if not sign}
    steps: list[int] = []
    for i, (sign, size) in enumerate(parsed):
        where = f"{sheet.name}: row {i + 1}, column 'STEP'"
        if not sign:
            step = absolute[i]
        else:
            before = absolute[max(earlier)] if (earlier := [j for j in absolute if j < i]) else 0
            after = next((absolute[j] for j in sorted(absolute) if j > i), None)
            share = isinstance(size, float)
            if after is None and (share or sign == "-"):
                raise ConfigError(f"{where}: {sheet.rows[i].step!r} needs a later absolute step")
            moved = round(size * ((after or 0) - before)) if share else int(size)
            step = max(0, before + moved if sign == "+" else (after or 0) - moved)
        if steps and step <= steps[-1]:
            raise ConfigError(
                f"{where}: step {step} ({sheet.rows[i].step}) does not come after "
                f"{steps[-1]}, the row before; put the rows in order"
            )
        steps.append(step)
    return steps


def _step(sheet: Sheet, number: int, step: int | str) -> tuple[str, int | float]:
    """(sign, size): no sign for an absolute step, a float for a share."""
    text = str(step)
    match = re.fullmatch(r"([+-]?)(\d+|\d*\.\d+)", text)
    if not match or (not match[1] and "." in match[2]):
        raise ConfigError(
            f"{sheet.name}: row {number}, column 'STEP': {text!r}: expected a step such as 500, "
            "+10, -10, +0.5 or -0.5"
        )
    if "." in match[2]:
        share = float(match[2])
        if not 0 < share < 1:
            raise ConfigError(
                f"{sheet.name}: row {number}, column 'STEP': share {text}: expected 0 to 1"
            )
        return match[1], share
    return match[1], int(match[2])


# ---- values between keys ------------------------------------------------------------------------


def _realise(column: Column, keys: Sequence[tuple[int, float]], length: int) -> np.ndarray:
    values = np.empty(length)
    values[: keys[0][0] + 1] = keys[0][1]
    for (start, low), (end, high) in pairwise(keys):
        t = np.arange(1, end - start + 1) / (end - start)
        share = minjerk(t) if column.timing == "minjerk" else t
        if column.timing == "step":
            between = np.full(len(t), low)
        elif column.space == "log":
            a, b = (math.log(max(v, LOG_FLOOR)) for v in (low, high))
            between = np.exp(a + (b - a) * share)
        else:
            between = low + (high - low) * share
        between[-1] = high
        values[start + 1 : end + 1] = between
    values[keys[-1][0] :] = keys[-1][1]
    return values
