"""Reading log-probs and pooled states: what is read is right, whatever the layout, and no more is
computed than is read."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import TINY, VOCAB, WINDOW, count_calls, random_rows
from trimtab import models, states
from trimtab.batching import Encoded, Row, attention_mask, collate
from trimtab.dials import AdapterDial, VectorDial
from trimtab.dials.adapter import linear_modules
from trimtab.dials.contexts import paused
from trimtab.errors import ConfigError, DataError
from trimtab.states import pair_up, read

# transformers 5.23 renames its checkpointing switches: not ours.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

POOLS = ("completion", "predicting", "last", "marker")
SITES = ("embed", 0, 2, 3, "final")
RECURRENT = ("bloom", "mamba", "recurrentgemma", "lfm2")
AFTER_THE_HEAD = ("gemma2", "granite", "cohere")


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    """Equal within `tolerance` of the largest value."""
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(1.0, b.abs().max().item()))


def hooks_on(model: Any) -> int:
    """How many there are (transformers itself leaves some, for `output_hidden_states`)."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def one_by_one(model: Any, encoded: Encoded) -> dict[str, Any]:
    """Every answer run alone through the plain model: the truth, by transformers' own outputs."""
    logps, tokens = [], []
    pooled: dict[tuple[Any, str], list[Tensor]] = {}
    for row in encoded.rows:
        for answer in row.answers:
            ids = torch.tensor([row.prompt + answer])
            with torch.no_grad():
                out = model(input_ids=ids, output_hidden_states=True, use_cache=False)
            first, n = max(len(row.prompt), 1), ids.shape[1]
            table = torch.log_softmax(out.logits[0].double(), -1)
            logps.append(sum(table[t - 1, ids[0, t]] for t in range(first, n)))
            tokens.append(n - first)
            body = [t for t in range(len(row.prompt), n) if ids[0, t] != encoded.eos or t < n - 1]
            places = {
                "completion": body,
                "predicting": [t - 1 for t in body if t > 0],
                "last": body[-1:],
                "marker": [n - 1] if answer[-1] == encoded.eos else [],
            }
            states_of = {k: out.hidden_states[k + 1] for k in range(3)} | {
                "final": out.hidden_states[-1]
            }
            for site, h in states_of.items():
                for pool, at in places.items():
                    if at:
                        mean = h[0, at].float().mean(0)
                        pooled.setdefault((site, pool), []).append(mean)
    return {
        "logps": torch.stack(logps).float(),
        "tokens": torch.tensor(tokens),
        **{key: torch.stack(values) for key, values in pooled.items()},
    }


def ordered(
    model: Any,
    encoded: Encoded,
    batches: list[list[int]],
    layout: str,
    share_least: int = 64,
    **options: Any,
) -> Any:
    """Read in these batches; entries in the order of the encoded set's answers."""
    found, places = [], []
    with torch.no_grad():
        for rows in batches:
            batch = collate(encoded, rows, layout, share_least=share_least)
            found.append(read(model, batch, **options))
            places.append(batch.answer_ids)
    back = torch.cat(places).argsort()
    return states.Readings(
        logps=torch.cat([f.logps for f in found])[back] if options.get("logps") else None,
        tokens=torch.cat([f.tokens for f in found])[back] if options.get("logps") else None,
        states={s: torch.cat([f.states[s] for f in found])[back] for s in options.get("sites", ())},
        norms={s: torch.cat([f.norms[s] for f in found])[back] for s in options.get("sites", ())},
    )


# ---- the same, whatever the layout --------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", TINY)
def test_packed_is_padded_is_one_by_one(tiny, rows, name, attention):
    model = tiny(name, attention)
    truth = one_by_one(model, rows)
    for layout in ("packed", "padded"):
        for pool in POOLS:
            for batches in ([[0, 1, 2]], [[2], [1, 0]]):
                found = ordered(
                    model, rows, batches, layout, logps=True, sites=(0, 1, 2, "final"), pool=pool
                )
                close(found.logps, truth["logps"])
                assert found.tokens.tolist() == truth["tokens"].tolist()
                for site in (0, 1, 2, "final"):
                    close(found.states[site], truth[site, pool])


def common_start(length: int = WINDOW + 5) -> Encoded:
    """Rows whose prompts begin alike, one of them with nothing but one token of its own behind."""
    draw = random.Random(5)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(draw.randrange(2, VOCAB) for _ in range(n))

    start = ids(length)
    rows = (
        Row("a", (*start, 7), (ids(4), ids(6)), ((0, 1),), (0,)),
        Row("b", (*start, 9, *ids(3)), (ids(2), ids(5), ids(3)), ((0, 1), (0, 2)), (1, 2)),
        Row("c", (*start, 8, *ids(1)), (ids(1), ids(3)), ((0, 1),), (3,)),
    )
    return Encoded(rows, 0, 0, "common")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", [*TINY, *AFTER_THE_HEAD])
def test_a_prefix_computed_once_changes_nothing(tiny, name, attention):
    if name in AFTER_THE_HEAD and attention == "sdpa":
        pytest.skip("one kernel is enough here")
    model, encoded = tiny(name, attention), common_start()
    sites = (0, 2, "final")
    plain = ordered(model, encoded, [[0, 1, 2]], "packed", logps=True, sites=sites)
    for cut in ([[0, 1, 2]], [[2, 0], [1]]):
        batch = collate(encoded, cut[0], "shared", share_least=1)
        assert batch.prefix is not None
        assert len(batch.prefix) == WINDOW + 5
        shared = ordered(model, encoded, cut, "shared", share_least=1, logps=True, sites=sites)
        close(shared.logps, plain.logps)
        assert shared.tokens.tolist() == plain.tokens.tolist()
        for site in sites:
            close(shared.states[site], plain.states[site])
    # a pass that ends early, with nothing above its site
    for site in (0, 1, "embed"):
        early = ordered(model, encoded, [[0, 1, 2]], "shared", share_least=1, sites=(site,))
        whole = ordered(model, encoded, [[0, 1, 2]], "packed", sites=(site,))
        close(early.states[site], whole.states[site])


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_gradients_flow_through_a_shared_prefix(tiny, name):
    model, encoded = tiny(name, dtype=torch.float64), common_start()
    found = []
    for layout in ("packed", "shared"):
        weight = models.layers(model)[0]
        parameter = next(p for p in weight.parameters() if p.ndim == 2)
        parameter.requires_grad_(True)
        try:
            batch = collate(encoded, [0, 1, 2], layout, share_least=1)
            got = read(model, batch, logps=True, sites=(2,))
            loss = got.logps.sum() + got.states[2].square().sum()
            found.append(torch.autograd.grad(loss, parameter)[0])
        finally:
            parameter.requires_grad_(False)
    # Rotary angles are in float32 whatever the model.
    assert float((found[0] - found[1]).norm() / found[0].norm()) < (
        1e-12 if name == "gpt2" else 1e-6
    )


@pytest.mark.parametrize("name", [*RECURRENT, *AFTER_THE_HEAD])
def test_models_off_the_main_road_score_right(tiny, rows, name):
    """ALiBi, recurrent and hybrid models in padded rows; soft-capped and scaled logits in both."""
    model = tiny(name, "eager")
    truth = one_by_one(model, rows)
    for layout in ("padded",) if name in RECURRENT else ("packed", "padded"):
        found = ordered(model, rows, [[2], [1, 0]], layout, logps=True, sites=("final",))
        close(found.logps, truth["logps"])
        close(found.states["final"], truth["final", "completion"])


def test_what_follows_the_head_makes_a_difference(tiny, rows):
    """The test above is worth something: without cap or scale, the log-probs are others."""
    for name, change in (
        ("gemma2", "final_logit_softcapping"),
        ("granite", "logits_scaling"),
        ("cohere", "logit_scale"),
    ):
        model = tiny(name, "eager", fresh=True)
        before = read(model, collate(rows, [0]), logps=True).logps
        setattr(model.config, change, None if name == "gemma2" else 1.0)
        if hasattr(model, change):
            setattr(model, change, 1.0)
        assert (read(model, collate(rows, [0]), logps=True).logps - before).abs().max() > 0.1


@pytest.mark.parametrize("name", ["gemma3", "gpt2", "qwen3moe"])
def test_lengths_and_scores_do_not_depend_on_the_batch(tiny, name):
    encoded = random_rows(3, ((20, (9, 2)), (3, (1, 1)), (0, (12, 4)), (9, (30, 3, 3))))
    together = ordered(tiny(name), encoded, [[0, 1, 2, 3]], "packed", logps=True, sites=(0, 3))
    apart = ordered(tiny(name), encoded, [[3], [1], [2], [0]], "packed", logps=True, sites=(0, 3))
    padded = ordered(tiny(name), encoded, [[3, 0], [1, 2]], "padded", logps=True, sites=(0, 3))
    for other in (apart, padded):
        close(together.logps, other.logps)
        for site in (0, 3):
            close(together.states[site], other.states[site])
            close(together.norms[site], other.norms[site])


def test_an_empty_prompt_scores_nothing_for_the_first_token(tiny):
    model = tiny("llama")
    encoded = random_rows(5, ((0, (6, 3)),))
    found = read(model, collate(encoded, [0]), logps=True, sites=(1,), pool="predicting")
    truth = one_by_one(model, encoded)
    assert found.tokens.tolist() == [6, 3]  # 7 and 4 tokens with EOS
    close(found.logps, truth["logps"])
    close(found.states[1], truth[1, "predicting"])


def test_the_real_model_packed_is_one_by_one(smollm2, few_pairs):
    from trimtab.batching import encode

    model, tokenizer = smollm2
    encoded = encode(few_pairs, tokenizer)
    truth = one_by_one(model, encoded)
    rows = list(range(len(encoded.rows)))
    found = ordered(model, encoded, [rows], "packed", logps=True, sites=(2, "final"))
    close(found.logps, truth["logps"])
    close(found.states[2], truth[2, "completion"])
    close(found.states["final"], truth["final", "completion"], 2e-5)
    readout = pair_up(found, collate(encoded, rows))
    assert (readout.chosen_logps > readout.rejected_logps).sum() >= 4  # it knows where Paris is


def test_padding_on_the_left_is_no_other_model(tiny, rows):
    """What the padded layout gives is what a left-padded batch gives."""
    model = tiny("gemma3")
    batch = collate(rows, [0, 1], "padded")
    found = read(model, batch, logps=True).logps
    width = batch.input_ids.shape[1]
    real = (batch.segments >= 0).sum(1)
    left = torch.stack(
        [row.roll(int(width - n)) for row, n in zip(batch.input_ids, real, strict=True)]
    )
    mask = torch.arange(width)[None] >= (width - real)[:, None]
    table = torch.log_softmax(model(input_ids=left, attention_mask=mask.long()).logits, -1)
    shift = width - real
    total = torch.zeros(batch.n_answers)
    for row, at, before, answer, t in zip(
        batch.token_row,
        batch.token_at,
        batch.token_from,
        batch.token_answer,
        batch.token_id,
        strict=True,
    ):
        assert left[row, at + shift[row]] == t
        total[answer] += table[row, before + shift[row], t]
    close(found, total)


# ---- sites --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TINY)
def test_a_block_is_read_before_the_final_norm(tiny, rows, name):
    """transformers' last hidden state is post-norm: block N - 1 is not it, but its norm is."""
    model = tiny(name)
    found = read(model, collate(rows, [0, 2]), sites=(3, -1, "final"), pool="last")
    assert torch.equal(found.states[3], found.states[-1])
    assert (found.states[3] - found.states["final"]).abs().max() > 0.1
    close(models.final_norm(model)(found.states[3]), found.states["final"])


def test_module_paths_are_read_in_and_out(tiny, rows):
    model = tiny("qwen3")
    batch = collate(rows, [0, 1])
    sites = (
        "model.layers.2.mlp:in",
        "model.layers.2.mlp:out",
        "model.layers.1.self_attn:in",  # called with keywords alone
        "model.layers.1.self_attn:out",  # gives a tuple
        "model.layers.1.input_layernorm:out",
        "model.layers.1:out",
        "model.layers.2:in",
        1,
        "model.norm:out",
        "lm_head:in",
        "final",
        "model.embed_tokens:out",
        "embed",
    )
    found = read(model, batch, sites=sites, pool="last").states
    assert torch.equal(
        found["model.layers.1.self_attn:in"], found["model.layers.1.input_layernorm:out"]
    )
    assert torch.equal(found["model.layers.1:out"], found[1])
    assert torch.equal(found["model.layers.2:in"], found[1])
    assert torch.equal(found["model.norm:out"], found["final"])
    assert torch.equal(found["lm_head:in"], found["final"])
    assert torch.equal(found["model.embed_tokens:out"], found["embed"])
    close(
        model.model.layers[2].mlp(found["model.layers.2.mlp:in"]), found["model.layers.2.mlp:out"]
    )


@pytest.mark.parametrize(
    "site", [4, -5, "model.layers.9:out", "model.norm", ":out", "model.norm:side", "lm_head:out"]
)
def test_a_site_that_is_not_there_is_refused(tiny, rows, site):
    with pytest.raises(ConfigError, match=r"site"):
        read(tiny("llama"), collate(rows, [0]), sites=(site,))


@pytest.mark.parametrize(
    ("site", "expected"),
    [
        (2, 2),
        (-1, 3),
        ("embed", -1),
        ("final", 4),
        ("model.layers.1.mlp.up_proj:out", 1),
        ("model.layers.1:out", 1),
        ("model.layers.1:in", 1),
        ("model.norm:in", 4),
        ("lm_head:in", 4),
    ],
)
def test_depth(tiny, site, expected):
    assert states.depth(tiny("llama"), site) == expected


def test_layer_names_that_share_a_beginning_are_told_apart(tiny):
    """Block 1 is no part of block 11."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=12,
        num_attention_heads=2,
    )
    model = transformers.LlamaForCausalLM(config)
    assert states.depth(model, "model.layers.11.mlp:out") == 11
    assert states.depth(model, "model.layers.11:out") == 11


# ---- pooling ------------------------------------------------------------------------------------


def hand() -> Encoded:
    """Prompt of 2, answers of 3 tokens + EOS and of 1 + EOS."""
    return Encoded((Row("x", (10, 11), ((12, 13, 14, 0), (15, 0)), ((0, 1),), (0,)),), 0, 0, "hand")


def pooled(tiny, h: Tensor, **options) -> Any:
    """Readings where the state at a site is `h` [T, d], for the hand-made row."""
    model = tiny("llama", fresh=True)
    model.model.layers[1].register_forward_hook(lambda *_: h[None])
    return read(model, collate(hand(), [0]), sites=(1,), **options)


#        p p | a  a  a eos | b eos
VALUES = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        ("completion", [(4 + 8 + 16) / 3, 64]),
        ("predicting", [(2 + 4 + 8) / 3, 2]),
        ("last", [16, 64]),
        ("marker", [32, 128]),
    ],
)
def test_pools_by_hand(tiny, pool, expected):
    h = torch.tensor(VALUES)[:, None].expand(-1, 32) / 32**0.5  # the length of a state is its value
    found = pooled(tiny, h, pool=pool)
    close(found.states[1].norm(dim=-1), torch.tensor(expected, dtype=torch.float32))
    close(found.norms[1], torch.tensor(expected, dtype=torch.float32))


def test_the_l2_map_divides_each_token_before_pooling(tiny):
    h = torch.zeros(8, 32)
    h[2, 0], h[3, 1], h[4, 1] = 5, 3, 100
    h[6, 2] = 7
    found = pooled(tiny, h, token_map="l2")
    assert found.states[1][0, :3].tolist() == pytest.approx([1 / 3, 2 / 3, 0])
    assert found.states[1][1, :3].tolist() == pytest.approx([0, 0, 1])
    assert found.norms[1].tolist() == pytest.approx(
        [(5 + 3) / 2, 7]
    )  # 100 is a sink: > 10 x the median 5


def test_sinks_are_left_out_of_lengths_but_not_of_states(tiny):
    h = torch.ones(8, 32) / 32**0.5
    h[2] *= 1000
    found = pooled(tiny, h)
    assert found.norms[1].tolist() == pytest.approx([1, 1])
    assert found.states[1].norm(dim=-1).tolist() == pytest.approx([1002 / 3, 1])


def test_what_is_a_sink_depends_on_its_own_answer_alone(tiny):
    h = torch.ones(8, 32) / 32**0.5
    h[3:5] *= 30  # the usual length in the first answer; the median over both answers is 1
    assert pooled(tiny, h).norms[1].tolist() == pytest.approx([61 / 3, 1])


def test_nothing_to_pool_is_an_error_that_names_the_item(tiny):
    encoded = Encoded((Row("lonely", (5, 6), ((0,), (7,)), ((0, 1),), (0,)),), 0, 0, "x")
    batch = collate(encoded, [0])
    for pool in ("completion", "marker"):
        with pytest.raises(
            DataError, match=f"item lonely: an answer has no token to pool at '{pool}'"
        ):
            read(tiny("llama"), batch, sites=(1,), pool=pool)


def test_readings_are_float32_of_a_half_model_and_float64_of_a_double_one(tiny, rows):
    batch = collate(rows, [0])
    for dtype, kept in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        found = read(tiny("llama", dtype=dtype), batch, logps=True, sites=(1,))
        assert found.logps.dtype == found.states[1].dtype == found.norms[1].dtype == kept


def test_pairs_are_lined_up(tiny, rows):
    batch = collate(rows, [2, 0])
    found = read(tiny("llama"), batch, logps=True, sites=(1,))
    readout = pair_up(found, batch, {1: 0.5})
    # row 2: pair (0, 1); row 0: pairs (0, 1), (0, 2); answers in batch order
    for side, index in (("chosen", [0, 2, 2]), ("rejected", [1, 3, 4])):
        assert torch.equal(getattr(readout, f"{side}_logps"), found.logps[index])
        assert torch.equal(getattr(readout, f"{side}_tokens"), found.tokens[index])
        assert torch.equal(getattr(readout, side)[1], found.states[1][index])
    assert readout.floor == {1: 0.5}


# ---- no more than is read -----------------------------------------------------------------------


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize(
    ("sites", "deepest"), [((1, 0), 1), ((2,), 2), (("embed",), -1), (("final",), 4)]
)
def test_states_alone_run_no_deeper_block_and_no_head(tiny, rows, name, sites, deepest):
    model = tiny(name)
    stack = models.layers(model)
    batch = collate(rows, [0, 1])
    full = read(model, batch, logps=True, sites=sites)
    hooks = hooks_on(model)
    counts, done = count_calls(*stack)
    ran = []
    handle = models.head(model).register_forward_hook(lambda *_: ran.append(1))
    early = read(model, batch, sites=sites)
    done()
    handle.remove()
    # The next block is not entered. (With "embed" block 0's hooks run, the block does not.)
    allowed = 4 if deepest == 4 else max(deepest, 0) + 1
    assert counts == [1] * allowed + [0] * (4 - allowed)
    assert not ran
    for site in sites:
        assert torch.equal(early.states[site], full.states[site])
    assert hooks_on(model) == hooks


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", TINY)
def test_early_exit_gives_the_same_gradients(tiny, rows, name, checkpointing):
    model = tiny(name, fresh=True)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.train()
    batch = collate(rows, [0, 1])
    gradients = []
    for logps in (False, True):
        dial = AdapterDial(
            linear_modules(model, blocks=range(2)),
            rank=2,
            generator=torch.Generator().manual_seed(0),
        )
        for B in dial.B:
            torch.nn.init.normal_(B, std=0.1, generator=torch.Generator().manual_seed(1))
        with dial(model, 1.0, training=True):
            found = read(model, batch, logps=logps, sites=(0, 1))
            (found.states[1].square().sum() + found.states[0].sum()).backward()
        gradients.append([p.grad for p in dial.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert sum(g.abs().sum() for g in gradients[0]) > 0


def test_the_head_sees_scored_positions_alone(tiny, rows):
    model = tiny("llama")
    batch = collate(rows, [0, 1])
    seen = []
    handle = models.head(model).register_forward_hook(lambda _, args, out: seen.append(out.shape))
    read(model, batch, logps=True)
    handle.remove()
    assert seen == [(1, int(batch.token_scored.sum()), 320)]


def test_an_error_in_the_forward_pass_leaves_no_hook(tiny, rows):
    model = tiny("llama", fresh=True)
    hooks = hooks_on(model)

    def fail(*_: Any) -> None:
        raise RuntimeError("on purpose")

    handle = model.model.layers[2].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        read(model, collate(rows, [0]), logps=True, sites=(1, 3))
    handle.remove()
    assert hooks_on(model) == hooks


def test_a_dial_is_seen_where_it_is_read(tiny, rows):
    """At its own site a vector has already been added; below it nothing has changed."""
    model = tiny("llama")
    batch = collate(rows, [0])
    bare = read(model, batch, sites=(0, 1))
    v = torch.zeros(32)
    v[3] = 1
    with VectorDial({1: v}, {1: 0.5})(model, 2.0):
        dialled = read(model, batch, sites=(0, 1))
    assert torch.equal(dialled.states[0], bare.states[0])
    close(dialled.states[1], bare.states[1] + v)


def test_the_packed_forward_needs_its_mask(tiny, rows):
    """Without the mask the packed row is another text: the tests above would notice."""
    model = tiny("llama")
    batch = collate(rows, [0])
    right = model(
        input_ids=batch.input_ids,
        attention_mask=attention_mask(batch, model),
        position_ids=batch.positions,
    )
    naive = model(input_ids=batch.input_ids)
    assert (right.logits - naive.logits).abs().max() > 1


# ---- last K tokens, sinks, spaces, and what else is read of the logits ---------------------------


def test_the_last_k_tokens(tiny, rows):
    model = tiny("llama")
    batch = collate(rows, [0, 1, 2])
    whole = read(model, batch, sites=(1,), pool="last:99").states[1]
    close(whole, read(model, batch, sites=(1,)).states[1])
    close(
        read(model, batch, sites=(1,), pool="last:1").states[1],
        read(model, batch, sites=(1,), pool="last").states[1],
    )
    two = read(model, batch, sites=(1,), pool="last:2").states[1]
    with torch.no_grad():
        for n, (row, answer) in enumerate((r, a) for r in rows.rows for a in r.answers):
            body = answer[:-1]
            ids = torch.tensor([row.prompt + body])
            h = model(input_ids=ids, output_hidden_states=True).hidden_states[2][0]
            close(two[n], h[-min(2, len(body)) :].mean(0))
    with pytest.raises(ConfigError, match="last:K"):
        read(model, batch, sites=(1,), pool="last:x")


def test_sinks_can_be_left_out_of_the_average(tiny, rows):
    """One token's state made a hundred times as long: left out, the rest is averaged."""
    model, batch = tiny("llama"), collate(rows, [0])
    at = int(batch.token_at[(batch.token_answer == 0) & batch.token_body][0])

    def lengthen(_: Any, __: Any, out: Tensor) -> Tensor:
        out = out.clone()
        out[0, at] *= 100
        return out

    plain = read(model, batch, sites=(1,)).states[1]
    handle = models.layers(model)[1].register_forward_hook(lengthen)
    try:
        with_it = read(model, batch, sites=(1,)).states[1]
        without = read(model, batch, sites=(1,), sinks=False).states[1]
    finally:
        handle.remove()
    n = int(((batch.token_answer == 0) & batch.token_body).sum())
    assert n > 2
    first = (with_it[0] - plain[0]) * n / 99  # that token's state
    close(without[0], (plain[0] * n - first) / (n - 1), 1e-4)
    close(without[1], plain[1])


def test_a_space_comes_before_the_map_of_tokens(tiny, rows):
    model, batch = tiny("llama"), collate(rows, [0, 1])
    Q = torch.linalg.qr(torch.randn(32, 32))[0]
    found = read(model, batch, sites=(1,), token_map="softmax", spaces={1: lambda h: h @ Q})
    kept: list[Tensor] = []
    read(model, batch, sites=(1,), spaces={1: lambda h: kept.append(h) or h})
    tokens = (kept[0] @ Q).softmax(-1)
    answer = batch.token_answer[batch.token_body]
    for n in range(batch.n_answers):
        close(found.states[1][n], tokens[answer == n].mean(0))
    assert torch.allclose(found.states[1].sum(-1), torch.ones(batch.n_answers))
    logged = read(model, batch, sites=(1,), token_map="log_softmax").states[1]
    close(logged[0], kept[0].log_softmax(-1)[answer == 0].mean(0))


def test_confidence_and_kl_of_an_answers_tokens(tiny, rows):
    model, batch = tiny("llama"), collate(rows, [0, 1])
    first = read(model, batch, logps=True, confidence=True, keep_logits=True)
    logits = first.logits
    assert logits is not None
    keep = batch.token_scored
    answer, ids = batch.token_answer[keep], batch.token_id[keep]
    p = logits.softmax(-1)
    token = p.gather(-1, ids[:, None])[:, 0].log() - p.square().sum(-1).log()
    other = torch.randn_like(logits)
    second = read(model, batch, logps=True, against=other)
    kl = (p * (p.log() - other.log_softmax(-1))).sum(-1)
    for n in range(batch.n_answers):
        close(first.confidence[n], token[answer == n].mean())
        close(second.kl[n], kl[answer == n].mean())
    assert read(model, batch, logps=True, against=logits).kl.abs().max() < 1e-5
    assert read(model, batch, logps=True).logits is None


def test_patterns_of_module_paths(tiny):
    model = tiny("llama")
    found = states.expand_sites(model, (1, "final", r"(o_proj|down_proj)$:in@0..0.5"))
    assert found == (
        1,
        "final",
        "model.layers.0.self_attn.o_proj:in",
        "model.layers.0.mlp.down_proj:in",
        "model.layers.1.self_attn.o_proj:in",
        "model.layers.1.mlp.down_proj:in",
    )
    exact = "model.layers.2.mlp.up_proj:out"
    assert states.expand_sites(model, (exact,)) == (exact,)
    assert len(states.expand_sites(model, ("k_proj:out",))) == 4
    with pytest.raises(ConfigError, match="down_proj"):
        states.expand_sites(model, ("down_prj$:in",))
    with pytest.raises(ConfigError, match="not a regular expression"):
        states.expand_sites(model, ("(o_proj:in",))


def test_the_bare_model_inside_an_attached_dial(tiny, rows):
    model, batch = tiny("llama"), collate(rows, [0, 1])
    dial = VectorDial({1: torch.ones(32)}, {1: 5.0})
    bare = read(model, batch, logps=True).logps
    with dial(model, 1.0):
        with paused():
            inside = read(model, batch, logps=True).logps
            assert not inside.requires_grad
        assert not torch.allclose(read(model, batch, logps=True).logps, bare)
    assert torch.equal(inside, bare)
