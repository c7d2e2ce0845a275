"""Contrasts: what personas become, and the token tree against separate sequences."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest
import torch

from conftest import TINY, VOCAB
from trimtab.batching import (
    Contrast,
    batches_of,
    encode_contrast,
    gradient_batches,
    is_contrast,
    layout_of,
    make_contrast,
    node_batches,
    tree_mask,
)
from trimtab.batching.contrast import grow
from trimtab.errors import ConfigError, DataError, ModelError
from trimtab.pairs import Pair, PairSet, read_pairs
from trimtab.readings import collect, reference
from trimtab.states import read
from trimtab.store import Store

TEMPLATE = "Pretend you are {persona}."


def contrast(seed: int = 0, n: int = 5, *, every: bool = True, known: bool = True) -> Contrast:
    """Random sequences with shared heads, as personas give them: longer than the tiny windows."""
    rng = random.Random(seed)

    def draw(k: int) -> tuple[int, ...]:
        return tuple(rng.randrange(2, VOCAB) for _ in range(k))

    start = draw(4)
    heads = [start + draw(9), start + draw(7)]
    sequences, chosen, rejected, items = [], [], [], []
    for i in range(n):
        suffix = draw(rng.randint(2, 8))
        for head in heads:
            sequences.append(head + suffix)
        last = len(suffix) if not known else len(suffix) - 1
        for length in range(1, last + 1) if every else (last,):
            chosen.append((2 * i, len(heads[0]) + length))
            rejected.append((2 * i + 1, len(heads[1]) + length))
            items.append(f"item{i}")
    return Contrast(tuple(sequences), tuple(chosen), tuple(rejected), tuple(items), 0, "random")


def separate(model: Any, ids: tuple[int, ...], site: int) -> torch.Tensor:
    """The state at the last token of a sequence run alone, by transformers' own hidden states."""
    out = model(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False)
    return out.hidden_states[site + 1][0, -1]


# ---- the tree -----------------------------------------------------------------------------------


def test_a_tree_by_hand():
    lines, places = grow([(1, 2, 3), (1, 2, 4, 5), (1, 6)])
    (line,) = lines
    assert line.ids == [1, 2, 3, 4, 5, 6]
    assert line.positions == [0, 1, 2, 2, 3, 1]
    assert line.ends == [6, 5, 3, 5, 5, 6]
    assert places == [(0, (0, 1, 2)), (0, (0, 1, 3, 4)), (0, (0, 5))]
    mask = tree_mask(torch.tensor([line.ends]), torch.tensor([line.positions]))[0, 0].int()
    assert mask.tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [1, 1, 0, 1, 1, 0],
        [1, 0, 0, 0, 0, 1],
    ]
    slid = tree_mask(torch.tensor([line.ends]), torch.tensor([line.positions]), 2)[0, 0].int()
    assert slid[4].tolist() == [0, 0, 0, 1, 1, 0]  # positions 2 and 3, not indices


def test_own_ends_are_seen_by_nobody():
    sequences = [(1, 2), (1, 2, 3), (1, 2), (1, 2, 3, 4)]
    (line,), places = grow(sequences, own=True)
    last = [path[-1] for _, path in places]
    assert len(set(last)) == 4
    for (_, path), ids in zip(places, sequences, strict=True):
        assert [line.ids[at] for at in path] == list(ids)
        assert line.ends[path[-1]] == path[-1] + 1


def test_rows_stay_within_the_limit_and_repeat_the_path():
    rng = random.Random(0)
    sequences = [(7, 8, 9, *(rng.randrange(20) for _ in range(6))) for _ in range(30)]
    lines, places = grow(sequences, limit=32)
    assert len(lines) > 1
    assert max(len(line.ids) for line in lines) <= 32
    for (row, path), ids in zip(places, sequences, strict=True):
        line = lines[row]
        assert tuple(line.ids[at] for at in path) == ids
        assert all(a < b < line.ends[a] for a, b in pairwise(path))


def test_each_distinct_prefix_is_computed_once():
    c = contrast(n=20)
    lines, _ = grow(c.sequences)
    prefixes = {ids[:n] for ids in c.sequences for n in range(1, len(ids) + 1)}
    assert sum(len(line.ids) for line in lines) == len(prefixes)
    positions = sum(b.input_ids.numel() for b in batches_of(c))
    assert positions < 0.2 * c.n_tokens


# ---- exactness ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*TINY, "bloom", "lfm2"])
def test_trie_equals_separate_sequences(tiny, name):
    """The tree (or, where attention cannot be masked, rows that truncations share) against each
    truncation run alone, beyond the sliding window."""
    model, c = tiny(name, "eager" if name == "bloom" else "sdpa"), contrast()
    assert max(map(len, c.sequences)) > 2 * 8
    found = collect(model, c, sites=(1, 2), budget=64)
    for number, pole in enumerate(c.poles):
        for site in (1, 2):
            truth = separate(model, c.ids(pole), site)
            assert (found.states[site][number] - truth).abs().max() < 1e-4 * truth.abs().max()


def test_trie_equals_separate_sequences_in_float64(tiny):
    model, c = tiny("qwen3", dtype=torch.float64), contrast(3)
    found = collect(model, c, sites=(2,))
    truth = torch.stack([separate(model, c.ids(p), 2) for p in c.poles])
    assert torch.allclose(found.states[2], truth, atol=1e-12, rtol=1e-12)


def test_a_leaked_tree_mask_would_be_caught(tiny, monkeypatch):
    from trimtab.batching import masks

    model, c = tiny("llama"), contrast()
    layout_of(model)
    right = collect(model, c, sites=(2,)).states[2]
    monkeypatch.setattr(masks, "tree_mask", lambda ends, p, w=None: tree_mask(ends * 0 + 99, p, w))
    wrong = collect(model, c, sites=(2,)).states[2]
    assert (right - wrong).abs().max() > 1e-2


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_gradient_batches_read_the_same_states_and_the_next_token(tiny, layout):
    model, c = tiny("llama"), contrast()
    for batch, pairs in gradient_batches(c, budget=96, layout=layout):
        found = read(model, batch, logps=True, sites=(1,))
        for n, i in enumerate(pairs):
            for k, pole in enumerate((c.chosen[i], c.rejected[i])):
                ids = c.ids(pole)
                follows = c.sequences[pole[0]][pole[1]]
                assert torch.allclose(
                    found.states[1][2 * n + k], separate(model, ids, 1), atol=1e-4
                )
                logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
                logp = torch.log_softmax(logits, -1)[follows]
                assert found.logps[2 * n + k].item() == pytest.approx(logp.item(), abs=1e-4)
                assert found.tokens[2 * n + k] == 1
    assert sorted(i for _, p in gradient_batches(c, 96, layout) for i in p) == list(
        range(c.n_pairs)
    )


def test_every_token_of_the_tree_is_scored_once(tiny):
    model, c = tiny("llama"), contrast()
    seen = 0
    for batch, sequences in node_batches(c, 64):
        found = read(model, batch, logps=True).logps
        for s, answers in sequences:
            ids = torch.tensor([c.sequences[s]])
            logps = torch.log_softmax(model(input_ids=ids).logits[0, :-1], -1)
            truth = logps.gather(-1, ids[0, 1:, None])[:, 0]
            assert torch.allclose(found[list(answers)], truth, atol=1e-4)
            seen += 1
    assert seen == len(c.sequences)


def test_cached_contrasts_equal_live_ones(tiny, store: Store):
    model, c = tiny("llama"), contrast()
    live = collect(model, c, sites=(1,))
    for _ in range(2):
        kept = reference(model, c, sites=(1,), store=store)
        assert torch.equal(kept.states[1], live.states[1])
    assert contrast(1).digest != c.digest != c.limit(2).digest


def test_the_first_items(tiny):
    c = contrast().limit(2)
    assert c.n_items == 2
    assert set(c.items) == {"item0", "item1"}
    assert len(c.poles) == c.n_answers <= len(contrast().poles)


# ---- from personas to tokens --------------------------------------------------------------------


def test_make_contrast_by_hand(tokenizer):
    c = make_contrast(TEMPLATE, ["good"], ["bad"], ["The sky is blue"], tokenizer)
    suffix = tokenizer("The sky is blue")["input_ids"]
    for persona, poles in (("good", c.chosen), ("bad", c.rejected)):
        turns = [{"role": "user", "content": f"Pretend you are {persona}."}]
        head = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        assert [c.ids(p) for p in poles] == [
            (*head, *suffix[:n]) for n in range(1, len(suffix))
        ]  # every truncation, as token ids; never the whole
    assert len(c.sequences) == 2
    assert c.known


@pytest.mark.parametrize(("stops", "short"), [("last", 0), ("known", 1)])
def test_read_once(tokenizer, stops, short):
    c = make_contrast(TEMPLATE, ["good"], ["bad"], ["The sky is blue"], tokenizer, stops=stops)
    assert [stop for _, stop in c.chosen] == [len(c.sequences[0]) - short]
    assert c.known is (stops == "known")


def test_all_couples_with_all_suffixes(tokenizer):
    c = make_contrast("{}?", ["a", "b"], ["c", "d"], ["Rome is", "Paris is"], tokenizer)
    assert c.n_items == 2
    assert len(c.sequences) == 8
    # all truncations of a suffix, whoever says it, are one item
    lengths = [len(tokenizer(s)["input_ids"]) - 1 for s in ("Rome is", "Paris is")]
    assert [c.items.count(i) for i in dict.fromkeys(c.items)] == [2 * n for n in lengths]


def with_bos(tokenizer: Any, template: str | None = None) -> Any:
    """A tokenizer that puts a BOS before every text, and whose template renders one too."""
    import copy

    from tokenizers.processors import TemplateProcessing

    made = copy.deepcopy(tokenizer)
    made.bos_token = "<|im_start|>"
    made._tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", made.bos_token_id)]
    )
    if template is not None:
        made.chat_template = template
    return made


def test_trap_no_double_bos(tokenizer):
    """A chat template renders the BOS itself; text of it, tokenised again, would get a second."""
    t = with_bos(tokenizer)
    assert t("sky")["input_ids"][0] == t.bos_token_id
    c = make_contrast(TEMPLATE, ["good"], ["bad"], ["The sky"], t, stops="last")
    suffix = t("The sky", add_special_tokens=False)["input_ids"]
    for pole in (*c.chosen, *c.rejected):
        ids = c.ids(pole)
        assert ids[0] == t.bos_token_id != ids[1]
        assert list(ids[-len(suffix) :]) == suffix  # no BOS before the suffix either
    rendered = "<|im_start|>user\nThe sky"
    assert rendered.startswith(t.bos_token)
    texts = PairSet([Pair("", rendered + " is", rendered + " was", "0")], "texts")
    c = encode_contrast(texts, t)
    assert [c.ids(p)[:2].count(t.bos_token_id) for p in (*c.chosen, *c.rejected)] == [1, 1]
    plain = encode_contrast(PairSet([Pair("", "The sky is", "The sky was", "0")], "plain"), t)
    assert plain.ids(plain.chosen[0])[0] == t.bos_token_id


def test_trap_the_poles_differ_in_the_persona_alone(tokenizer):
    """Whatever the template does to whitespace, the suffix's tokens are the same in both poles and
    those of the suffix alone."""
    c = make_contrast(TEMPLATE, ["good"], ["bad"], ["  The sky\n is"], tokenizer, stops="last")
    suffix = tuple(tokenizer("  The sky\n is")["input_ids"])
    assert all(c.ids(p)[-len(suffix) :] == suffix for p in (*c.chosen, *c.rejected))


def test_poles_that_differ_in_more_than_the_persona_are_warned_of(tokenizer):
    far = PairSet([Pair("", "The sky is blue", "Two and two are four", "0")], "far")
    with pytest.warns(UserWarning, match="differ in most of their tokens"):
        encode_contrast(far, tokenizer)


def test_trap_a_template_that_rejects_a_role_is_said(tokenizer):
    strict = with_bos(tokenizer, "{{ raise_exception('no system role') }}")
    with pytest.raises(ModelError, match="no system role"):
        make_contrast(TEMPLATE, ["good"], ["bad"], ["The sky"], strict)


THINKS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
MAY_THINK = THINKS.replace("<think>\n{% endif", "{% if x %}<think>{% endif %}{% endif")
CLOSES = THINKS.replace("<think>\n", "<think>\n\n</think>\n\n")


@pytest.mark.parametrize(
    ("template", "thinking", "tail"),
    [
        (THINKS, "template", "assistant\n<think>\nThe sky"),
        (THINKS, "inside", "assistant\n<think>\nThe sky"),
        (THINKS, "after", "assistant\n<think>\n\n</think>\n\nThe sky"),
        (MAY_THINK, "template", "assistant\nThe sky"),
        (MAY_THINK, "inside", "assistant\n<think>\nThe sky"),
        (MAY_THINK, "after", "assistant\n<think>\n\n</think>\n\nThe sky"),
        (CLOSES, "after", "assistant\n<think>\n\n</think>\n\nThe sky"),
    ],
)
def test_reading_inside_or_after_the_thinking_part(tokenizer, template, thinking, tail):
    t = with_bos(tokenizer, template)
    c = make_contrast("{}", ["good"], ["bad"], ["The sky"], t, thinking=thinking, stops="last")
    assert t.decode(c.ids(c.chosen[0])).endswith(tail)


def test_thinking_is_asked_of_models_that_think(tokenizer):
    with pytest.raises(ConfigError, match="no <think> part"):
        make_contrast("{}", ["a"], ["b"], ["The sky"], tokenizer, thinking="inside")
    closes = with_bos(tokenizer, CLOSES)
    with pytest.raises(ConfigError, match="closes the thinking part"):
        make_contrast("{}", ["a"], ["b"], ["The sky"], closes, thinking="inside")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"suffixes": ["The sky", "  "]}, "suffix 2 of 2 is empty"),
        ({"suffixes": []}, "no suffix"),
        ({"positive": ["a", "b"]}, "2 positive and 1 negative"),
        ({"template": "Hello"}, r"expected \{persona\}"),
        ({"negative": [""]}, "persona 2 of 2 is empty"),
        ({"max_length": 3}, "longer than max_length"),
    ],
)
def test_what_makes_no_contrast(tokenizer, change, message):
    given = {
        "template": TEMPLATE,
        "positive": ["a"],
        "negative": ["b"],
        "suffixes": ["The sky"],
    } | change
    with pytest.raises(DataError, match=message):
        make_contrast(tokenizer=tokenizer, **given)


def test_a_prompt_makes_no_contrast(few_pairs, tokenizer):
    assert not is_contrast(few_pairs)
    with pytest.raises(DataError, match="has no prompt"):
        encode_contrast(few_pairs, tokenizer)


def test_no_chat_template(tokenizer):
    t = with_bos(tokenizer)
    t.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        make_contrast(TEMPLATE, ["a"], ["b"], ["The sky"], t)


def test_over_long_pairs_are_dropped_and_counted(tokenizer):
    texts = ["The sky is", "The sky is " + "blue " * 40]
    c = make_contrast("{}", ["a"], ["b"], texts, tokenizer, max_length=40)
    assert (c.dropped_pairs, c.n_items) == (1, 1)


# ---- files and sets -----------------------------------------------------------------------------


def test_contrast_files(tmp_path, tokenizer):
    file = tmp_path / "c.jsonl"
    file.write_text('{"positive": "Be good.", "negative": "Be bad.", "suffix": "The sky is"}\n')
    (pair,) = read_pairs(file)
    assert pair.prompt == ""
    assert [m["role"] for m in pair.chosen] == ["user", "assistant"]
    assert encode_contrast(PairSet([pair], "x"), tokenizer).n_pairs > 1
    table = tmp_path / "c.csv"
    table.write_text("positive,negative\nThe sky is blue,The sky is four\n")
    (pair,) = read_pairs(table)
    assert (pair.prompt, pair.chosen, pair.rejected) == ("", "The sky is blue", "The sky is four")
    assert encode_contrast(PairSet([pair], "x"), tokenizer).n_pairs == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"positive": "a"}', "column 'negative' is missing"),
        ('{"positive": "a", "negative": "a"}', "positive equals negative"),
        ('{"positive": "a", "negative": ""}', "'negative' is empty"),
        ('{"positive": "a", "negative": "b", "suffix": " "}', "'suffix' is empty"),
        ('{"positive": "a", "negative": 3}', "expected text"),
    ],
)
def test_contrast_files_that_say_nothing(tmp_path, line, message):
    file = tmp_path / "c.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(DataError, match=message) as error:
        read_pairs(file)
    assert f"{file}:1" in str(error.value)
