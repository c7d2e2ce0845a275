"""Arms on a model: log-probs of options against separate passes, openings without an end, planted effects."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from trimtab.dials import VectorDial
from trimtab.errors import DataError
from trimtab.panel import Arm, Choices, Refusal, Texts, measure, read_panel
from trimtab.panel.options import Asked, Options
from trimtab.panel.properties import Reader
from trimtab.panel.run import changes

ASKED = [
    Options("a", "The capital of France is", (" Paris.", " Rome.", " ten.")),
    Options("b", "Two and two are", (" four.", " nine.")),
    Options("same", "Water is", (" wet.", " wet.", " dry.")),
]


def by_itself(model, tokenizer, prompt, answer, end=True):
    """Summed log-prob and tokens of an answer, in a pass of its own."""
    ids = tokenizer(prompt)["input_ids"]
    own = tokenizer(prompt + answer)["input_ids"][len(ids) :] + ([0] if end else [])
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids + own])).logits[0].log_softmax(-1)
    at = torch.arange(len(ids) - 1, len(ids) + len(own) - 1)
    return logits[at, torch.tensor(own)].sum().item(), len(own)


@pytest.mark.parametrize("openings", [False, True])
def test_options_are_scored_as_by_themselves(tiny, tokenizer, store, openings):
    model = tiny("llama")
    asked = Asked(ASKED, "mine", tokenizer, openings=openings)
    found = asked.scored(model, store=store)
    assert found.items == ("a", "b")
    assert found.left_out == 1  # two of its options cannot be told apart
    for o, sums, means in zip(ASKED, found.sums, found.means, strict=False):
        for answer, total, mean in zip(o.answers, sums, means, strict=True):
            expected, n = by_itself(model, tokenizer, o.prompt, answer, end=not openings)
            assert total == pytest.approx(expected, abs=1e-4)
            assert mean == pytest.approx(expected / n, abs=1e-4)


def head_down(model, tokenizer, letter):
    """A vector behind the last block that makes tokens with a letter less likely."""
    with torch.no_grad():
        ids = [i for i in range(len(tokenizer)) if letter in tokenizer.decode([i])]
        return -model.lm_head.weight[ids].mean(0)


def test_a_planted_effect_is_found_where_it_was_planted(tiny, tokenizer, store, tmp_path):
    """Right answers begin with x; a dial turns x down. Knowledge falls, and the twin whose answers have
    nothing to do with it does not."""
    letters = "abcdefghij"
    for name, right, wrong in (("planted", "x", "y"), ("twin", "y", "z")):
        rows = [
            {"prompt": f"{a}{b}:", "chosen": f" {right}", "rejected": f" {wrong}"}
            for a in letters
            for b in letters[:6]
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    panel = [Choices(n, sources=(str(tmp_path / f"{n}.jsonl"),)) for n in ("planted", "twin")]
    model = tiny("llama")
    dial = VectorDial({3: head_down(model, tokenizer, "x")}, {3: 200.0})
    arms = [Arm("base"), Arm("less x", dial, 1.0), Arm("less x", dial, 0.0)]
    bare, turned, off = measure(model, tokenizer, panel, arms, store=store)
    planted, twin = changes(bare, turned)
    assert (planted.property, twin.property) == ("planted", "twin")
    assert planted.bare.mean > 0.2
    assert planted.verdict is not None
    assert planted.verdict.verdict == "worse"
    assert planted.dialled.mean < 0.05
    assert twin.difference.value >= planted.difference.value + 0.2
    assert all(c.difference.value == 0 for c in changes(bare, off))


def test_refusals_go_through_the_chat_template_where_there_is_one(tiny, tokenizer, store):
    table = "\n".join(f"Do {w} harm. | Do {w} good." for w in ("some", "no", "much"))
    model = tiny("llama")
    (chat,) = measure(model, tokenizer, [Refusal("r", table=table)], [Arm("base")], store=store)
    assert [v.metric for v in chat["r"]] == ["refusal", "over_refusal", "discernment"]
    assert len(chat["r"][0].items) == 3
    refusal = Refusal("r", table=table)
    prepared: Any = refusal.prepared(refusal.read(9, None), Reader(model, tokenizer))
    row = prepared.asked.encoded.rows[0]
    assert tokenizer.decode(list(row.prompt)).startswith("<|im_start|>user")
    assert all(turns[0].stop == len(a) for a, turns in zip(row.answers, row.turns, strict=True))
    assert "<|im_end|>" not in tokenizer.decode(list(row.answers[0]))


def test_texts_are_continued_and_measured(tiny, tokenizer, store):
    texts = Texts("t", table="Say a word. | words 1 1\nSay two. | words 2 2", new_tokens=6)
    (found,) = measure(tiny("llama"), tokenizer, [texts], [Arm("base")], store=store)
    assert [v.metric for v in found["t"]] == ["followed", "repetition", "distinct", "length"]
    assert found["t"][3].values.max() > 0


def test_missing_data_say_where_they_were_looked_for(tiny, tokenizer, tmp_path):
    panel = [p for p in read_panel() if p.name == "bias"]
    with pytest.raises(DataError, match=r"no \.jsonl files in .*bbq"):
        measure(tiny("llama"), tokenizer, panel, [Arm("base")], data_root=tmp_path)
    with pytest.raises(DataError, match="no items: expected sources"):
        measure(tiny("llama"), tokenizer, [Choices("empty")], [Arm("base")])
