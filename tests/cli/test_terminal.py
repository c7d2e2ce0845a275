"""Texts of others on the terminal: shown, never obeyed, whichever way they get there."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import pytest

from trimtab import terminal
from trimtab.cli import main

ESCAPES = "\x1b]0;owned\x07\x1b[2J\u202e\r\x9b31m"
SOURCE = Path(terminal.__file__).parent
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")


def test_prints_and_tables(capsys):
    from rich.table import Table

    with terminal.shown(), terminal.shown():
        print(f"a{ESCAPES}b", "c\td\ne")
        table = Table(f"head{ESCAPES}")
        table.add_row(f"[bold]cell[/bold]{ESCAPES}")
        terminal.console().print(table)
    said = capsys.readouterr().out
    assert not UNSEEN.search(said)
    assert "\\u001b" in said
    assert "c\td\ne" in said
    print("\x1b")
    assert capsys.readouterr().out == "\x1b\n"


def test_colours_of_our_own_stay(monkeypatch):
    import io
    import sys

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with terminal.shown():
        terminal.console().print("[bold]x[/bold]\x1b[31m")
        said = sys.stdout.getvalue()
    assert "\x1b[1mx" in said
    assert "\x1b[31m" not in said


@pytest.fixture
def hostile(tmp_path):
    file = tmp_path / "pairs.jsonl"
    row = {"prompt": f"p{ESCAPES}", "chosen": f"a{ESCAPES}", "rejected": "b", f"x{ESCAPES}": 1}
    file.write_text(json.dumps(row) + "\n")
    return file


@pytest.mark.parametrize(
    "words",
    [
        ["inspect", "{file}"],
        ["inspect", f"no{ESCAPES}"],
        [
            "evaluate",
            "--model",
            f"no{ESCAPES}",
            "--pairs",
            f"t{ESCAPES}={{file}}",
            "--out",
            "{out}",
        ],
        ["fit", "dpo", "--model", f"no{ESCAPES}", "--pairs", "{file}", "--out", "{out}"],
        [f"verb{ESCAPES}"],
        ["fit", "dpo", "--pairs", "{file}", "--out", "{out}", f"--flag{ESCAPES}"],
    ],
)
def test_no_verb_obeys(words, hostile, tmp_path, capfd):
    given = [w.format(file=hostile, out=tmp_path / "out") for w in words]
    with contextlib.suppress(SystemExit):
        main(given)
    said = "".join(capfd.readouterr())
    assert said
    assert not UNSEEN.search(said), ascii(UNSEEN.search(said))


def test_there_is_one_way_to_the_console():
    found = [
        f"{path.relative_to(SOURCE)}: {line.strip()}"
        for path in SOURCE.rglob("*.py")
        for line in path.read_text("utf-8").splitlines()
        if re.search(r"\bConsole\(", line) and "class" not in line
    ]
    assert found == [
        "progress.py: with Bars(*columns, console=Console(stderr=True), transient=True) as bars:"
    ]
