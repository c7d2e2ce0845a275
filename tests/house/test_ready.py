"""What stands before a run: alphas beyond what a dial was measured at."""

from __future__ import annotations

import pytest
import torch

from trimtab.cli.ready import warn_range
from trimtab.dials import VectorDial


def dial(**measured):
    made = VectorDial({1: torch.ones(4)}, {1: 1.0})
    made.info.measured = measured
    return made


@pytest.mark.parametrize(
    ("measured", "within"),
    [
        ({"alpha": [0.0, 2.0]}, (0, 2)),  # a head's training
        ({"range": {"budget": "kl=0.1", "alpha": [-1.5, 3.0]}}, (-1.5, 3)),  # calibrate
        ({"alphas": [-1.0, 0.5, 1.0]}, (-1, 1)),  # a comparison
        ({"alphas": [1.0]}, (0, 1)),  # one strength: from the bare model to there
        ({"alphas": [-2, -1]}, (-2, 0)),
        ({"alphas": [-4.0, 4.0], "range": {"alpha": [-1, 1]}}, (-1, 1)),  # the budget decides
        ({"alpha": [0.0, 2.0], "range": {"alpha": [-1, 4]}}, (-1, 4)),
    ],
)
def test_every_spelling_of_a_measured_range_is_known(measured, within):
    made = dial(**measured)
    assert made.info.range == within
    low, high = within
    said: list[str] = []
    warn_range([made], [low, 0.0, high], said.append)
    assert said == []
    warn_range([made], [low - 0.5, high + 0.5, 0.0], said.append)
    assert len(said) == 1
    assert f"alpha {low - 0.5:g} {high + 0.5:g} is out of the range" in said[0]
    assert f"({low:g} to {high:g})" in said[0]


@pytest.mark.parametrize(
    "measured",
    [
        {},
        {"kl": 0.25},
        {"alpha": "wide"},
        {"alphas": []},
        {"range": None},
        {"range": {"budget": "kl=1"}},
        {"alphas": [True, "1"]},
        {"alpha": 3.0},
    ],
)
def test_what_was_not_measured_warns_of_nothing(measured):
    made = dial(**measured)
    assert made.info.range is None
    warn_range([made], [100.0], pytest.fail)
