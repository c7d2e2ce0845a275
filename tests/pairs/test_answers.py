"""Answers as files of the benchmarks that judge them, read by those benchmarks' own rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers_study import trimtab, write_lines
from trimtab.errors import DataError
from trimtab.evaluation.answers import (
    Answer,
    markdown_counts,
    question_id,
    read_answers,
    write_alpaca_eval,
    write_arena_hard,
)
from trimtab.pairs.prompts import read_prompts


def arena(folder: Path) -> dict[str, dict[str, Any]]:
    """`load_model_answers` of arena-hard-auto since 2.0: a file a model, answers by `uid`."""
    found = {}
    for file in sorted(folder.glob("*.jsonl")):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        found[file.name[:-6]] = {line["uid"]: line for line in lines}
    return found


@pytest.fixture(scope="module")
def here(tmp_path_factory, tiny, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("answers")
    tiny("llama").save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    questions = [
        {"uid": f"0123{i}", "category": "hard", "prompt": f"Question {i}?"} for i in range(3)
    ]
    write_lines(folder / "question.jsonl", questions)
    return folder


def test_arena_hard_joins_answers_with_questions_by_uid(here: Path) -> None:
    words = ("--model", here / "model", "--prompts", here / "question.jsonl", "--alpha", 0)
    done = trimtab("generate", *words, "--max-new-tokens", 4, "--name", "t", "--out", here / "out")
    assert done.code == 0, done.err
    answers = arena(here / "out" / "arena_hard")
    assert list(answers) == ["t-alpha-0"]
    for question in map(json.loads, (here / "question.jsonl").read_text().splitlines()):
        answer = answers["t-alpha-0"][question["uid"]]
        asked, said = answer["messages"][-2:]
        assert (asked["role"], asked["content"]) == ("user", question["prompt"])
        assert said["role"] == "assistant"
        assert isinstance(said["content"]["answer"], str)
        assert answer["model"] == "t-alpha-0"
        assert answer["metadata"]["token_len"] >= 0
    lines = map(json.loads, (here / "out" / "generations.jsonl").read_text().splitlines())
    assert [line["uid"] for line in lines] == ["01230", "01231", "01232"]


def test_uids_of_prompts(tmp_path: Path) -> None:
    rows = [
        {"uid": "a", "prompt": "x"},
        {"question_id": 7, "turns": ["y"]},
        {"uid": "c", "question_id": "no", "messages": [{"role": "user", "content": "z"}]},
        {"prompt": "w"},
        {"conversations": [{"from": "human", "value": "v"}]},
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": "u"}]}]},
    ]
    prompts = read_prompts(write_lines(tmp_path / "p.jsonl", rows))
    assert [p.uid for p in prompts] == ["a", "7", "c", None, None, None]
    assert [p.shown for p in prompts] == ["x", "y", "z", "w", "v", "u"]


def test_files_are_read_back_and_so_are_older_ones(tmp_path: Path) -> None:
    answers = [Answer("What?", "**This** one.\n- a\n- b", "m", "q1"), Answer("Why?", "So.", "m")]
    file = write_arena_hard(tmp_path / "m.jsonl", answers, [9, 2])
    first, second = (json.loads(line) for line in file.read_text().splitlines())
    assert (first["uid"], second["uid"]) == ("q1", question_id("Why?"))
    back = [(a.prompt, a.text, a.generator) for a in read_answers(file)]
    assert back == [(a.prompt, a.text, a.generator) for a in answers]
    new = {k: first[k] for k in ("uid", "ans_id", "model", "messages", "metadata")}
    old = {k: first[k] for k in ("question_id", "answer_id", "model_id", "choices", "prompt")}
    for form in (new, old):
        assert read_answers(write_lines(tmp_path / "one.jsonl", [form]))[0].text == answers[0].text
    for wrong in ({**new, "messages": []}, {**new, "messages": [{"role": "user"}] * 2}):
        write_lines(tmp_path / "wrong.jsonl", [wrong])
        with pytest.raises(DataError, match="Arena-Hard's messages"):
            read_answers(tmp_path / "wrong.jsonl")
    # A blank at the end of an instruction is part of it: AlpacaEval joins by the whole text.
    spaced = write_alpaca_eval(tmp_path / "a.json", [Answer("What? ", "x", "m")])
    assert json.loads(spaced.read_text())[0]["instruction"] == "What? "


@pytest.mark.parametrize(
    ("text", "headers", "ordered", "unordered", "bold"),
    [
        ("# A\n## B\ntext", 2, 0, 0, 0),
        ("1. a\n2. b\n- c\n* d\n  + e", 0, 2, 3, 0),
        ("**a** and __b__, not ** c", 0, 0, 0, 2),
        ("```\n# no\n- no\n**no**\n```\n# yes", 1, 0, 0, 0),
        ("#no header, 1.no list", 0, 0, 0, 0),
    ],
)
def test_counts_for_style_control(
    text: str, headers: int, ordered: int, unordered: int, bold: int
) -> None:
    found = markdown_counts(text)
    assert sum(found["header_count"].values()) == headers
    assert found["list_count"] == {"ordered": ordered, "unordered": unordered}
    assert sum(found["bold_count"].values()) == bold
