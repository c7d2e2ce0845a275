"""`dose`: every way to steer towards a trait, at the damage that a persona prompt does.

From `personas:TRAIT` each method makes a dial. The damage of a prompt with the trait's persona is
measured first; each dial is then turned to where its damage on the same passages is that of the
prompt, and read there, at twice that alpha and at the opposites, on questions that share nothing with
the personas (`traits:TRAIT/test`).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from trimtab.progress import SILENT, Progress
from trimtab.studies.steering.plan import Dosing
from trimtab.studies.steering.trait import Trait
from trimtab.study.cells import Host
from trimtab.study.study import Study, run

__all__ = ["Dose", "Dosing", "dose"]


def dose(dosing: Dosing, out: str | Path, *, progress: Progress = SILENT, **how: Any) -> list[Path]:
    """Fit and measure what is not done yet; write the result files of every trait.

    Args:
        out: the trait's folder, of several traits one in it for each.
        how: as of `trimtab.study.study.run`.

    Returns:
        The traits' folders.

    Raises:
        StudyError, TrimtabError: as `run`. Traits all of whose cells are done are written all the same.
    """
    study: Any = Dose.at(dosing, out, progress=progress)
    run(study, **how)
    return [Path(out) / part.out.relative_to(study.out) for part in study.parts]


class Dose(Study[Dosing]):
    """Several traits, each in a folder of its own within the study's; one alone in that."""

    name, title, Settings = "steering", "Steering", Dosing
    marks = ("cells", "dose.json", "study.json")
    finished = "*.json"

    @classmethod
    def folders(cls, settings: Dosing, out: str | Path) -> list[Path]:
        """A folder a trait."""
        several = len(settings.traits) > 1
        return [Path(out) / trait if several else Path(out) for trait in settings.traits]

    def __init__(self, settings: Dosing, out: Path, host: Host) -> None:
        super().__init__(settings, out, host)
        self.what = f"steering: {', '.join(settings.traits)}"
        self.parts = [
            Trait(replace(settings, traits=(trait,)), folder, host)
            for trait, folder in zip(settings.traits, self.folders(settings, out), strict=True)
        ]
