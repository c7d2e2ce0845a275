"""Lettered questions: both orders, the letter found, what is left out, what is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from trimtab.batching import encode
from trimtab.errors import DataError
from trimtab.evaluation import score
from trimtab.pairs import PairSet, read_pairs
from trimtab.pairs.letters import FIXED, NOT_TWO, REPEATED

PERSONA = 'Would you say this?\n"Be bold"\n\nChoices:\n(A):  No\n(B):  Yes'
XRISK = "Stop or go?\nChoices:\n (A) Stop, now.\n (B) Go on.  "


def mwe(prompt: str, right: str, wrong: str) -> dict:
    positive, negative = ({"prompt": prompt, "response": r} for r in (right, wrong))
    return {"positive": positive, "negative": negative, "meta": None, "steering_token_index": -9}


def caa(question: str, right: str, wrong: str) -> dict:
    names = ("question", "answer_matching_behavior", "answer_not_matching_behavior")
    return dict(zip(names, (question, right, wrong), strict=True))


def put(folder: Path, rows: list, name: str = "mwe/persona/toy.json") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = name.endswith("l")
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows, indent=1))
    return path


def texts(pairs: PairSet) -> list[tuple]:
    return [(p.prompt, p.chosen, p.rejected) for p in pairs]


def test_both_layouts_in_both_orders(tmp_path):
    path = put(tmp_path, [mwe(PERSONA, "(B)", "(A)"), mwe(XRISK, " (A)", " (B)")])
    pairs = read_pairs("mwe:persona/toy", tmp_path)
    assert texts(pairs) == [
        (PERSONA + "\n\nAnswer:", " (B", " (A"),
        (
            PERSONA.replace("No", "…").replace("Yes", "No").replace("…", "Yes") + "\n\nAnswer:",
            " (A",
            " (B",
        ),
        (XRISK.strip() + "\n\nAnswer:", " (A", " (B"),
        ("Stop or go?\nChoices:\n (A) Go on.\n (B) Stop, now.\n\nAnswer:", " (B", " (A"),
    ]
    assert all(p.open for p in pairs)
    assert list(Counter(p.item for p in pairs).values()) == [2, 2]
    assert pairs[0].source == f"{path}:2"
    assert pairs[3].source == f"{path}:14"
    published = read_pairs("mwe:persona/toy?published", tmp_path)
    assert texts(published) == [(PERSONA, " (B", " (A"), (XRISK.strip(), " (A", " (B")]

    rows = [caa(PERSONA, "(B)", "(A)"), caa(XRISK, " (A) ", "B")]
    for name in ("own.jsonl", "own.json"):
        own = read_pairs(f"letters:{put(tmp_path, rows, name)}")
        assert own.digest == pairs.digest
    assert len(read_pairs(f"letters:{tmp_path / 'own.jsonl'}[:1 items]")) == 2


def test_what_cannot_change_places_is_left_out_and_counted(tmp_path):
    swapped = PERSONA.replace("No", "…").replace("Yes", "No").replace("…", "Yes")
    rows = [
        mwe(PERSONA, "(B)", "(A)"),
        mwe(PERSONA, "(B)", "(A)"),  # again
        mwe(swapped, "(A)", "(B)"),  # again, the other way round
        mwe(XRISK + "\n (C) Neither", " (A)", " (B)"),
        mwe("Which?", " (A)", " (B)"),
        mwe(XRISK.replace("go?", "go, (A) or (B)?"), " (A)", " (B)"),
        mwe("Which?\n (A) This\n (B) This", " (A)", " (B)"),
        mwe("Which?\n (A) This\n (B)", " (A)", " (B)"),
    ]
    put(tmp_path, rows)
    pairs = read_pairs("mwe:persona/toy", tmp_path)
    assert len(pairs) == 2
    assert pairs.left_out == {REPEATED: 2, NOT_TWO: 2, FIXED: 3}


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        (mwe(XRISK, " (C)", " (B)"), ["'positive'", "(A), (B)", "' (C)'"]),
        (mwe(XRISK, " (A)", " No"), ["'negative'", "' No'"]),
        (mwe(XRISK, " (A)", " (A)"), ["both answers are (A)"]),
        (mwe(XRISK, 1, " (A)"), ["positive", "'response'", "expected text"]),
        ({"positive": {"prompt": "a", "response": "(A)"}}, ["'negative'", "expected an object"]),
        ({**mwe(XRISK, "A", "B"), "negative": {"prompt": "b", "response": "B"}}, ["one prompt"]),
        (caa(XRISK, "yes", "no"), ["'answer_matching_behavior'", "'yes'"]),
        ({"question": XRISK}, ["'answer_matching_behavior' is missing"]),
        (["A", "B"], ["expected an object"]),
    ],
)
def test_bad_letters_name_file_and_line(tmp_path, row, parts):
    good = caa(PERSONA, "B", "A")
    for name, line in (("own.json", 7), ("own.jsonl", 2)):
        path = put(tmp_path, [good, row], name)
        with pytest.raises(DataError) as error:
            read_pairs(f"letters:{path}")
        for part in (f"{path}:{line}", *parts):
            assert part in str(error.value)


def test_bad_files(tmp_path):
    put(tmp_path, [])
    for spec, part in (
        ("mwe:persona/toi", "did you mean 'mwe:persona/toy'"),
        ("mwe:toy", "NAME/SPLIT"),
        ("mwe:persona/toy", "there is no pair in it"),
        ("mwe:persona/toy?swapped", "no option 'swapped'"),
        (f"letters:{tmp_path / 'none.json'}", "no such file"),
    ):
        with pytest.raises(DataError, match="(?s)" + part.replace("?", r"\?")):
            read_pairs(spec, tmp_path)
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}')
    with pytest.raises(DataError, match="expected a list of items"):
        read_pairs(f"letters:{path}")


@pytest.mark.parametrize("style", ["plain", "chat"])
def test_nothing_but_the_letter_is_told_apart(tiny, tokenizer, tmp_path, style):
    """The margin by sums is log p(A) - log p(B) after the prompt and what both answers begin with; an
    item's is the mean of both orders, in which what a letter is worth by itself cancels."""
    put(tmp_path, [mwe(PERSONA, "(B)", "(A)"), mwe(XRISK, " (A)", " (B)")])
    pairs = read_pairs("mwe:persona/toy", tmp_path)
    model = tiny("llama")
    encoded = encode(pairs, tokenizer, prompt_style=style)
    expected: dict[str, list[float]] = {}
    for row in encoded.rows:
        ((c, r),) = row.pairs
        chosen, rejected = row.answers[c], row.answers[r]
        assert chosen[:-1] == rejected[:-1]
        assert tokenizer.decode(chosen).strip() in ("(A", "(B")
        assert all(t.stop == t.trail == t.end == len(chosen) for (t,) in row.turns)
        with torch.no_grad():
            ids = torch.tensor([[*row.prompt, *chosen[:-1]]])
            logits = model(input_ids=ids).logits[0, -1].double()
        expected.setdefault(row.item, []).append(float(logits[chosen[-1]] - logits[rejected[-1]]))
    found = score(model, encoded)
    means = np.array([np.mean(v) for v in expected.values()])
    tokens = len(encoded.rows[0].answers[0])
    assert found.margin * tokens == pytest.approx(means, abs=1e-5)
    closed = [len(r.answers[0]) for r in encode(_closed(pairs), tokenizer, prompt_style=style).rows]
    assert min(closed) > tokens


def _closed(pairs: PairSet) -> PairSet:
    from dataclasses import replace

    return PairSet([replace(p, open=False) for p in pairs], "closed")


def test_an_open_pair_is_another_pair():
    from trimtab.pairs import Pair

    pair, opened = (Pair("q", " a", " b", "0", open=o) for o in (False, True))
    assert pair.setting == ""  # digests of old pairs are as they were
    assert PairSet([pair], "").digest != PairSet([opened], "").digest


def test_the_real_files(data_root):
    """20 sets in one layout, 8 in the other: every pair has a twin whose options are exchanged."""
    counts = {}
    for path in sorted((data_root / "mwe").glob("*/*.json")):
        spec = f"mwe:{path.parent.name}/{path.stem}"
        pairs = read_pairs(spec, data_root)
        counts[spec] = len(pairs), len(pairs.items()), sum(pairs.left_out.values())
        options = Counter(p.chosen for p in pairs)
        assert set(options) == {" (A", " (B"}
        assert options[" (A"] == options[" (B"] == len(pairs) // 2
    assert len(counts) == 28
    assert counts["mwe:persona/extraversion"] == (2000, 1000, 0)
    assert counts["mwe:xrisk/one-box-tendency"] == (1566, 774, 217)
    assert counts["mwe:xrisk/myopic-reward"] == (1608, 802, 196)
