"""From pairs to token batches: tokens, plans, masks, and the proof of the packed layout."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from conftest import TINY, WINDOW, random_rows
from trimtab import models
from trimtab.batching import (
    Encoded,
    Row,
    attention_mask,
    batches,
    collate,
    encode,
    layout_of,
    masks,
    packed_mask,
    packing_proof,
    plan_batches,
    plan_training,
    proof,
    row_cost,
    row_length,
    sliding_window,
)
from trimtab.errors import DataError, ModelError
from trimtab.pairs import Pair, PairSet


def one(prompt, chosen, rejected, item="i") -> PairSet:
    return PairSet([Pair(prompt, chosen, rejected, item)], "one")


# ---- tokens -------------------------------------------------------------------------------------

USER = {"role": "user", "content": "Is the sky blue?"}
YES = {"role": "assistant", "content": "Yes, the sky is blue."}
NO = {"role": "assistant", "content": "No."}
TRICKY = {
    "merge over the boundary": ("Is th", "e sky blue?", " Two"),
    "one answer merges, the other not": ("the", "re then", " other"),
    "prompt ends with a space": ("Two and two are ", "four", "five"),
    "prompt ends with a newline": ("Two and two are\n", "\nfour", "five"),
    "answer is white space": ("Water boils", " ", "\n\n"),
    "empty prompt": ("", "The sky is blue.", "The sea is red."),
    "no merge": ("The capital of France is", " Paris.", " Rome."),
    "answer ends with eos": ("The capital", " one<eos>", " two"),
    "other scripts": ("ciel ét", "é bleu 天空", "oile 🙂"),
    "answers alike at first": ("Two", " and two are four", " and two are five"),
    "chat": ((USER,), (YES,), (NO,)),
    "chat of several turns": ((USER, NO, USER), (YES,), (NO,)),
    "chat with a system prompt": (
        ({"role": "system", "content": "Be brief."}, USER),
        (YES,),
        (NO,),
    ),
}


@pytest.mark.parametrize("case", TRICKY)
@pytest.mark.parametrize("real", [False, True], ids=["tiny", "smollm2"])
def test_an_answer_starts_where_trl_finds_it(case, real, request):
    trl = pytest.importorskip("trl.data_utils")
    tokenizer = (
        request.getfixturevalue("smollm2")[1] if real else request.getfixturevalue("tokenizer")
    )
    prompt, chosen, rejected = TRICKY[case]
    row = encode(one(prompt, chosen, rejected), tokenizer).rows[0]

    # trl 1.16, DPOTrainer._prepare_dataset: add_eos, then tokenize_fn
    if isinstance(prompt, str):
        eos = tokenizer.eos_token
        full = [prompt + a + ("" if a.endswith(eos) else eos) for a in (chosen, rejected)]
        ids = [trl._tokenize(tokenizer, text)["input_ids"] for text in (prompt, *full)]
    else:
        ids = [trl._tokenize(tokenizer, list(prompt), add_generation_prompt=True)["input_ids"]]
        ids += [trl._tokenize(tokenizer, [*prompt, *a])["input_ids"] for a in (chosen, rejected)]
    cut = min(trl.common_prefix_length(ids[0], ids[1]), trl.common_prefix_length(ids[0], ids[2]))
    assert list(row.prompt) == ids[0][:cut]
    assert [list(a) for a in row.answers] == [ids[1][cut:], ids[2][cut:]]


def test_the_tricky_texts_do_merge_over_the_boundary(tokenizer):
    prompt, chosen, rejected = TRICKY["merge over the boundary"]
    row = encode(one(prompt, chosen, rejected), tokenizer).rows[0]
    assert len(row.prompt) < len(tokenizer(prompt)["input_ids"])


def test_eos_ends_every_plain_answer_once(tokenizer, few_pairs):
    pairs = PairSet([*few_pairs, Pair("The capital", " one<eos>", " two", "e")], "few")
    for row in encode(pairs, tokenizer).rows:
        for answer in row.answers:
            assert answer[-1] == tokenizer.eos_token_id
            assert answer.count(tokenizer.eos_token_id) == 1


def test_chat_answers_end_as_the_template_ends_them(tokenizer):
    row = encode(one((USER,), (YES,), (NO,)), tokenizer).rows[0]
    text = tokenizer.decode(row.prompt)
    assert text == "<|im_start|>user\nIs the sky blue?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(row.answers[0]) == "Yes, the sky is blue.<|im_end|>\n"
    assert tokenizer.decode(row.answers[1]) == "No.<|im_end|>\n"


def test_the_body_of_a_chat_answer_ends_before_its_eos(tokenizer):
    import copy

    chat = copy.deepcopy(tokenizer)
    chat.eos_token = "<|im_end|>"  # as SmolLM2's: the template puts a newline behind it
    encoded = encode(one((USER,), (YES,), (NO,)), chat)
    batch = collate(encoded, [0])
    body = [
        tokenizer.decode(batch.token_id[batch.token_body & (batch.token_answer == a)])
        for a in (0, 1)
    ]
    assert body == [YES["content"], NO["content"]]
    assert batch.token_id[batch.token_marker].tolist() == [chat.eos_token_id] * 2
    assert batch.token_scored.all()  # what is scored is what TRL scores


def test_plain_prompts_can_be_wrapped_in_the_chat_template(tokenizer):
    plain = one("Is the sky blue?", " Yes, the sky is blue.", "No. ")
    chat = encode(one((USER,), (YES,), (NO,)), tokenizer)
    assert encode(plain, tokenizer, prompt_style="chat").rows[0] == chat.rows[0]


def test_pairs_of_an_item_share_a_row(tokenizer, few_pairs):
    encoded = encode(few_pairs, tokenizer)
    assert (len(encoded.rows), encoded.n_items, encoded.n_pairs, encoded.n_answers) == (5, 5, 6, 11)
    row = encoded.rows[2]
    assert row.item == "sum"
    assert len(row.answers) == 3  # the chosen answer is there once
    assert row.pairs == ((0, 1), (0, 2))
    assert row.pair_ids == (2, 3)
    assert encoded.answer_offsets == (0, 2, 4, 7, 9, 11)
    # an item with two prompts is two rows; two items with one prompt are two rows
    pairs = [Pair("a", " b", " c", "x"), Pair("aa", " b", " c", "x"), Pair("a", " b", " c", "y")]
    assert len(encode(PairSet(pairs, "p"), tokenizer).rows) == 3


def test_several_chosen_answers_of_an_item(tokenizer):
    pairs = PairSet(
        [
            Pair("the", " good", " bad", "x"),
            Pair("the", " better", " bad", "x"),
            Pair("the", " good", " worse", "x"),
        ],
        "several",
    )
    encoded = encode(pairs, tokenizer)
    row = encoded.rows[0]
    texts = [tokenizer.decode(a).removesuffix("<eos>") for a in row.answers]
    assert [(texts[c], texts[r]) for c, r in row.pairs] == [(p.chosen, p.rejected) for p in pairs]
    assert len(row.answers) == 4
    batch = collate(encoded, [0])
    assert batch.pair_chosen.tolist() == [c for c, _ in row.pairs]


def test_the_earliest_boundary_of_a_row_counts(tokenizer):
    pairs = [Pair("Is th", " is", "e sky", "x"), Pair("Is th", " is", " no", "x")]
    both = encode(PairSet(pairs, "p"), tokenizer).rows[0]
    alone = encode(PairSet(pairs[1:], "p"), tokenizer).rows[0]
    assert len(both.prompt) < len(alone.prompt)
    for c, r in both.pairs:  # whatever the boundary, prompt + answer is the same text
        for a in (c, r):
            assert tokenizer.decode(both.prompt + both.answers[a]).startswith("Is th")


def test_long_pairs_are_dropped_whole_and_counted(tokenizer):
    long = " nothing" * 40
    pairs = PairSet(
        [
            Pair("the", " a", " aa", "kept"),
            Pair("the", " a", " aa", "half"),
            Pair("the", " a", long, "half"),
            Pair("the", long, " a", "gone"),
        ],
        "long",
    )
    encoded = encode(pairs, tokenizer, max_length=20)
    assert encoded.dropped_pairs == 2
    assert [row.item for row in encoded.rows] == ["kept", "half"]
    assert [row.pair_ids for row in encoded.rows] == [(0,), (1,)]
    assert encoded.rows[1].longest <= 20
    assert len(encoded.rows[1].answers) == 2  # the long answer takes no positions
    exact = encoded.rows[0].longest
    assert encode(pairs, tokenizer, max_length=exact).n_pairs == 2
    with pytest.raises(
        DataError, match=f"all 4 pairs are longer than max_length={exact - 2} tokens"
    ):
        encode(pairs, tokenizer, max_length=exact - 2)


def test_what_cannot_be_encoded_is_refused(tokenizer):
    import copy

    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        encode(one("a", " b", " c"), bare, prompt_style="chat")
    with pytest.raises(ModelError, match="no chat template"):
        encode(one((USER,), (YES,), (NO,)), bare)
    with pytest.raises(DataError, match="prompt is chat messages, the answers are plain"):
        encode(one((USER,), "yes", "no"), tokenizer)
    without_eos = copy.deepcopy(tokenizer)
    without_eos.eos_token = None
    with pytest.raises(DataError, match="no tokens"):
        encode(one("the sky", "", " a"), without_eos)
    with pytest.raises(DataError, match="nothing predicts it"):
        encode(one("", "a", "The sky"), without_eos)


def test_a_digest_follows_the_tokens_alone(tokenizer, few_pairs):
    encoded = encode(few_pairs, tokenizer)
    renamed = encode(PairSet(few_pairs.pairs, "other"), tokenizer)
    assert encoded.digest == renamed.digest != encode(few_pairs[:4], tokenizer).digest


# ---- batches ------------------------------------------------------------------------------------


def small() -> Encoded:
    """Two rows: a prompt of 2 with answers of 2 and 1 tokens; an empty prompt with 1 and 1."""
    return Encoded(
        (
            Row("x", (10, 11), ((12, 0), (13,)), ((0, 1),), (0,)),
            Row("y", (), ((14,), (15,)), ((1, 0),), (1,)),
        ),
        0,
        0,
        "small",
    )


def test_a_packed_batch_by_hand():
    batch = collate(small(), [0, 1])
    assert batch.input_ids.tolist() == [[10, 11, 12, 0, 13], [14, 15, 0, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 2], [0, 0, 0, 0, 0]]
    assert batch.segments.tolist() == [[0, 0, 1, 1, 2], [1, 2, -1, -1, -1]]
    assert batch.token_row.tolist() == [0, 0, 0, 1, 1]
    assert batch.token_at.tolist() == [2, 3, 4, 0, 1]
    assert batch.token_from.tolist() == [1, 2, 1, 0, 1]
    assert batch.token_scored.tolist() == [True, True, True, False, False]
    assert batch.token_marker.tolist() == [False, True, False, False, False]
    assert batch.token_body.tolist() == [True, False, True, True, True]
    assert batch.token_answer.tolist() == [0, 0, 1, 2, 3]
    assert batch.answer_ids.tolist() == [0, 1, 2, 3]
    assert (batch.pair_chosen.tolist(), batch.pair_rejected.tolist()) == ([0, 3], [1, 2])
    assert batch.pair_ids.tolist() == [0, 1]
    assert batch.items == ("x", "x", "y", "y")


def test_a_padded_batch_by_hand():
    batch = collate(small(), [1, 0], "padded")
    assert batch.input_ids.tolist() == [
        [14, 0, 0, 0],
        [15, 0, 0, 0],
        [10, 11, 12, 0],
        [10, 11, 13, 0],
    ]
    assert batch.segments.tolist() == [
        [1, -1, -1, -1],
        [1, -1, -1, -1],
        [0, 0, 1, 1],
        [0, 0, 1, -1],
    ]
    assert batch.token_from.tolist() == [0, 0, 1, 2, 1]
    assert batch.answer_ids.tolist() == [2, 3, 0, 1]
    assert batch.pair_ids.tolist() == [1, 0]
    assert batch.items == ("y", "y", "x", "x")
    assert attention_mask(batch, torch.nn.Linear(1, 1)).tolist() == [
        [1, 0, 0, 0],
        [1, 0, 0, 0],
        [1, 1, 1, 1],
        [1, 1, 1, 0],
    ]


row_shapes = st.lists(
    st.tuples(st.integers(0, 30), st.lists(st.integers(1, 20), min_size=2, max_size=4)),
    min_size=1,
    max_size=25,
)


def rows_of(shapes) -> Encoded:
    return random_rows(0, tuple((n, tuple(lengths)) for n, lengths in shapes))


@settings(deadline=None, max_examples=60, derandomize=True)
@given(row_shapes, st.integers(1, 300), st.sampled_from(["packed", "padded"]))
def test_batches_hold_every_row_once_and_keep_to_the_budget(shapes, budget, layout):
    encoded = rows_of(shapes)
    plan = plan_batches(encoded, budget, layout)
    assert sorted(i for batch in plan for i in batch) == list(range(len(encoded.rows)))
    widths = []
    for rows in plan:
        positions = collate(encoded, rows, layout).input_ids.numel()
        assert positions <= budget or len(rows) == 1
        widths.append(max(row_length(encoded.rows[i], layout) for i in rows))
        if len(rows) == 1:
            assert positions == row_cost(encoded.rows[rows[0]], layout)
    assert widths == sorted(widths, reverse=True)  # longest first


@settings(
    deadline=None, max_examples=100, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(
    row_shapes,
    st.integers(3, 12),  # no item has more than 3 pairs
    st.floats(0.3, 3),
    st.integers(0, 5),
    st.integers(20, 400),
    st.sampled_from(["packed", "padded"]),
    st.sampled_from([1, 2]),
)
def test_a_training_plan(shapes, pairs_per_step, epochs, seed, budget, layout, multiple_of):
    encoded = rows_of(shapes)
    wanted = {
        "pairs_per_step": pairs_per_step,
        "epochs": epochs,
        "seed": seed,
        "budget": budget,
        "layout": layout,
        "multiple_of": multiple_of,
    }
    try:
        plan = plan_training(encoded, **wanted)
    except DataError:  # see test_what_cannot_be_planned_is_refused
        assume(multiple_of == 1)  # a step may have fewer items than processes
        raise
    assert plan == plan_training(encoded, **wanted)  # the same seed, the same plan
    assert plan.per_step % multiple_of == 0
    assert len(plan.microbatches) == plan.steps * plan.per_step
    assert all(plan.microbatches)  # none is empty
    assert plan.pairs_per_step == min(pairs_per_step, encoded.n_pairs)
    assert plan.steps == max(1, round(epochs * encoded.n_pairs / plan.pairs_per_step))
    seen: Counter[int] = Counter({i: 0 for i in range(len(encoded.rows))})
    fewest = min(sum(map(len, _step(plan, s))) for s in range(plan.steps))
    for s in range(plan.steps):
        step = _step(plan, s)
        pairs = sum(len(encoded.rows[i].pairs) for micro in step for i in micro)
        assert (
            plan.pairs_per_step - max(len(r.pairs) for r in encoded.rows)
            < pairs
            <= plan.pairs_per_step
        )
        for micro in step:
            seen.update(micro)
            if plan.per_step < fewest - multiple_of:  # the shortest step did not bind
                assert (
                    collate(encoded, micro, layout).input_ids.numel() <= budget or len(micro) == 1
                )
        assert max(seen.values()) - min(seen.values()) <= 1  # every row once before any comes again


def _step(plan, number):
    return plan.microbatches[number * plan.per_step : (number + 1) * plan.per_step]


def test_the_order_of_training_follows_the_seed():
    encoded = random_rows(0, tuple((5, (3, 3)) for _ in range(40)))
    plans = [
        plan_training(encoded, pairs_per_step=8, epochs=1, seed=s).microbatches for s in (0, 0, 1)
    ]
    assert plans[0] == plans[1] != plans[2]
    assert plan_training(encoded, pairs_per_step=8, epochs=9, seed=0, max_steps=3).steps == 3


def test_microbatches_of_a_step_are_alike_in_size():
    rng = random.Random(0)
    encoded = random_rows(
        0, tuple((rng.randrange(5, 60), (rng.randrange(1, 30), 9)) for _ in range(64))
    )
    plan = plan_training(encoded, pairs_per_step=16, epochs=2, seed=0, budget=256)
    sizes = [collate(encoded, m).input_ids.numel() for m in plan.microbatches]
    assert max(sizes) <= 256
    assert min(sizes) > 64


def test_what_cannot_be_planned_is_refused():
    encoded = random_rows(0, ((3, (2, 2, 2, 2)), (3, (2, 2))))
    with pytest.raises(DataError, match="an item has 3 pairs, more than pairs_per_step=2"):
        plan_training(encoded, pairs_per_step=2, epochs=1, seed=0)
    with pytest.raises(DataError, match="fewer items than there are processes"):
        plan_training(encoded, pairs_per_step=4, epochs=1, seed=0, multiple_of=4)


def test_packing_saves_positions_on_real_data(data_root, smollm2):
    from trimtab.pairs import read_pairs

    pairs = read_pairs("genies:truthful_qa/train", data_root)
    encoded = encode(pairs, smollm2[1])
    tokens = sum(row.packed_length for row in encoded.rows)
    positions = sum(collate(encoded, rows).input_ids.numel() for rows in plan_batches(encoded))
    assert tokens <= positions <= 1.2 * tokens
    first = PairSet([pairs_of[0] for pairs_of in pairs.items().values()], "one pair an item")
    for some in (encoded, encode(first, smollm2[1])):
        plan = plan_training(some, pairs_per_step=16, epochs=1, seed=0)
        batches = [collate(some, micro) for micro in plan.microbatches]
        tokens = sum(int((batch.segments >= 0).sum()) for batch in batches)
        assert sum(batch.input_ids.numel() for batch in batches) <= 1.2 * tokens


# ---- masks --------------------------------------------------------------------------------------

#            p p p a a b b .
SEGMENTS = [[0, 0, 0, 1, 1, 2, 2, -1]]
POSITIONS = [[0, 1, 2, 3, 4, 3, 4, 0]]
FULL = """
    1.......
    11......
    111.....
    1111....
    11111...
    111..1..
    111..11.
    .......1
"""
WINDOW_OF_3 = """
    1.......
    11......
    111.....
    .111....
    ..111...
    .11..1..
    ..1..11.
    .......1
"""


@pytest.mark.parametrize(("window", "picture"), [(None, FULL), (3, WINDOW_OF_3), (99, FULL)])
def test_a_mask_by_hand(window, picture):
    mask = packed_mask(torch.tensor(SEGMENTS), torch.tensor(POSITIONS), window)
    assert mask.shape == (1, 1, 8, 8)
    assert ["".join(".1"[int(v)] for v in row) for row in mask[0, 0]] == picture.split()


def test_a_mask_of_several_rows_in_a_line_behind_a_prefix():
    segments = torch.tensor([[0, 1, 2, 0, 1, -1]])
    positions = torch.tensor([[2, 3, 3, 2, 3, 0]])
    members = torch.tensor([[0, 0, 0, 1, 1, -1]])
    mask = packed_mask(segments, positions, None, 2, members)
    assert mask.shape == (1, 1, 6, 8)
    assert ["".join(".1"[int(v)] for v in row) for row in mask[0, 0]] == [
        "111.....",
        "1111....",
        "111.1...",
        "11...1..",
        "11...11.",
        ".......1",
    ]
    slid = packed_mask(segments, positions, 2, 2, members)
    assert ["".join(".1"[int(v)] for v in row) for row in slid[0, 0]] == [
        ".11.....",
        "..11....",
        "..1.1...",
        ".1...1..",
        ".....11.",
        ".......1",
    ]


@given(st.lists(st.integers(1, 90), min_size=1, max_size=40))
def test_lines_hold_every_row_once_and_little_padding(lengths):
    lines = batches.lines_of(lengths)
    assert sorted(n for line in lines for n in line) == list(range(len(lengths)))
    width = max(sum(lengths[n] for n in line) for line in lines)
    assert width <= max(batches.WIDEST * 51 // 50 + 1, *lengths)
    one_a_line = max(lengths) * len(lengths)
    assert width * len(lines) * (batches.ATTENTION + width) <= one_a_line * (
        batches.ATTENTION + max(lengths)
    )


def test_a_shared_batch_by_hand():
    rows = (
        Row("x", (5, 6, 10), ((1, 0), (2, 0)), ((0, 1),), (0,)),
        Row("y", (5, 6, 11, 12), ((3, 0), (4, 7)), ((1, 0),), (1,)),
    )
    batch = collate(Encoded(rows, 0, 0, "hand"), [0, 1], "shared", share_least=2)
    assert batch.prefix.tolist() == [5, 6]
    # without the prefix six and five tokens, in one line: the longer first
    assert batch.input_ids.tolist() == [[11, 12, 3, 0, 4, 7, 10, 1, 0, 2, 0]]
    assert batch.positions.tolist() == [[2, 3, 4, 5, 4, 5, 2, 3, 4, 3, 4]]
    assert batch.segments.tolist() == [[0, 0, 1, 1, 2, 2, 0, 1, 1, 2, 2]]
    assert batch.members.tolist() == [[0] * 6 + [1] * 5]
    assert batch.token_at.tolist() == [2, 3, 4, 5, 7, 8, 9, 10]
    assert batch.token_from.tolist() == [1, 2, 1, 4, 6, 7, 6, 9]
    assert batch.token_scored.all()
    assert batch.answer_ids.tolist() == [2, 3, 0, 1]
    assert (batch.pair_chosen.tolist(), batch.pair_rejected.tolist()) == ([1, 2], [0, 3])
    assert batch.items == ("y", "y", "x", "x")
    assert collate(Encoded(rows, 0, 0, "hand"), [0, 1], "shared").prefix is None, "saves too little"


@pytest.mark.parametrize(
    ("name", "window"),
    [("llama", None), ("gemma3", WINDOW), ("mistral", WINDOW), ("gpt2", None), ("qwen3", None)],
)
def test_windows_are_found(tiny, name, window):
    assert sliding_window(models.text_config(tiny(name))) == window


def test_masks_take_the_form_that_each_attention_adds_or_selects(tiny, rows):
    batch = collate(rows, [0, 1])
    assert attention_mask(batch, tiny("llama")).dtype == torch.bool
    added = attention_mask(batch, tiny("llama", "eager"))
    assert added.dtype == torch.float32
    assert set(added.unique().tolist()) == {0.0, torch.finfo(torch.float32).min}
    mixed = attention_mask(batch, tiny("gemma3"))
    assert set(mixed) == {"full_attention", "sliding_attention"}
    assert (mixed["full_attention"] & ~mixed["sliding_attention"]).any()
    sliding = attention_mask(batch, tiny("mistral"))
    assert torch.equal(sliding, mixed["sliding_attention"])


# ---- the proof ----------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", TINY)
def test_the_proof_holds(tiny, name, attention):
    result = packing_proof(tiny(name, attention))
    assert result.holds, result.reason
    assert result.error <= 1e-4
    assert result.leaked > 0.1
    assert result.shares
    assert layout_of(tiny(name, attention)) == "shared"


def prove(model):
    """The proof, never remembered."""
    return proof._prove(model, *proof._every(model, None))


def by_index(segments, positions, window=None, prefix=0, members=None):
    """A packed mask whose window counts indices, as a mask made for one sequence would."""
    index = torch.arange(segments.shape[1]).expand_as(positions)
    full = packed_mask(segments, positions)
    return full if window is None else full & packed_mask(segments * 0, index, window)


def leaking(segments, positions, window=None, prefix=0, members=None):
    """Answers see each other."""
    return packed_mask(segments.clamp(max=0), positions, window)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("fault", "name"),
    [("index", "gemma3"), ("index", "mistral"), ("lost", "gemma3"), ("lost", "mistral")]
    + [("leak", name) for name in TINY],
)
def test_a_wrong_mask_fails_the_proof(tiny, monkeypatch, fault, name, attention):
    model = tiny(name, attention)
    right = packed_mask
    if fault == "index":
        monkeypatch.setattr(masks, "packed_mask", by_index)
    elif fault == "leak":
        monkeypatch.setattr(masks, "packed_mask", leaking)
    else:
        monkeypatch.setattr(
            masks, "packed_mask", lambda s, p, window=None, prefix=0, members=None: right(s, p)
        )
    result = prove(model)
    assert not result.holds
    assert result.error > 0.05
    assert "differ" in result.reason


@pytest.mark.parametrize("name", TINY)
def test_a_boolean_mask_given_to_eager_attention_fails_the_proof(tiny, monkeypatch, name):
    monkeypatch.setattr(masks, "adds_masks", lambda config: False)
    result = prove(tiny(name, "eager"))
    assert not result.holds
    assert result.error > 0.05


def test_a_proof_that_sees_no_leak_does_not_count(tiny):
    """A model that looks at nothing but the last token is right under any mask."""
    model = tiny("llama", fresh=True)
    for layer in models.layers(model):
        layer.self_attn.o_proj.weight.data.zero_()
    result = packing_proof(model)
    assert not result.holds
    assert "cannot tell" in result.reason


def test_the_proof_outruns_the_window_or_knows_that_nothing_can(tiny, monkeypatch):
    for limit, window in ((256, 100), (64, 64), (1 << 20, 1 << 20)):
        model, lengths = tiny("mistral", fresh=True), []
        model.config.max_position_embeddings = limit
        model.config.sliding_window = window
        model.register_forward_pre_hook(
            lambda _, __, kwargs, to=lengths: to.append(kwargs["input_ids"].shape[1]),
            with_kwargs=True,
        )
        assert prove(model).holds
        reached = (window + 9) if window + 17 <= limit else 0
        assert reached <= max(lengths) < 400  # not a million positions


def test_the_proof_is_kept_for_each_dtype_and_kernel(tiny):
    model = tiny("llama", fresh=True)
    first = packing_proof(model)
    assert packing_proof(model) == first
    half = tiny("llama", dtype=torch.bfloat16, fresh=True)
    second = packing_proof(half)
    assert second.holds  # within the rounding of bfloat16
    assert second.error > 1e-4 > first.error
    half.config._attn_implementation = "eager"
    assert packing_proof(half) != second


def test_the_proof_leaves_the_model_as_it_was(tiny):
    model = tiny("gpt2", fresh=True)
    model.train()
    assert packing_proof(model).holds  # dropout would have failed it
    assert model.training
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", ["bloom", "mamba", "recurrentgemma", "lfm2"])
def test_models_that_cannot_be_packed_are_padded(tiny, name):
    result = packing_proof(tiny(name, "eager"))
    assert not result.holds
    assert result.reason
    assert math.isnan(result.error)
    assert layout_of(tiny(name, "eager")) == "padded"


def test_the_proof_holds_on_the_real_model(smollm2):
    result = packing_proof(smollm2[0])
    assert result.holds
    assert result.error < 1e-4
    assert result.leaked > 0.2
