"""Generated answers as files of the benchmarks that judge them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.errors import DataError
from trimtab.files import write_lines, write_text
from trimtab.foreign import parse_json


@dataclass(frozen=True)
class Answer:
    """An answer to a prompt, by a named generator."""

    prompt: str
    text: str
    generator: str
    uid: str = ""
    """What the question is called in its own file, where that says."""


def question_id(prompt: str) -> str:
    """A name for a prompt: the same in every file."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:32]


def write_alpaca_eval(file: Path, answers: Sequence[Answer]) -> Path:
    """AlpacaEval's model outputs: a list of `instruction`, `output`, `generator`."""
    rows = [{"instruction": a.prompt, "output": a.text, "generator": a.generator} for a in answers]
    return write_text(file, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")


def write_arena_hard(file: Path, answers: Sequence[Answer], tokens: Sequence[int]) -> Path:
    """Arena-Hard's model answers, a line a question: as its loaders read them since version 2.0 (`uid`,
    `messages`, `metadata` with the counts that style control needs), and as they did before
    (`question_id`, `choices`)."""
    lines = []
    for a, n in zip(answers, tokens, strict=True):
        uid = a.uid or question_id(a.prompt)
        name = question_id(f"{a.generator}\0{a.prompt}\0{a.text}")[:22]
        said = {"role": "assistant", "content": {"answer": a.text}}
        lines.append(
            {
                "uid": uid,
                "ans_id": name,
                "model": a.generator,
                "messages": [{"role": "user", "content": a.prompt}, said],
                "metadata": {"token_len": n, **markdown_counts(a.text)},
                "question_id": uid,
                "answer_id": name,
                "model_id": a.generator,
                "choices": [{"index": 0, "turns": [{"content": a.text, "token_len": n}]}],
                "prompt": a.prompt,
            }
        )
    return write_lines(file, lines)


def markdown_counts(text: str) -> dict[str, dict[str, int]]:
    """Headers, list entries and bold parts of an answer, its code blocks left out, as Arena-Hard counts
    them."""
    text = re.sub("```([^`]*)```", "", text)

    def count(pattern: str) -> int:
        return len(re.findall(pattern, text, re.MULTILINE))

    return {
        "header_count": {f"h{n}": count(rf"^#{{{n}}}\s") for n in range(1, 7)},
        "list_count": {
            "ordered": count(r"^\s*\d+\.\s"),
            "unordered": count(r"^\s*[-*+]\s"),
        },
        "bold_count": {mark: count(pattern) for mark, pattern in BOLD.items()},
    }


BOLD = {"**": r"\*\*[^*\n]+\*\*", "__": r"__[^_\n]+__"}


def read_answers(file: Path) -> list[Answer]:
    """Answers in either format.

    Raises:
        DataError: no such file, not JSON, or an entry without prompt or answer.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error})") from error
    try:
        if text.lstrip().startswith("["):
            rows = parse_json(text)
        else:
            rows = [parse_json(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise DataError(f"{file}: not JSON ({error})") from error
    found = [_answer(row, f"{file}: entry {number}") for number, row in enumerate(rows, 1)]
    if not found:
        raise DataError(f"{file}: no answers in it")
    return found


def _answer(row: Any, where: str) -> Answer:
    try:
        if "instruction" in row:
            values = row["instruction"], row["output"], row.get("generator", "")
        elif "messages" in row:
            asked, said = row["messages"][-2:]
            answer = said["content"]
            answer = answer["answer"] if isinstance(answer, dict) else answer
            values = row.get("prompt", asked["content"]), answer, row["model"]
        else:
            values = row["prompt"], row["choices"][0]["turns"][0]["content"], row["model_id"]
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            f"{where}: expected AlpacaEval's instruction and output, or Arena-Hard's messages and model "
            f"(before 2.0 prompt, choices and model_id) ({type(error).__name__}: {error})"
        ) from error
    if not all(isinstance(value, str) for value in values):
        raise DataError(f"{where}: prompt, answer and generator are to be texts")
    return Answer(*values)
