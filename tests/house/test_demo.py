"""`trimtab demo --quick` on the real model, from the command to the page."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path

import pytest

from helpers_study import result_bytes, trimtab
from trimtab import models
from trimtab.dials import Dial
from trimtab.errors import ModelError, TrimtabError
from trimtab.report import read_results, write_markdown
from trimtab.studies.compare.demo import ALPHAS, FULL, QUICK
from trimtab.studies.pages import write_pages

ROOT = Path(__file__).resolve().parents[2]


def test_the_demo_end_to_end(tmp_path, monkeypatch):
    """All but the converted model is made afresh. Half a minute of one core."""
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
    out, started = tmp_path / "demo", time.process_time()
    done = trimtab("demo", "--quick", "--out", out)
    assert time.process_time() - started < 90
    assert done.code == 0, done.err
    assert done.out.rstrip().endswith(f"page: {out}/report.html")
    for name in ("bare model", "DPO", "mean", "test", "oos", "rnd", "Dose–response"):
        assert name in done.out
    turned, bare, dpo = (
        done.out.index(part) for part in ("turned", "Against the bare model", "Against DPO")
    )
    assert turned < bare < dpo
    assert len(json.loads((out / "first" / "answers.json").read_text())) == len(ALPHAS)
    first = Dial.from_pretrained(out / "first")
    assert (first.kind, first.info.method) == ("vector", "mean")
    assert max(map(len, done.out.splitlines())) <= 100
    noise = [
        line for line in done.err.splitlines() if re.search(r"Warning|it/s|Traceback|pad_", line)
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

    before, started = result_bytes(out), time.process_time()
    again = trimtab("demo", "--quick", "--out", out)
    assert (again.code, again.out) == (0, done.out)
    assert result_bytes(out) == before
    assert "3 of them done already" in again.err


def test_the_demo_is_what_it_says():
    for which in (FULL, QUICK):
        assert which.model == "smollm2-135m"
        assert which.methods == ("dpo", "mean")
        assert which.seeds == (0,)
        assert (which.train_limit or 0) <= 200
    assert ALPHAS[0] < 0 < ALPHAS[-1]
    assert 0 in ALPHAS
    assert len(ALPHAS) == 5


def test_committed_pages_are_what_their_results_give(tmp_path):
    """`trimtab report docs/results` makes the pages again; they must not differ, and there is none
    without results. (The page on anchoring has a test of its own.)"""
    committed = ROOT / "docs" / "results"
    unmade = shutil.ignore_patterns("anchoring*", "*.md", "*.svg", "cells", "items.parquet")
    shutil.copytree(committed, tmp_path / "results", ignore=unmade)
    made = write_pages(tmp_path / "results")
    pages = {p.name for p in committed.glob("*.md")} - {"anchoring.md"}
    assert {p.name for p in made} == pages
    for fresh in (tmp_path / "results").rglob("*.*"):
        if fresh.suffix in (".md", ".svg"):
            old = committed / fresh.relative_to(tmp_path / "results")
            assert fresh.read_bytes() == old.read_bytes(), fresh.name


def test_a_run_that_is_incomplete_makes_no_page(tmp_path):
    with pytest.raises(TrimtabError, match=r"study.json: missing"):
        write_markdown(tmp_path, tmp_path / "a.md")
