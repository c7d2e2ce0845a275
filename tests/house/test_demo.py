"""The demo's settings, and pages that are what their results give (the demo itself: test_wheel)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from trimtab.errors import TrimtabError
from trimtab.report import write_markdown
from trimtab.studies.compare.demo import ALPHAS, FULL, QUICK
from trimtab.studies.pages import write_pages

ROOT = Path(__file__).resolve().parents[2]


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
