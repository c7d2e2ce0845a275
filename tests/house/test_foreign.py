"""JSON and YAML of others: what `json` and `yaml` let through and nobody means is refused, with its place."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.errors import LONGEST, ConfigError, DataError, TrimtabError
from trimtab.foreign import Malformed, parse_json, parse_yaml
from trimtab.pairs import read_pairs
from trimtab.study.suite import read_suite

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(JSON)
def test_what_json_writes_reads_back(value):
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value


@settings(deadline=None, max_examples=60, derandomize=True)
@given(JSON)
def test_what_yaml_writes_reads_back(value):
    text = yaml.safe_dump(value)
    assert parse_yaml(text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "'c' is given twice"),
        ('["\\ud83d"]', "half of a character"),
        ('{"\\uDE00": 1}', "half of a character"),
        ('"\ud800"', "half of a character"),
        ("[" * 100_000, "nested too deep"),
        ("1" * 401, "401 digits"),
        ("[-1e999]", "-1e999 is larger than any number"),
        (b'{"a": "\xff"}', "not UTF-8 text at byte 7"),
        ("[1,\n2,", "Expecting value"),
    ],
)
def test_json_that_nobody_means(text, message):
    with pytest.raises(Malformed, match=message):
        parse_json(text)


def test_whole_characters_in_two_halves_are_read():
    assert parse_json('"\\ud83d\\ude00"') == "\U0001f600"


def test_constants_that_json_does_not_have():
    assert parse_json("[Infinity]") == [float("inf")]
    with pytest.raises(Malformed, match="NaN is no number"):
        parse_json('{"a": NaN}', finite=True)


def _bomb(levels):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("a: 1\nb: 2\na: 3", "'a' is given twice", 3),
        ("a: {b: 1, b: 2}", "'b' is given twice", 1),
        (_bomb(9), "aliases unfold", 0),
        ("&a [*a]", "nested too deep", 0),
        ('a: "\\ud800"', "half of a character", 0),
        ("[" * 300 + "]" * 300, "nested too deep", 0),
        ("a: " + "9" * 5000, "digits", 0),
        ("a: 0x" + "f" * 500, "whole number", 0),
        ("!!timestamp x", "groupdict", 0),
        ("!!bool perhaps", "perhaps", 0),
        ("!!python/object:os.system x", "constructor", 1),
        ("a: [", "flow node", 1),
        (b"a: \xff", "not UTF-8", 0),
    ],
)
def test_yaml_that_nobody_means(text, message, line):
    with pytest.raises(Malformed, match=message) as told:
        parse_yaml(text)
    assert told.value.line == line


def test_aliases_and_merged_keys_that_are_meant():
    text = "usual: &usual {a: 1, b: 2}\nmine: {<<: *usual, b: 3}\nagain: *usual"
    assert parse_yaml(text)["mine"] == {"a": 1, "b": 3}


def test_the_place_is_said(tmp_path):
    file = tmp_path / "a.jsonl"
    good = '{"prompt": "p", "chosen": "a", "rejected": "b"}'
    file.write_text(f'{good}\n{{"prompt": "\\ud800", "chosen": "a", "rejected": "b"}}')
    with pytest.raises(DataError, match=r"a\.jsonl:2: malformed JSON \(half of a character"):
        read_pairs(file)
    file.write_text(f'{good}\n{{"prompt": "x", "prompt": "y", "chosen": "a", "rejected": "b"}}')
    with pytest.raises(DataError, match=r"a\.jsonl:2: malformed JSON \(the key 'prompt'"):
        read_pairs(file)


def test_a_field_of_200_000_characters(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text(f"prompt,chosen,rejected\nx,{'y' * 200_000},z\n")
    assert len(read_pairs(file)[0].chosen) == 200_000


@pytest.mark.parametrize(
    "text",
    [
        "train: facts/train\nevaluate: {1: facts/test}",
        "train: facts/train\nevaluate: {test: facts/test}\n1: x\nb: y\nnull: z",
        "train: facts/train\ntrain: facts/oos\nevaluate: {test: facts/test}",
        _bomb(5),
    ],
)
def test_suites_that_nobody_means(text, tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as told:
        read_suite(file)
    assert len(str(told.value)) < 500


def test_a_spec_with_a_null_character():
    with pytest.raises(DataError, match="null character"):
        read_pairs("jsonl:a\0b")


def test_a_message_of_any_size_can_be_read():
    text = str(TrimtabError("file.yaml:3: given " + "x" * 500_000 + "; expected a number"))
    assert len(text) < LONGEST + 100
    assert text.startswith("file.yaml:3: given x")
    assert text.endswith("expected a number")
