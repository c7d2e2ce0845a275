"""Suites pooled by hand and by simulation, margins in points, and what a page says of both."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from simulated_pooling import DRAWS, SUITES, coverage, rows
from test_claim import comparison, study
from test_report import make_run

from trimtab.report import pooled as page
from trimtab.report import read_results, render
from trimtab.report.blocks import Page
from trimtab.report.claim import judged
from trimtab.report.results import ALPHA_1, EQUAL_KL, Results
from trimtab.statistics import pooled, share_a_nat, standard_error


def test_pooled_by_hand():
    """Two suites of 0 and 10 points, known to 1: (0.05² + 0.05²)/(v + t²) is 1 at v + t² = 0.005, so that the
    error is √(0.005/2) and t(1) is 12.7062."""
    found = pooled([0.0, 0.1], [0.01, 0.01])
    assert found.value == pytest.approx(0.05)
    assert found.between == pytest.approx(math.sqrt(0.005 - 0.0001))
    assert found.high - found.value == pytest.approx(12.7062 * 0.05, rel=1e-4)
    assert found.p == pytest.approx(0.5)  # t(1) = 1
    assert found.mde == pytest.approx((12.7062 + 1.37638) * 0.05, rel=1e-4)
    # Alike, and one known twice as well: weights 4 to 1, no narrower than these say.
    alike = pooled([0.02, 0.02, 0.02], [0.01, 0.02, 0.02])
    assert alike.between == 0
    assert alike.value == pytest.approx(0.02)
    assert alike.high - alike.value == pytest.approx(4.30265 * math.sqrt(1 / 15000), rel=1e-4)
    several = pooled([[0.0, 0.1], [0.1, 0.3]], [0.01, 0.02])
    assert several.value[1] == pytest.approx(pooled([0.1, 0.3], [0.01, 0.02]).value)
    for bad in (([0.1], [0.1]), ([0.1, math.nan], [0.1, 0.1]), ([0.1, 0.2], [0.1, 0.0])):
        with pytest.raises(ValueError, match="at least two finite"):
            pooled(*bad)


def test_the_documented_coverage_of_pooled_intervals_is_what_is_simulated():
    text = (Path(__file__).parents[2] / "docs" / "comparing.md").read_text("utf-8")
    for row in rows(DRAWS):
        assert f"| {' | '.join(row)} |" in text
        assert all(float(cell.split()[0]) >= 95 for cell in row[1:])
    assert [coverage(k, 0.05, 2000)[0] < 1 for k in SUITES[1:]] == [True] * 3  # not always


def test_a_shift_of_margins_in_points():
    """Of 200,000 normal margins of which 70 % are above 0."""
    margins = np.random.default_rng(0).normal(0.5244 * 0.6, 0.6, 200_000)
    gained = ((margins + 0.02 > 0).mean() - (margins > 0).mean()) / 0.02
    assert share_a_nat(0.7, 0.6) == pytest.approx(gained, rel=0.03)
    assert standard_error(-0.196, 0.196) == pytest.approx(0.1, rel=1e-4)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Results:
    return read_results(make_run(tmp_path_factory.mktemp("pooling") / "run"))


def suites(run: Results, gains: list[float], margins: list[float], seeds: int = 5) -> list[Results]:
    """Suites with these gains of a method, and these of its margin in nats at both places."""
    found = []
    for i, (gain, margin) in enumerate(zip(gains, margins, strict=True)):
        line = comparison("m", gain=gain, seeds=seeds)
        nats = comparison("m", gain=margin, seeds=seeds)
        nats = replace(nats, metric="margin", low=margin - 0.01, high=margin + 0.01, mde=0.014)
        places = [nats, replace(nats, at=EQUAL_KL)]
        base = replace(run.read("base", "test"), split="oos", value=0.6)
        spread = replace(base, metric="margin", value=0.1, low=0.1 - 0.098, high=0.1 + 0.098)
        own = study(run, f"s{i}", [line, replace(line, at=EQUAL_KL)], [])
        measured = (base, replace(spread, items=100), *own.measurements)
        found.append(replace(own, margins=tuple(places), measurements=measured))
    return found


def made(studies: list[Results]):
    tables = {at: judged(studies, "oos", at) for at in (ALPHA_1, EQUAL_KL)}
    blocks, pools = page.sections(studies, tables, ["m"], "oos")
    return render.markdown(Page("", blocks), ""), page.closing(pools, ["m"], "DPO", len(studies))


def test_a_margin_decides_where_accuracy_cannot(run):
    """A spread of margins of 0.5 nats, 60 % right: 77 points a nat, so that suites have 3.86 and 4.64 points,
    pooled 4.25 ± t(3) √(4 · 0.386² / 3 / 4) = ± 0.71."""
    studies = suites(run, [0.01, -0.01, 0.0, 0.01], [0.05, 0.06, 0.05, 0.06])
    assert page.a_nat(studies[0], "oos") == pytest.approx(0.3863 / 0.5, rel=1e-3)
    text, said = made(studies)
    assert "A nat a token is so many points: 77 on s0" in text
    assert "| m      | **+3.9** [+3.1, +4.6] | **+4.6**" in text
    assert "these 4 are a sample: random effects over suites" in text
    assert "| pooled |" in text
    assert "- By accuracy, α = 1: 1 of 1 cannot be told from DPO (a difference of " in said[0]
    assert (
        "- By mean margin, DPO's KL: better than DPO: m (+4.2 points, 95 % +3.5 to +5.0)" in said[0]
    )
    assert said[1] == (
        "**What holds of the claim.** Over such suites the claim holds for m, and fails for none."
    )


def test_what_holds_is_said_in_every_case(run):
    nothing = made(suites(run, [0.0, 0.01, 0.0], [0.0, 0.001, -0.001]))[1]
    assert "stays open" in nothing[1]
    worse = made(suites(run, [0.0] * 4, [-0.06] * 4, seeds=3))[1]
    assert "the claim does not hold in this run for m" in worse[1]
    assert made(suites(run, [0.1], [0.1]))[1] == []  # one suite pools nothing
    bare = [replace(r, margins=()) for r in suites(run, [0.0] * 3, [0.0] * 3)]
    assert "hold no differences of the mean margin" in made(bare)[0]
