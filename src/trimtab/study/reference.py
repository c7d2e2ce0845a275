"""`python -m trimtab.study.reference` prints docs/results.md: the schema of result files from the docstrings
of its dataclasses."""

from __future__ import annotations

import inspect
import re

from trimtab.study.records import fields_of
from trimtab.study.results import ABOUT, COSTS, FILES, GRID, About, Grid, Published, Split


def reference() -> str:
    """docs/results.md: the schema from its docstrings."""
    parts = [
        "# Result files",
        "Made from the docstrings of `trimtab.study.results` "
        "(`python -m trimtab.study.reference > docs/results.md`).",
        "Every study writes the same files into its folder; what is not finite is null. "
        "`trimtab.results(folder)` gives the lines of `results.jsonl` as a pandas DataFrame, "
        '`trimtab.results(folder, "verdicts")` those of another file; of a folder of runs, the lines of '
        "all of them. Fields marked * are left out where they say nothing. Folders of earlier versions "
        "are read as well.",
        '```python\nimport trimtab\n\nframe = trimtab.results("runs/demo")\n'
        'at_1 = frame[(frame["at"] == "alpha_1") & (frame.metric == "accuracy")]\n'
        'table = at_1[at_1["aggregate"] | at_1.seed.isna()].pivot_table("value", "method", "split")\n```',
    ]
    names = {**{kind: name for name, kind in FILES.items()}, About: ABOUT, Grid: GRID}
    for kind in (*FILES.values(), About, Split, Published, Grid):
        head, _, listed = (inspect.getdoc(kind) or "").partition("\n\nAttributes:\n")
        parts += [f"## {kind.__name__}" + (f": `{names[kind]}`" if kind in names else "")]
        said = dict(re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", listed, re.M))
        rows = [
            f"| `{name}`{'' if required else '*'} | {_type(kind, name)} | {' '.join(said[name].split())} |"
            for name, (_, required) in fields_of(kind).items()
        ]
        parts += [" ".join(head.split()), "| field | type | |\n|---|---|---|\n" + "\n".join(rows)]
    parts += [
        f"## `{COSTS}`",
        "An object a method: `fit_seconds`, `evaluate_seconds`, `parameters`; of heads also "
        "`tokens_per_second`, and its ratio to the bare model's, `of_base` with the least and the largest "
        "of the rounds (`of_base_low`, `of_base_high`), and to GenARM's, `of_genarm`. Times differ from run "
        "to run; all other files of a run are the same bytes whenever it is run again.",
    ]
    return "\n\n".join(parts) + "\n"


def _type(kind: type, name: str) -> str:
    text = str(kind.__annotations__[name])
    if text.startswith("Literal"):
        text = " or ".join(re.findall(r"['\"]([^'\"]+)['\"]", text))
    words = {"str": "text", "bool": "true or false", "int": "whole number", "float": "number"}
    text = re.sub(r"\b(str|bool|int|float)\b", lambda m: words[m[0]], text).replace(
        " | None", " or null"
    )
    text = re.sub(r"tuple\[(.*), \.\.\.\]", r"list of \1", text)
    return re.sub(r"dict\[text, (.*)\]", r"object of \1", text).replace("Any", "anything")


if __name__ == "__main__":
    print(reference(), end="")
