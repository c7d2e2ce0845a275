"""Prompts of files: texts and chats, and what is none."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.errors import DataError
from trimtab.pairs import read_pairs
from trimtab.pairs.prompts import Prompt, read_prompts

CHAT = [{"role": "user", "content": "Hi"}]
LONG = [*CHAT, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Why?"}]
LED = [{"role": "system", "content": "Be brief."}, *CHAT]
TOOL = {"type": "function", "function": {"name": "rain"}}


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("Hi", Prompt("Hi")),
        ({"prompt": "Hi", "id": 3}, Prompt("Hi")),
        ({"instruction": "Hi"}, Prompt("Hi")),
        ({"question": "Hi"}, Prompt("Hi")),
        ({"turns": ["Hi"]}, Prompt("Hi")),
        ({"turns": [{"content": "Hi"}]}, Prompt(tuple(CHAT))),
        ({"prompt": CHAT}, Prompt(tuple(CHAT))),
        ({"prompt": LONG}, Prompt(tuple(LONG))),
        ({"messages": LED}, Prompt(tuple(LED))),
        (LONG, Prompt(tuple(LONG))),
        ({"prompt": None, "messages": CHAT}, Prompt(tuple(CHAT))),
        ({"prompt": "Hi", "system": "S"}, Prompt("Hi", system="S")),
        (
            {"prompt": CHAT, "tools": [TOOL], "chat_template_kwargs": {"deep": True}},
            Prompt(tuple(CHAT), tools=[TOOL], chat_template_kwargs={"deep": True}),
        ),
    ],
)
def test_entries(entry: Any, expected: Prompt, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([entry]))
    (tmp_path / "a.jsonl").write_text("\n" + json.dumps(entry) + "\n\n")
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(json.dumps(entry))
    for name in ("a.json", "a.jsonl", "a.jsonl.gz"):
        (found,) = read_prompts(tmp_path / name)
        assert Prompt(found.text, found.system, found.tools, found.chat_template_kwargs) == expected


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("{", ["malformed JSON at column"]),
        ("3", ["expected a text, or an object", "given 3"]),
        ('{"text": "Hi"}', ["expected a text, or an object with prompt"]),
        ('{"prompt": " "}', ["expected a text"]),
        ('{"prompt": []}', ["expected a text"]),
        ('{"prompt": [{"role": "user"}]}', ["message 1", "'content'"]),
        ('{"prompt": [{"role": "user", "content": " "}]}', ["the prompt is empty"]),
        ('{"prompt": [{"role": "system", "content": "S"}]}', ["ends with", "'system'"]),
        (json.dumps({"messages": LONG[:2]}), ["ends with", "'assistant'", "to be answered"]),
        (json.dumps({"prompt": LED, "system": "T"}), ["'system'", "give one"]),
        ('{"prompt": "Hi", "system": 3}', ["'system'", "int 3"]),
        ('{"prompt": "Hi", "tools": "x"}', ["'tools'", "list of schemas"]),
        ('{"turns": ["a", "b"]}', ["expected a text"]),
    ],
)
def test_entries_that_are_none_are_named(line: str, parts: list[str], tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"prompt": "Hi"}}\n\n{line}\n')
    with pytest.raises(DataError) as caught:
        read_prompts(path)
    for part in (f"{path}:3", *parts):
        assert part in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for text, part in (
        ("[\n{]", f"{path}:2: malformed"),
        ("{}", "a list of prompts"),
        ("[]", "no"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=part):
            read_prompts(path)
    path.write_text('["a", 3]')
    with pytest.raises(DataError, match="entry 2: expected a text"):
        read_prompts(path)
    with pytest.raises(DataError, match="no such file"):
        read_prompts(tmp_path / "b.txt")
    (tmp_path / "b.txt").write_bytes(b"a\n\xff\n")
    with pytest.raises(DataError, match="not UTF-8"):
        read_prompts(tmp_path / "b.txt")


def test_prompts_of_pairs_keep_their_settings() -> None:
    row = {"prompt": CHAT, "chosen": [{"role": "assistant", "content": "a"}], "system": "S"}
    (pair,) = read_pairs([{**row, "rejected": [{"role": "assistant", "content": "b"}]}])
    assert Prompt.of(pair) == Prompt(tuple(CHAT), system="S", source=pair.source)
    assert Prompt.of("a") == Prompt("a")
    assert Prompt(tuple(LONG)).shown == "user: Hi\n\nassistant: Hello.\n\nuser: Why?"
