"""`compare`: models x suites x methods x seeds, resumable cell by cell, ending in result files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from trimtab.progress import SILENT, Progress
from trimtab.studies.compare.cell import SUMMARY
from trimtab.studies.compare.grid import Comparison, Study, chosen_methods, plan_studies
from trimtab.studies.compare.output import write_results
from trimtab.study.cells import Cell, Host
from trimtab.study.files import free_folder
from trimtab.study.made import say_older
from trimtab.study.settings import read_settings
from trimtab.study.workers import check, work
from trimtab.training import Method


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
        The folder: `study.json`, `results.jsonl`, `verdicts.jsonl` (against DPO, and
        against the bare model), `items.parquet`, `curves.jsonl`, `generations.jsonl`,
        `costs.json`.

    Raises:
        StudyError: cells failed; the text says which and why.
        TrimtabError: anything that keeps the run from starting, before the model is loaded; or
            what stopped it. The same call goes on from there.
    """
    out = free_folder(out, "cells").absolute()
    check(jobs, ray)
    settings = read_settings(comparison.recipes)
    chosen, prompt = chosen_methods(comparison, settings, methods)
    studies, said = plan_studies(comparison, out, chosen, prompt, progress)
    for line in said:
        progress.say(line)
    names = ", ".join(dict.fromkeys(study.suite.name for study in studies))
    say_older((out / "cells").glob(f"*/{SUMMARY}"), progress)
    host = Host(progress)
    work(names, _waves(studies), host, jobs=jobs, ray=ray, threads=comparison.threads)
    write_results(out, studies, comparison, chosen, settings, command, title, [*said, *notes])
    return out


def _waves(studies: Sequence[Study]) -> Iterator[list[Cell]]:
    """All cells; then those of studies that are whole again, where their KL is DPO's."""
    yield [cell for study in studies for cell in study.tasks()]
    whole = [s for s in studies if all(cell.done for cell in s.tasks())]
    yield [cell for study in whole for cell in study.again()]
