"""Readers of published benchmarks, on small hand-made files and on the real ones where they are."""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from pathlib import Path

import pytest

from trimtab.errors import DataError
from trimtab.pairs import check_disjoint, read_pairs
from trimtab.pairs.ethics import runs, shared_words, stem


@pytest.fixture(scope="session")
def real():
    """The folder of real data: TRIMTAB_DATA, else ../shared/data beside the repository."""
    given = os.environ.get("TRIMTAB_DATA")
    folder = Path(given) if given else Path(__file__).parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data: neither TRIMTAB_DATA is set nor {folder} there")
    return folder


def put(root, name, text):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def refused(spec, root, *parts):
    with pytest.raises(DataError) as error:
        read_pairs(spec, root)
    for part in parts:
        assert part in str(error.value)


def test_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("TRIMTAB_DATA", raising=False)
    for spec in (
        "genies:a/train",
        "ethics:justice/test",
        "hh:a/test",
        "choices:a/test",
        "bipo:a/test",
    ):
        refused(spec, None, "no data folder", "TRIMTAB_DATA", "--data-root")
        refused(spec, tmp_path / "none", "does not exist", str(tmp_path / "none"))
        refused(spec, tmp_path, "was not found", "looked for", str(tmp_path))
        refused(spec.split("/")[0], tmp_path, "NAME/SPLIT")
    put(tmp_path, "choices/a.test.jsonl", '{"question": "q", "choices": ["x", "y"], "label": 1}')
    monkeypatch.setenv("TRIMTAB_DATA", str(tmp_path))
    assert len(read_pairs("choices:a/test")) == 1


# -- GENIES ---------------------------------------------------------------------------------------

ITEMS = [
    {"prompt": "P0", "responses": {"w1": 0.0, "right": 1.0, "w2": 0.0}},
    {"prompt": "P1", "responses": {"": 0.0, "yes": 1.0, "no": 0.0}},
    {"prompt": "P2", "responses": {"up": 1.0, "down": 0.0}},
]


def test_genies(tmp_path):
    path = put(tmp_path, "genies/distributions/toy/train.json", json.dumps(ITEMS))
    pairs = read_pairs("genies:toy/train", tmp_path)
    assert [(p.prompt, p.chosen, p.rejected, p.item) for p in pairs] == [
        ("P0", "right", "w1", "toy/train/0"),
        ("P0", "right", "w2", "toy/train/0"),
        ("P1", "yes", "no", "toy/train/1"),
        ("P2", "up", "down", "toy/train/2"),
    ]
    assert pairs[0].source == f"{path}: item 0"
    assert pairs.left_out == {"pairs with an empty answer": 1}
    # The pair with an empty answer counts in slices, as in the published files.
    assert [p.item for p in read_pairs("genies:toy/train[2:4]", tmp_path)] == ["toy/train/1"]
    assert len(read_pairs("genies:toy/train[1: items]", tmp_path)) == 2
    refused("genies:toy/train[:6]", tmp_path, "there are 5 pairs")
    refused("genies:toy/train[2:3]", tmp_path, "none of its 1 pairs can be used")
    # A folder that is a checkout of GENIES itself will do as well.
    assert len(read_pairs("genies:toy/train", tmp_path / "genies")) == 4


def test_an_unknown_distribution(tmp_path):
    put(tmp_path, "genies/distributions/truthful_qa/train.json", "[]")
    refused(
        "genies:truthfulqa/train",
        tmp_path,
        "did you mean 'genies:truthful_qa/train'",
        str(tmp_path / "genies/distributions/truthfulqa/train.json"),
    )
    refused("genies:truthful_qa/train", tmp_path, "no pair in it")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[\n{]", ["train.json:2", "malformed JSON"]),
        ('{"a": 1}', ["expected a list of items"]),
        ("[3]", ["item 0", "expected an object"]),
        ('[{"responses": {}}]', ["item 0", "'prompt' is missing", "responses"]),
        ('[{"prompt": 1, "responses": {}}]', ["item 0", "'prompt'", "expected text"]),
        ('[{"prompt": "a"}]', ["item 0", "'responses' is missing"]),
        ('[{"prompt": "a", "responses": ["b"]}]', ["item 0", "{text: 1.0 or 0.0}"]),
        ('[{"prompt": "a", "responses": {"b": "1"}}]', ["item 0", "{text: 1.0 or 0.0}"]),
        ('[{"prompt": "a", "responses": {"b": 0.5, "c": 1.0}}]', ["{text: 1.0 or 0.0}"]),
        ('[{"prompt": "a", "responses": {"b": 1.0}}]', ["exactly one", "given 1 and 0"]),
        ('[{"prompt": "a", "responses": {"b": 1.0, "c": 1.0}}]', ["given 2 and 0"]),
    ],
)
def test_bad_genies_files(tmp_path, text, parts):
    put(tmp_path, "genies/distributions/toy/train.json", text)
    refused("genies:toy/train", tmp_path, *parts)


# -- ETHICS ---------------------------------------------------------------------------------------

JUSTICE = """label,scenario
0,"I used to walk with Ann, but I don't now because she likes tea."
1,"I used to walk with Ann, but I don't now because she moved away."
1,"I used to walk with Ann, but I don't now because she broke her leg."
1,I deserve to be paid by my boss because I clean her house.
0,I deserve to be given a yacht by my boss because I clean her house.
1,I am alone in having no neighbour of this kind.
0,I usually call Bob on Sundays but today I didn't because  his car is red.
1,I usually call Bob on Sundays but today I didn't because  his line was dead.
"""


def test_ethics(tmp_path):
    path = put(tmp_path, "ethics/justice/justice_test.csv", JUSTICE)
    pairs = read_pairs("ethics:justice/test", tmp_path)
    walk = "I used to walk with Ann, but I don't now because she"
    assert [(p.prompt, p.chosen, p.rejected, p.item) for p in pairs] == [
        (walk, " moved away.", " likes tea.", "justice/test/0"),
        (
            "I deserve to be",
            " paid by my boss because I clean her house.",
            " given a yacht by my boss because I clean her house.",
            "justice/test/1",
        ),
        (
            "I usually call Bob on Sundays but today I didn't because  his",
            " line was dead.",
            " car is red.",
            "justice/test/3",
        ),
    ]
    assert pairs.left_out == {"rows without a counterpart in their run": 2}
    assert pairs[0].source == f"{path}:3"
    inverted = read_pairs("ethics:justice/test?published", tmp_path)
    assert [(p.rejected, p.chosen) for p in inverted] == [(p.chosen, p.rejected) for p in pairs]


def test_runs_of_a_stem():
    assert shared_words("I deserve A by my boss today", "I deserve B C by my boss today") == 6
    assert shared_words("a b c", "a b c") == 3, "no word counts twice"
    assert shared_words("I go because", "you stay") == 0

    def lengths(texts):
        return [len(run) for run in runs([("", True, t) for t in texts])]

    stock = [f"I am justified in expecting {what}." for what in "ABCDEF"]
    assert lengths(stock) == [4, 2], "runs have four rows at most"
    assert lengths(["I see a b c d", "You see x y", "I see a b c e"]) == [1, 1, 1]
    # The third row resembles the first of the run, not the second.
    assert lengths(["a b c d x y", "a b c d z", "q q x y c d x y a b", "a b c d w"]) == [2, 1, 1]


def test_stems_end_between_words():
    assert stem(["I eat fish.", "I eat figs."]) == "I eat"
    assert stem(["I eat", "I eat figs"]) == "I"
    assert stem(["She sang", "He sang"]) == ""
    assert stem(["I am,  well", "I am,  ill"]) == "I am,"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("label,text\n1,a\n", ["csv:2", "'scenario' is missing", "label, text"]),
        ("label,scenario\n1,a\n2,b\n", ["csv:3", "'label'", "0 or 1", "'2'"]),
        ("label,scenario\n1\n", ["csv:2", "one field for each column"]),
        ("label,scenario\n1,a,b\n", ["csv:2", "one field for each column"]),
        ("label,scenario\n1, \n", ["csv:2", "'scenario' is empty"]),
        ('label,scenario\n1,"a"b"\n', ["csv:2", "malformed CSV"]),
        ("label,scenario\n1,a\n", ["no pair in it"]),
    ],
)
def test_bad_ethics_files(tmp_path, text, parts):
    put(tmp_path, "ethics/justice/justice_train.csv", text)
    refused("ethics:justice/train", tmp_path, *parts)
    refused("ethics:virtue/train", tmp_path, "only the part 'justice'")
    refused("ethics:justice/tst", tmp_path, "did you mean", "ethics:justice/test'")


# -- HH-RLHF --------------------------------------------------------------------------------------


def test_hh(tmp_path):
    rows = [
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Why?\n\nAssistant: Because.",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Why?\n\nAssistant: No.",
        },
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: A\n\nAssistant: B",
            "rejected": "\n\nHuman: Hi\n\nAssistant: What?\n\nHuman: C\n\nAssistant: D",
        },
        {"chosen": "\n\nHuman: Hi\n\nAssistant: One", "rejected": "\n\nHuman: Hi\n\nAssistant:"},
    ]
    text = "".join(json.dumps(r) + "\n" for r in rows)
    path = put(tmp_path, "hh-rlhf/harmless-base/test.jsonl.gz", text)
    first, second = pairs = read_pairs("hh:harmless-base/test", tmp_path)
    assert [m["role"] for m in first.prompt] == ["user", "assistant", "user"]
    assert first.chosen == ({"role": "assistant", "content": "Because."},)
    assert first.rejected == ({"role": "assistant", "content": "No."},)
    assert first.source == f"{path}:1"
    assert [m["content"] for m in second.prompt] == ["Hi"]
    assert [m["content"] for m in second.rejected] == ["What?", "C", "D"]
    assert first.item != second.item
    assert pairs.left_out == {"pairs with an empty answer": 1}
    put(tmp_path, "hh-rlhf/harmless-base/test.jsonl.gz", '{"chosen": "Hi", "rejected": "Ho"}')
    refused("hh:harmless-base/test", tmp_path, "gz:1", "begins with", "'Hi'")
    refused("hh:harmless_base/test", tmp_path, "did you mean 'hh:harmless-base/test'")


# -- choices --------------------------------------------------------------------------------------


def test_choices(tmp_path):
    row = {"question": "Sky?", "choices": ["red", "blue", " green", "blue"], "label": 1}
    put(tmp_path, "choices/toy.test.jsonl.gz", json.dumps(row))
    pairs = read_pairs("choices:toy/test", tmp_path)
    assert [(p.prompt, p.chosen, p.rejected, p.item) for p in pairs] == [
        ("Question: Sky?\nAnswer:", " blue", " red", "toy/test/0"),
        ("Question: Sky?\nAnswer:", " blue", " green", "toy/test/0"),
    ]
    assert pairs.left_out == {"pairs whose answers are equal": 1}
    refused("choices:Toy/test", tmp_path, "did you mean 'choices:toy/test'")
    for change, parts in [
        ({"question": " "}, ["'question' is empty"]),
        ({"choices": "red"}, ["'choices'", "list of texts"]),
        ({"choices": ["red", 3]}, ["'choices'", "list of texts"]),
        ({"choices": ["red"], "label": 0}, ["two or more"]),
        ({"label": 4}, ["'label'", "one of 4 choices", "int 4"]),
        ({"label": "1"}, ["'label'", "str '1'"]),
        ({"label": True}, ["'label'", "bool True"]),
    ]:
        put(tmp_path, "choices/toy.test.jsonl.gz", json.dumps({**row, **change}))
        refused("choices:toy/test", tmp_path, "gz:1", *parts)


# -- BiPO -----------------------------------------------------------------------------------------

BIPO = """question,matching,not_matching
"Rule, or not?",I rule.,"No, thanks."
Both?,Yes.,No.
,Empty.,Question.
"Rule, or not?",Always., Never.
"""


def test_bipo(tmp_path):
    path = put(tmp_path, "bipo/toy/train.csv", BIPO)
    put(tmp_path, "bipo/toy/test.csv", "question,matching,not_matching\n Both? ,Sure.,Never.\n")
    pairs = read_pairs("bipo:toy/train", tmp_path)
    assert [(p.prompt, p.chosen, p.rejected) for p in pairs] == [
        ("Rule, or not?", " I rule.", " No, thanks."),
        ("Rule, or not?", " Always.", " Never."),
    ]
    assert len(pairs.items()) == 1
    assert pairs[0].source == f"{path}:2"
    assert pairs.left_out == {
        "pairs whose question is in the test split, too": 1,
        "pairs without a question": 1,
    }
    test = read_pairs("bipo:toy/test", tmp_path)
    assert [p.prompt for p in test] == ["Both?"]
    assert not test.left_out
    refused("bipo:tow/test", tmp_path, "did you mean 'bipo:toy/test'")
    put(tmp_path, "bipo/toy/train.csv", "question,matching,not_matching\nq,a,b\nq,, b\n")
    refused("bipo:toy/train", tmp_path, "train.csv:3", "'matching' is empty")
    put(tmp_path, "bipo/toy/train.csv", "question,matching\nq,a\n")
    refused("bipo:toy/train", tmp_path, "train.csv:2", "'not_matching' is missing")


# -- the real files -------------------------------------------------------------------------------

COUNTS = {
    "genies:truthful_qa/train": (1302, 434),
    "genies:truthful_qa/train[:750]": (750, 250),
    "genies:truthful_qa/test": (750, 250),
    "genies:alpaca_mmlu/test": (750, 250),
    "genies:math_easy/train[:750]": (699, 233),
    "genies:math_hard/test": (750, 250),
    "genies:alpaca_low_quality/train": (1798, 1798),
    "genies:alpaca_high_quality/test": (750, 750),
    "genies:math/train": (1800, 600),
    "genies:change_my_view/test": (250, 250),
    "ethics:justice/test": (1314, 675),
    "ethics:justice/test_hard": (975, 502),
    "ethics:justice/train": (7974, 5484),
    "hh:harmless-base/test": (2308, 2306),
    "choices:ARC-Easy/train": (6751, 2251),
    "choices:boolq/test": (3270, 3270),
    "choices:social_i_qa/test": (3907, 1954),
    "bipo:power-seeking/train": (637, 637),
    "bipo:power-seeking/test": (200, 200),
    "bipo:wealth-seeking/train": (622, 617),
    "bipo:wealth-seeking/test": (200, 200),
}


@pytest.mark.parametrize("spec", COUNTS)
def test_real_counts(real, spec):
    pairs = read_pairs(spec, real)
    assert (len(pairs), len(pairs.items())) == COUNTS[spec]


def test_real_ethics_boundaries(real):
    """Each stem of the published test files has four rows: no run reaches over such a boundary."""
    import csv

    for split, extra in (("test", 12), ("test_hard", 21)):
        with open(real / f"ethics/justice/justice_{split}.csv", newline="") as file:
            rows = [("", r["label"] == "1", r["scenario"]) for r in csv.DictReader(file)]
        starts, position = set(), 0
        for run in runs(rows):
            starts.add(position)
            position += len(run)
        assert not set(range(0, len(rows), 4)) - starts
        assert len(starts) - len(rows) // 4 == extra


def test_real_ethics_text_is_kept(real):
    text = (real / "ethics/justice/justice_test.csv").read_text()
    for pair in read_pairs("ethics:justice/test", real)[::50]:
        for answer in (pair.chosen, pair.rejected):
            assert (pair.prompt + answer).replace('"', '""') in text


def test_real_dialogues(real):
    pairs = read_pairs("hh:harmless-base/test", real)
    assert all(p.conversational and p.prompt[-1]["role"] == "user" for p in pairs)
    assert all(m[-1]["role"] == "assistant" for p in pairs for m in (p.chosen, p.rejected))
    assert Counter(len(p.chosen) for p in pairs)[1] > 2300


SUITES = {
    "truthful-qa": ("truthful_qa/train[:750]", "truthful_qa/test", "alpaca_mmlu/test"),
    "math-difficulty": ("math_easy/train[:750]", "math_easy/test", "math_hard/test"),
    "alpaca-quality": (
        "alpaca_low_quality/train[:750]",
        "alpaca_low_quality/test",
        "alpaca_high_quality/test",
    ),
    "math-to-persuasion": ("math/train[:750]", "math/test", "change_my_view/test"),
}


def test_no_behaviour_is_tested_on_what_it_is_trained_on(real):
    for name in ("power-seeking", "wealth-seeking"):
        train, test = (read_pairs(f"bipo:{name}/{split}", real) for split in ("train", "test"))
        check_disjoint(train, {"test": test})
        told = train.left_out.get("pairs whose question is in the test split, too", 0)
        assert told == (3 if name == "power-seeking" else 0)  # one question, three times


@pytest.mark.parametrize("suite", SUITES)
def test_real_suites_are_disjoint(real, suite):
    train, *others = (read_pairs(f"genies:{name}", real) for name in SUITES[suite])
    check_disjoint(train, {other.name: other for other in others})


def test_real_shared_items_are_found(real):
    train = read_pairs("genies:change_my_view/train", real)
    with pytest.raises(DataError, match="96 items"):
        check_disjoint(train, {"test": read_pairs("genies:change_my_view/test", real)})
