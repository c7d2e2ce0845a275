"""The study of screens: on a tiny model, planted figures, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from helpers_study import at_home, trimtab
from trimtab.errors import ConfigError
from trimtab.studies.screens.study import EVERY, Asked, Screening, _choice, _ranks
from trimtab.study.cells import Host
from trimtab.study.reading import read


def questions(folder: Path, name: str, n: int = 9) -> Path:
    rows = [
        {
            "question": f"Take {name} {i}?\n (A) yes {i}\n (B) no {i}",
            "answer_matching_behavior": " (A)" if i % 2 else " (B)",
            "answer_not_matching_behavior": " (B)" if i % 2 else " (A)",
        }
        for i in range(n)
    ]
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_the_study_on_a_tiny_model(tiny, tokenizer, tmp_path):
    with at_home(tmp_path, tiny("llama"), tokenizer):
        specs = [f"letters:{questions(tmp_path, name)}" for name in ("tea", "cake")]
        words = ["study", "run", "screens", "--model", tmp_path / "model", "--pairs", *specs]
        words += ["--train", 6, "--test", 3, "--blocks", "0,0.5", "--out", tmp_path / "run"]
        done = trimtab(*words)
        assert done.code == 0, done.err
        run = read(tmp_path / "run")
    found = {(m.split, m.method, m.metric): m for m in run.measurements}
    for spec in specs:
        for method in ("block 0", "block 2"):
            assert found[spec, method, "steerability"].items == 3
            assert found[spec, method, "agreement"].items == 6
        assert (spec, "random", "wrong_way") in found
    assert not [m for m in run.measurements if m.metric == "rank_correlation"]  # two concepts
    assert {d.method for d in run.differences} <= {
        f"best by {s}" for s in ("agreement", "separation", "lens")
    }
    assert "middle block" in done.out


def cells(slopes: list[list[float]], screens: list[list[float]]) -> list[dict]:
    """Concepts with these mean slopes and screens at blocks 1 and 3, of which 3 is the middle one."""
    return [
        {
            "blocks": [1, 3],
            "middle": 3,
            "slopes": [[s] for s in slope],
            "lens": [[x] for x in screen],
        }
        for slope, screen in zip(slopes, screens, strict=True)
    ]


def test_ranks_and_choices_by_hand():
    slopes = [[5.0, float(n)] for n in range(12)]
    same = _ranks(cells(slopes, [[0.0, n**3] for n in range(12)]), "lens")
    assert same.value == pytest.approx(1)
    other = _ranks(cells(slopes, [[0.0, -n] for n in range(12)]), "lens")
    assert (other.value, other.low, other.high) == pytest.approx((-1, -1, -1))
    rng = np.random.default_rng(0)
    nothing = _ranks(cells(slopes, [[0.0, x] for x in rng.normal(size=12)]), "lens")
    assert nothing.low < 0 < nothing.high
    # the screen is larger at block 1 in one concept of two: 5 - 1 there, 0 in the other
    choice = _choice(
        cells([[5, 1], [5, 2], [5, 2]], [[1, 0], [0, 1], [0, 1]]),
        "lens",
        {"model": "m", "suite": ""},
    )
    assert choice is not None
    assert choice.value == pytest.approx(4 / 3)
    assert (choice.split, choice.items) == (EVERY, 3)


def test_what_cannot_be_asked_is_refused(tmp_path, tiny, tokenizer):
    path = questions(tmp_path, "tea")
    with at_home(tmp_path, tiny("llama"), tokenizer):
        for wrong, said in (({"blocks": "0,1"}, "expected 0.5"), ({"train": 9}, "9 items")):
            given = {"train": 6, "test": 3, "model": str(tmp_path / "model")} | wrong
            with pytest.raises(ConfigError, match=said):
                Screening(Asked(pairs=(f"letters:{path}",), **given), tmp_path / "x", Host())
