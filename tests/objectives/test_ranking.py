"""Rankings: by hand, against DPO, by finite differences of the answers' log-probs, and on a model."""

from __future__ import annotations

import json
import math

import pytest
import torch

from trimtab.errors import ConfigError, DataError
from trimtab.objectives import DPO, PlackettLuce
from trimtab.pairs import Pair, PairSet, read_pairs
from trimtab.readout import Readout
from trimtab.training import fit, method
from trimtab.training.recipes import Recipe
from trimtab.training.settings import TrainSettings

CHAIN, STAR = [(0, 1), (1, 2)], [(0, 1), (0, 2)]
EVERY = [(0, 1), (0, 2), (1, 2)]


def readouts(logps: torch.Tensor, pairs: list[tuple[int, int]]) -> tuple[Readout, Readout]:
    """A policy whose answers have these log-probs, and a reference at 0."""
    answers = torch.tensor(pairs).T

    def made(values: torch.Tensor) -> Readout:
        return Readout(values[answers[0]], values[answers[1]], answers=answers)

    return made(logps), made(torch.zeros_like(logps))


def losses(scores: list[float], pairs: list[tuple[int, int]]) -> list[float]:
    policy, reference = readouts(torch.tensor(scores, dtype=torch.float64), pairs)
    return PlackettLuce(beta=0.5)(policy, reference)[0].tolist()


def test_rankings_by_hand():
    # beta rho = (1, 0.5, 0.2): log(e^1 + e^.5 + e^.2) - 1 and log(e^.5 + e^.2) - .5
    first, second = 0.7206940689, 0.5543552445
    assert losses([2, 1, 0.4], CHAIN) == pytest.approx([first, second], abs=1e-9)
    assert losses([2, 1, 0.4], STAR) == pytest.approx([first / 2, first / 2], abs=1e-9)
    # all pairs of a ranking say no more than its neighbours
    assert losses([2, 1, 0.4], EVERY) == pytest.approx([first / 2, first / 2, second], abs=1e-9)
    # names of answers are names; items do not see each other
    both = losses([0.4, 9, 2, 1, 9, 1, 2], [(2, 3), (3, 0), (5, 6)])
    assert both == pytest.approx([first, second, math.log1p(math.exp(0.5))], abs=1e-9)
    # where policy and reference agree, all orders are equally likely: 3! of them
    assert sum(losses([0, 0, 0], CHAIN)) == pytest.approx(math.log(6))


def test_a_pair_is_dpo():
    logps = torch.tensor([-3.0, -7.0, -2.0, 1.0], dtype=torch.float64)
    policy, reference = readouts(logps, [(0, 1), (3, 2)])
    (loss, metrics), (other, same) = (o(policy, reference) for o in (PlackettLuce(), DPO()))
    assert loss.tolist() == pytest.approx(other.tolist(), abs=1e-12)
    assert all(torch.equal(metrics[k], same[k]) for k in ("margin", "accuracy"))
    apart = Readout(policy.chosen_logps, policy.rejected_logps)
    assert torch.equal(PlackettLuce()(apart, reference)[0], other)


@pytest.mark.parametrize("pairs", [CHAIN, STAR, EVERY, [(0, 2), (1, 2), (2, 3)]])
def test_gradients_of_the_answers_match_finite_differences(pairs):
    """Of an answer in several pairs the gradient counts once."""

    def loss(logps: torch.Tensor) -> torch.Tensor:
        return PlackettLuce()(*readouts(logps, pairs))[0].sum()

    start = torch.tensor([-3.0, -2.5, -4.0, -1.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (start,))


def test_circles_have_no_ranking(tiny, tokenizer):
    with pytest.raises(DataError, match="circle"):
        losses([2, 1, 0], [(0, 1), (1, 2), (2, 0)])
    pairs = PairSet([Pair("q", a, b, "0") for a, b in ((" a", " b"), (" b", " a"))], "mine")
    with pytest.raises(DataError, match="mine: 2 pairs are part of a circle"):
        fit("plackett-luce", tiny("llama"), tokenizer, pairs)


def test_a_ranking_is_trained(tiny, tokenizer, tmp_path):
    """From a file of ranks to a dial: log 3! an item at the start, which is two pairs, and less later."""
    rows = [
        {"prompt": f"{n}:", "responses": [f" a{n}", " bb", " c"], "ranks": [2, 1, 3]}
        for n in range(6)
    ]
    file = tmp_path / "ranks.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    pairs = read_pairs(f"{file}{{ranked}}")
    assert len(pairs) == 12
    assert [p.chosen[0]["content"].strip() for p in pairs[:2]] == ["bb", "a0"]
    assert [p.rejected[0]["content"].strip() for p in pairs[:2]] == ["a0", "c"]
    stars = read_pairs(str(file))
    assert {p.chosen[0]["content"].strip() for p in stars} == {"bb"}
    train = TrainSettings(pairs_per_step=12, max_steps=8, epochs=9, learning_rate=5e-3)
    out = tmp_path / "dial"
    fit(Recipe(PlackettLuce(), train=train), tiny("llama"), tokenizer, pairs, out=out)
    curve = [json.loads(line) for line in (out / "training.jsonl").open()]
    assert curve[0]["loss"] == pytest.approx(math.log(6) / 2, abs=1e-5)
    assert curve[-1]["loss"] < 0.9 * curve[0]["loss"]
    assert method("plackett-luce").recipe == Recipe(PlackettLuce())


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"ranks": [1, 2, 2]}, "ties.jsonl:2: two answers to one prompt have one score (2)"),
        ({"scores": [0.5, 0.5, 1]}, "ties.jsonl:2: two answers to one prompt have one score (0.5)"),
        ({"ranks": [1, 2]}, "ties.jsonl:2: column 'ranks': expected 3 numbers"),
        ({"ranks": [1, "x", 2]}, "ties.jsonl:2: column 'ranks'"),
        ({"ranks": [1, None, 2]}, "ties.jsonl:2: column 'ranks'"),
    ],
)
def test_ranks_that_are_none_name_file_and_line(tmp_path, row, said):
    file = tmp_path / "ties.jsonl"
    fine = {"prompt": "q", "responses": ["a", "b", "c"], "ranks": [1, 2, 3]}
    bad = {"prompt": "p", "responses": ["a", "b", "c"], **row}
    file.write_text("\n".join(map(json.dumps, [fine, bad])))
    with pytest.raises(DataError) as error:
        read_pairs(f"{file}{{ranked}}")
    assert said in str(error.value)
    kept = read_pairs(f"{file}{{ranked,skip-bad}}")
    assert (len(kept), kept.left_out) == (2, {"bad rows": 1})


def test_braces_are_words_that_are_known(tmp_path):
    with pytest.raises(DataError, match="ranks"):
        read_pairs("a.jsonl{ranks}")
    with pytest.raises((DataError, ConfigError), match="go with tables"):
        read_pairs("facts:train{ranked}")
