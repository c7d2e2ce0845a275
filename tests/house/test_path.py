"""From pairs to a verdict, by hand: the seven files that docs/architecture.md names, and nothing of the upper
floors; and the documented examples of files that a user writes or reads."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

from helpers_study import rows, trimtab, write_lines
from trimtab.study.reading import read
from trimtab.study.suite import read_suite

ROOT = Path(__file__).resolve().parents[2]
UPPER = ("study", "studies", "report", "cli", "serve")
"""Rooms of which nothing is needed."""


def named_files() -> list[Path]:
    """The files that the page lists, in its order."""
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    part = text.partition("## From pairs to a verdict")[2].partition("\n## ")[0]
    return [
        ROOT / "src" / "trimtab" / name for name in re.findall(r"^\d\. `(\S+\.py)`", part, re.M)
    ]


def the_example() -> str:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    part = text.partition("## From pairs to a verdict")[2].partition("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", part, re.S)[0]


def test_the_path_is_seven_files_that_can_be_read():
    files = named_files()
    assert 0 < len(files) <= 7
    for file in files:
        assert len(file.read_text("utf-8").splitlines()) < 400, file
    assert sum(len(f.read_text("utf-8").splitlines()) for f in files) < 2000


def test_the_path_runs_without_the_upper_floors(tmp_path, tiny, tokenizer):
    """The page's own lines, on a tiny model, in a process of their own: every function that they call lies in
    a file that it names, and of the upper rooms nothing is imported."""
    tiny("llama").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    for name, n in (("train", 12), ("test", 8)):
        write_lines(tmp_path / f"{name}.jsonl", rows(n, name))
    code = the_example().replace('"smollm2-135m"', f'"{tmp_path}/model"')
    code = code.replace('"facts:train"', f'"jsonl:{tmp_path}/train.jsonl"')
    code = code.replace('"facts:test"', f'"jsonl:{tmp_path}/test.jsonl"')
    after = """
    import inspect, json, sys, trimtab
    called = [fit, read_pairs, encode, score, paired_difference, judged, Dial]
    files = sorted({inspect.getsourcefile(inspect.unwrap(f)) for f in called})
    rooms = sorted({m.split(".")[1] for m in sys.modules if m.startswith("trimtab.")})
    print(json.dumps({"files": files, "rooms": rooms, "verdict": told.verdict}))
    """
    (tmp_path / "path.py").write_text(code + textwrap.dedent(after))
    done = subprocess.run(
        [sys.executable, str(tmp_path / "path.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert not set(found["rooms"]) & set(UPPER)
    assert set(map(Path, found["files"])) <= set(named_files())
    assert found["verdict"] in ("better", "worse", "cannot tell")


# ---- documented examples ------------------------------------------------------------------------


def examples(page: str, language: str, first: str) -> list[str]:
    """Blocks of a page that begin with a line."""
    text = (ROOT / "docs" / page).read_text("utf-8")
    blocks = re.findall(rf"```{language}\n(.*?)```", text, re.S)
    return [b for b in blocks if b.startswith(first)]


def test_the_suite_of_the_documentation(tmp_path):
    """Its keys are those of a suite, and its specs can be read."""
    from trimtab.study.suite import read_data

    (text,) = examples("comparing.md", "yaml", "# my-suite.yaml")
    (tmp_path / "my-suite.yaml").write_text(text)
    suite = read_suite(tmp_path / "my-suite.yaml")
    assert set(yaml.safe_load(text)) >= {"train", "evaluate", "dose", "instruction"}
    data = read_data(suite, limit=4)
    assert all(len(pairs.items()) == 4 for pairs in (data.train, data.dose, *data.splits.values()))


def test_the_plan_of_the_documentation(tmp_path, monkeypatch):
    """Verb and flags are understood; it stops at a model that is not there."""
    (text,) = examples("comparing.md", "yaml", "run: compare")
    plan = yaml.safe_load(text)
    flags = tmp_path / "flags.yaml"
    flags.write_text(yaml.safe_dump({**plan["flags"], "suite": "facts", "model": "./nowhere"}))
    monkeypatch.chdir(tmp_path)
    done = trimtab(plan["run"], "--config", flags, "--out", tmp_path / "out")
    assert done.code == 2
    assert "nowhere" in done.err


@pytest.mark.parametrize("part", ["results.jsonl", "study.json"])
def test_the_result_files_of_the_documentation(tmp_path, part):
    """The lines that the reference shows are read, as what they are."""
    (about,) = examples("comparing.md", "json", '{"study"')
    (lines,) = examples("comparing.md", "json", '{"model"')
    (tmp_path / "study.json").write_text(about)
    (tmp_path / "results.jsonl").write_text(lines)
    run = read(tmp_path)
    if part == "study.json":
        assert run.about.splits["test"].items == 60
    else:
        (line,) = run.measurements
        assert line.low <= line.value <= line.high
        assert (line.method, line.aggregate) == ("dpo", True)
