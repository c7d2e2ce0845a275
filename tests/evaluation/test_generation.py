"""What `generate` and the decoders draw is what the model says, row by row and token by token."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from test_attach import dials_of

from conftest import build
from trimtab.dials import VectorDial
from trimtab.errors import ModelError
from trimtab.evaluation import Sampling, generate
from trimtab.evaluation.decoding import Decoder, way_to_decode
from trimtab.evaluation.explain import explain
from trimtab.evaluation.generation import own_settings, way_to_generate

PROMPTS = ["The sky is", "Two and two are four. A triangle has three", "a"]
GREEDY = Sampling(max_new_tokens=6)


@torch.no_grad()
def loop(
    model: Any, ids: list[int], n: int, *, seed: int | None = None, ends: Any = ()
) -> list[int]:
    """n tokens from whole passes over one row: the likeliest, or drawn at temperature 1."""
    drawn: list[int] = []
    if seed is not None:
        torch.manual_seed(seed)
    while len(drawn) < n and not (drawn and drawn[-1] in ends):
        logits = model(input_ids=torch.tensor([[*ids, *drawn]])).logits[0, -1]
        if seed is None:
            drawn.append(int(logits.argmax()))
        else:
            drawn.append(int(torch.multinomial(logits.softmax(-1), 1)))
    return drawn


# ---- settings of a checkpoint ---------------------------------------------------------------------

SETTINGS: dict[str, Any] = {
    "min_p": 0.3,
    "top_k": 2,
    "top_p": 0.3,
    "top_h": 0.3,
    "typical_p": 0.2,
    "epsilon_cutoff": 0.2,
    "eta_cutoff": 0.2,
    "temperature": 0.3,
    "repetition_penalty": 3.0,
    "encoder_repetition_penalty": 3.0,
    "no_repeat_ngram_size": 1,
    "encoder_no_repeat_ngram_size": 1,
    "bad_words_ids": [[i] for i in range(40, 300)],
    "suppress_tokens": list(range(40, 300)),
    "begin_suppress_tokens": list(range(40, 300)),
    "sequence_bias": [[[i], -20.0] for i in range(40, 300)],
    "forced_bos_token_id": 7,
    "forced_eos_token_id": 7,
    "exponential_decay_length_penalty": [1, 9.0],
    "min_new_tokens": 9,
    "min_length": 30,
    "max_length": 5,
    "max_new_tokens": 1,
    "guidance_scale": 3.0,
    "num_beams": 3,
    "num_return_sequences": 2,
    "do_sample": True,
    "prompt_lookup_num_tokens": 3,
    "watermarking_config": {"bias": 9.0},
    "stop_strings": ["e", " "],
    "max_time": 1e-9,
    "return_dict_in_generate": True,
    "made_up_by_a_later_version": 1,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_a_checkpoint_act_on_nothing(name: str, tiny: Any, tokenizer: Any) -> None:
    model, prompt = tiny("llama"), "Is the sky blue"
    ids = tokenizer(prompt)["input_ids"]
    kept = copy.deepcopy(model.generation_config)
    plain: dict[str, Any] = {"prompt_style": "plain"}
    try:
        setattr(model.generation_config, name, SETTINGS[name])
        settings = model.generation_config.to_dict()
        (found,) = generate(model, tokenizer, prompt, sampling=GREEDY, **plain)
        assert found.text == tokenizer.decode(loop(model, ids, 6), skip_special_tokens=True)
        drawn = Sampling(max_new_tokens=6, temperature=1.0, seed=3)
        (found,) = generate(model, tokenizer, prompt, sampling=drawn, **plain)
        with torch.random.fork_rng():
            expected = loop(model, ids, 6, seed=3, ends=(0,))
        assert found.text == tokenizer.decode(expected, skip_special_tokens=True)
        assert model.generation_config.to_dict() == settings, "it is the user's model"
    finally:
        model.generation_config = kept


def test_settings_come_back_after_an_exception(tiny: Any) -> None:
    model = tiny("llama")
    kept = model.generation_config

    def stopped() -> None:
        with own_settings(model):
            assert model.generation_config is not kept
            raise RuntimeError

    with pytest.raises(RuntimeError):
        stopped()
    assert model.generation_config is kept


def test_end_tokens_of_a_checkpoint_end_an_answer(tiny: Any, tokenizer: Any) -> None:
    model, prompt = tiny("llama"), "Is the sky blue"
    ids = tokenizer(prompt)["input_ids"]
    kept = copy.deepcopy(model.generation_config)
    whole = loop(model, ids, 6)
    end = whole[3]
    try:
        model.generation_config.eos_token_id = [0, end]
        model.generation_config.pad_token_id = 7  # an ordinary token: it fills what has ended
        found = generate(model, tokenizer, [prompt, "a"], sampling=GREEDY, prompt_style="plain")
        cut = whole[: whole.index(end) + 1]
        assert found[0].text == tokenizer.decode(cut, skip_special_tokens=True)
        other = loop(model, tokenizer("a")["input_ids"], 6, ends=(0, end))
        assert found[1].text == tokenizer.decode(other, skip_special_tokens=True)
    finally:
        model.generation_config = kept


def test_a_repetition_penalty_does_not_see_padding(tiny: Any, tokenizer: Any) -> None:
    model, penalty = tiny("llama"), Sampling(max_new_tokens=8, repetition_penalty=1.8)
    pad, kept = tokenizer.pad_token, tokenizer.pad_token_id
    likely = loop(model, tokenizer(PROMPTS[2])["input_ids"], 1)[0]
    try:
        tokenizer.pad_token_id = likely  # padding that the short prompt would go on with
        together = generate(model, tokenizer, PROMPTS, sampling=penalty, prompt_style="plain")
        alone = [
            generate(model, tokenizer, p, sampling=penalty, prompt_style="plain")[0]
            for p in PROMPTS
        ]
    finally:
        tokenizer.pad_token = pad
    assert tokenizer.pad_token_id == kept
    assert together == alone


# ---- models whose batches or caches are wrong -----------------------------------------------------


def small(kind: str, **settings: Any) -> Any:
    """A tiny random model whose sizes are named as most models name them."""
    config = transformers.AutoConfig.for_model(kind, vocab_size=320, eos_token_id=0, **settings)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    draw = torch.Generator().manual_seed(0)
    for p in model.parameters():
        if p.ndim >= 2:
            p.data = torch.randn(p.shape, generator=draw) * 1.5 / p.shape[-1] ** 0.5
    return model


SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
ROBERTA = {**SIZES, "intermediate_size": 48, "is_decoder": True, "max_position_embeddings": 130}
KINDS: dict[str, tuple[Callable[[], Any], str]] = {
    "llama": (lambda: build("llama"), "batch"),
    "gemma3": (lambda: build("gemma3"), "batch"),
    "mamba": (lambda: build("mamba"), "batch"),
    "lfm2": (lambda: build("lfm2"), "batch"),
    # Left padding goes through its recurrence.
    "recurrentgemma": (lambda: build("recurrentgemma"), "rows"),
    # Any batch of two.
    "rwkv": (
        lambda: small("rwkv", hidden_size=32, num_hidden_layers=3, context_length=128),
        "rows",
    ),
    # `generate` gives other positions than the model itself takes.
    "roberta": (lambda: small("roberta", **ROBERTA), "plain"),
    "camembert": (lambda: small("camembert", **ROBERTA), "plain"),
    "data2vec": (lambda: small("data2vec-text", **ROBERTA), "plain"),
    # `generate` adds a token of its own.
    "xlm": (
        lambda: small(
            "xlm", emb_dim=32, n_layers=3, n_heads=4, causal=True, pad_index=1, n_langs=1
        ),
        "plain",
    ),
    # Frequencies follow the longest row of a batch.
    "dynamic": (
        lambda: small(
            "llama",
            **SIZES,
            intermediate_size=48,
            max_position_embeddings=24,
            rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0},
        ),
        "plain",
    ),
}


@cache
def kind_of(name: str) -> Any:
    return KINDS[name][0]()


@pytest.mark.parametrize("name", KINDS)
def test_generate_is_the_model_row_by_row(name: str, tokenizer: Any) -> None:
    model, way = kind_of(name), KINDS[name][1]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = generate(model, tokenizer, PROMPTS, sampling=GREEDY, prompt_style="plain")
        assert way_to_generate(model, 40) == way
    about = {str(w.message) for w in said if type(model).__name__ in str(w.message)}
    assert len(about) == (way != "batch")
    for g in found:
        ids = loop(model, tokenizer(g.prompt)["input_ids"], 6, ends=(0,))
        assert g.text == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("name", ["recurrentgemma", "roberta", "mamba"])
def test_rows_keep_their_alphas_and_places(name: str, tokenizer: Any) -> None:
    """Three prompts at two strengths of a vector that acts on completions, whatever the way."""
    model = kind_of(name)
    v = torch.randn(32, generator=torch.Generator().manual_seed(1))
    dial = VectorDial({1: v}, {1: 20.0}, positions="completion")
    found = generate(
        model, tokenizer, PROMPTS, dial, (0.0, 1.0), sampling=GREEDY, prompt_style="plain"
    )
    from trimtab.batching.spans import prompts

    assert [g.alpha for g in found] == [0.0, 1.0] * 3
    for g in found:
        ids = tokenizer(g.prompt)["input_ids"]
        with dial(model, g.alpha), prompts([len(ids)]):
            drawn = loop(model, ids, 6, ends=(0,))
        assert g.text == tokenizer.decode(drawn, skip_special_tokens=True)
    assert [g.text for g in found[::2]] != [g.text for g in found[1::2]]


@pytest.mark.parametrize(
    "name", ["llama", "gemma3", "mamba", "lfm2", "recurrentgemma", "rwkv", "xlm"]
)
def test_decoders_are_the_model(name: str, tokenizer: Any) -> None:
    """Logits and states of rows that were fed, expanded and selected."""
    model, prompt = kind_of(name), list(range(5, 14))
    sites = (1,) if name != "xlm" else ()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert way_to_decode(model, 20) == ("batch" if name in ("llama", "gemma3") else "plain")
        rows = Decoder(model, prompt, 2, sites)
        rows.feed(torch.tensor([20, 21]))
        rows.expand(2)
        rows.feed(torch.tensor([30, 31, 32, 33]))
        rows.select(torch.tensor([3, 0]))
        ends = [[*prompt, 21, 33], [*prompt, 20, 30]]
        for i, (row, ids) in enumerate(zip([3, 0], ends, strict=True)):
            seen: list[Any] = []
            if sites:
                from trimtab.states import seeing

                with seeing(model, 1, seen.append):
                    logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
                torch.testing.assert_close(
                    rows.states(prompt=True)[i, :, 0], seen[0][0], rtol=1e-4, atol=1e-4
                )
            else:
                logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
            torch.testing.assert_close(rows.logits[row], logits, rtol=1e-4, atol=1e-4)


def test_explain_without_a_cache(tokenizer: Any) -> None:
    model = kind_of("mamba")
    v = torch.randn(32, generator=torch.Generator().manual_seed(1))
    dial = VectorDial({1: v}, {1: 20.0})
    steps = explain(model, tokenizer, dial, "The sky is", 1.0, steps=3, prompt_style="plain")
    ids = tokenizer("The sky is")["input_ids"]
    with dial(model, 1.0):
        drawn = loop(model, ids, 3)
    assert [s.token for s in steps] == [tokenizer.decode([t]) for t in drawn]
    assert steps[1].bare == tokenizer.decode(loop(model, [*ids, drawn[0]], 1))


def test_beams_need_a_cache(tokenizer: Any) -> None:
    with pytest.raises(ModelError, match="num_beams 1"):
        generate(
            kind_of("roberta"), tokenizer, "a", sampling=Sampling(max_new_tokens=2, num_beams=2)
        )


def test_a_proof_is_of_the_bare_model_and_leaves_it(tiny: Any, tokenizer: Any) -> None:
    model = tiny("gpt2", fresh=True).train()
    v = torch.randn(32, generator=torch.Generator().manual_seed(1))
    # A vector that acts on one row alone would make batch and rows differ.
    with VectorDial({1: v}, {1: 200.0}, positions="last")(model, 1.0):
        assert way_to_generate(model, 40) == "batch"
    assert model.training


def test_positions_that_a_model_does_not_have(tokenizer: Any) -> None:
    long = " the" * 140
    with pytest.raises(ModelError, match=r"146 tokens.* 128 that it has learned"):
        generate(kind_of("roberta"), tokenizer, long, sampling=GREEDY, prompt_style="plain")
    with pytest.raises(ModelError, match="the 256 that it"):
        Decoder(build("gpt2"), list(range(5, 205)), room=80)
    fits = " the" * 122
    assert len(tokenizer(fits)["input_ids"]) == 122
    (found,) = generate(kind_of("roberta"), tokenizer, fits, sampling=GREEDY, prompt_style="plain")
    ids = loop(kind_of("roberta"), tokenizer(fits)["input_ids"], 6, ends=(0,))
    assert found.text == tokenizer.decode(ids, skip_special_tokens=True)


def test_what_generate_leaves_behind_can_be_trained(tiny: Any, tokenizer: Any) -> None:
    """Tokens are drawn in inference mode, whose tensors no gradient may meet: none stays in a model or a
    dial, nor with frequencies that a long text has changed."""
    config = {**tiny("llama").config.to_dict(), "max_position_embeddings": 8}
    config["rope_parameters"] = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    changing = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).eval()
    for model in (tiny("gemma3", fresh=True), changing.requires_grad_(False)):
        for dial in dials_of(model).values():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                generate(model, tokenizer, PROMPTS, dial, [0.5], sampling=GREEDY, force=True)
            left = [*model.buffers(), *dial.parameters(), *dial.buffers()]
            for module in (*model.modules(), *dial.modules()):
                left += [v for v in vars(module).values() if isinstance(v, torch.Tensor)]
            assert not any(tensor.is_inference() for tensor in left)
            if some := [p for p in dial.parameters() if p.requires_grad]:
                with dial(model, 1.0, training=True, force=True):
                    model(input_ids=torch.arange(2, 30)[None]).logits.square().sum().backward()
                assert any(p.grad is not None for p in some)
