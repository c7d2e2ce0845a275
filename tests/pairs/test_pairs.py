"""Spec strings, slices, and preference files in TRL's format: what is read, and what is refused."""

from __future__ import annotations

import gzip
import json

import pytest

from trimtab.errors import DataError
from trimtab.pairs import Pair, PairSet, check_disjoint, parse_spec, read_pairs
from trimtab.pairs.files import implicit_prompt
from trimtab.pairs.overlap import overlap

ROWS = [
    {"prompt": "One?", "chosen": " yes", "rejected": " no"},
    {"prompt": "One?", "chosen": " yes", "rejected": " never"},
    {"prompt": "Two?", "chosen": " no", "rejected": " yes"},
]


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def refused(source, *parts, **kwargs):
    """The error of reading `source`; each of `parts` is in its text."""
    with pytest.raises(DataError) as error:
        read_pairs(source, **kwargs)
    for part in parts:
        assert part in str(error.value)


# -- spec strings ---------------------------------------------------------------------------------


def test_spec_parts():
    spec = parse_spec("genies:truthful_qa/train[:750]")
    assert (spec.kind, spec.name, spec.start, spec.stop) == (
        "genies", "truthful_qa/train", 0, 750,
    )  # fmt: skip
    spec = parse_spec("genies:math/test[10:200 items]")
    assert (spec.start, spec.stop, spec.unit) == (10, 200, "items")
    spec = parse_spec("ethics:justice/test?published[5:]")
    assert (spec.name, spec.option, spec.start, spec.stop) == (
        "justice/test", "published", 5, None,
    )  # fmt: skip
    spec = parse_spec("data/what?.jsonl.gz")
    assert (spec.kind, spec.name, spec.option) == ("jsonl", "data/what?.jsonl.gz", None)
    assert parse_spec("hub:org/data:config/train").name == "org/data:config/train"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("genie:math/train", ["unknown kind", "'genies'"]),
        ("math", ["KIND:NAME", ".jsonl"]),
        ("genies:math/train[5:5]", ["empty"]),
        ("genies:math/train[750]", ["[:750]", "given [750]"]),
        ("genies:math/train[-5:]", ["given [-5:]"]),
        ("ethics:justice/test?inverted", ["no option 'inverted'", "published"]),
        ("genies:math/train?published", ["no option 'published'"]),
        ("facts:", ["name is expected"]),
    ],
)
def test_malformed_specs_are_refused(text, parts):
    refused(text, *parts)


# -- TRL files ------------------------------------------------------------------------------------


def test_jsonl_and_its_slices(tmp_path):
    path = write(tmp_path / "a.jsonl", ROWS)
    pairs = read_pairs(f"jsonl:{path}")
    assert [p.chosen for p in pairs] == [" yes", " yes", " no"]
    assert pairs[1].source == f"{path}:2"
    assert len(pairs.items()) == 2, "rows with one prompt share an item"
    assert len(read_pairs(f"{path}[:2]")) == 2
    assert len(read_pairs(f"{path}[1:3]")) == 2
    assert len(read_pairs(f"{path}[:1 items]")) == 2
    assert len(read_pairs(f"{path}[1: items]")) == 1
    assert len(read_pairs(path, limit=1)) == 2
    refused(f"{path}[:4]", "past the end", "3 pairs", "2 items")
    refused(f"{path}[3:]", "past the end")
    refused(f"{path}[:3 items]", "2 items")
    refused(path, "limit", limit=0)


def test_the_same_pairs_from_every_format(tmp_path):
    import datasets

    expected = read_pairs(ROWS)
    data = datasets.Dataset.from_list(ROWS)
    data.to_parquet(tmp_path / "a.parquet")
    data.to_csv(tmp_path / "a.csv")
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(r) + "\n\n" for r in ROWS)
    for name in ("a.parquet", "a.csv", "a.json", "a.jsonl.gz"):
        pairs = read_pairs(tmp_path / name)
        assert pairs.digest == expected.digest, name
        assert pairs.name == str(tmp_path / name)
    assert read_pairs(data).digest == expected.digest
    assert read_pairs(expected) is expected


def test_hub(monkeypatch):
    import datasets

    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(read_pairs("hub:org/data/train[:2]")) == 2
    assert len(read_pairs("hub:org/data:part/test")) == 3
    assert asked == [
        (("org/data", None), {"split": "train"}),
        (("org/data", "part"), {"split": "test"}),
    ]

    def fails(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", fails)
    refused("hub:org/data/train", "cannot be loaded", "no route", "offline")
    refused("hub:data", "expected hub:ID/SPLIT")


def test_chat_messages_and_implicit_prompts():
    turns = [user("Hello"), assistant("Hi"), user("Sky?")]
    explicit = {"prompt": turns, "chosen": [assistant("Blue.")], "rejected": [assistant("Green.")]}
    implicit = {"chosen": [*turns, assistant("Blue.")], "rejected": [*turns, assistant("Green.")]}
    beside = {**implicit, "prompt": "Hello"}  # a plain prompt beside whole dialogues
    one, two, three = read_pairs([explicit, implicit, beside])
    assert one.content() == two.content() == three.content()
    assert one.conversational
    assert one.prompt == tuple(turns)
    plain = read_pairs([{"chosen": "The sky is blue.", "rejected": "The sky is green."}])[0]
    assert (plain.prompt, plain.chosen, plain.rejected) == ("The sky is", " blue.", " green.")


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("The sky is blue.", "The sky is green."),
        ("ab c", "ab d"),
        ("abc", "abcd"),
        ("abcd", "abc"),
        ("a", "ab"),
        ("x yz", "x yz more"),
        ("same  two", "same  three"),
    ],
)
def test_implicit_prompt_is_trls(chosen, rejected):
    trl = pytest.importorskip("trl.data_utils")
    example = {"chosen": chosen, "rejected": rejected}
    assert dict(
        zip(("prompt", "chosen", "rejected"), implicit_prompt(chosen, rejected), strict=True)
    ) == trl.extract_prompt(example)


def test_no_implicit_prompt():
    assert implicit_prompt("one ", "two") == ("", "one ", "two"), "TRL cuts at the last space here"


def test_items_and_concepts():
    pairs = read_pairs(
        [
            {**ROWS[0], "item": "a", "concept": "answers"},
            {**ROWS[2], "item": 7, "concept": None},
            {"prompt": "", "chosen": "I am kind.", "rejected": "I am mean."},
            {"prompt": "", "chosen": "I am calm.", "rejected": "I am angry."},
        ]
    )
    assert [p.item for p in pairs] == ["a", "7", "row 3", "row 4"]
    assert [p.concept for p in pairs] == ["answers", None, None, None]


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"prompt": "a", "chosen": "b"}, ["'rejected' is missing", "prompt, chosen"]),
        ({"prompt": "a", "chosen": "", "rejected": "c"}, ["'chosen'", "empty answer"]),
        ({"prompt": "a", "chosen": "b", "rejected": " \n"}, ["'rejected'", "empty answer"]),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, ["chosen equals rejected", "'b'"]),
        ({"prompt": 3, "chosen": "b", "rejected": "c"}, ["'prompt'", "expected text", "int 3"]),
        ({"prompt": "a", "chosen": "b", "rejected": 4}, ["'rejected'", "given int 4"]),
        ({"prompt": "a", "chosen": None, "rejected": "c"}, ["'chosen'", "NoneType"]),
        ({"prompt": "a", "chosen": [assistant("b")], "rejected": "c"}, ["one answer is plain"]),
        ({"prompt": "a", "chosen": [{"role": "user"}], "rejected": "c"}, ["message 1", "content"]),
        (
            {"prompt": "a", "chosen": [assistant(5)], "rejected": [assistant("c")]},
            ["message 1", "text as 'content'"],
        ),
        (
            {"prompt": "a", "chosen": [assistant("b")], "rejected": [assistant("c")]},
            ["the prompt is plain text"],
        ),
        (
            {"prompt": "a", "chosen": [assistant("")], "rejected": [assistant("c")]},
            ["empty answer"],
        ),
        ({"prompt": "a", "chosen": [], "rejected": [assistant("c")]}, ["empty answer"]),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "item": [1]}, ["'item'", "integer"]),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "concept": 1}, ["'concept'"]),
        ("just text", ["expected an object", "'just text'"]),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, parts):
    path = write(tmp_path / "bad.jsonl", [ROWS[0], row])
    refused(path, f"{path}:2", *parts)


def test_bad_files_are_named(tmp_path):
    refused("jsonl:nowhere.jsonl", "nowhere.jsonl", "no such file")
    refused("parquet:nowhere.parquet", "nowhere.parquet", "no such file")
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps(ROWS[0]) + '\n{"prompt": "a", \n')
    refused(bad, f"{bad}:2", "malformed JSON")
    bad = tmp_path / "bad.json"
    bad.write_text('[\n{"prompt": }]')
    refused(bad, f"{bad}:2", "malformed JSON")
    bad.write_text("{}")
    refused(bad, "expected a list of objects")
    bad = tmp_path / "empty.jsonl"
    bad.write_text("")
    refused(bad, "no pair in it")
    refused([], "no pair in it")
    bad = tmp_path / "latin.jsonl"
    bad.write_bytes(b'{"prompt": "\xe9"}')
    refused(bad, "not UTF-8")
    bad = tmp_path / "bad.jsonl.gz"
    bad.write_bytes(b"not gzip at all")
    refused(bad, "damaged gzip")
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(b"not parquet at all")
    refused(bad, str(bad), "not a readable parquet")
    bad = tmp_path / "bad.csv"
    bad.write_text("prompt,chosen,rejected\na,b,c\nd,e\n")
    refused(bad, f"{bad}:3", "one field for each column")
    refused({"train": ROWS}, "choose a split", "train")


# -- sets -----------------------------------------------------------------------------------------


def test_parts_of_a_set_keep_what_was_left_out():
    pairs = PairSet(read_pairs(ROWS).pairs, "name", {"rows": 2})
    train, held = pairs.split(0.5)
    assert not {p.item for p in train} & {p.item for p in held}
    for part in (pairs[:1], pairs.limit(1), train, held):
        assert part.left_out == {"rows": 2}
        assert part.name == "name"


def test_disjoint_by_content():
    train = PairSet([Pair("p", "a", "b", "1"), Pair("q", "a", "c", "2")], "train")
    apart = PairSet([Pair("p", "c", "d", "1", source="f:1")], "apart")  # a prompt alone is shared
    check_disjoint(train, {"test": apart})
    assert overlap(train, apart) == {"pairs": 0, "items": 0, "prompts": 1, "answers": 1}
    inside = PairSet([*apart, Pair("q", "x", "c", "9", source="f:2")], "inside")
    with pytest.raises(DataError, match=r"'oos' \(inside\) shares 1 items \(1 pairs\).*'q'.*f:2"):
        check_disjoint(train, {"test": apart, "oos": inside})
    assert overlap(train, inside)["items"] == 1
