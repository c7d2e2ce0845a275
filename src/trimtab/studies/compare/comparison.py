"""`compare`: models x suites x methods x seeds, resumable cell by cell, ending in result files."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from trimtab.errors import StudyError
from trimtab.progress import SILENT, Progress
from trimtab.studies.compare import workers
from trimtab.studies.compare.cell import SUMMARY
from trimtab.studies.compare.grid import Comparison, chosen_methods, plan_studies
from trimtab.studies.compare.measure import equal_kl_file
from trimtab.studies.compare.output import write_results
from trimtab.study.files import free_folder
from trimtab.study.made import say_older
from trimtab.study.settings import read_settings
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
    chosen, prompt = chosen_methods(comparison, settings, methods)
    studies, said = plan_studies(comparison, out, chosen, prompt, progress)
    for line in said:
        progress.say(line)
    run = workers.runner(jobs, ray, comparison.threads, progress)
    tasks = {task.cell.folder: task for study in studies for task in study.tasks()}
    todo = [task for task in tasks.values() if not task.cell.done]
    names = ", ".join(dict.fromkeys(study.suite.name for study in studies))
    progress.say(f"{names}: {len(tasks)} cells, {len(tasks) - len(todo)} of them done already")
    say_older((out / "cells").glob(f"*/{SUMMARY}"), progress)
    failed = _run(run, todo, progress)
    whole = [s for s in studies if all(task.cell.done for task in s.tasks())]
    again = [task for study in whole for task in study.again()]
    left = {
        equal_kl_file(task.cell, task.target or 0.0): task
        for task in again
        if not equal_kl_file(task.cell, task.target or 0.0).is_file()
    }
    failed |= _run(run, list(left.values()), progress)
    if failed:
        raise StudyError(_report(failed, len(tasks)))
    write_results(out, studies, comparison, chosen, settings, command, title, [*said, *notes])
    return out


def _run(run: workers.Runner, todo: list[workers.Task], progress: Progress) -> dict[str, str]:
    """Run tasks; what went wrong, by the task's label. Stops where all others would fail, too."""
    failed: dict[str, str] = {}
    with closing(run(todo)) as replies:  # whatever stops us stops the workers, too
        for number, (task, reply) in enumerate(replies, start=1):
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
