"""What every reader shares: finding files, reading lines and fields, and saying what is wrong."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DataError, near
from ..foreign import Malformed, parse_json
from .pair import Messages, Pair, Text

MOST_CHARACTERS = 1 << 27
"""Of a field of a CSV file."""


@dataclass
class Source:
    """What a reader found: pairs in file order, and counts of rows that make no pair.

    A pair whose answer is empty or equals the other one may still be among `pairs`: published
    benchmarks hold a few. They count in slices, as in the published files, and are left out
    with a count after slicing.
    """

    pairs: list[Pair]
    left_out: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What else is to be said of how it was read."""


def located(
    root: Path | None, relative: Iterable[str], spec: str, known: Iterable[str] = ()
) -> Path:
    """The first of the `relative` paths under `root` that exists.

    Raises:
        DataError: there is no data root, or none of the paths exists; names the paths that were
            looked for and the nearest of the `known` specs.
    """
    if root is None:
        raise no_root(spec)
    if not root.is_dir():
        raise DataError(f"{spec}: the data folder {root} does not exist")
    paths = [root / r for r in relative]
    for path in paths:
        if path.is_file():
            return path
    looked = ", ".join(map(str, paths))
    raise DataError(f"{spec} was not found{near(spec, known)} (looked for {looked})")


def no_root(spec: str) -> DataError:
    """What is said where published data are asked for and nobody has said where they lie."""
    return DataError(
        f"{spec}: no data folder is known; give --data-root DIR (in Python data_root=) or set "
        "the environment variable TRIMTAB_DATA"
    )


def name_and_split(kind: str, name: str, example: str) -> tuple[str, str]:
    """`NAME/SPLIT` as two parts, with a DataError that shows an `example` where it is not that."""
    parts = name.rsplit("/", 1)
    if len(parts) != 2 or not all(parts):
        raise DataError(f"{kind}:{name}: expected {kind}:NAME/SPLIT, for example {example}")
    return parts[0], parts[1]


def read_text(path: Path) -> str:
    """The whole of a UTF-8 text file; one whose name ends in `.gz` is unpacked.

    Raises:
        DataError: the file is missing, not readable, not UTF-8, or a damaged gzip file.
    """
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text at byte {error.start}") from None
    except UnicodeEncodeError:
        raise DataError(
            f"{str(path)!r}: half of a character (a lone surrogate) in a name"
        ) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged gzip file ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def json_value(text: str, where: str, line: int = 0) -> object:
    """Parse JSON, or say at which line of `where` it is malformed.

    Args:
        line: of `where`, which the text is; 0 where it is the whole of it.
    """
    try:
        return parse_json(text)
    except Malformed as error:
        line = line or error.line
        place = f"{where}:{line}" if line else where
        column = f" at column {error.column}" if error.column else ""
        raise DataError(f"{place}: malformed JSON{column} ({error})") from None


def json_lines(path: Path, bad: list[str] | None = None) -> Iterator[tuple[str, object]]:
    """`(file:line, value)` of each non-blank line of a JSON-lines file, also gzipped; with `bad`, lines
    that are no JSON are told there and left out."""
    # Only "\n" ends a line here: JSON strings may hold other separators that splitlines() cuts at.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            try:
                value = json_value(line, str(path), number)
            except DataError as error:
                if bad is None:
                    raise
                bad.append(str(error))
                continue
            yield f"{path}:{number}", value


def json_items(path: Path) -> Iterator[tuple[str, object]]:
    """`(file:line, value)` of each element of a JSON file that is a list."""
    text = read_text(path)
    items = json_value(text, str(path))
    if not isinstance(items, list):
        raise DataError(f"{path}: expected a list of items, given {shown(items)}")
    decoder, line, last, at = json.JSONDecoder(), 1, 0, text.index("[") + 1
    for item in items:
        while text[at] in ", \t\r\n":
            at += 1
        line, last = line + text.count("\n", last, at), at
        yield f"{path}:{line}", item
        _, at = decoder.raw_decode(text, at)


def csv_rows(
    path: Path, delimiter: str | None = ",", bad: list[str] | None = None
) -> Iterator[tuple[str, dict[str, object]]]:
    """`(file:line, row)` of each record; a row with too few or too many fields is an error.

    Args:
        delimiter: None takes whichever of comma, semicolon and tab cuts the header into most names.
        bad: is told of records with another number of fields, which are then left out.
    """
    csv.field_size_limit(MOST_CHARACTERS)  # Python's own is 131,072
    text = read_text(path)
    if delimiter is None:
        header = text.partition("\n")[0]
        delimiter = max(
            ",;\t", key=lambda mark: len(next(csv.reader([header], delimiter=mark), []))
        )
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if None in row or None in row.values():
                header = ", ".join(reader.fieldnames or ())
                wrong = DataError(f"{where}: expected one field for each column ({header})")
                if bad is None:
                    raise wrong
                bad.append(str(wrong))
                continue
            yield where, dict(row)
    except csv.Error as error:
        line = reader.reader.line_num  # unlike reader.line_num, counts the line that failed
        raise DataError(f"{path}:{line}: malformed CSV ({error})") from None


def row_of(value: object, where: str) -> Mapping[str, object]:
    """A row as a mapping of columns."""
    if not isinstance(value, Mapping):
        raise DataError(f"{where}: expected an object with named columns, given {shown(value)}")
    return value


def column(row: Mapping[str, object], name: str, where: str) -> object:
    """A column that must be there."""
    if name not in row:
        there = ", ".join(map(str, row)) or "none"
        raise DataError(f"{where}: column {name!r} is missing; the columns given are: {there}")
    return row[name]


def text_column(row: Mapping[str, object], name: str, where: str) -> str:
    """A column that must hold text."""
    return plain(column(row, name, where), name, where)


def plain(value: object, name: str, where: str) -> str:
    """A value that must be text."""
    if not isinstance(value, str):
        raise DataError(f"{where}: column {name!r}: expected text, given {shown(value)}")
    return value


def shown(value: object, width: int = 60) -> str:
    """A value as an error message shows it: its type, and its beginning."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= width else text[: width - 1] + '…'}"


def is_empty(answer: Text) -> bool:
    """Whether an answer says nothing: blank text, no messages, or a blank last message."""
    if isinstance(answer, str):
        return not answer.strip()
    return not answer or not (answer[-1]["content"].strip() or answer[-1].get("tool_calls"))


def digest_of(text: Text) -> str:
    """The 16 hex digits that name an item by its prompt."""
    value = text if isinstance(text, str) else list(text)
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()[:16]


def implicit_prompt(chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
    """Prompt, chosen and rejected from two answers that both begin with the prompt.

    The same as TRL's `extract_prompt`: the longest common prefix, of characters or of messages;
    a space before the first difference belongs to the answers; where one answer is the beginning
    of the other, its last character (message) stays in the answer. One departure: where already
    the first character differs, the prompt is empty (there TRL looks at the last character).
    """
    shortest = min(len(chosen), len(rejected))
    cut = next((i for i in range(shortest) if chosen[i] != rejected[i]), None)
    if cut is None:
        cut = max(shortest - 1, 0)
    elif cut and chosen[cut - 1] == " ":
        cut -= 1
    return chosen[:cut], chosen[cut:], rejected[cut:]


def text_of(text: Text) -> str:
    """Text to compare and count: messages as `role: content` lines."""
    return (
        text if isinstance(text, str) else "\n".join(f"{m['role']}: {m['content']}" for m in text)
    )


def messages(turns: Iterable[tuple[str, str]]) -> Messages:
    """Chat messages from (role, content) turns."""
    return tuple({"role": role, "content": content} for role, content in turns)
