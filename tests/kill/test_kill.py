"""Killed at any step of any write, a run that is started again ends as if nobody had stopped it; of several
at once each ends right or says who has it. A few of `make kill`."""

from __future__ import annotations

import os

import pytest

from kill.__main__ import BUSY, Bench, kill
from kill.verbs import words
from trimtab.holding import held


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    made = Bench(tmp_path_factory.mktemp("kill"), ready="")
    yield made
    made.commands.close()


@pytest.mark.parametrize(("verb", "kills"), [("fit dpo", 7), ("anchoring", 5)])
def test_killed_in_its_writes(bench, verb, kills):
    every = set(bench.whole(verb)[2])
    row = kill(bench, verb, kills, every)
    assert not row["bad"], row["bad"]
    assert (row["killed"], row["same"]) == (kills, kills)
    assert row["full disk"] > 0


def test_two_on_one_folder(bench):
    """The second says who has it and leaves everything as it is; four at once end right, or say so."""
    bench.fresh("fit mean")
    with held(bench.work / "out"):
        assert bench.run("fit mean") == 2
    assert f"is being written by process {os.getpid()} on " in bench.err.read_text()
    assert not (bench.work / "out").exists()
    errs = [bench.here / f"err{n}" for n in range(4)]
    codes = bench.commands.together([words("fit mean", bench.here)] * 4, errs)
    assert 0 in codes
    said = [err.read_text() for code, err in zip(codes, errs, strict=True) if code]
    assert all(BUSY.search(text) for text in said), said
    assert [f.name for f in sorted(bench.work.iterdir())] == ["cache", "out"]
