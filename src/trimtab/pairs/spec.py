"""Spec strings, and `read_pairs`, the one door through which pairs come in.

    genies:truthful_qa/train[:750]    GENIES: the first 750 pairs in file order
    genies:math/train[:200 items]     the first 200 items, with all of their pairs
    ethics:justice/test               ETHICS, justice (`?published` inverts it as earlier work did)
    hh:harmless-base/test[:1500]      HH-RLHF dialogues
    choices:ARC-Easy/train            multiple choice: one pair a wrong choice
    facts:train                       the embedded data set: train, dev, test, oos, rnd
    personas:honesty                  personas in contrast, to read a direction from
    traits:honesty/test               questions to measure it on: test, dev
    jsonl:FILE  json:FILE  csv:FILE  parquet:FILE    prompt/chosen/rejected, as TRL reads them, or
                                                     positive/negative(/suffix)
    hub:ID/SPLIT  hub:ID:CONFIG/SPLIT                the same, from the Hugging Face Hub

A path that ends in .jsonl, .jsonl.gz, .json, .csv or .parquet is a spec too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import DataError, near
from .choices import read_choices
from .ethics import read_ethics
from .facts import read_facts
from .files import Source, is_empty
from .genies import read_genies
from .hh import read_hh
from .pair import Pair, PairSet
from .personas import read_personas, read_traits
from .trl import from_rows, numbered, read_csv, read_hub, read_json, read_jsonl, read_parquet

READERS: dict[str, Callable[[str, Path | None, str | None], Source]] = {
    "genies": read_genies,
    "ethics": read_ethics,
    "hh": read_hh,
    "choices": read_choices,
    "facts": read_facts,
    "personas": read_personas,
    "traits": read_traits,
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "parquet": read_parquet,
    "hub": read_hub,
}
"""Kind of source to its reader: (name, data folder, option) to pairs in file order."""

SUFFIXES = {
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".json": "json",
    ".json.gz": "json",
    ".csv": "csv",
    ".parquet": "parquet",
}
OPTIONS = {"ethics": ("published",)}

SLICE = re.compile(r"\[(?P<start>\d*):(?P<stop>\d*)(?P<items> items)?\]$")
LOOKS_SLICED = re.compile(r"\[[^\[\]/]*\]$")
KIND = re.compile(r"([A-Za-z_]\w*):(.*)", re.DOTALL)


@dataclass(frozen=True)
class Spec:
    """A parsed spec string.

    Attributes:
        text: the string itself.
        kind: a key of `READERS`.
        name: what the reader is to read: `NAME/SPLIT`, or a file.
        option: what followed `?`.
        start: the first pair (or item) of the slice, from 0.
        stop: one past the last; None reads to the end.
        unit: what the slice counts.
    """

    text: str
    kind: str
    name: str
    option: str | None = None
    start: int = 0
    stop: int | None = None
    unit: Literal["pairs", "items"] = "pairs"


def parse_spec(text: str) -> Spec:
    """Take a spec string apart, without looking at any file.

    Raises:
        DataError: an unknown kind (near names are suggested), a malformed or empty slice, an
            option that the kind does not have.
    """
    rest, start, stop, unit = text.strip(), 0, None, "pairs"
    if match := SLICE.search(rest):
        rest = rest[: match.start()]
        start = int(match["start"] or 0)
        stop = int(match["stop"]) if match["stop"] else None
        unit = "items" if match["items"] else "pairs"
        if stop is not None and stop <= start:
            raise DataError(f"{text}: the slice is empty; [a:b] needs b greater than a")
    elif LOOKS_SLICED.search(rest):
        raise DataError(
            f"{text}: expected a slice such as [:750], [100:200] or [:200 items], "
            f"given {LOOKS_SLICED.findall(rest)[0]}"
        )

    match = KIND.fullmatch(rest)
    if match and match[1] in READERS:
        kind, name = match[1], match[2]
    else:
        kind, name = kind_of_file(rest), rest
        if kind is None and match:
            raise DataError(
                f"{text}: unknown kind of data {match[1]!r}{near(match[1], READERS)} "
                f"(known: {', '.join(READERS)})"
            )
        if kind is None:
            raise DataError(
                f"{text}: expected KIND:NAME (kinds: {', '.join(READERS)}) or a file that ends in "
                f"{', '.join(SUFFIXES)}"
            )
    option = None
    if kind not in SUFFIXES.values():
        name, mark, option = name.partition("?")
        if mark and option not in OPTIONS.get(kind, ()):
            known = ", ".join(OPTIONS.get(kind, ())) or "none"
            raise DataError(f"{text}: {kind} has no option {option!r} (options: {known})")
    if not name:
        raise DataError(f"{text}: a name is expected after '{kind}:'")
    return Spec(text.strip(), kind, name, option or None, start, stop, unit)  # pyright: ignore[reportArgumentType]


def kind_of_file(path: str) -> str | None:
    """The kind that a file's name says."""
    return next((k for suffix, k in SUFFIXES.items() if path.lower().endswith(suffix)), None)


def read_pairs(
    source: str | os.PathLike[str] | PairSet | Iterable[Mapping[str, Any]],
    data_root: str | os.PathLike[str] | None = None,
    *,
    limit: int | None = None,
) -> PairSet:
    """Preference pairs from wherever they are.

    Args:
        source: a spec string (see this module's text), the path of a preference file, a
            `datasets.Dataset`, a list of dicts with `prompt`, `chosen`, `rejected` (and optionally
            `item`, `concept`, `system`, `tools`, `chat_template_kwargs`), or a PairSet, which comes
            back as it is.
        data_root: the folder of local benchmark data; without it the environment variable
            TRIMTAB_DATA names it.
        limit: keep the first so many items.

    Returns:
        The pairs in file order. A slice is taken first; then pairs of published benchmarks whose
        answer is empty or equals the other one are left out and counted in `left_out`. In your own
        files such a pair is an error.

    Raises:
        DataError: the source cannot be read as pairs; the text names the file, line and column,
            what was expected and what was given.
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit: expected a number of items of 1 or more, given {limit}")
    if isinstance(source, PairSet):
        return source.limit(limit)
    if isinstance(source, str | os.PathLike):
        spec = parse_spec(os.fspath(source))
        root = data_root or os.environ.get("TRIMTAB_DATA")
        found = READERS[spec.kind](
            spec.name, Path(root).expanduser() if root else None, spec.option
        )
        if not found.pairs:
            raise DataError(f"{spec.text}: there is no pair in it")
        pairs, name = cut(found.pairs, spec), spec.text
    elif isinstance(source, Mapping):
        raise DataError(
            "expected one table of pairs, given a mapping; choose a split of it: "
            f"{', '.join(map(str, source))}"
        )
    else:
        name = type(source).__name__
        found = from_rows(numbered(source, name))
        pairs = found.pairs
        if not pairs:
            raise DataError(f"{name}: there is no pair in it")
    return usable(pairs, name, found).limit(limit)


def cut(pairs: list[Pair], spec: Spec) -> list[Pair]:
    """The slice of a spec; one past the end is an error that says how many there are."""
    items = list(dict.fromkeys(p.item for p in pairs))
    there = len(pairs) if spec.unit == "pairs" else len(items)
    if spec.start >= there or (spec.stop or 0) > there:
        raise DataError(
            f"{spec.text}: the slice reaches past the end: there are {there} {spec.unit} "
            f"({len(pairs)} pairs, {len(items)} items)"
        )
    if spec.unit == "pairs":
        return pairs[spec.start : spec.stop]
    keep = set(items[spec.start : spec.stop])
    return [p for p in pairs if p.item in keep]


def usable(pairs: list[Pair], name: str, source: Source) -> PairSet:
    """The pairs that a model can be trained on or measured by, the others counted."""
    kept, counts = [], dict(source.left_out)
    for pair in pairs:
        if is_empty(pair.chosen) or is_empty(pair.rejected):
            reason = "pairs with an empty answer"
        elif pair.chosen == pair.rejected:
            reason = "pairs whose answers are equal"
        else:
            kept.append(pair)
            continue
        counts[reason] = counts.get(reason, 0) + 1
    if not kept:
        raise DataError(f"{name}: none of its {len(pairs)} pairs can be used ({counts})")
    return PairSet(kept, name, counts, source.notes)
