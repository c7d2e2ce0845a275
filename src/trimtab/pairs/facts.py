"""The embedded data set `facts`: true against false answers to short questions, in five splits.

| split | items | what |
|---|---|---|
| `train` | 5 of 8 couples of the common topics | to train on |
| `dev` | 1 of 8 | to choose a strength on |
| `test` | 2 of 8 | the same topics, other items |
| `oos` | all couples of the harder topics | other topics |
| `rnd` | all couples of manners | answering in the manner asked for, whatever the facts |

**Couples.** Items come in couples that swap their answers: where the true answer of one is "Paris"
and the false one "Madrid", its partner has it the other way round. So every answer string is chosen
as often as rejected, against the very same rival: whatever looks at answers without prompts, clever
or not, is right on exactly half of a split. (A classifier cross-validated by item falls *below* one
half: of a couple torn apart, the half it learns from says the opposite of the half it is tested on.
For the same reason, take `dev` as a held-out part, instead of splitting `train` by item.)

Partners are neighbours, topics are interleaved: the first N items of a split, N even, keep the
property and cover the topics evenly.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

from ..errors import DataError, near
from .files import Source
from .pair import Pair
from .written import cells, written

TURNS = ("train", "train", "test", "train", "train", "test", "train", "dev")
"""Which split the couples of a table go to, in turn."""

SPLITS = ("train", "dev", "test", "oos", "rnd")

Row = tuple[str, str]
"""A prompt and its right answer."""
Table = dict[str, str]
"""A topic of `data/facts.yaml`, with its questions, answer and lines."""


def read_facts(name: str, root: Path | None, option: str | None) -> Source:
    """`facts:SPLIT`: one pair an item; `concept` is the topic."""
    if name not in SPLITS:
        raise DataError(
            f"facts:{name}: there is no such split{near(name, SPLITS)} ({', '.join(SPLITS)})"
        )
    return Source(list(facts(name)))


@cache
def facts(split: str) -> tuple[Pair, ...]:
    """All pairs of a split, always the same."""
    tables = written("facts")[{"rnd": "manners", "oos": "harder"}.get(split, "common")]
    ranked = []
    for number, table in enumerate(tables):
        rows = list(couples(table))
        if split not in ("rnd", "oos"):
            rows = [row for i, row in enumerate(rows) if TURNS[i % len(TURNS)] == split]
        # The i-th of n couples stands at (i + ½) / n of the split: topics are interleaved.
        ranked += [((i + 0.5) / len(rows), number, row) for i, row in enumerate(rows)]
    pairs = []
    for _, number, (one, other) in sorted(ranked):
        for (prompt, right), (_, wrong) in ((one, other), (other, one)):
            name = f"facts/{split}/{len(pairs)}"
            pairs.append(Pair(prompt, right, wrong, name, tables[number]["topic"], source=name))
    return tuple(pairs)


def couples(table: Table) -> Iterator[tuple[Row, Row]]:
    """The couples of a table, in its order."""
    for parts in cells(table["lines"]):
        if "question" in table:
            (a, x), (b, y) = (part.rsplit(": ", 1) for part in parts)
            asked = table["question"].format(a), table["question"].format(b)
        else:
            key, x, y = parts
            asked = table["first"].format(key), table["second"].format(key)
        ask = table.get("ask", "Question")
        one, other = (
            (f"{ask}: {question}\nAnswer:", f" {table['answer'].format(value)}")
            for question, value in zip(asked, (x, y), strict=True)
        )
        yield one, other
