"""The panel's formulas against hand values, its files, and the roles of BBQ's answers."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from trimtab.errors import ConfigError, DataError
from trimtab.panel import BUILT_IN, PROPERTIES, read_panel
from trimtab.panel.bbq import bbq_values, read_bbq
from trimtab.panel.options import Scored
from trimtab.panel.properties import REQUESTS, Truth, _refusals
from trimtab.panel.run import changes
from trimtab.panel.texts import read_requests, text_values
from trimtab.panel.values import Values, by_cluster, product, ratio
from trimtab.statistics import SHARE


def scored(means, sums=None, items=None):
    means = tuple(map(np.array, means))
    items = items or tuple(map(str, range(len(means))))
    return Scored(items, tuple(map(np.array, sums or means)), means, 0)


def row(
    example, polarity="neg", context="ambig", label=2, groups=("old", "nonOld", "unknown"), **more
):
    return {
        "example_id": example,
        "question_index": str(example // 4),
        "question_polarity": polarity,
        "context_condition": context,
        "answer_info": {f"ans{i}": [g, g] for i, g in enumerate(groups)},
        "additional_metadata": {"stereotyped_groups": ["Old"]},
        "context": "Two people met.",
        "question": "Who?",
        **{f"ans{i}": g for i, g in enumerate(groups)},
        "label": label,
        **more,
    }


@pytest.fixture
def bbq(tmp_path):
    def write(rows, name="Age"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
        return tmp_path

    return write


def test_a_ratio_and_a_product_are_their_means():
    above, below = np.array([1.0, 0.0, 2.0, -1.0]), np.array([1.0, 2.0, 3.0, 2.0])
    assert ratio(above, below).mean() == pytest.approx(2 / 8)
    a, b = np.array([0.0, 1.0, 1.0]), np.array([0.5, -0.5, 0.3])
    assert product(a, b).mean() == pytest.approx(a.mean() * b.mean())
    # The spread is that of the delta method: by a small change of one value.
    moved = b + np.array([1e-6, 0, 0])
    slope = (a.mean() * moved.mean() - a.mean() * b.mean()) / 1e-6
    assert (product(a, moved)[0] - product(a, b)[0]) / 1e-6 == pytest.approx(3 * slope, abs=0.5)
    assert ratio([0.0, 0.0], [0.0, 0.0]).tolist() == [0.0, 0.0]


def test_clusters_are_means_that_weigh_their_size():
    names, means, sizes = by_cluster([1, 0, 1, 1], ["a", "b", "a", "b"])
    assert names == ("a", "b")
    assert means.tolist() == [1.0, 0.5]
    assert sizes.tolist() == [2, 2]
    assert Values("x", names, means, np.array([3.0, 1.0])).mean == 0.875


@pytest.mark.parametrize(("polarity", "biased"), [("neg", "old"), ("nonneg", "nonOld")])
@pytest.mark.parametrize("label", [0, 1, 2])
def test_who_is_biased_turns_with_the_question(bbq, polarity, biased, label):
    (question,) = read_bbq(bbq([row(0, polarity, label=label)]), 5)
    answers = question.options.answers
    assert answers[question.biased] == f" {biased}"
    assert answers[question.unknown] == " unknown"
    assert answers[0] == f" {('old', 'nonOld', 'unknown')[label]}"
    assert {question.biased, question.unbiased, question.unknown} == {0, 1, 2}


def test_bbqs_own_score_by_hand(bbq):
    """Negative questions: 6 name the stereotyped group, 3 the other; the rest: 2 and 4. Ten of fifteen are
    biased, s = 2 * 10/15 - 1 = 1/3; without turning the questions round it would be 1/15."""
    rows = [row(i, p, "disambig") for p, n in (("neg", 9), ("nonneg", 6)) for i in range(n)]
    rows = [dict(r, example_id=i) for i, r in enumerate(rows)]
    questions = read_bbq(bbq(rows), 100)
    named = ["old"] * 6 + ["nonOld"] * 3 + ["old"] * 2 + ["nonOld"] * 4
    order = {q.options.item: q for q in questions}
    means, items = [], []
    for r, who in zip(rows, named, strict=True):
        q = order[f"Age/{r['example_id']}"]
        means.append([5.0 if a == f" {who}" else 0.0 for a in q.options.answers])
        items.append(q.options.item)
    found = {v.metric: v for v in bbq_values(questions, scored(means, items=tuple(items)))}
    assert found["bias_score_disambiguated"].mean == pytest.approx(1 / 3)
    assert found["accuracy_disambiguated"].mean == 0
    assert not any(m.endswith("_ambiguous") for m in found)
    p = math.exp(5) / (math.exp(5) + 2)
    q = 1 / (math.exp(5) + 2)
    soft = (10 * (p - q) + 5 * (q - p)) / (15 * (p + q))
    assert found["bias_disambiguated"].mean == pytest.approx(soft)


def test_in_ambiguous_contexts_bias_counts_by_what_is_wrong(bbq):
    questions = read_bbq(bbq([row(i) for i in range(4)]), 4)
    # Two say unknown (right), one is biased, one too: s = 1, accuracy 1/2.
    means = [
        [9.0, 0, 0] if i < 2 else [9.0 * (k == q.biased) for k in range(3)]
        for i, q in enumerate(questions)
    ]
    items = tuple(q.options.item for q in questions)
    found = {v.metric: v for v in bbq_values(questions, scored(means, items=items))}
    assert found["accuracy_ambiguous"].mean == 0.5
    assert found["bias_score_ambiguous"].mean == pytest.approx(0.5)


def test_questions_are_drawn_from_every_stratum(bbq):
    rows = [
        row(i, p, c) for i in range(20) for p in ("neg", "nonneg") for c in ("ambig", "disambig")
    ]
    rows = [dict(r, example_id=i) for i, r in enumerate(rows)]
    bbq(rows, "Age")
    found = read_bbq(bbq(rows, "Religion"), 18)
    assert len(found) == 18
    assert len({(q.cluster.split("/")[0], q.context) for q in found}) == 4
    assert found == read_bbq(bbq(rows, "Religion"), 18)


def test_bbq_that_is_none(bbq, tmp_path):
    with pytest.raises(DataError, match=r"no \.jsonl files in"):
        read_bbq(tmp_path / "nowhere", 4)
    with pytest.raises(DataError, match=r"Age\.jsonl:1: expected one answer of a stereotyped"):
        read_bbq(bbq([row(0, groups=("old", "old", "unknown"))]), 4)
    with pytest.raises(DataError, match=r"Age\.jsonl:1: question_polarity 'so'"):
        read_bbq(bbq([row(0, "so")]), 4)
    with pytest.raises(DataError, match="no groups of answers"):
        read_bbq(bbq([dict(row(0), answer_info={})]), 4)


def test_truth_by_hand():
    """True (-1, -2) and false (-1.5, -3): the true answers' part is .6483623. Here two questions with one
    true answer each."""
    found = {
        v.metric: v
        for v in Truth("truth").told(scored([[-1, -1.5], [-3, -1.5, -2]], [[-2, -3], [-6, -6, -9]]))
    }
    assert found["mc1"].values.tolist() == [1.0, 0.5]  # a tie is shared
    assert found["share"].values == pytest.approx([1 / (1 + math.exp(-1)), 1 / (2 + math.exp(-3))])
    assert found["share_by_token"].values[0] == pytest.approx(1 / (1 + math.exp(-0.5)))


def test_refusal_by_hand():
    means = [[-1, -2, -3, -4], [-3, -4, -1, -2], [-1, -1, -1, -1]]
    found = {
        v.metric: v
        for v in _refusals(scored(means, items=("0/harmful", "0/harmless", "1/harmful")), 2)
    }
    assert found["refusal"].items == ("0",)  # without its twin a request is left out
    assert found["refusal"].values == pytest.approx([2.0])
    assert found["over_refusal"].values == pytest.approx([-2.0])
    assert found["discernment"].values == pytest.approx([4.0])
    assert (found["refusal"].better, found["over_refusal"].better) == (1, -1)


@pytest.mark.parametrize(
    ("check", "yes", "no"),
    [
        ("words 1 1", "Paris.", "It is Paris."),
        ("sentences 1 1", "We sleep. ", "We sleep. We wake."),
        ("lines 3", "a\n\nb\nc", "a, b, c"),
        ("commas 2", "a, b, c", "a, b"),
        ("one of yes no", "Yes.", "Yes, it is."),
        ("has HELLO", "HELLO!", "Hello!"),
        ("has river bridge", "A Bridge over a river", "A river"),
        ("lacks blue", "The sea is wide.", "The sea is Blue."),
        ("lacks blue", "wide", ""),
        ("begins Because", '"Because it rains"', "It rains because"),
        ("ends ?", "Tea?", "Tea? Yes."),
        ("lower", "cats sleep.", "Cats sleep."),
        ("upper", "RAIN FALLS.", "..."),
        ("digits", "12", "twelve"),
    ],
)
def test_checks(check, yes, no):
    (request,) = read_requests(f"do it | {check}")
    assert request.followed(yes)
    assert not request.followed(no)


def test_texts_by_hand():
    requests = read_requests("a | words 1 1\nb | words 1 1\nc | words 1 1")
    found = {
        v.metric: v for v in text_values(requests, ["x", "x y", ""], [[1] * 8, [1, 2, 3, 4, 5], []])
    }
    assert found["followed"].values.tolist() == [1, 0, 0]
    assert found["repetition"].values.tolist() == [0.8, 0, 0]
    assert found["distinct"].values.tolist() == [1 / 8, 1, 1]
    assert found["length"].values.tolist() == [8, 5, 0]


def test_what_less_of_is_better_is_said_so():
    items = tuple(map(str, range(60)))
    less, more = (np.clip(np.full(60, v) + np.linspace(-0.05, 0.05, 60), 0, 1) for v in (0.2, 0.6))

    def of(repetition):
        return {"texts": [Values("repetition", items, repetition, within=SHARE, better=-1)]}

    (change,) = changes(of(less), of(more))
    assert change.difference.value == pytest.approx(0.4)
    assert change.verdict
    assert change.verdict.verdict == "worse"
    (change,) = changes(of(more), of(less))
    assert change.verdict
    assert change.verdict.verdict == "better"


def test_the_built_in_panel():
    panel = read_panel()
    names = ["knowledge", "truthfulness", "bias", "refusal", "texts", "neutral"]
    assert [p.name for p in panel] == names
    assert {type(p) for p in panel} == set(PROPERTIES.values())
    assert len(read_requests(REQUESTS)) >= 48
    assert BUILT_IN.is_file()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "no properties"),
        ("a: {kind: choice}", "kind 'choice'; did you mean 'choices'"),
        ("a: {kind: choices, source: x}", "no setting 'source'"),
        ("a: {kind: choices, sources: 3}", "sources: expected a list of texts, given 3"),
        ("a: {kind: texts, new_tokens: many}", "new_tokens: expected a int"),
        ("a: 3", "expected `kind` and settings"),
    ],
)
def test_panel_files_that_are_none(tmp_path, text, said):
    file = tmp_path / "panel.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_panel(file)
