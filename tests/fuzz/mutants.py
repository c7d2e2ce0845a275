"""Documents that are nearly right: a good one, and what a typing user, a cut transfer or an attacker makes
of it. Strategies for Hypothesis."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

RAW = {
    "@0@": "1e999",
    "@1@": "-1e999",
    "@2@": "NaN",
    "@3@": "9" * 5000,
    "@4@": "[" * 3000 + "]" * 3000,
    "@5@": '{"a":' * 3000 + "1" + "}" * 3000,
    "@6@": '{"a":1,"a":2}',
    "@7@": '"\\ud800"',
    "@8@": "1e400",
}
"""What `json.dumps` would not write, by what stands for it."""

HOSTILE: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e-320, 3e38, 1e308),
    *("", " ", "0", "x", "nan", "1e999", "\0", "a\nb", "\x1b[2J", "../../x", "/", "é" * 3, "‮x"),
    *([], {}, [[]], [None], {"": None}, [1, "a", None], [[1.0, 2.0], [3.0]], {"a": {"b": []}}),
    *("y" * 70_000, list(range(2000)), *RAW),
]
"""Values that some field does not expect."""


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to every value within a document."""
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [at, *(p for key, v in inner for p in places(v, (*at, key)))]


@st.composite
def documents(draw: st.DrawFn, seeds: list[Any]) -> Any:
    """A seed with up to three of its values replaced, left out, doubled or renamed."""
    value = copy.deepcopy(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 3))):
        path = draw(st.sampled_from(places(value)))
        new = copy.deepcopy(draw(st.sampled_from(HOSTILE)))
        if not path:
            if draw(st.integers(0, 9)) == 0:
                value = new
            continue
        *above, key = path
        parent = value
        for part in above:
            parent = parent[part]
        what = draw(st.sampled_from(("replace", "replace", "leave out", "double", "rename")))
        if what == "replace":
            parent[key] = new
        elif what == "leave out":
            del parent[key]
        elif isinstance(parent, list):
            parent.append(copy.deepcopy(parent[key]))
        elif what == "double":
            parent[f"{key}@twice@"] = new
        else:
            parent[draw(st.sampled_from((f"{key}s", str(key).upper(), "", "@7@", "__class__")))] = (
                parent.pop(key)
            )
    return value


def text_of(value: Any) -> str:
    """JSON, with what `json.dumps` would not write."""
    text = json.dumps(value, ensure_ascii=True).replace('@twice@"', '"')
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw)
    return text


@st.composite
def mangled(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with none to three accidents: cut, flipped, filled in, repeated, of another encoding."""
    data = bytearray(content)
    for _ in range(draw(st.sampled_from((0, 0, 1, 1, 2, 3)))):
        size = len(data)
        at = draw(st.integers(0, max(size - 1, 0)))
        what = draw(st.sampled_from(("cut", "flip", "flip", "fill", "repeat", "bom", "utf-16")))
        if what == "cut":
            del data[at:]
        elif what == "flip" and size:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif what == "fill":
            data[at : at + 8] = draw(
                st.sampled_from((b"\0" * 8, b"\xff" * 8, b"\xed\xa0\x80", b'"'))
            )
        elif what == "repeat":
            data[at:at] = data[at : at + 64] * draw(st.sampled_from((1, 2, 100)))
        elif what == "bom":
            data[:0] = b"\xef\xbb\xbf"
        elif what == "utf-16":
            data = bytearray(bytes(data).decode("utf-8", "replace").encode("utf-16"))
    return bytes(data)


def jsons(*seeds: Any) -> st.SearchStrategy[bytes]:
    """A JSON file."""
    return documents(list(seeds)).map(text_of).map(str.encode).flatmap(mangled)


def json_lines(*seeds: Any) -> st.SearchStrategy[bytes]:
    """A file of one to four JSON lines."""
    line = documents(list(seeds)).map(text_of)
    return st.lists(line, min_size=1, max_size=4).map("\n".join).map(str.encode).flatmap(mangled)


WORDS = (
    *(
        "\0",
        "9" * 5000,
        "[:0]",
        "[5:2]",
        "[:",
        "{",
        "}",
        "{a=1}",
        "{=}",
        "[holdout 0.2]",
        "[holdout 1e9]",
    ),
    *(
        "-1",
        "nan",
        "inf",
        "1e999",
        "..",
        ":",
        "/",
        "//",
        "@",
        "=",
        ",",
        " ",
        "[1:]",
        "[:3 items]",
        "\u00b2",
    ),
    *("\u2028", "'", '"', "\\", "*", "(", "\x1b[2J", "\ud800"),
)


@st.composite
def words(draw: st.DrawFn, *seeds: str) -> str:
    """A word of the command line with something put in, put in place of a part, or cut."""
    text = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 3))):
        a, b = sorted(draw(st.integers(0, len(text))) for _ in range(2))
        new = draw(st.sampled_from((*WORDS, *seeds, "")))
        text = text[:a] + new + (text[b:] if draw(st.booleans()) else text[a:])
    return text


YAMLS = (
    "!!timestamp q",
    "&a [*a]",
    "*b",
    "!!python/name:os.system",
    "{<<: 3}",
    ".inf",
    ".nan",
    "1:2:3",
    "|\n  x",
)


@st.composite
def yamls(draw: st.DrawFn, *seeds: Any) -> bytes:
    """A YAML file: flow style, which has JSON's values, or with what only YAML has."""
    text = text_of(draw(documents(list(seeds))))
    if draw(st.booleans()):
        text = text.replace("1", draw(st.sampled_from(YAMLS)), 1)
    return draw(mangled(text.encode()))


@st.composite
def tables(draw: st.DrawFn, rows: list[dict[str, str]]) -> bytes:
    """A CSV file."""
    value = draw(documents([rows]))
    mark = draw(st.sampled_from(",;\t"))
    lines = []
    for row in [dict.fromkeys(rows[0]), *(value if isinstance(value, list) else [value])]:
        cells = (row if not lines else row.values()) if isinstance(row, dict) else [row]
        quoted = ('"' + str(c).replace("@twice@", "").replace('"', '""') + '"' for c in cells)
        lines.append(mark.join(quoted))
    return draw(mangled("\n".join(lines).encode("utf-8", "surrogatepass")))
