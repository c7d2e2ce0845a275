"""`trimtab push DIR REPO`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, UseAppendAction

from trimtab.cli.flags import place_of
from trimtab.cli.parse import parse
from trimtab.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Args:
    """Flags."""

    dial: Annotated[str, Positional, tyro.conf.arg(metavar="DIR")]
    """DIR or NAME=DIR: the dial's folder, and what runs call it."""
    repo: Annotated[str, Positional, tyro.conf.arg(metavar="REPO")]
    """OWNER/NAME on the Hub; made where there is none."""
    private: bool = False
    """Make it a private repository."""
    base: str = ""
    """The base model on the Hub, of the same weights, where the dial was made on a folder here."""
    license: str = ""
    """The dial's licence by the Hub's name of it, such as apache-2.0."""
    results: Annotated[tuple[Path, ...], UseAppendAction] = ()
    """Runs (evaluate, compare) whose verdicts on the dial go into its card. They look for its method;
    NAME=DIR for the dial says what they call it."""


def main(words: list[str]) -> None:
    """Upload a dial with a full card."""
    about = "Upload a dial to the Hugging Face Hub, with a full card."
    args = parse(Args, words, verb="push", about=about)
    from trimtab.dials import Dial, hub

    name, place = place_of(args.dial)
    dial = Dial.from_pretrained(place)
    hub.check(args.repo, args.base or dial.info.base_model)
    method = name if place != args.dial else dial.info.method
    verdicts = "\n\n".join(_verdicts(run, method, dial.info.base_digest) for run in args.results)
    found = dial.push_to_hub(
        args.repo,
        private=args.private or None,
        base=args.base,
        licence=args.license,
        verdicts=verdicts,
    )
    print(f"pushed: {getattr(found, 'commit_url', found)}")
    if not dial.info.measured:
        print(f"  its card says that it was not measured: trimtab calibrate --dial {place} first")


def _verdicts(run: Path, method: str, base: str) -> str:
    """What a run says of a method, as a section of Markdown.

    Raises:
        ConfigError: it is of another base model, or nothing is said there of the method.
    """
    from trimtab.report import render, tables, wording
    from trimtab.report.blocks import Block, Page, Section, Text, plain
    from trimtab.study.reading import read

    found = read(run)
    if base and found.about.model_digest != base:
        raise ConfigError(f"--results {run}: of another base model, {found.about.model}")
    apart = ("margin", "steerability")  # not in points
    rows = [d for d in found.differences if d.method == method and d.metric not in apart]
    if not rows:
        told = ", ".join(dict.fromkeys(d.method for d in found.differences)) or "nothing"
        raise ConfigError(
            f"--results {run}: no verdict on {method!r} there, but on {told}; give the dial as NAME=DIR"
        )
    blocks: list[Block] = [Text(f"{plain(found.about.title)}. {wording.ADJUSTED}")]
    for rival in dict.fromkeys(d.against for d in rows):
        title = f"{plain(wording.label(method))} against {plain(wording.label(rival))}"
        told = tables.verdicts([d for d in rows if d.against == rival])
        blocks.append(Section(title, [told], level=3))
    return "#" + render.markdown(Page("Verdicts", blocks), "")
