"""Multiple-choice files: `question`, `choices`, `label` (the index of the right choice) a line."""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError
from .files import Source, column, json_lines, located, name_and_split, row_of, shown, text_column
from .pair import Pair


def read_choices(name: str, root: Path | None, option: str | None) -> Source:
    """`choices:TASK/SPLIT`: one pair a wrong choice; the item is the question's line.

    Prompt and answers read `"Question: …\\nAnswer:"` and `" choice"`, so that the answer begins
    with the space and tokens do not straddle the boundary.
    """
    task, split = name_and_split("choices", name, "choices:ARC-Easy/train")
    files = [f"{task}.{split}.jsonl{gz}" for gz in (".gz", "")]
    there = sorted((root / "choices").glob("*.jsonl*")) if root else []
    path = located(
        root,
        [f"choices/{f}" for f in files] + files,
        f"choices:{name}",
        {"choices:" + p.name.split(".jsonl")[0].replace(".", "/") for p in there},
    )
    pairs = []
    for number, (where, value) in enumerate(json_lines(path)):
        row = row_of(value, where)
        question = text_column(row, "question", where).strip()
        if not question:
            raise DataError(f"{where}: column 'question' is empty")
        choices, label = column(row, "choices", where), column(row, "label", where)
        if not isinstance(choices, list) or not all(isinstance(c, str) for c in choices):
            raise DataError(
                f"{where}: column 'choices': expected a list of texts, given {shown(choices)}"
            )
        if type(label) is not int or label not in range(len(choices)):
            raise DataError(
                f"{where}: column 'label': expected the index of one of {len(choices)} choices, "
                f"given {shown(label)}"
            )
        if len(choices) < 2:
            raise DataError(
                f"{where}: column 'choices': expected two or more, given {len(choices)}"
            )
        answers = [" " + c.strip() for c in choices]
        right, prompt = answers.pop(label), f"Question: {question}\nAnswer:"
        item = f"{name}/{number}"
        pairs += [Pair(prompt, right, wrong, item, source=where) for wrong in answers]
    return Source(pairs)
