"""Keyframe sheets: the grammar, values between keys, faults that are named; reactive properties."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.anchoring.timeline import Reactive, Row, Sheet, minjerk, parse_sheet, read_sheet
from trimtab.errors import ConfigError

SHEET = """STEP,PHASE,ACTION,lr:log:linear,pull,push::step
0,Start,,1e-4,,0.5
+10,,,1e-2,,
-20,,mark,,0.2,
100,Main,"look, save",,,0.25
+0.33,,,,0.1,
-0.25,,,1e-2,,
200,,,1e-3,0,0
"""


def test_steps_are_placed():
    table = parse_sheet(SHEET).table()
    assert table.steps == 201
    # -20 before 100, a third of the way from 100 to 200, a quarter of it before 200
    assert table.actions == {80: ("mark",), 100: ("look", "save")}
    assert [table.at(s)["pull"] for s in (0, 80, 133, 200)] == [0.2, 0.2, 0.1, 0.0]
    assert table.at(10)["lr"] == table.at(175)["lr"] == 1e-2
    assert table.phases == ((0, "Start"), (100, "Main"))
    assert [table.phase(s) for s in (0, 99, 100, 200)] == ["Start", "Start", "Main", "Main"]
    assert [s for s in range(201) if table.starts(s)] == [0, 100]
    assert [s for s in range(201) if table.ends(s)] == [99, 200]


def test_shares_round_to_even():
    rows = (Row(0, {"a": 0}), Row("+0.33", {"a": 1}), Row(750, {"a": 2}))
    assert Sheet(rows).table().at(248)["a"] == 1  # 247.5
    rows = (Row(0, {"a": 0}), Row("+0.5", {"a": 1}), Row(5, {"a": 2}))
    assert Sheet(rows).table().at(2)["a"] == 1  # 2.5


def test_values_between_keys():
    table = parse_sheet(SHEET).table()
    pull, push, lr = (table.values[n] for n in ("pull", "push", "lr"))
    t = np.arange(54) / 53
    np.testing.assert_allclose(pull[80:134], 0.2 - 0.1 * (10 * t**3 - 15 * t**4 + 6 * t**5))
    assert set(push[:100]) == {0.5}  # a step jumps at its key
    assert set(push[100:200]) == {0.25}
    assert push[200] == 0
    np.testing.assert_allclose(lr[5], 1e-3)  # half of the way in logarithms
    assert table.at(999) == table.at(200)


def test_minjerk_is_at_rest_at_both_ends():
    t = np.array([0.0, 0.5, 1.0])
    np.testing.assert_allclose(minjerk(t), [0, 0.5, 1])
    small = 1e-4
    assert minjerk(np.array([small]))[0] < 20 * small**3
    assert 1 - minjerk(np.array([1 - small]))[0] < 20 * small**3


def test_a_reactive_property_follows_the_same_path():
    sheet = Sheet((Row(0, {"a": 1.0}), Row(40, {"a": 3.0})))
    path = Reactive(1.0)
    path.set(3.0, 40)
    assert [path.step() for _ in range(40)] == pytest.approx(list(sheet.table().values["a"][1:]))
    assert (path.value, path.velocity, path.acceleration) == (3.0, 0.0, 0.0)


def test_retargeting_is_continuous_in_value_velocity_and_acceleration():
    path = Reactive(0.0)
    path.set(1.0, 50)
    for _ in range(20):
        path.step()
    before = path.value, path.velocity, path.acceleration
    path.set(-1.0, 50)
    assert (path.value, path.velocity, path.acceleration) == before
    states = [before]
    for _ in range(50):
        path.step()
        states.append((path.value, path.velocity, path.acceleration))
    value, velocity, acceleration = np.array(states).T
    assert value[-1] == -1
    assert velocity[-1] == acceleration[-1] == 0
    # Differences agree with the derivatives that are kept: no jump anywhere.
    np.testing.assert_allclose(np.diff(value), (velocity[1:] + velocity[:-1]) / 2, atol=2e-4)
    np.testing.assert_allclose(
        np.diff(velocity), (acceleration[1:] + acceleration[:-1]) / 2, atol=5e-5
    )
    path.set(-1.0, 10)
    assert path.step() == -1.0
    path.set(2.0, 0)
    assert path.value == 2.0
    log = Reactive(1e-4, space="log", timing="linear")
    log.set(1e-2, 2)
    assert log.step() == pytest.approx(1e-3)
    jump = Reactive(0.0, timing="step")
    jump.set(1.0, 3)
    assert [jump.step() for _ in range(3)] == [0, 0, 1]


def test_the_same_target_again_is_ignored():
    path, other = Reactive(0.0), Reactive(0.0)
    for p in (path, other):
        p.set(1.0, 10)
        p.step()
    path.set(1.0, 10)
    assert [path.step() for _ in range(9)] == [other.step() for _ in range(9)]


def test_stretching_keeps_the_shape():
    sheet = parse_sheet("STEP,a\n0,1\n100,3\n400,0\n")
    assert sheet.stretched(41).table().at(10)["a"] == 3
    assert sheet.stretched(41).table().steps == 41


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("STEP,lr,pul\n0,1,1\n9,1,1\n", "column 'pul' matches no term; did you mean 'pull'"),
        ("STEP,lr\n0,1\n9,1\n", "no column for 'pull'"),
        ("STEP,lr,pull\n0,1,-1\n9,1,1\n", "row 1, column 'pull': -1: a weight"),
        ("STEP,lr,pull\n9,1,1\n0,1,1\n", "row 2, column 'STEP': step 0 (0) does not come after 9"),
        ("STEP,lr,pull\n0,1,1\n0,1,1\n", "row 2, column 'STEP': step 0"),
        ("STEP,lr,pull\n0,1\n9,1,1\n", "row 1 has 2 cells, the header 3"),
        ("STEP,lr,pull\n,1,1\n9,1,1\n", "row 1, column 'STEP': no value"),
        ("STEP,lr,pull\n0,1,\n9,1,\n", "column 'pull' has no value in any row"),
        ("STEP,lr,pull\n0,1,x\n9,1,1\n", "row 1, column 'pull': 'x': expected a number"),
        ("STEP,lr,pull\n0,1,nan\n9,1,1\n", "row 1, column 'pull': nan: expected a finite"),
        ("STEP,lr,pull\n0.5,1,1\n9,1,1\n", "row 1, column 'STEP': '0.5'"),
        ("STEP,lr,pull\n0,1,1\n+0.5,1,1\n", "needs a later absolute step"),
        ("STEP,lr,pull\n0,1,1\n-5,1,1\n", "needs a later absolute step"),
        ("STEP,lr,pull:lgo\n0,1,1\n9,1,1\n", "unknown 'lgo'; did you mean 'log'"),
        ("STEP,lr,pull:log\n0,1,-1\n9,1,1\n", "log space needs 0 or more"),
        ("STEP,lr,pull,pull\n0,1,1,1\n9,1,1,1\n", "column 'pull' twice"),
        ("lr,pull\n0,1\n", "no STEP column"),
        ("STEP,STAGE,lr,pull\n0,a,1,1\n", "unknown column 'STAGE'"),
        ("STEP,lr,pull\n", "no row below the header"),
        ("", "empty"),
    ],
)
def test_faults_are_named(tmp_path, text: str, says: str):
    file = tmp_path / "weights.csv"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        read_sheet(file).check(["pull"])
    assert "weights.csv" in str(error.value)
    assert says in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.csv"):
        read_sheet(tmp_path / "nothing.csv")


def test_rows_in_python_take_the_same_columns():
    sheet = Sheet((Row(0, {"lr:log": 1e-4, "pull": 0.1}), Row(10, {"lr:log": 1e-2, "pull": 0.2})))
    assert sheet.names == ("lr", "pull")
    assert sheet.table().at(5)["lr"] == pytest.approx(1e-3)
    with pytest.raises(ConfigError, match="no such column"):
        Sheet((Row(0, {"b": 1.0}),), sheet.columns)


def test_a_sheet_of_more_steps_than_memory_holds_is_refused():
    with pytest.raises(ConfigError, match="steps; expected at most"):
        parse_sheet("STEP,lr\n0,1\n99999999999,1\n").table()
