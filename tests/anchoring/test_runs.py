"""Runs of experiments on the one engine: several at once, on a cluster (killed: tests/kill); what
they would take; what fails loses nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from helpers_study import trimtab
from trimtab.studies.anchoring import experiment, mixing, stories, study
from trimtab.studies.anchoring.colour import Colour
from trimtab.studies.anchoring.experiment import Settings
from trimtab.study.study import run

FILES = ("result.json", "results.jsonl", "curves.json", "arrays.safetensors")
SMALL = Settings(("1.6", "1.4"), seeds=2, steps=20)
"""Two cells, and a figure that has none."""


def bytes_of(root: Path) -> dict[str, bytes]:
    """What must not differ: results, arrays for figures, the models."""
    found = [root / name / file for name in SMALL.experiments for file in FILES]
    found += sorted(root.glob("*/cells/*/models.safetensors"))
    return {str(f.relative_to(root)): f.read_bytes() for f in found if f.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in this process that nobody disturbed."""
    return run(study.Anchoring.at(SMALL, tmp_path_factory.mktemp("whole")))


def test_two_at_once_give_the_same_bytes(whole, tmp_path):
    assert len(bytes_of(whole)) == 2 + 2 + 1 + 2 + 2
    run(study.Anchoring.at(SMALL, tmp_path / "jobs"), jobs=2)
    assert bytes_of(tmp_path / "jobs") == bytes_of(whole)


def test_a_pack_makes_an_experiment_again(whole, tmp_path):
    pack, out = tmp_path / "pack.json", tmp_path / "again"
    made = trimtab("pack", whole / "1.6", "--out", pack)
    assert made.code == 0, made.err
    done = trimtab("reproduce", pack, "--out", out)
    assert done.code == 0, done.out + done.err
    assert (out / "1.6/result.json").read_bytes() == (whole / "1.6/result.json").read_bytes()


@pytest.mark.slow
def test_a_ray_cluster_gives_the_same_bytes(whole, tmp_path):
    pytest.importorskip("ray")
    run(study.Anchoring.at(SMALL, tmp_path / "ray"), ray=True)
    assert bytes_of(tmp_path / "ray") == bytes_of(whole)


def test_a_finished_cell_is_not_run_again_and_one_that_fails_loses_no_other(
    whole, tmp_path, monkeypatch, capsys
):
    measure = Colour.measure

    def broken(self: Colour, folder: Path, models: list[tuple[str, int]]) -> dict:
        if models[0][0] == "stepped":
            raise ValueError("no")
        return measure(self, folder, models)

    monkeypatch.setattr(Colour, "measure", broken)
    words = ("anchor", "run", "1.6", "--seeds", 2, "--steps", 20, "--out", tmp_path / "r")
    said = trimtab(*words)
    assert said.code == 2
    assert "1 cell of 2 failed; the others are kept" in said.err
    assert "ValueError: no" in said.err
    assert not (tmp_path / "r" / "1.6" / "result.json").is_file()
    monkeypatch.setattr(Colour, "measure", measure)
    said = trimtab(*words)
    assert said.code == 0
    assert "2 cells, 1 of them done already" in said.err
    assert {k: v for k, v in bytes_of(whole).items() if k.startswith("1.6")} == bytes_of(
        tmp_path / "r"
    )


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("1.6", "2 cells, 0 of them done already; 20,002 training steps"),
        ("healing", "12 cells, 0 of them done already; 15,303 training steps"),
        ("mixing", "4 cells, 0 of them done already; 6,000 training steps"),
        ("stories", "2 cells, 0 of them done already; 3,200 training steps"),
    ],
)
def test_what_a_run_would_take(tmp_path, monkeypatch, name, cells):
    monkeypatch.setattr(experiment, "LEAST", 16)  # steps that are timed
    for kind, setup in ((stories, "SETUP"), (stories.Stories, "setup")):
        small = replace(stories.SETUP, batch=2, layers=2, width=16)
        monkeypatch.setattr(kind, setup, small)
    arms = {arm: mixing.ARMS[arm] for arm in ("control", "strong")}
    monkeypatch.setattr(mixing, "ARMS", arms)
    said = trimtab("anchor", "run", name, "--seeds", 2, "--out", tmp_path, "--dry-run")
    assert said.code == 0
    assert f"anchoring: {cells}" in said.out
    for what in ("minutes", "memory", "disk"):
        assert what in said.out
    assert not list(tmp_path.iterdir())


def test_what_earlier_versions_found_is_not_run_again(tmp_path):
    """Cells of the mixing transformer and of language models were files."""
    cell = {"bits": {}, "history": []}
    (tmp_path / "stories" / "cells").mkdir(parents=True)
    (tmp_path / "stories" / "cells" / "0-800.json").write_text(json.dumps(cell))
    found = study.Anchoring.at(Settings(("stories",), seeds=1), tmp_path).parts[0]
    assert found.measure(tmp_path / "c", seed=0) == cell  # pyright: ignore[reportAttributeAccessIssue]
