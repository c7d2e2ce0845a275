"""A study: what is asked, the cells that answer it, what each measures, the files that say what was found.

A study is a class; an object of it is one setting in one folder. `run` gives it the rest: finished cells
are never run again, a stopped one goes on, several run at once or on a cluster, and one that fails loses no
other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from trimtab.files import write_json
from trimtab.holding import held
from trimtab.progress import SILENT, Progress
from trimtab.provenance import digest, versions
from trimtab.study.cells import PLAN, RESULT, Cell, Host, plain, setting_of
from trimtab.study.files import free_folder
from trimtab.study.forecast import Load
from trimtab.study.made import VERSIONS, say_older
from trimtab.study.results import Run, write
from trimtab.study.workers import check, work

S = TypeVar("S")


class Study(Generic[S]):
    """One setting of a study in one folder. Every process that runs its cells makes it anew, of the same
    settings: it knows nothing that they and the folder do not say."""

    name: ClassVar[str]
    """Of its folder in `trimtab.studies`, and in `study.json`."""
    title: ClassVar[str]
    """Heading of its page, where none is given."""
    Settings: ClassVar[Any]
    """What is asked: a frozen dataclass with `device` and `threads`, whose fields are the flags."""
    marks: ClassVar[tuple[str, ...]] = ("cells", "study.json")
    """A folder that holds one of these is that of an earlier run."""
    finished: ClassVar[str] = f"*/{RESULT}"
    """Where in a part's `cells` their results lie."""

    beside: ClassVar[tuple[str, ...]] = ()
    """Keys that a file of flags may hold beside them (see `with_file`)."""

    def __init__(self, settings: S, out: Path, host: Host) -> None:
        self.settings: Any = settings
        self.out, self.host, self.progress = out, host, host.progress
        self.parts: Sequence[Any] = (self,)
        """What has cells and result files of its own: these are written where all cells are done, whatever
        has become of other parts."""
        self.what = self.name
        """For progress."""
        self.whole = True
        """Whether the settings say all that is asked, so that they alone can ask it again."""
        self.common: dict[str, Any] = {}
        """What the figures of all cells depend on, as JSON values: digests of models and pairs, not names."""

    @classmethod
    def at(
        cls, settings: S, out: str | Path, *, progress: Progress = SILENT, **more: Any
    ) -> Study[S]:
        """The study of a setting in a folder that is free for it, to be run in this process.

        Raises:
            ConfigError: the folder is not, or the settings make no sense.
        """
        for folder in cls.folders(settings, out):
            free_folder(folder, *cls.marks)
        return cls(settings, Path(out).expanduser().absolute(), Host(progress), **more)

    @classmethod
    def run_at(
        cls, settings: S, out: str | Path, *, progress: Progress = SILENT, **how: Any
    ) -> Path:
        """Run every cell that is not done yet and write the result files.

        Args:
            how: as of `run`, whose folder is given and whose errors are raised.
        """
        return run(cls.at(settings, out, progress=progress), **how)

    @classmethod
    def folders(cls, settings: S, out: str | Path) -> Sequence[Path]:
        """The folders that are written to."""
        return [Path(out)]

    @classmethod
    def with_file(cls, settings: S, file: Path | None) -> S:
        """The settings, with what the file of flags holds beside them."""
        return settings

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> S:
        """The settings as JSON values had them."""
        return setting_of(cls.Settings, values)

    # ---- what a study says of itself ----

    def plan(self) -> Iterable[Sequence[Cell]]:
        """Waves of cells, each asked for when the one before is done; see `cell`."""
        for part in self.parts:
            yield from part.plan()

    def compared(self, command: str, title: str) -> Run:
        """The result files, all cells being done."""
        raise NotImplementedError

    def load(self, cell: Cell) -> Load:
        """What a cell fits and reads, so that `--dry-run` can say what it takes."""
        stage = self.host.stage(cell)
        return Load() if stage is self else stage.load(cell)

    # ---- what it need not say ----

    def cell(self, label: str, inputs: Mapping[str, Any], run: str = "measure", **own: Any) -> Cell:
        """A cell in a folder named by a digest of what its figures depend on: `common` and `inputs`.

        Args:
            run: the method that measures it, called with the cell's folder and `own`. What it returns is
                kept as the cell's result.
        """
        inputs = {**self.common, **inputs}
        folder = self.out / "cells" / f"{label}-{digest(inputs)[:16]}"
        where = f"{type(self).__module__}:{type(self).__name__}.{run}"
        common = digest(self.common)
        found = folder / RESULT
        return Cell(
            self.out, folder, where, self.settings, own, label, common, found, inputs=inputs
        )

    @cached_property
    def cells(self) -> dict[str, Cell]:
        """All cells by label."""
        return {cell.label: cell for wave in self.plan() for cell in wave}

    def write(self, command: str, title: str) -> Path:
        """Write the result files of one part; gives its folder."""
        return write(self.out, self.compared(command, title or self.title))

    def write_parts(self, whole: Sequence[Any], command: str, title: str) -> None:
        """Write the result files of the parts all of whose cells are done."""
        for part in whole:
            part.write(command, title)


def run(
    study: Study[Any], *, jobs: int = 1, ray: bool = False, command: str = "", title: str = ""
) -> Path:
    """Run every cell that is not done yet and write the result files. A cell that fails is reported at the
    end; the others are run all the same.

    Args:
        jobs: cells at once, each in a process of its own.
        ray: spread the cells over a Ray cluster. All three ways give the same bytes.
        command: what was typed, for the record.
        title: heading of the page.

    Returns:
        The study's folder.

    Raises:
        StudyError: cells failed; the text says which and why.
        TrimtabError: anything that keeps the run from starting, before the model is loaded; or what
            stopped it. The same call goes on from there.
    """
    check(jobs, ray)
    study.host.keep(study)
    with held(study.out):
        for out in dict.fromkeys(part.out for part in study.parts):
            say_older((out / "cells").glob(study.finished), study.progress)
        for part in study.parts:
            _write_plan(study, part, title)
        threads = study.settings.threads
        try:
            work(study.what, _waves(study.parts), study.host, jobs=jobs, ray=ray, threads=threads)
        finally:
            whole = [p for p in study.parts if all(cell.done for wave in p.plan() for cell in wave)]
            study.write_parts(whole, command, title)
    return study.out


def _write_plan(study: Study[Any], part: Any, title: str) -> None:
    """Say in the folder of a part's cells what makes it again (`trimtab.studies.packs`)."""
    own = part.settings if isinstance(part, Study) else study.settings
    if study.whole:
        said = {"study": study.name, "settings": json.loads(json.dumps(plain(own), default=str))}
        file = part.out / "cells" / PLAN
        write_json(file, {"format": 1, **said, "title": title, VERSIONS: versions()})
    else:
        (part.out / "cells" / PLAN).unlink(missing_ok=True)


def _waves(parts: Sequence[Any]) -> Iterator[list[Cell]]:
    """The waves of all parts side by side; a part in one of whose cells something failed has no further."""
    going = [iter(part.plan()) for part in parts]
    while going:
        waves = [next(plan, None) for plan in going]  # a wave may be empty
        yield [cell for wave in waves for cell in wave or ()]
        pairs = zip(going, waves, strict=True)
        going = [p for p, wave in pairs if wave is not None and all(cell.done for cell in wave)]
