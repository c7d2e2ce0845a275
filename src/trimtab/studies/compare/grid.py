"""The grid of a comparison: models x suites, each a study with its cells, planned before any model
is loaded."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trimtab import models
from trimtab.errors import ConfigError, near
from trimtab.pairs.spec import spec_with
from trimtab.panel import Panel, read_items, read_panel
from trimtab.progress import Progress
from trimtab.studies.compare import tables
from trimtab.studies.compare.cell import (
    CONTROLS,
    OLD_INSTRUCTION,
    Cell,
    Comparison,
    Measuring,
    Setting,
    plan_cells,
)
from trimtab.studies.compare.measure import mean_kl
from trimtab.study import cells
from trimtab.study.files import Rows, read_rows
from trimtab.study.genies import genies_suites, is_genies
from trimtab.study.lines import check_seeds
from trimtab.study.results import INSTRUCTION
from trimtab.study.settings import Settings
from trimtab.study.suite import Suite, own_suite, read_data, read_suite
from trimtab.training import Method


@dataclass
class Study:
    """One model on one suite: its cells, and where its result files go."""

    out: Path
    """The folder of the comparison."""
    folder: Path
    setting: Setting
    methods: list[str]
    cells: list[Cell]
    capability: dict[str, list[Cell]] = field(default_factory=dict)
    """By split, the cells of the model that is trained on the split's reference."""
    panel: Panel | None = None
    """What side effects are looked for in."""

    @property
    def suite(self) -> Suite:
        """What it is judged on."""
        return self.setting.data.suite

    def plan(self) -> Iterator[list[cells.Cell]]:
        """All its cells; then, where KL is DPO's; then on the panel."""
        first = [*self.cells, *(cell for own in self.capability.values() for cell in own)]
        yield list(first)
        if all(cell.done for cell in first):
            yield (again := self.again())
            if all(cell.done for cell in again):
                yield list(self.sides())

    def target(self) -> float | None:
        """DPO's mean KL at alpha 1, where there is a DPO that moved."""
        rows = rows_of(c for c in self.cells if c.name == tables.BASELINE)
        found = mean_kl(rows) if rows else 0.0
        return found if 1e-8 < found < math.inf else None

    def again(self) -> list[cells.Cell]:
        """Every other method's cells, which are done, to be measured again at DPO's KL."""
        turned = [c for c in self.cells if c.method and c.name != tables.BASELINE]
        return [c.again(target) for c in turned] if (target := self.target()) else []

    def sides(self) -> Iterator[cells.Cell]:
        """The bare model's cell and every method's, which are done, to be measured on the panel."""
        target = self.target()
        for c in self.cells if self.panel else ():
            if not c.instruction:
                at = target if c.method and c.name != tables.BASELINE else None
                assert self.panel
                yield c.sides(self.panel.digest, at)

    def rows(self) -> Rows:
        """Scores of all cells at every alpha, and at equal KL."""
        return rows_of(self.cells) + [
            row for cell in self.again() for row in read_rows(cell.result)
        ]


def rows_of(cells: Iterable[Cell]) -> Rows:
    """Scores of finished cells."""
    return [
        {**row, "method": cell.name}
        for cell in cells
        for row in read_rows(cell.folder / "items.parquet")
    ]


def chosen_methods(
    comparison: Comparison, settings: Settings, methods: Sequence[Method] | None
) -> tuple[list[Method], bool]:
    """The methods in the order of the tables, and whether the led prompts are among them."""
    own = [m.name for m in methods] if methods is not None else list(comparison.methods)
    if len(set(own)) < len(own) or not own:
        raise ConfigError("methods: expected at least one, each once")
    controls = [INSTRUCTION if c == OLD_INSTRUCTION else c for c in comparison.controls]
    if unknown := set(controls) - set(CONTROLS):
        raise ConfigError(
            f"controls: {sorted(unknown)[0]!r} is none (there are: {', '.join(CONTROLS)})"
        )
    check_seeds("seeds", comparison.seeds)
    added = [c for c in CONTROLS if c in controls and c not in own]
    first = [tables.BASELINE] if tables.BASELINE in added else []
    names = [*first, *own, *(c for c in added if c not in first)]
    given = {m.name: m for m in methods or ()}
    found = [given.get(n) or settings.method(n) for n in names if n != INSTRUCTION]
    return found, INSTRUCTION in names


def plan_studies(
    comparison: Comparison, out: Path, chosen: list[Method], prompt: bool, progress: Progress
) -> tuple[list[Study], list[str]]:
    """One study a model and suite, every pair read and every model found, none loaded."""
    device = models.resolve_device(comparison.device)
    dtype = str(models.resolve_dtype(comparison.dtype, device)).removeprefix("torch.")
    root = comparison.data_root or os.environ.get("TRIMTAB_DATA")
    root = str(Path(root).expanduser().absolute()) if root else None
    suites, said = _suites(comparison, root)
    many = comparison.models or (comparison.model,)
    for what, values in (("models", many), ("suites", [suite.name for suite in suites])):
        if len(set(values)) < len(values):
            raise ConfigError(f"{what}: expected each once, given {', '.join(values)}")
    for suite in suites:
        for split in set(comparison.measuring.equal_kl) - set(suite.evaluate):
            raise ConfigError(
                f"measuring.equal_kl: {suite.name} has no split {split!r}"
                f"{near(split, suite.evaluate)} (it has {', '.join(suite.evaluate)})"
            )
    panel = None
    if comparison.panel is not None:
        panel = read_items(read_panel(comparison.panel), comparison.panel_items, root)
    data = [read_data(s, root, comparison.limit, comparison.train_limit) for s in suites]
    references = _references(suites, root, comparison)
    for pairs in (p for d in (*data, *references.values()) for p in (d.train, *d.splits.values())):
        progress.left_out(pairs.name, pairs.left_out, pairs.notes)
    for name in many:
        models.check(name)
    studies = []
    for name in many:
        local = Path(name).expanduser()
        source = models.identify(name)
        place = {"model": str(local.absolute()) if local.exists() else name, "data_root": root}
        here = {**place, "dtype": dtype, "device": str(device)}
        if comparison.panel:
            here["panel"] = str(Path(comparison.panel).expanduser().absolute())
        setting = Setting(**vars(comparison) | here, digest=source.digest, parts=source.parts)
        for suite, pairs in zip(suites, data, strict=True):
            here = replace(setting, data=pairs)
            planned = plan_cells(out, here, chosen, comparison.seeds, prompt=prompt)
            folder = out / slug(name, suite.name) if len(many) * len(suites) > 1 else out
            names = [m.name for m in chosen] + ([INSTRUCTION] if prompt else [])
            study = Study(out, folder, here, names, planned, panel=panel)
            baseline = [m for m in chosen if m.name == tables.BASELINE]
            for split, specs in suite.capability.items() if baseline else ():
                there = replace(setting, data=references[specs], measuring=_little(comparison))
                own = plan_cells(out, there, baseline, comparison.seeds)
                study.capability[split] = own[1:]  # the bare model's is not needed
            studies.append(study)
    if len({study.folder for study in studies}) < len(studies):
        raise ConfigError("models, suites: two of them have names too alike for folders")
    return studies, said


def _suites(comparison: Comparison, root: str | None) -> tuple[list[Suite], list[str]]:
    found, said = [], []
    if comparison.pairs:
        if comparison.suites or comparison.suite != Comparison.suite:
            raise ConfigError("compare: give --pairs SPEC or --suite NAME")
        spec = spec_with(comparison.pairs, comparison.columns, comparison.skip_bad)
        return [own_suite(spec, comparison.holdout)], said
    if comparison.columns or comparison.skip_bad:
        raise ConfigError("compare: --columns and --skip-bad go with --pairs")
    for name in comparison.suites or (comparison.suite,):
        if is_genies(name):
            some, left_out = genies_suites(name, root, comparison.skip_missing)
            found, said = found + some, said + left_out
        else:
            found.append(read_suite(name))
    return found, said


def _references(suites: Sequence[Suite], root: str | None, comparison: Comparison) -> Any:
    """The pairs of every reference distribution, each read once."""
    found = {}
    for suite in suites:
        for train, test in suite.capability.values():
            if (train, test) not in found:
                own = Suite(f"on {train}", "", train, {"capability": test}, test, drop_seen=True)
                found[train, test] = read_data(own, root, comparison.limit, comparison.train_limit)
    return found


def _little(comparison: Comparison) -> Measuring:
    """What is measured where only the accuracy counts."""
    return replace(
        comparison.measuring, alphas=(1.0,), dose_items=1, train_items=1, passages=1, prompts=0
    )


def slug(*names: str) -> str:
    """Names of a model and a suite as the name of a folder."""
    return "--".join(re.sub(r"[^A-Za-z0-9_.]+", "-", Path(name).name).strip("-.") for name in names)
