"""What verdicts on several shifts say of a claim: by hand, and in words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from test_report import make_run

from trimtab.report import read_results
from trimtab.report.claim import FURTHER, KEPT, OPEN, answer, findings, judged
from trimtab.report.results import ALPHA_1, Difference, Results
from trimtab.studies.pages import write_pages


def comparison(
    method: str, split: str = "oos", gain: float = 0.1, p: float = 0.001, seeds: int = 3
) -> Difference:
    return Difference(
        model="tiny",
        suite="s",
        metric="accuracy",
        seed=None,
        aggregate=seeds > 1,
        method=method,
        split=split,
        at=ALPHA_1,
        alpha=1.0,
        against="dpo",
        value=gain,
        low=gain - 0.05,
        high=gain + 0.05,
        p=p,
        p_holm=1.0,
        verdict="cannot tell",
        in_this_run=seeds < 5,
        seeds=seeds,
        mde=0.07,
        underpowered=True,
        items=60,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Results:
    """Some run, whose comparisons are exchanged."""
    return read_results(make_run(tmp_path_factory.mktemp("claim") / "run"))


def study(run: Results, suite: str, against: list[Difference], bare: list[Difference]) -> Results:
    return replace(
        run,
        study=replace(run.study, suite=suite),
        comparisons=tuple(against),
        gains=tuple(replace(c, against="base") for c in bare),
    )


def test_a_table_is_judged_as_a_whole(run):
    """0.02 alone would be a verdict; the second of two it is not, for the first is larger."""
    one = study(run, "one", [comparison("a", p=0.02), comparison("a", "test", p=0.9)], [])
    two = study(run, "two", [comparison("a", gain=-0.1, p=0.03)], [])
    assert judged([one], "oos")["one", "a"].verdict == "better"
    both = judged([one, two], "oos")
    assert {key: c.p_holm for key, c in both.items()} == {("one", "a"): 0.04, ("two", "a"): 0.04}
    assert both["two", "a"].verdict == "worse"
    third = study(run, "three", [comparison("a", p=0.5)], [])
    assert {c.verdict for c in judged([one, two, third], "oos").values()} == {"cannot tell"}


def said_of(run: Results, gains: list[tuple[float, float]], learned: float = 0.001, seeds: int = 3):
    """The finding and the answer for one method on shifts with these gains and p-values."""
    studies = [
        study(
            run,
            f"s{i}",
            [comparison("m", gain=g, p=p, seeds=seeds)],
            [comparison("m", "test", p=learned)],
        )
        for i, (g, p) in enumerate(gains)
    ]
    found = findings(judged(studies, "oos"), judged(studies, "test", bare=True), ["m"])
    return found[0], answer(found, "DPO")


def test_words_follow_from_the_verdicts(run):
    finding, text = said_of(run, [(0.1, 0.001), (0.0, 0.9)])
    assert (finding.word, len(finding.parts[FURTHER]), len(finding.parts[OPEN])) == ("holds", 1, 1)
    assert text.startswith("The claim holds in this run. It holds for m.")
    assert "further than DPO on s0 (+10.0 points, 95 % +5.0 to +15.0)" in finding.sentence("DPO")
    assert "on s1 it cannot be told from DPO (differences under 7 points" in finding.sentence("DPO")

    finding, text = said_of(run, [(-0.1, 0.001), (0.0, 0.9)])
    assert finding.word == "does not hold"
    assert text.startswith("The claim does not hold in this run. It does not hold for m.")

    finding, text = said_of(run, [(-0.1, 0.001), (0.1, 0.001)])
    assert finding.word == "holds in part"
    assert text.startswith("The claim holds in part in this run.")

    finding, text = said_of(run, [(0.01, 0.8), (-0.02, 0.7)])
    assert finding.word == "cannot tell"
    assert text.startswith("Whether the claim holds cannot be told in this run.")
    assert "no interval reaches beyond +6 points" in text

    assert "cannot be told from DPO anywhere" in finding.sentence("DPO")
    assert said_of(run, [(0.1, 0.001)], seeds=5)[1].startswith("The claim holds. ")


def test_who_learned_nothing_did_not_generalise(run):
    finding, text = said_of(run, [(0.1, 0.001)], learned=0.6)
    assert (finding.word, len(finding.parts[KEPT])) == ("cannot tell", 1)
    assert "without having learned" in finding.sentence("DPO")
    assert "holds for" not in text


def test_the_page(tmp_path: Path):
    """Runs of two suites, made up: both sides of the claim and the same bytes twice."""
    folder = tmp_path / "innerpo"
    for name in ("facts", "truthful-qa"):
        file = make_run(folder / name, seeds=(0, 1, 2)) / "study.json"
        file.write_text(file.read_text().replace('"suite": "facts"', f'"suite": "{name}"'))
    [page] = write_pages(tmp_path)
    text = page.read_text()
    assert text.startswith("# Does aligning hidden states")
    assert "](innerpo.svg)" in text
    for title in ("The tables", "Out of distribution, against DPO", "What was run", "Caveats"):
        assert f"\n## {title}\n" in text
    assert text.rindex("\n## ") == text.index("\n## What this says about the claim")
    assert text.index("### truthful-qa") < text.index("### facts")  # the README's order
    assert "None" not in text
    assert "nan" not in text
    assert page == tmp_path / "innerpo.md"
    before = page.read_bytes(), page.with_suffix(".svg").read_bytes()
    assert write_pages(tmp_path, ["innerpo"]) == [page]
    assert (page.read_bytes(), page.with_suffix(".svg").read_bytes()) == before


def test_a_folder_without_a_shift_has_no_page_yet(tmp_path: Path):
    (tmp_path / "innerpo").mkdir()
    assert write_pages(tmp_path) == []
    assert not (tmp_path / "innerpo.md").exists()
