"""Spec strings, and `read_pairs`, the one door through which pairs come in.

    genies:truthful_qa/train[:750]    GENIES: the first 750 pairs in file order
    genies:math/train[:200 items]     the first 200 items, with all of their pairs
    ethics:justice/test               ETHICS, justice (`?published` inverts it as earlier work did)
    hh:harmless-base/test[:1500]      HH-RLHF dialogues
    choices:ARC-Easy/train            multiple choice: one pair a wrong choice
    bipo:power-seeking/train          BiPO's behaviours: a question, the answer that shows it, another
    mwe:persona/extraversion          model-written evaluations, two options, in both letter orders
    letters:FILE                      the same from a file of one's own
    facts:train                       the embedded data set: train, dev, test, oos, rnd
    personas:honesty                  personas in contrast, to read a direction from
    personas:honesty/answers          the personas as answers to one prompt
    traits:honesty/test               questions to measure it on: test, dev
    jsonl:FILE  json:FILE  csv:FILE  parquet:FILE    prompt/chosen/rejected, as TRL reads them,
                                                     positive/negative(/suffix), or one of the shapes
                                                     that people have (docs/data.md)
    hub:ID/SPLIT  hub:ID:CONFIG/SPLIT                the same, from the Hugging Face Hub

A path that ends in .jsonl, .json, .csv, .tsv (all also .gz) or .parquet is a spec too. After a table of
one's own may stand, in braces, which columns are meant, that bad rows are left out, and that several
scored answers are a ranking (each is paired with the next, not the best with all others):

    mine.csv{prompt=Frage,chosen=Gut,rejected=Schlecht,skip-bad}
    nectar.jsonl{ranked}

After any spec `[holdout 0.2]` is a fifth of its items, drawn once and for all, and `[without 0.2]` the
rest of them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import DataError, near
from .bipo import read_bipo
from .choices import read_choices
from .ethics import read_ethics
from .facts import read_facts
from .files import Source, is_empty
from .genies import read_genies
from .hh import read_hh
from .letters import read_letters, read_mwe
from .pair import Pair, PairSet
from .personas import read_personas, read_traits
from .tables import (
    AS_IT_IS,
    Reading,
    from_rows,
    numbered,
    read_csv,
    read_hub,
    read_json,
    read_jsonl,
    read_parquet,
)
from .trl import COLUMNS, CONTRAST, SETTING

READERS: dict[str, Callable[[str, Path | None, str | None], Source]] = {
    "genies": read_genies,
    "ethics": read_ethics,
    "hh": read_hh,
    "choices": read_choices,
    "bipo": read_bipo,
    "mwe": read_mwe,
    "letters": read_letters,
    "facts": read_facts,
    "personas": read_personas,
    "traits": read_traits,
}
"""Kind of published source to its reader: (name, data folder, option) to pairs in file order."""

TABLES: dict[str, Callable[[str, Reading], Source]] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "parquet": read_parquet,
    "hub": read_hub,
}
"""Kind of table of one's own to its reader."""

KINDS = (*READERS, *TABLES)

SUFFIXES = {
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".json.gz": "json",
    ".csv": "csv",
    ".csv.gz": "csv",
    ".tsv": "csv",
    ".tsv.gz": "csv",
    ".parquet": "parquet",
}
OPTIONS: dict[str, tuple[str, ...]] = dict.fromkeys(("ethics", "mwe", "letters"), ("published",))

OURS = (*COLUMNS, *CONTRAST, *SETTING, "completion", "label", "response", "score")
"""Names of columns that a table's own may be given."""

SLICE = re.compile(r"\[(?P<start>[0-9]{,12}):(?P<stop>[0-9]{,12})(?P<items> items)?\]$")
PART = re.compile(r"\[(?P<which>holdout|without) (?P<share>[\d.eE-]+)\]$")
BRACES = re.compile(r"\{(?P<inside>[^{}]*)\}$")
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
        reading: which columns of a table are meant, and whether bad rows are left out.
        share: of `[holdout SHARE]` or `[without SHARE]`.
        held: whether those held out are meant.
    """

    text: str
    kind: str
    name: str
    option: str | None = None
    start: int = 0
    stop: int | None = None
    unit: Literal["pairs", "items"] = "pairs"
    reading: Reading = AS_IT_IS
    share: float | None = None
    held: bool = False


def parse_spec(text: str) -> Spec:
    """Take a spec string apart, without looking at any file.

    Raises:
        DataError: an unknown kind (near names are suggested), a malformed or empty slice, an
            option that the kind does not have.
    """
    if "\0" in text:
        raise DataError(f"{text!r}: no name has a null character in it")
    rest, start, stop, unit = text.strip(), 0, None, "pairs"
    share, held = None, False
    if match := PART.search(rest):
        rest, held = rest[: match.start()], match["which"] == "holdout"
        share = share_of(match["share"], text)
    if match := SLICE.search(rest):
        rest = rest[: match.start()]
        start = int(match["start"] or 0)
        stop = int(match["stop"]) if match["stop"] else None
        unit = "items" if match["items"] else "pairs"
        if stop is not None and stop <= start:
            raise DataError(f"{text}: the slice is empty; [a:b] needs b greater than a")
    elif LOOKS_SLICED.search(rest):
        raise DataError(
            f"{text}: expected a slice such as [:750], [100:200], [:200 items] or [holdout 0.2], "
            f"given {LOOKS_SLICED.findall(rest)[0]}"
        )

    reading = AS_IT_IS
    if match := BRACES.search(rest):
        rest, reading = rest[: match.start()], reading_of(match["inside"], text)
    match = KIND.fullmatch(rest)
    if match and match[1] in KINDS:
        kind, name = match[1], match[2]
    else:
        kind, name = kind_of_file(rest), rest
        if kind is None and match:
            raise DataError(
                f"{text}: unknown kind of data {match[1]!r}{near(match[1], KINDS)} "
                f"(known: {', '.join(KINDS)})"
            )
        if kind is None:
            raise DataError(
                f"{text}: expected KIND:NAME (kinds: {', '.join(KINDS)}) or a file that ends in "
                f"{', '.join(SUFFIXES)}"
            )
    option = None
    if reading != AS_IT_IS and kind not in TABLES:
        raise DataError(f"{text}: columns and skip-bad go with tables ({', '.join(TABLES)}) alone")
    if kind not in SUFFIXES.values():
        name, mark, option = name.partition("?")
        if mark and option not in OPTIONS.get(kind, ()):
            known = ", ".join(OPTIONS.get(kind, ())) or "none"
            raise DataError(f"{text}: {kind} has no option {option!r} (options: {known})")
    if not name:
        raise DataError(f"{text}: a name is expected after '{kind}:'")
    return Spec(text.strip(), kind, name, option or None, start, stop, unit, reading, share, held)  # pyright: ignore[reportArgumentType]


def share_of(value: str | float, where: str) -> float:
    """A share of the items, above 0 and below 1.

    Raises:
        DataError: it is none.
    """
    try:
        share = float(value)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise DataError(f"{where}: holdout {value}: expected a share between 0 and 1, such as 0.2")
    return share


def reading_of(text: str, where: str = "--columns") -> Reading:
    """`prompt=Frage,chosen=Gut,skip-bad,ranked` as a Reading; columns are ours = the file's.

    Raises:
        DataError: no such column of ours, or one twice.
    """
    columns: dict[str, str] = {}
    said: dict[str, bool] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        ours, mark, theirs = (each.strip() for each in part.partition("="))
        if part in ("skip-bad", "ranked"):
            said[part.replace("-", "_")] = True
        elif not mark or not theirs or ours not in OURS:
            raise DataError(
                f"{where}: {part!r}{near(ours, OURS)}; expected prompt=COLUMN,chosen=COLUMN,… with names "
                f"of {', '.join(OURS)}"
            )
        elif ours in columns:
            raise DataError(f"{where}: {ours!r} is given twice")
        else:
            columns[ours] = theirs
    return Reading(columns, **said)


def spec_with(spec: str, columns: str = "", skip_bad: bool = False) -> str:
    """A spec that says by itself which columns are meant and whether bad rows are left out.

    Raises:
        DataError: the spec or the columns are malformed, or it is no table.
    """
    reading_of(columns)
    inside = ",".join(filter(None, [columns, "skip-bad" if skip_bad else ""]))
    if not inside:
        return spec
    end = len(spec.rstrip())
    for pattern in (PART, SLICE):
        if match := pattern.search(spec[:end]):
            end = match.start()
    if BRACES.search(spec[:end]):
        raise DataError(f"{spec}: says its columns itself; leave --columns and --skip-bad out")
    found = f"{spec[:end]}{{{inside}}}{spec[end:]}"
    parse_spec(found)
    return found


def kind_of_file(path: str) -> str | None:
    """The kind that a file's name says."""
    return next((k for suffix, k in SUFFIXES.items() if path.lower().endswith(suffix)), None)


def read_pairs(
    source: str | os.PathLike[str] | PairSet | Iterable[Mapping[str, Any]],
    data_root: str | os.PathLike[str] | None = None,
    *,
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    skip_bad: bool = False,
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
        columns: of a table of your own, our names of columns to its names (`{"chosen": "Gut"}`).
        skip_bad: leave out rows that cannot be read, with their count in `left_out` and the reasons in
            `notes`, in place of an error at the first one.

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
    for ours in columns or ():
        if ours not in OURS:
            raise DataError(f"columns: {ours!r}{near(ours, OURS)}; expected {', '.join(OURS)}")
    how = Reading(columns or {}, skip_bad)
    if isinstance(source, str | os.PathLike):
        spec = parse_spec(os.fspath(source))
        if (columns or skip_bad) and spec.kind not in TABLES:
            raise DataError(f"{spec.text}: columns and skip_bad go with tables of your own")
        if spec.kind in TABLES:
            found = TABLES[spec.kind](spec.name, how if columns or skip_bad else spec.reading)
        else:
            root = data_root or os.environ.get("TRIMTAB_DATA")
            found = READERS[spec.kind](
                spec.name, Path(root).expanduser() if root else None, spec.option
            )
        if not found.pairs:
            raise nothing(spec.text, found)
        pairs, name = cut(found.pairs, spec), spec.text
    elif isinstance(source, Mapping):
        raise DataError(
            "expected one table of pairs, given a mapping; choose a split of it: "
            f"{', '.join(map(str, source))}"
        )
    else:
        name = type(source).__name__
        found = from_rows(numbered(source, name), how)
        pairs = found.pairs
        if not pairs:
            raise nothing(name, found)
    return usable(pairs, name, found).limit(limit)


def nothing(name: str, found: Source) -> DataError:
    """The error of a source without a pair."""
    why = ", ".join(f"{n} {what} left out" for what, n in found.left_out.items())
    first = next((f"; {note}" for note in found.notes if note.startswith("left out: ")), "")
    return DataError(f"{name}: there is no pair in it" + (f" ({why}){first}" if why else ""))


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
        pairs = pairs[spec.start : spec.stop]
    else:
        keep = set(items[spec.start : spec.stop])
        pairs = [p for p in pairs if p.item in keep]
    if spec.share is None:
        return pairs
    part = PairSet(pairs, spec.text).split(spec.share)[spec.held]
    if not part:
        raise DataError(
            f"{spec.text}: nothing is left: {spec.share:g} of {len({p.item for p in pairs})} items are "
            f"{'held out' if spec.held else 'all of them'}; expected more items, or another share"
        )
    return list(part)


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
