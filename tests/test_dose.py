"""Dose evaluation: hand values of the pure functions; the study on a tiny model, stopped and resumed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from trimtab.batching import Encoded, Row
from trimtab.evaluate.dose import (
    antisymmetry,
    binary_log_ratio_correlation,
    damage_dose,
    log_ratios,
    score,
    slopes,
    straightness,
    valid_answers,
    wrong_way,
)
from trimtab.states import Readings

# ---- by hand ------------------------------------------------------------------------------------


def test_log_ratios_by_hand():
    rows = (
        Row("a", (5,), ((1, 2), (3,)), ((0, 1),), (0,)),
        Row("b", (6,), ((1,), (2,), (3, 4)), ((0, 1), (0, 2)), (1, 2)),
    )
    encoded = Encoded(rows, 0, None, "two")
    found = Readings(
        logps=torch.tensor([-2.0, -3.0, -1.0, -4.0, -6.0]),
        tokens=torch.tensor([2, 1, 1, 1, 2]),
        states={},
    )
    ratios = log_ratios(encoded, found)
    assert ratios.ratio.tolist() == [-1.0 + 3.0, np.mean([-1 + 4, -1 + 3])]
    assert ratios.best.tolist() == [-1.0, -1.0]


def test_slopes_by_hand():
    y = [[0.0, 1.0], [1.0, 1.0], [2.0, -3.0]]
    assert slopes([-1, 0, 1], y).tolist() == [1.0, -2.0]
    assert wrong_way([1.0, -2.0]) == 0.5
    assert wrong_way([1.0, 0.0]) == 0.25
    with pytest.raises(ValueError, match="different"):
        slopes([1, 1], [[0.0], [1.0]])
    with pytest.raises(ValueError, match="doses"):
        slopes([0, 1], [[0.0], [1.0], [2.0]])


def test_straightness_by_hand():
    # Two parallel lines, far apart: where items start does not count.
    assert straightness([-1, 0, 1], [[-1.0, 99.0], [0.0, 100.0], [1.0, 101.0]]) == pytest.approx(1)
    # One item rises by 1, the other falls: the common slope is 0.
    assert straightness([-1, 0, 1], [[-1.0, 1.0], [0.0, 0.0], [1.0, -1.0]]) == 0
    # Slopes 1 and 0: the mean slope 1/2 explains 1/4 x 2 x 2 of 2.
    assert straightness([-1, 0, 1], [[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]) == pytest.approx(0.5)
    assert math.isnan(straightness([0, 1], [[3.0], [3.0]]))


def test_antisymmetry_by_hand():
    odd = [[-2.0], [1.0], [4.0]]
    even = [[3.0], [1.0], [3.0]]
    half = [[1.0], [1.0], [3.0]]  # odd 1, even 1
    assert antisymmetry([-1, 0, 1], odd) == 1
    assert antisymmetry([-1, 0, 1], even) == 0
    assert antisymmetry([-1, 0, 1], half) == 0.5
    assert math.isnan(antisymmetry([-1, 0, 1], [[1.0], [1.0], [1.0]]))
    with pytest.raises(ValueError, match="opposite"):
        antisymmetry([0, 1], [[0.0], [1.0]])


def test_damage_as_a_dose_by_hand():
    assert damage_dose([-2, 0, 1], [0.25, 0.0, 0.04]).tolist() == [-0.5, 0.0, 0.2]
    assert damage_dose([1], [-1e-9]).tolist() == [0.0]


def test_answers_that_are_lost_do_not_count():
    valid = valid_answers([[-1.0, -2.0], [-1.9, -3.5], [np.nan, -3.0]], [-1.0, -2.0])
    assert valid.tolist() == [[True, True], [True, False], [False, True]]


def test_the_score_has_a_sign():
    assert score(-2.0, 0.5, 0.5) == -0.25


def test_the_published_score_by_hand():
    # log1p of 0, e - 1, e^2 - 1 is 0, 1, 2; a line of slope -3 through all.
    c = [0.0, math.e - 1, math.e**2 - 1]
    found = binary_log_ratio_correlation(c, [1.0, -2.0, -5.0])
    assert found.slope == pytest.approx(-3)
    assert found.r2 == pytest.approx(1)
    assert found.score == pytest.approx(3)  # the sign is lost
    # y = 0, 1, 0 over -1, 0, 1: no slope; a fourth point is not valid: score x (3/4)^2.
    c = [-(math.e - 1), 0.0, math.e - 1, 50.0]
    found = binary_log_ratio_correlation(c, [0.0, 1.0, 4.0, 9.0], [1, 1, 1, 0])
    # x = -1, 0, 1; y - mean = -5/3, -2/3, 7/3; slope 2; R2 = 4^2 / (2 * 26/3)
    assert found.slope == pytest.approx(2)
    assert found.r2 == pytest.approx(16 / (2 * 78 / 9))
    assert found.score == pytest.approx(2 * found.r2 * 0.75**2)
    few = binary_log_ratio_correlation([0, 1, 2], [0.0, 1.0, np.nan])
    assert few.valid_fraction == pytest.approx(2 / 3)
    assert math.isnan(few.score)


def test_the_published_score_of_the_journal():
    """18.01 at R2 0.88 and all answers valid is the 15.9 that is quoted."""
    rng = np.random.default_rng(0)
    x = np.array([-2, -0.75, 0, 0.75, 2])
    s = np.sign(x) * np.log1p(np.abs(x))
    noise = rng.standard_normal(5)
    noise -= noise.mean()
    noise -= (noise @ s) / (s @ s) * s
    noise *= np.sqrt(18.01**2 * (s @ s) * (1 / 0.8845 - 1) / (noise @ noise))
    found = binary_log_ratio_correlation(x, 18.01 * s + noise)
    assert found.score == pytest.approx(15.93, abs=0.01)
