"""`compare`: models x suites x methods x seeds, resumable cell by cell, ending in result files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trimtab.config_files import read_yaml
from trimtab.progress import SILENT, Progress
from trimtab.studies.compare.cell import SUMMARY
from trimtab.studies.compare.grid import Comparison, chosen_methods, plan_studies
from trimtab.studies.compare.output import write_results
from trimtab.study.cells import Host
from trimtab.study.settings import read_settings
from trimtab.study.study import Study, run
from trimtab.training import Method


def compare(
    comparison: Comparison,
    out: str | Path,
    *,
    methods: Sequence[Method] | None = None,
    notes: Sequence[str] = (),
    progress: Progress = SILENT,
    **how: Any,
) -> Path:
    """Run every cell that is not done yet and write the result files.

    Args:
        out: folder of the run: `cells/`, and the result files; those of several models or suites
            lie in a folder each, and `grid.json` names them.
        methods: methods with other settings than the named ones, in place of `comparison.methods`.
        notes: caveats for the page.
        how: as of `trimtab.study.study.run`.

    Returns:
        The folder: `study.json`, `results.jsonl`, `verdicts.jsonl` (against DPO, and
        against the bare model), `items.parquet`, `curves.jsonl`, `generations.jsonl`,
        `costs.json`.

    Raises:
        StudyError, TrimtabError: as `run`.
    """
    more: Any = {"methods": methods, "notes": notes}
    return run(Compare.at(comparison, out, progress=progress, **more), **how)


class Compare(Study[Comparison]):
    """A grid of models and suites, each a part. Its verdicts are judged together, so that nothing is
    written before all is done."""

    name, title, Settings = "compare", "", Comparison
    marks = ("cells",)
    finished = f"*/{SUMMARY}"
    beside = ("settings", "tuned")

    def __init__(
        self,
        settings: Comparison,
        out: Path,
        host: Host,
        methods: Sequence[Method] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        super().__init__(settings, out, host)
        self.varied = read_settings(settings.recipes)
        self.methods, prompt = chosen_methods(settings, self.varied, methods)
        self.parts, said = plan_studies(settings, out, self.methods, prompt, self.progress)
        self.whole = methods is None
        self.what = ", ".join(dict.fromkeys(part.suite.name for part in self.parts))
        for line in said:
            self.progress.say(line)
        self.notes = [*said, *notes]

    @classmethod
    def with_file(cls, settings: Comparison, file: Path | None) -> Comparison:
        """A file of flags may hold settings of methods, too."""
        if file is None or "settings" not in read_yaml(file):
            return settings
        return replace(settings, recipes=(*settings.recipes, str(file)))

    def write_parts(self, whole: Sequence[Any], command: str, title: str) -> None:
        """Write the result files once every part is whole."""
        if len(whole) == len(self.parts):
            write_results(self, command, title)
