"""The notebooks: their cells run in order, on a tiny model in place of the one they name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trimtab import models

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "notebooks"
SAID = {"first_dial.ipynb": "moved by up to", "own_data.ipynb": "-> "}


@pytest.mark.parametrize("name", sorted(SAID))
def test_a_notebook_runs(name, tiny, tokenizer, tmp_path, monkeypatch, capsys):
    cells = json.loads((FOLDER / name).read_text(encoding="utf-8"))["cells"]
    assert all(c["outputs"] == [] for c in cells if c["cell_type"] == "code")
    monkeypatch.setattr(models, "load", lambda *_, **__: (tiny("llama"), tokenizer))
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{name}, cell {number}", "exec"), names)
    said = capsys.readouterr()
    assert SAID[name] in said.out
    assert "Warning" not in said.err


def test_every_notebook_is_tried():
    assert {file.name for file in FOLDER.glob("*.ipynb")} == set(SAID)
