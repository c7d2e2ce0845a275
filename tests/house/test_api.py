"""The Python interface: its names, what they mean after any import, and the README's example."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import trimtab
from trimtab import models

ROOT = Path(__file__).resolve().parents[2]
FUNCTIONS = ("load", "read_pairs", "make_contrast", "fit", "generate", "evaluate", "results")


def alone(code: str) -> subprocess.CompletedProcess[str]:
    """Python code in a process of its own."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_the_public_names():
    assert set(trimtab.__all__) == {*FUNCTIONS, "Anchors", "Dial", "Pair", "PairSet"}
    assert set(trimtab.__all__) <= set(dir(trimtab))
    for name in trimtab.__all__:
        thing = getattr(trimtab, name)
        assert inspect.isfunction(thing) == (name in FUNCTIONS)
        assert inspect.isclass(thing) == (name not in FUNCTIONS)
        assert thing.__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        trimtab.nothing  # noqa: B018


def test_importing_the_package_imports_no_torch():
    done = alone(
        "import trimtab, sys; print(trimtab.__version__); sys.exit('torch' in sys.modules)"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == trimtab.__version__


@pytest.mark.parametrize(
    "first",
    [
        "from trimtab.evaluate import score; from trimtab.fit import METHODS",
        "import trimtab.fit.methods as r, trimtab.evaluate.damage as d; r.METHODS, d.NeutralText",
    ],
)
def test_rooms_do_not_hide_the_functions_of_their_name(first):
    """`trimtab.fit` and `trimtab.evaluate` were packages too: importing them binds their names."""
    code = (
        f"{first}\n"
        "from trimtab import load, read_pairs, fit, Dial, generate, evaluate\n"
        "import inspect, trimtab\n"
        "assert all(map(inspect.isfunction, (load, read_pairs, fit, generate, evaluate)))\n"
        "assert trimtab.fit is fit and trimtab.evaluate is evaluate\n"
        "assert list(inspect.signature(fit).parameters)[:4] == ['recipe', 'model', 'tokenizer', 'pairs']\n"
        "assert 'alphas' in inspect.signature(evaluate).parameters\n"
    )
    done = alone(code)
    assert done.returncode == 0, done.stderr


def test_old_module_names_are_the_new_modules():
    """Not copies of them; each name says once what the new one is, and the new ones nothing."""
    names = {
        "trimtab.fit.methods": "trimtab.training.methods",
        "trimtab.fit.training": "trimtab.training.adapters",
        "trimtab.evaluate.damage": "trimtab.damage",
        "trimtab.evaluate.tasks.stsb": "trimtab.evaluation.tasks.stsb",
        "trimtab.anchor.timeline": "trimtab.anchoring.timeline",
    }
    code = (
        "import importlib, trimtab\n"
        f"for old, new in {names}.items():\n"
        "    real = importlib.import_module(new)\n"
        "    assert importlib.import_module(old) is importlib.import_module(old) is real\n"
        "    assert real.__name__ == real.__spec__.name == new\n"
        "try: import trimtab.fit.method\n"
        "except ModuleNotFoundError: print('not there')\n"
    )
    done = alone(code)
    assert (done.returncode, done.stdout) == (0, "not there\n"), done.stderr
    said = re.findall(r"trimtab\.(\S+) is trimtab\.(\S+) now\n", done.stderr)
    moved = [("fit", "training"), ("fit.training", "training.adapters")]
    moved += [("evaluate", "evaluation"), ("evaluation.damage", "damage")]
    assert said == [*moved, ("anchor", "anchoring")]


def test_the_readmes_example_runs(tiny, tokenizer, tmp_path, monkeypatch, capsys):
    """Word for word, on a tiny model in place of the one it names."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)[0]
    assert len(code.splitlines()) <= 18, "the README promises fifteen lines or so"
    asked: list[str] = []

    def load(name: str = "smollm2-135m", **_: Any) -> tuple[Any, Any]:
        asked.append(name)
        return tiny("llama"), tokenizer

    monkeypatch.setattr(models, "load", load)
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert asked == ["smollm2-135m"]
    for name in {*FUNCTIONS, "Dial"} - {
        "make_contrast",
        "results",
    }:  # which docs/directions.md and docs/results.md show
        assert name in code, f"the example does not show {name}"
    said = capsys.readouterr()
    assert said.out.strip()
    assert "Warning" not in said.err


def test_the_readmes_control_vector_runs(tiny, tokenizer, tmp_path, monkeypatch, capsys):
    """Word for word, but for the model and the process that checks the export."""
    from trimtab.export import check

    def checked_here(spec: dict[str, Any], stage: Path, _: Any) -> dict[str, Any]:
        receipt = check.compare(spec)
        (stage / "receipt.json").write_text(json.dumps(receipt))
        return receipt

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)[1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    monkeypatch.setattr(models, "load", lambda *_, **__: (tiny("llama"), tokenizer))
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("trimtab.export.run._run_check", checked_here)
    exec(compile(code, "README.md", "exec"), {})
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines() if line[:1] in "-0123456789"]
    assert (tmp_path / "honesty.gguf").is_file()
    assert (tmp_path / "honesty.gguf.receipt.json").is_file()


def test_the_help_file_is_that_of_the_dataclasses():
    """On a difference: python -m trimtab.cli.help_file"""
    from trimtab.cli.help import FILE
    from trimtab.cli.help_file import collect, text_of

    assert FILE.read_text("utf-8") == text_of(collect()), "python -m trimtab.cli.help_file"
