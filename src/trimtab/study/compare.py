"""`compare`: models x suites x methods x seeds, resumable cell by cell, ending in result files."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from trimtab import models
from trimtab.errors import ConfigError, StudyError
from trimtab.fit import Method
from trimtab.fit.run import versions
from trimtab.progress import SILENT, Progress
from trimtab.study import tables, workers
from trimtab.study.cell import (
    BASE,
    COSTS,
    PROMPT,
    SUMMARY,
    Cell,
    Measuring,
    Setting,
    plan_cells,
)
from trimtab.study.files import (
    Rows,
    free_folder,
    read_rows,
    write_json,
    write_lines,
    write_rows,
)
from trimtab.study.genies import genies_suites, is_genies
from trimtab.study.measure import equal_kl_file, mean_kl, read_history
from trimtab.study.settings import Settings, read_settings
from trimtab.study.suite import Suite, read_data, read_suite

CONTROLS = (tables.BASELINE, "random", PROMPT)
"""What every table holds beside the bare model, asked for or not."""

RESULTS = (
    "study.json",
    "results.jsonl",
    "verdicts.jsonl",
    "gains.jsonl",
    "items.parquet",
    "curves.jsonl",
    "generations.jsonl",
    "costs.json",
)
GRID = "grid.json"


@dataclass(frozen=True)
class Comparison:
    """A grid of models, suites, methods and seeds."""

    model: str = models.DEFAULT_MODEL
    """Hub id, folder, .gguf file, or smollm2-135m."""
    models: tuple[str, ...] = ()
    """Several models, in place of --model."""
    suite: str = "facts"
    """A built-in suite, a YAML file, genies (its 15 shifts), or genies:SOURCE->TARGET."""
    suites: tuple[str, ...] = ()
    """Several suites, in place of --suite."""
    methods: tuple[str, ...] = ("dpo", "innerdpo", "mean", "pca")
    """Methods to compare."""
    controls: tuple[str, ...] = CONTROLS
    """Added to the methods: the baseline of all verdicts, a random direction, led prompts. The bare
    model is always there."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the methods that have one."""
    recipes: tuple[str, ...] = ()
    """YAML files with other settings of methods, such as `trimtab tune` writes."""
    limit: int | None = None
    """The first so many items of every split and of the training set."""
    train_limit: int | None = None
    """The first so many training items, where that differs."""
    dtype: str = "auto"
    """float32, bfloat16, float16, or auto: float32 on a CPU, bfloat16 on a GPU."""
    device: str = "auto"
    """A torch device, or auto: the first GPU, else the CPU."""
    threads: int = 1
    """CPU threads of a cell. The last bits of the figures depend on them, so they do not follow
    --jobs or the machine. For one cell at a time on an idle machine, give as many as it has cores."""
    data_root: str | None = None
    """Folder of local data sources (default: TRIMTAB_DATA)."""
    skip_missing: bool = False
    """Leave out the shifts of suite genies whose data are not there."""
    measuring: Measuring = field(default_factory=Measuring)
    """What is measured, and on how much."""


@dataclass
class Study:
    """One model on one suite: its cells, and where its result files go."""

    folder: Path
    setting: Setting
    methods: list[str]
    cells: list[Cell]
    capability: dict[str, tuple[Setting, list[Cell]]] = field(default_factory=dict)
    """By split, the cells of the model that is trained on the split's reference."""

    @property
    def suite(self) -> Suite:
        """What it is judged on."""
        return self.setting.data.suite

    def tasks(self) -> list[workers.Task]:
        """All its cells."""
        found = [workers.Task(cell, self.setting) for cell in self.cells]
        for setting, cells in self.capability.values():
            found += [workers.Task(cell, setting) for cell in cells]
        return found

    def rows(self) -> Rows:
        """Scores of all finished cells at every alpha."""
        return [row for cell in self.cells for row in read_rows(cell.folder / "items.parquet")]

    def target(self) -> float | None:
        """DPO's mean KL at alpha 1, where there is a DPO that moved."""
        own = [c for c in self.cells if c.name == tables.BASELINE]
        rows = [row for cell in own for row in read_rows(cell.folder / "items.parquet")]
        found = mean_kl(rows) if rows else 0.0
        return found if 1e-8 < found < math.inf else None

    def at_equal_kl(self, target: float) -> list[workers.Task]:
        """Every other method's cells, to be measured again at DPO's KL."""
        turned = [c for c in self.cells if c.method and c.name != tables.BASELINE]
        return [workers.Task(cell, self.setting, target) for cell in turned]


def compare(
    comparison: Comparison,
    out: str | Path,
    *,
    methods: Sequence[Method] | None = None,
    jobs: int = 1,
    ray: bool = False,
    command: str = "",
    title: str = "",
    notes: Sequence[str] = (),
    progress: Progress = SILENT,
) -> Path:
    """Run every cell that is not done yet and write the result files.

    A cell that fails is reported at the end; the others are run all the same.

    Args:
        out: folder of the run: `cells/`, and the result files; those of several models or suites
            lie in a folder each, and `grid.json` names them.
        methods: methods with other settings than the named ones, in place of `comparison.methods`.
        jobs: cells at once, each in a process of its own.
        ray: spread the cells over a Ray cluster. All three ways give the same bytes.
        command: what was typed, for the record.
        title: heading of the page.
        notes: caveats for the page.

    Returns:
        The folder: `study.json`, `results.jsonl`, `verdicts.jsonl` (against DPO), `gains.jsonl`
        (against the bare model), `items.parquet`, `curves.jsonl`, `generations.jsonl`,
        `costs.json`.

    Raises:
        StudyError: cells failed; the text says which and why.
        TrimtabError: anything that keeps the run from starting, before the model is loaded; or
            what stopped it. The same call goes on from there.
    """
    out = free_folder(out, "cells").absolute()
    workers.check(jobs, ray)
    settings = read_settings(comparison.recipes)
    chosen, prompt = _chosen(comparison, settings, methods)
    studies, said = _studies(comparison, out, chosen, prompt, progress)
    for line in said:
        progress.say(line)
    run = workers.runner(jobs, ray, comparison.threads, progress)
    tasks = {task.cell.folder: task for study in studies for task in study.tasks()}
    todo = [task for task in tasks.values() if not task.cell.done]
    names = ", ".join(dict.fromkeys(study.suite.name for study in studies))
    progress.say(f"{names}: {len(tasks)} cells, {len(tasks) - len(todo)} of them done already")
    failed = _run(run, todo, progress)
    whole = [s for s in studies if all(task.cell.done for task in s.tasks())]
    again: list[workers.Task] = []
    for study in whole:
        target = study.target()
        again += study.at_equal_kl(target) if target else []
    left = {
        equal_kl_file(task.cell, task.target or 0.0): task
        for task in again
        if not equal_kl_file(task.cell, task.target or 0.0).is_file()
    }
    failed |= _run(run, list(left.values()), progress)
    _write(out, studies, comparison, chosen, failed, settings, command, title, [*said, *notes])
    if failed:
        raise StudyError(_report(failed, len(tasks)))
    return out


def _chosen(
    comparison: Comparison, settings: Settings, methods: Sequence[Method] | None
) -> tuple[list[Method], bool]:
    """The methods in the order of the tables, and whether the led prompts are among them."""
    own = [m.name for m in methods] if methods is not None else list(comparison.methods)
    if len(set(own)) < len(own) or not own:
        raise ConfigError("methods: expected at least one, each once")
    if unknown := set(comparison.controls) - set(CONTROLS):
        raise ConfigError(
            f"controls: {sorted(unknown)[0]!r} is none (there are: {', '.join(CONTROLS)})"
        )
    seeds = comparison.seeds
    if len(set(seeds)) < len(seeds) or not seeds or min(seeds) < 0:
        raise ConfigError("seeds: expected at least one number of 0 or more, each once")
    if comparison.threads < 1:
        raise ConfigError(f"threads is {comparison.threads}; expected 1 or more")
    added = [c for c in CONTROLS if c in comparison.controls and c not in own]
    first = [tables.BASELINE] if tables.BASELINE in added else []
    names = [*first, *own, *(c for c in added if c not in first)]
    given = {m.name: m for m in methods or ()}
    found = [given.get(n) or settings.method(n) for n in names if n != PROMPT]
    return found, PROMPT in names


def _studies(
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
    data = [read_data(s, root, comparison.limit, comparison.train_limit) for s in suites]
    references = _references(suites, root, comparison)
    for pairs in (p for d in (*data, *references.values()) for p in (d.train, *d.splits.values())):
        progress.left_out(pairs.name, pairs.left_out)
    for name in many:
        models.check(name)
    studies = []
    for name in many:
        local = Path(name).expanduser()
        setting = Setting(
            model=str(local.absolute()) if local.exists() else name,
            digest=models.digest_of(name),
            dtype=dtype,
            device=str(device),
            threads=comparison.threads,
            data=data[0],
            measuring=comparison.measuring,
            data_root=root,
            limit=comparison.limit,
            train_limit=comparison.train_limit,
        )
        for suite, pairs in zip(suites, data, strict=True):
            here = replace(setting, data=pairs)
            cells = plan_cells(out, here, chosen, comparison.seeds, prompt=prompt)
            folder = out / slug(name, suite.name) if len(many) * len(suites) > 1 else out
            names = [m.name for m in chosen] + ([PROMPT] if prompt else [])
            study = Study(folder, here, names, cells)
            baseline = next((m for m in chosen if m.name == tables.BASELINE), None)
            for split, specs in suite.capability.items() if baseline else ():
                there = replace(setting, data=references[specs], measuring=_little(comparison))
                own = plan_cells(out, there, [baseline] if baseline else [], comparison.seeds)
                study.capability[split] = (there, own[1:])  # the bare model's is not needed
            studies.append(study)
    if len({study.folder for study in studies}) < len(studies):
        raise ConfigError("models, suites: two of them have names too alike for folders")
    return studies, said


def _suites(comparison: Comparison, root: str | None) -> tuple[list[Suite], list[str]]:
    found, said = [], []
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


def _run(run: workers.Runner, todo: list[workers.Task], progress: Progress) -> dict[str, str]:
    """Run tasks; what went wrong, by the task's label. Stops where all others would fail, too."""
    failed: dict[str, str] = {}
    for number, (task, reply) in enumerate(run(todo), start=1):
        if reply["error"] is None:
            if len(todo) > 1:
                progress.say(f"{task.label}: {number} of {len(todo)}")
            continue
        if reply["fatal"]:
            raise StudyError(reply["error"])
        failed[task.label] = reply["error"]
        progress.say(f"{task.label}: failed: {reply['error']}")
    return failed


def _report(failed: dict[str, str], cells: int) -> str:
    count = "1 cell" if len(failed) == 1 else f"{len(failed)} cells"
    said = "; ".join(f"{label}: {error}" for label, error in failed.items())
    return (
        f"{count} of {cells} failed; the others are kept, and the same command tries "
        f"{'it' if len(failed) == 1 else 'them'} again: {said}"
    )


# ---- result files --------------------------------------------------------------------------------


def _write(
    out: Path,
    studies: list[Study],
    comparison: Comparison,
    chosen: list[Method],
    failed: dict[str, str],
    settings: Settings,
    command: str,
    title: str,
    notes: Sequence[str],
) -> None:
    """Result files of every study none of whose cells failed, and of the grid where all are whole.

    All lines at one alpha are one table, whatever the number of models and suites: the p-values of
    each are adjusted over all of them.
    """
    missing = [
        s
        for s in studies
        if not all(t.cell.done for t in s.tasks())
        or any(not equal_kl_file(t.cell, t.target or 0.0).is_file() for t in _again(s))
    ]
    if missing:
        return
    notes = [*notes, *_budgets(chosen, settings)]
    grid = len(studies) > 1
    rows = {id(s): s.rows() + _turned(s) for s in studies}
    against, gains = (
        _judged_together(
            [
                tables.differences(
                    rows[id(s)], s.methods, list(s.suite.evaluate), s.suite.name, **how
                )
                for s in studies
            ]
        )
        for how in ({}, {"baseline": BASE, "places": ("alpha_1",)})
    )
    if grid and against and sum(map(len, against)):
        compared = sum(line["at"] == "alpha_1" for lines in against for line in lines)
        notes.append(
            f"p-values are adjusted over all {compared} comparisons of the grid, not only those of "
            "one model and suite."
        )
    for study, verdicts, gained in zip(studies, against, gains, strict=True):
        _write_study(
            study, rows[id(study)], verdicts, gained, comparison, chosen, command, title, notes
        )
    stale = [out / name for name in RESULTS] if grid else [out / GRID]
    for file in stale:
        file.unlink(missing_ok=True)
    if grid:
        what = {"title": title or _title(chosen, studies), "command": command, "notes": notes}
        write_json(out / GRID, {**what, "studies": [s.folder.name for s in studies]})


def _again(study: Study) -> list[workers.Task]:
    target = study.target()
    return study.at_equal_kl(target) if target else []


def _turned(study: Study) -> Rows:
    return [
        row
        for task in _again(study)
        for row in read_rows(equal_kl_file(task.cell, task.target or 0.0))
    ]


def _judged_together(parts: list[Rows]) -> list[Rows]:
    """The lines of several studies, judged as one table, apart again."""
    done = iter(tables.judged([line for part in parts for line in part]))
    return [[next(done) for _ in part] for part in parts]


def _budgets(chosen: list[Method], settings: Settings) -> list[str]:
    """A caveat where some methods had more trials to find their settings than others."""
    trials = {m.name: settings.trials.get(m.name, 0) for m in chosen if m.trained}
    if len(set(trials.values())) < 2:
        return []
    said = ", ".join(f"{name} {n}" for name, n in trials.items())
    return [f"Settings were not chosen with the same number of trials: {said}."]


def _title(chosen: Iterable[Method], studies: list[Study]) -> str:
    names = dict.fromkeys(s.suite.name for s in studies)
    return f"{', '.join(m.name for m in chosen)} on {', '.join(names)}"


def _write_study(
    study: Study,
    rows: Rows,
    verdicts: Rows,
    gains: Rows,
    comparison: Comparison,
    chosen: list[Method],
    command: str,
    title: str,
    notes: Sequence[str],
) -> None:
    out, suite, setting, cells = study.folder, study.suite, study.setting, study.cells
    out.mkdir(parents=True, exist_ok=True)
    summaries = {cell: json.loads((cell.folder / SUMMARY).read_text()) for cell in cells}
    sizes = summaries[cells[0]]["pairs"]
    common = {
        "suite": suite.name,
        "suite_digest": suite.digest,
        "dtype": setting.dtype,
        "commit": commit(),
    }
    described = {m.name: f"{m.where}; {m.what}" for m in chosen}
    if PROMPT in study.methods:
        described[PROMPT] = f"the bare model; every prompt led by “{suite.instruction}”"
    capability = {
        split: [row for cell in own for row in read_rows(cell.folder / "items.parquet")]
        for split, (_, own) in study.capability.items()
    }
    lines = tables.results(rows, common)
    lines += tables.elicitation(rows, capability, study.methods, common)
    write_json(
        out / "study.json",
        {
            "title": title
            if title and out == cells[0].folder.parent.parent
            else _title(chosen, [study]),
            "model": setting.model,
            "model_digest": setting.digest,
            "suite": suite.name,
            "description": suite.description,
            "train": suite.train,
            "train_items": len(setting.data.train.items()),
            "train_pairs": len(setting.data.train),
            "splits": {
                name: {"spec": spec, **sizes[name]} for name, spec in suite.evaluate.items()
            },
            "methods": described,
            "seeds": list(comparison.seeds),
            "dtype": setting.dtype,
            "device": setting.device,
            "threads": setting.threads,
            "versions": versions(),
            "command": command,
            "limit": comparison.limit,
            "equal_kl": study.target(),
            "published": asdict(suite.published) if suite.published else None,
            "notes": list(notes),
        },
    )
    write_lines(out / "results.jsonl", lines)
    write_lines(out / "verdicts.jsonl", verdicts)
    write_lines(out / "gains.jsonl", gains)
    write_rows(out / "items.parquet", rows)
    curves = [
        {
            "method": cell.name,
            "seed": cell.seed,
            "step": record["step"],
            "metric": metric,
            "value": record[metric],
        }
        for cell in cells
        for record in read_history(cell)
        for metric in record
        if metric not in ("step", "epoch")
    ]
    write_lines(out / "curves.jsonl", curves)
    texts = [g for s in summaries.values() for g in s["generations"]]
    write_lines(out / "generations.jsonl", texts)
    costs: dict[str, Any] = {}
    for cell in cells:
        if cell.name not in costs and (cell.folder / COSTS).is_file():
            costs[cell.name] = json.loads((cell.folder / COSTS).read_text())
    write_json(out / "costs.json", {k: v for k, v in costs.items() if k not in (BASE, PROMPT)})


def commit() -> str:
    """The commit of the code that runs, or its version where it is not run from a repository."""
    from trimtab import __version__

    here = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "--short=12", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return __version__
    return done.stdout.strip() if done.returncode == 0 else __version__
