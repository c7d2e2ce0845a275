"""`trimtab reproduce PACK`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from trimtab.bounds import Count
from trimtab.cli.flags import Quiet
from trimtab.cli.parse import parse
from trimtab.errors import ConfigError

SHOWN = 20
"""Figures that are off, at most, said one by one."""


@dataclass(frozen=True, kw_only=True)
class Args(Quiet):
    """Flags."""

    pack: Annotated[Path, Positional]
    """A file that trimtab pack wrote."""
    out: Path
    """Folder of the run; what is done is not done again."""
    jobs: Count = 1
    """Cells at once, each in a process of its own."""
    model: str | None = None
    """Where the model is, if it is elsewhere here."""
    data_root: str | None = None
    """Folder of local data sources (default: TRIMTAB_DATA)."""
    device: str | None = None
    """A torch device, if another than the pack's."""
    study: str = ""
    """The package of the study, where it is none of trimtab's."""
    force: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Run although model or data are not the pack's."""


def main(words: list[str]) -> None:
    """Run a pack and say what differs; exits with 1 where something does that is no version."""
    about = "Run what a pack holds, and say what differs: data, model, setting, version or number."
    args = parse(Args, words, verb="reproduce", about=about)
    from trimtab.studies import STUDIES, study
    from trimtab.studies.packs import read_pack, reproduce

    name = read_pack(args.pack).study
    if name not in (*STUDIES, args.study):
        raise ConfigError(
            f"{args.pack}: of the study {name!r}, which is none of trimtab's; where you have and trust its "
            "package, give --study NAME"
        )
    own = {"model": args.model, "data_root": args.data_root, "device": args.device}
    how = {"force": args.force, "jobs": args.jobs, "progress": args.progress}
    found = reproduce(args.pack, args.out.expanduser(), study(name), given=own, **how)  # type: ignore[arg-type]
    for what in ("model", "data", "setting", "version"):
        mine = [d for d in found.differences if d.what == what]
        print("\n".join(f"{what:<8} {d.where}: {d.said}" for d in mine) or f"{what:<8} the same")
    off = [d for d in found.differences if d.what == "number"]
    if not found.of:
        print("nothing was run: the figures would be of something else (--force runs all the same)")
    else:
        print(
            f"number   {found.of} figures: {found.same} the same, {found.near} within their tolerance, "
            f"{len(off)} not"
        )
    for d in off[:SHOWN]:
        print(f"         {d.where}: {d.said}")
    if len(off) > SHOWN:
        print(f"         and {len(off) - SHOWN} more")
    if any(d.what != "version" for d in found.differences):
        sys.exit(1)
