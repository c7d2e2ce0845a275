"""What is installed from a wheel runs without the tree that it was built from, the demo included."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers_study import result_bytes, trimtab
from trimtab import models
from trimtab.dials import Dial
from trimtab.errors import ModelError
from trimtab.report import read_results
from trimtab.studies.compare.demo import ALPHAS, QUICK

ROOT = Path(__file__).resolve().parents[2]


def run(*command: object, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    own = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    env = {**own, "PYTHONPATH": str(path)} if path else own
    words = list(map(str, command))
    ran = subprocess.run(words, capture_output=True, text=True, cwd=cwd, env=env, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with trimtab alone: built without isolation from a copy, installed without what it needs."""
    folder = tmp_path_factory.mktemp("wheel")
    tree, site = folder / "tree", folder / "site"
    unmade = shutil.ignore_patterns("*.egg-info", "__py*")
    shutil.copytree(ROOT / "src", tree / "src", ignore=unmade)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    build = ("wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, ".")
    run(*pip, *build, cwd=tree)
    (wheel,) = folder.glob("trimtab-*.whl")
    install = ("install", "--no-deps", "--no-index", "--no-compile", "--target", site)
    run(*pip, *install, wheel, cwd=folder)
    shutil.rmtree(tree)
    return site


def test_a_wheel_has_all_that_it_needs(site: Path, tmp_path: Path) -> None:
    code = (
        "import sys, trimtab; from importlib.resources import files; from trimtab.cli import main\n"
        f"assert trimtab.__file__.startswith({str(site)!r}), trimtab.__file__\n"
        "for name in ('serve/page.html', 'report/page.css', 'study/suites/facts.yaml', 'py.typed'):\n"
        "    assert files('trimtab').joinpath(name).read_text() or name == 'py.typed', name\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    for words, said in (
        (["--version"], "0.1.0"),
        (["methods"], "innerdpo"),
        (["fit", "dpo", "-h"], ""),
    ):
        assert said in run(sys.executable, "-c", code, *words, cwd=tmp_path, path=site).stdout
    held = {
        p.relative_to(ROOT / "src") for p in (ROOT / "src" / "trimtab").rglob("*") if p.is_file()
    }
    held = {p for p in held if "__pycache__" not in p.parts}
    missing = {p for p in held if not (site / p).is_file()}
    assert not missing, sorted(map(str, missing))[:5]


def test_the_demo_end_to_end(site: Path, tmp_path, monkeypatch):
    """From the wheel, in another folder; all but the converted model is made afresh. Half a minute of
    one core."""
    try:
        models.load_tokenizer("smollm2-135m")  # converted, where that has not been done yet
    except ModelError as error:
        pytest.skip(f"the embedded model is not installed: {error}")
    cache = tmp_path / "cache"
    cache.mkdir()
    for folder in ("models", "digests"):
        (cache / folder).symlink_to(models.cache_root() / folder, target_is_directory=True)
    monkeypatch.setenv("TRIMTAB_CACHE", str(cache))
    monkeypatch.setenv("COLUMNS", "100")
    out, away = tmp_path / "demo", tmp_path / "away"
    away.mkdir()
    started = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = ("-m", "trimtab", "demo", "--quick", "--out", out)
    done = run(sys.executable, *words, cwd=away, path=site)
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert spent.ru_utime + spent.ru_stime - started.ru_utime - started.ru_stime < 90
    assert done.stdout.rstrip().endswith(f"page: {out}/report.html")
    for name in ("bare model", "DPO", "mean", "test", "oos", "rnd", "Dose–response"):
        assert name in done.stdout
    turned, bare, dpo = (
        done.stdout.index(part) for part in ("turned", "Against the bare model", "Against DPO")
    )
    assert turned < bare < dpo
    assert len(json.loads((out / "first" / "answers.json").read_text())) == len(ALPHAS)
    first = Dial.from_pretrained(out / "first")
    assert (first.kind, first.info.method) == ("vector", "mean")
    assert max(map(len, done.stdout.splitlines())) <= 100
    noise = [
        line for line in done.stderr.splitlines() if re.search(r"Warning|it/s|Traceback|pad_", line)
    ]
    assert noise == []
    page = (out / "report.html").read_text()
    assert len(page) > 20_000
    assert not re.search(r'(src|href)="https?://', page), "the page needs nothing from elsewhere"
    results = read_results(out)
    assert set(results.methods) == set(QUICK.methods)
    assert results.study.seeds == (0,)
    texts = (out / "generations.jsonl").read_text().splitlines()
    assert {json.loads(line)["method"] for line in texts} == {"base", *QUICK.methods}

    before = result_bytes(out)
    again = trimtab("demo", "--quick", "--out", out)
    assert (again.code, again.out) == (0, done.stdout)
    assert result_bytes(out) == before
    assert "3 of them done already" in again.err
