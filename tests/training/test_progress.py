"""Progress of long work: figures beside the bar, and at its end."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

import trimtab.progress
from helpers_fit import random_pairs
from trimtab.batching import encode
from trimtab.evaluation import score
from trimtab.progress import Progress
from trimtab.training import METHODS, fit
from trimtab.training.settings import AdapterSettings, TrainSettings

FEW = TrainSettings(pairs_per_step=4, max_steps=3, epochs=9, learning_rate=1e-2)


@pytest.fixture(autouse=True)
def every_line(monkeypatch):
    """A line at every step, not every 15 seconds."""
    monkeypatch.setattr(trimtab.progress, "LINE_EVERY", 0.0)


@pytest.mark.parametrize(
    ("method", "dial", "told"),
    [
        ("dpo", AdapterSettings(rank=2), "loss, margin, accuracy"),
        ("hs-none-mse", AdapterSettings(rank=2), "loss"),
        ("contrastive", AdapterSettings(rank=2), "loss"),
        ("iav", METHODS["iav"].recipe.dial, "loss, margin, accuracy"),
        ("dph", METHODS["dph"].recipe.dial, "loss, margin, accuracy"),
    ],
)
def test_training_shows_its_figures_and_ends_with_them(
    method, dial, told, tiny, tokenizer, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    recipe: Any = replace(METHODS[method].recipe, dial=dial, train=FEW)
    fit(recipe, tiny("llama"), tokenizer, random_pairs(8), progress=Progress())
    lines = [
        x for x in capsys.readouterr().err.splitlines() if x.startswith(f"training {method}: ")
    ]
    figures = "".join(rf", {name} -?[\d.e+-]+" for name in told.split(", "))
    for step, line in enumerate(lines[:-1], 1):
        assert re.fullmatch(rf"training {method}: {step}/3 steps{figures}, \d+ s left", line)
    assert len(lines) == 4
    assert (
        lines[-1] == f"training {method}: " + lines[-2].partition("steps, ")[2].rpartition(", ")[0]
    )


def test_scoring_shows_its_accuracy_so_far(tiny, tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    model, encoded = tiny("llama"), encode(random_pairs(24), tokenizer)
    for seen in (True, False):  # the second time it comes from the store
        with Progress().bar("scoring", encoded.n_answers, "answers") as update:
            found = score(model, encoded, budget=256, progress=update)
        lines = capsys.readouterr().err.splitlines()
        assert lines[-1] == f"scoring: accuracy {found.accuracy.mean():.3f}"
        assert (len(lines) > 2) == seen
        shown = [re.search(r"answers, accuracy ([\d.]+), \d+ s left", line) for line in lines[:-1]]
        assert all(shown)
        if seen:  # items are alike here, of a pair each: the share of all pairs
            assert float(shown[-1][1]) == round(float(found.accuracy.mean()), 3)  # type: ignore[index]


def test_quiet_says_nothing(capsys):
    with Progress(quiet=True).bar("scoring", 2) as update:
        update.tally(1, 2)
        update(2, 2)
    assert update.said == "accuracy 0.500"
    assert capsys.readouterr().err == ""
