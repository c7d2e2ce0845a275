"""Which layout a model's rows get: found by trying, right on models whose rows must not share a batch."""

from __future__ import annotations

import warnings

import pytest
import torch
import transformers

import conftest
from conftest import VOCAB, WINDOW, random_rows
from trimtab import models
from trimtab.batching import (
    Arrangement,
    Contrast,
    Encoded,
    Row,
    collate,
    gradient_batches,
    layout_of,
    packing_proof,
    plan_batches,
    plan_training,
    probes,
    proof,
)
from trimtab.batching.spans import one_line
from trimtab.dials import VectorDial
from trimtab.errors import DataError, ModelError
from trimtab.readings import collect
from trimtab.states import pair_up, read

MIXED = ((14, (5, 9, 3)), (2, (4, 1)), (21, (7, 6)), (60, (7, 6)), (24, (4, 20)), (50, (3, 5)))
"""Rows on both sides of 32 tokens; the fifth has an answer on each."""
SHORT = ((14, (5, 9, 3)), (2, (4, 1)), (21, (7, 6)))
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32}
LONG |= {"short_factor": [1.0] * 4, "long_factor": [8.0, 4.0, 3.0, 2.0]}
NTK = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
GQA = {**conftest._GQA, "max_position_embeddings": 32}

SCALED = {
    "longrope phi3": lambda: transformers.Phi3Config(
        **{**GQA, "max_position_embeddings": 256, "original_max_position_embeddings": 32},
        rope_parameters=LONG,
    ),
    "longrope llama": lambda: transformers.LlamaConfig(
        **{**GQA, "max_position_embeddings": 256}, rope_parameters=LONG
    ),
    "ntk llama": lambda: transformers.LlamaConfig(**GQA, rope_parameters=NTK),
    "ntk qwen3": lambda: transformers.Qwen3Config(**GQA, head_dim=8, rope_parameters=NTK),
    "ntk neox": lambda: transformers.GPTNeoXConfig(
        **{**conftest._COMMON, "max_position_embeddings": 32},
        rope_parameters={**NTK, "partial_rotary_factor": 0.5},
    ),
}


def alone(model, prompt, answer):
    """Log-probs of an answer's tokens, by transformers alone, in a model that has seen nothing else."""
    model(torch.tensor([[1, 2]]))  # dynamic NTK forgets what it has seen
    ids = torch.tensor([[*prompt, *answer]])
    with torch.no_grad():
        logps = model(input_ids=ids).logits[0].double().log_softmax(-1)
    return logps[len(prompt) - 1 : -1].gather(-1, ids[0, len(prompt) :, None])[:, 0]


def truth(model, rows):
    return torch.stack([alone(model, r.prompt, a).sum() for r in rows.rows for a in r.answers])


def off(model, rows, **options):
    """How far a model's log-probs as they are read are from the truth, at the worst."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = collect(model, rows, logps=True, **options).logps
    return float((found - truth(model, rows)).abs().max())


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No proof from another run, nor one for another test's hooks."""
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))


def scaled(name, monkeypatch):
    monkeypatch.setitem(conftest.CONFIGS, name, SCALED[name])
    return conftest.build(name)


# ---- a row's score does not depend on its neighbours --------------------------------------------


@pytest.mark.parametrize("name", SCALED)
def test_rows_on_either_side_of_a_scaled_ropes_threshold(name, monkeypatch):
    model, rows = scaled(name, monkeypatch), random_rows(0, MIXED)
    assert off(model, rows, budget=256) < 1e-3
    layout = layout_of(model, rows)
    assert isinstance(layout, Arrangement)
    assert layout.parts[0] == (32, "shared")
    assert layout_of(model, random_rows(0, SHORT)) == "shared"  # none of them reaches it
    # what is plain wrong there, padded or not: the reason for all of this
    batch = collate(rows, range(len(rows.rows)), "padded")
    assert (read(model, batch, logps=True).logps - truth(model, rows)).abs().max() > 0.2


def test_a_row_does_not_depend_on_the_rows_before_it(monkeypatch):
    """With dynamic NTK transformers keeps the longest row's frequencies for the next."""
    model = scaled("ntk llama", monkeypatch)
    rows = random_rows(0, ((60, (7, 6)), (30, (9, 8))))
    assert off(model, rows) < 1e-3
    ids = torch.tensor([[*rows.rows[1].prompt, *rows.rows[1].answers[0]]])
    right = model(ids).logits
    model(torch.randint(2, VOCAB, (1, 70)))
    assert (model(ids).logits - right).abs().max() > 0.1


def far(model, monkeypatch, threshold=40):
    """A block-sparse attention as no config names it: past so many keys, one counted by *index* that
    stands far back is not looked at."""

    def hide(module, args, kwargs):
        mask = kwargs.get("attention_mask")
        n = args[0].shape[1] if args else kwargs["hidden_states"].shape[1]
        at = torch.arange(n)
        near = at[:, None] - at < threshold
        if mask is None:
            mask = torch.ones(n, n, dtype=torch.bool).tril()[None, None]
        return args, {**kwargs, "attention_mask": mask & near}

    for layer in models.layers(model):
        layer.self_attn.register_forward_pre_hook(hide, with_kwargs=True)


def test_a_threshold_that_no_config_names_is_found_by_the_rows_that_reach_it(tiny, monkeypatch):
    model = tiny("llama", fresh=True)
    far(model, monkeypatch)
    assert packing_proof(model).holds  # on random rows that are too short
    rows = random_rows(0, ((20, (9, 8)), (22, (30, 28)), (25, (30, 28)), (12, (5, 4))))
    result = packing_proof(model, rows)
    assert not result.holds
    assert result.error > 0.01
    assert off(model, rows) < 1e-3
    many = random_rows(0, ((12, (7,) * 9), (12, (3, 4))))  # long in its packed row alone
    assert off(model, many) < 1e-3


def test_short_rows_in_one_line_reach_a_threshold_together(tiny, monkeypatch):
    model = tiny("llama", fresh=True)
    far(model, monkeypatch)
    rows = random_rows(0, ((6, (4, 3)),) * 12)
    assert off(model, rows) < 1e-3
    assert layout_of(model, rows) == "packed"  # each row in a line of its own


@pytest.mark.parametrize("kind", ["scale", "outliers", "mates"])
def test_rows_that_depend_on_their_batch_are_read_one_by_one(tiny, kind, monkeypatch):
    """As where activations are quantised with the whole batch's range or outliers (int8)."""
    model = tiny("llama", fresh=True)

    def mates(module, args, out):
        if kind == "scale":
            scale = out.abs().amax() / 127
            return (out / scale).round() * scale
        if kind == "outliers":
            plain = (out.abs() < 2.5).flatten(0, -2).all(0)
            return torch.where(plain, (out * 8).round() / 8, out)
        return out + 0.05 * (len(out) > 1) * out.roll(1, 0)

    for layer in models.layers(model)[1:3]:
        layer.mlp.register_forward_hook(mates)
    monkeypatch.setattr(models, "quantisation_of", lambda model: {"mlp": "int8"})
    rows = random_rows(0, MIXED)
    with pytest.warns(UserWarning, match="rows are read one by one"):
        assert layout_of(model, rows) == "alone"
    assert off(model, rows) < 1e-4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layout_of(model, rows)  # told once


# ---- what is no causal language model -----------------------------------------------------------


def test_a_model_that_sees_what_follows_is_refused():
    config = transformers.BertConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4
    )
    torch.manual_seed(0)
    model = transformers.BertLMHeadModel(config).eval()
    for p in model.parameters():
        p.data = p.data * 8
    with pytest.raises(ModelError, match="no causal language model"):
        collect(model, random_rows(), logps=True)


def test_a_model_that_draws_lots_is_refused(tiny):
    model = tiny("llama", fresh=True)
    models.layers(model)[0].register_forward_hook(lambda m, a, out: out + torch.randn_like(out))
    with pytest.raises(ModelError, match="two passes over one row differ"):
        layout_of(model, random_rows())


def test_a_model_that_cannot_run_alone_is_refused(tiny):
    model = tiny("llama", fresh=True)

    def fail(module, args):
        raise ValueError("pixel_values are needed")

    models.layers(model)[0].register_forward_pre_hook(fail)
    with pytest.raises(ModelError, match=r"cannot run on a row .* pixel_values"):
        layout_of(model, random_rows())


POSITIONS = {
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=40
    ),
    "opt": lambda: transformers.OPTConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=40,
        word_embed_proj_dim=32,
    ),
    "biogpt": lambda: transformers.BioGptConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=40,
    ),
    "roberta": lambda: transformers.RobertaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=42,
        is_decoder=True,
        pad_token_id=1,
    ),
}


@pytest.mark.parametrize("name", POSITIONS)
def test_rows_past_learned_positions_are_refused_in_words(name):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(POSITIONS[name]()).eval()
    assert models.learned_positions(model) == 40
    model(input_ids=torch.full((1, 40), 7))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, 41), 7))
    layout_of(model, random_rows(0, ((20, (9, 19)),)))  # 20 tokens, 19 and the end: just so
    with pytest.raises(DataError, match=r"1 of its rows .* 41 tokens.*learned 40.*--max-length 40"):
        collect(model, random_rows(0, ((20, (9, 20)), (3, (2, 2)))), logps=True)


def test_computed_positions_have_no_end(tiny):
    assert [models.learned_positions(tiny(n)) for n in ("llama", "gemma3", "neox", "mamba")] == (
        [None] * 4
    )


# ---- rows alone, as they are read and trained ---------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3moe", "cohere"])
def test_rows_alone_read_what_padded_rows_read(tiny, name):
    model, rows = tiny(name), random_rows()
    order, sites = [2, 0, 1], (1, "final")
    found = [
        read(
            model,
            collate(rows, order, layout),
            logps=True,
            sites=sites,
            confidence=True,
            keep_logits=True,
        )
        for layout in ("alone", "padded")
    ]
    one, other = found
    for field in ("logps", "tokens", "confidence", "logits"):
        torch.testing.assert_close(getattr(one, field), getattr(other, field), atol=1e-4, rtol=1e-4)
    for site in sites:
        torch.testing.assert_close(one.states[site], other.states[site], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(one.norms[site], other.norms[site], atol=1e-4, rtol=1e-4)
    again = read(model, collate(rows, order, "alone"), logps=True, against=other.logits)
    assert again.kl.abs().max() < 1e-4


def test_a_line_of_a_batch_by_hand():
    rows = (Row("x", (5, 6), ((1, 0), (2, 3, 0)), ((0, 1),), (0,)), Row("y", (7,), ((4,),), (), ()))
    batch = collate(Encoded(rows, 0, 0, "hand"), [0, 1], "alone")
    assert batch.input_ids.tolist() == [[5, 6, 1, 0, 0], [5, 6, 2, 3, 0], [7, 4, 0, 0, 0]]
    second = batch.line(1)
    assert second.input_ids.tolist() == [[5, 6, 2, 3, 0]]
    assert second.answer_ids.tolist() == [1]
    assert second.token_answer.tolist() == [0, 0, 0]
    assert second.token_row.tolist() == [0, 0, 0]
    assert second.token_from.tolist() == [1, 2, 3]
    assert second.items == ("x",)
    assert batch.line(2).input_ids.tolist() == [[7, 4]]


def test_gradients_of_rows_alone_are_those_of_padded_rows(tiny):
    model, rows = tiny("llama", fresh=True), random_rows()
    weight = models.layers(model)[1].mlp.down_proj.weight.requires_grad_()
    grads = []
    for layout in ("alone", "padded"):
        batch = collate(rows, [0, 1, 2], layout)
        readout = pair_up(read(model, batch, logps=True, sites=(2,)), batch)
        loss = (readout.chosen_logps - readout.rejected_logps).sum()
        loss = loss + (readout.chosen[2] - readout.rejected[2]).square().sum()
        grads.append(torch.autograd.grad(loss, weight)[0])
    torch.testing.assert_close(*grads, atol=1e-3, rtol=1e-4)


def test_strengths_go_with_their_rows_when_these_run_alone(tiny):
    model, rows = tiny("llama"), random_rows()
    vector = torch.randn(32, generator=torch.Generator().manual_seed(0))
    dial = VectorDial({1: vector / vector.norm()}, {1: 4.0})
    batches = [collate(rows, [0, 1], layout) for layout in ("alone", "padded")]
    strengths = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5])  # three answers and two
    with dial(model, strengths):
        one, other = (read(model, batch, logps=True).logps for batch in batches)
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    with dial(model, strengths), one_line(3, 5):
        fourth = read(model, batches[0].line(3), logps=True).logps
    torch.testing.assert_close(fourth, other[3:4], atol=1e-4, rtol=1e-4)


def test_poles_of_a_contrast_run_alone(monkeypatch):
    model = scaled("ntk llama", monkeypatch)
    draw = torch.Generator().manual_seed(0)
    ids = [tuple(torch.randint(2, VOCAB, (n,), generator=draw).tolist()) for n in (50, 40, 44, 20)]
    contrast = Contrast(
        tuple(ids), ((0, 50), (2, 44)), ((1, 40), (3, 20)), ("a", "b"), 0, "contrast"
    )
    with pytest.warns(UserWarning, match="one by one"):
        found = collect(model, contrast, sites=(2,)).states[2]
    for pole, state in zip(contrast.poles, found, strict=True):
        model(torch.tensor([[1, 2]]))
        with torch.no_grad():
            right = model(torch.tensor([contrast.ids(pole)]), output_hidden_states=True)
        torch.testing.assert_close(state, right.hidden_states[3][0, -1], atol=1e-3, rtol=1e-3)
    batches = [b for b, _ in gradient_batches(contrast, 2048, "alone")]
    assert {b.layout for b in batches} == {"alone"}


# ---- planning -----------------------------------------------------------------------------------


def test_batches_do_not_mix_parts_and_a_row_on_both_sides_goes_alone():
    rows = random_rows(0, MIXED)
    layout = Arrangement(((32, "shared"), (None, "packed")))
    planned = [
        (collate(rows, batch, layout).layout, sorted(batch))
        for batch in plan_batches(rows, 1000, layout)
    ]
    assert sorted(planned) == [("alone", [4]), ("packed", [3, 5]), ("shared", [0, 1, 2])]
    schedule = plan_training(rows, pairs_per_step=4, epochs=2, seed=0, budget=128, layout=layout)
    for batch in schedule.microbatches:
        kinds = {0: "shared", 1: "packed", None: "alone"}
        parts = {layout.part_of(rows.rows[i]) for i in batch}
        expected = kinds[parts.pop()] if len(parts) == 1 else "alone"
        assert collate(rows, batch, layout).layout == expected


def test_rows_too_long_to_be_tried_run_alone(tiny, monkeypatch):
    """A proof costs a tenth of the pass, or what ten seconds can do."""
    model = tiny("llama", fresh=True)
    rows = random_rows(0, (*((8, (4, 3)),) * 150, (90, (20, 20))))
    assert layout_of(model, rows) == "shared"
    monkeypatch.setattr(probes, "RATE", {"cpu": 1.0})
    monkeypatch.setattr(probes, "PASSES", 3)
    again = tiny("llama", "eager", fresh=True)
    layout = layout_of(again, rows)
    assert layout == Arrangement(((13, "shared"), (None, "alone")))
    assert off(again, rows) < 1e-3
    few = random_rows(0, SHORT)
    assert layout_of(tiny("qwen3", fresh=True), few) == "alone"  # trying would cost more


def test_the_proof_is_about_the_bare_model_and_kept_for_it(tiny, monkeypatch):
    model, rows = tiny("llama", fresh=True), random_rows()
    vector = torch.randn(32, generator=torch.Generator().manual_seed(0))
    dial = VectorDial({1: vector / vector.norm()}, {1: 1e4})
    tried = []
    right = proof._prove
    monkeypatch.setattr(proof, "_prove", lambda *a: tried.append(right(*a)) or tried[-1])
    with dial(model, torch.tensor([1.0, 0.0])):
        assert layout_of(model, rows) == "packed"  # rows apart
    assert layout_of(model, rows) == "shared"
    assert layout_of(tiny("llama", fresh=True), rows) == "shared"  # by its identity
    assert len(tried) == 1
    assert tried[0].holds


def test_lengths_that_a_config_names(monkeypatch):
    model = scaled("longrope phi3", monkeypatch)
    model.config.index_block_size = 7
    model.config.num_key_value_heads = 9  # no length
    long = random_rows(0, ((2, (4, 1)), (200, (7, 6)), (400, (9, 9))))
    assert 32 in probes.cuts(model, long.rows)
    assert {7 * 7, 256} <= set(probes.cuts(model, long.rows))
    assert 9 not in probes.cuts(model, long.rows)
    assert WINDOW not in probes.cuts(model, random_rows(0, SHORT).rows)
