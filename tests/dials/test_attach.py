"""A dial and what else runs, copies, compiles or wraps its model at the same time."""

from __future__ import annotations

import asyncio
import copy
import io
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import random_rows
from trimtab import models
from trimtab.batching import collate
from trimtab.batching.spans import are_rows_apart
from trimtab.dials import AdapterDial, Condition, Dial, LogitsDial, VectorDial
from trimtab.dials.contexts import check_bare, opened, paused
from trimtab.dials.targets import linear_modules
from trimtab.errors import ConfigError
from trimtab.states import read, seeing

IDS = torch.randint(2, 320, (3, 9), generator=torch.Generator().manual_seed(0))


def logits(model: Any, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def vector(site: Any = 1, **options: Any) -> VectorDial:
    v = torch.randn(32, generator=torch.Generator().manual_seed(1))
    return VectorDial({site: v}, {site: 3.0}, **options)


def lora(model: Any) -> AdapterDial:
    generator = torch.Generator().manual_seed(2)
    dial = AdapterDial(linear_modules(model, "q_proj|down_proj"), rank=2, generator=generator)
    with torch.no_grad():
        for B in dial.B:
            B.copy_(0.2 * torch.randn(B.shape, generator=generator))
    return dial.eval()


def by_prompt(site: Any = 2) -> VectorDial:
    """A vector in rows that pass a condition, at the tokens of the completion."""
    v = torch.randn(32, generator=torch.Generator().manual_seed(3))
    return vector(site, positions="completion", condition=Condition(0, v, -0.9))


def in_thread(run: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


@pytest.fixture
def llama(tiny: Any) -> Any:
    return tiny("llama", fresh=True)


# ---- compiled models ----------------------------------------------------------------------------


def wrapped(model: Any) -> Any:
    return torch.compile(model, backend="eager")


def in_place(model: Any) -> Any:
    model.compile(backend="eager")
    return model


def by_layer(model: Any) -> Any:
    for layer in models.layers(model):
        layer.compile(backend="eager")
    return model


def by_forward(model: Any) -> Any:
    for layer in models.layers(model):
        layer.mlp.forward = torch.compile(layer.mlp.forward, backend="eager")
    return model


def decoder_alone(model: Any) -> Any:
    model.model = torch.compile(model.model, backend="eager")
    return model


@pytest.mark.parametrize("compiled", [wrapped, in_place, by_layer, by_forward, decoder_alone])
def test_a_model_that_was_compiled_and_run_sees_dials_and_loses_them(llama, compiled):
    dial = vector() + lora(llama)
    bare = logits(llama)
    with dial(llama, 1.0):
        on = logits(llama)
    fast = compiled(llama)
    assert torch.equal(logits(fast), bare)
    for model in (fast, llama):
        for alpha in (1.0, 0.0, 1.0):
            with dial(model, alpha):
                assert torch.equal(logits(fast), on if alpha else bare)
        with dial(model, [1.0, 0.0, 1.0]):
            rows = logits(fast)
        assert torch.equal(rows[1], bare[1])
        torch.testing.assert_close(rows[::2], on[::2])
        assert torch.equal(logits(fast), bare)


def test_a_function_compiled_over_a_model_sees_dials(llama):
    """Known to the compiler alone, as is one made while the dial is on."""
    run = torch.compile(lambda ids: llama(input_ids=ids, use_cache=False).logits, backend="eager")
    with torch.no_grad():
        bare = run(IDS)
        with vector()(llama, 1.0):
            on = run(IDS)
            late = torch.compile(llama, backend="eager")
            assert torch.equal(logits(late), on)
        assert (on - bare).abs().max() > 0.1
        assert torch.equal(run(IDS), bare)
    assert torch.equal(logits(late), bare)


def test_a_dial_entered_within_a_compiled_function_is_refused(llama):
    context = vector()(llama, 1.0)

    def run(ids: Tensor) -> Tensor:
        with context:
            return ids + 1

    with pytest.raises(ConfigError, match="enter the dial around the call"):
        torch.compile(run, backend="eager")(IDS)
    check_bare(llama, "afterwards")


def test_the_compiler_s_own_stance_comes_back(llama):
    a, b = vector()(llama, 1.0), vector(2)(llama, 1.0)
    stance = torch.compiler.set_stance("fail_on_recompile")
    try:
        a.__enter__(), b.__enter__()
        a.__exit__(None, None, None)
        assert torch._dynamo.eval_frame._stance.stance == "force_eager"
        b.__exit__(None, None, None)
        assert torch._dynamo.eval_frame._stance.stance == "fail_on_recompile"
    finally:
        stance.__exit__(None, None, None)


@pytest.mark.parametrize("compiled", [in_place, by_layer])
def test_readings_and_generation_of_compiled_models_are_the_plain_ones(llama, compiled):
    batch = collate(random_rows(), [0, 1, 2], "padded")
    dial = vector(2)

    def all_of(model: Any) -> list[Tensor]:
        seen: list[Tensor] = []
        with torch.no_grad():
            found = read(model, batch, logps=True, sites=[1])
            with seeing(model, 2, seen.append):
                model(input_ids=IDS)
            with dial(model, 1.0):
                steered = read(model, batch, logps=True, sites=[3])
                text = model.generate(input_ids=IDS, max_new_tokens=4, do_sample=False)
        return [found.logps, found.states[1], *seen, steered.logps, steered.states[3], text]

    expected = all_of(llama)
    fast = compiled(llama)
    logits(fast)
    for mine, theirs in zip(all_of(fast), expected, strict=True):
        assert torch.equal(mine, theirs)


# ---- threads and tasks --------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [1.0, 0.0, [1.0, 0.0, 0.5]])
def test_a_second_thread_s_dial_is_refused_and_the_first_goes_on(llama, alpha):
    bare, dial = logits(llama), vector()
    with dial(llama, 1.0):
        on = logits(llama)

        def second() -> None:
            with vector(2)(llama, alpha):
                pass

        with pytest.raises(ConfigError, match="another thread"):
            in_thread(second)
        assert torch.equal(logits(llama), on)
    assert torch.equal(logits(llama), bare)
    in_thread(second)  # one after the other they are fine
    check_bare(llama, "afterwards")


def test_a_dial_on_what_shares_the_layers_is_refused_too(llama):
    shares = copy.copy(llama)
    with vector()(llama, 1.0), pytest.raises(ConfigError, match="another thread"):
        in_thread(lambda: vector(2)(shares, 1.0).__enter__())
    with vector()(llama, 1.0), pytest.raises(ConfigError, match="dial is on"):
        check_bare(torch.compile(llama, backend="eager"), "fitting")


def test_many_threads_never_mix(llama):
    bare = logits(llama)
    dials = [vector(k) for k in range(4)]
    truth = []
    for dial in dials:
        with dial(llama, 1.0):
            truth.append(logits(llama))
    lock, wrong, refused = threading.Lock(), [], []

    def work(k: int) -> None:
        for _ in range(8):
            try:
                with dials[k](llama, 1.0):
                    found = logits(llama)
            except ConfigError as error:
                refused.append(error)
                continue
            with lock:
                if not torch.equal(found, truth[k]):
                    wrong.append(k)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert not wrong
    check_bare(llama, "afterwards")
    assert torch.equal(logits(llama), bare)


@pytest.mark.parametrize(
    "make",
    [lambda m: vector(), lora, lambda m: by_prompt(), lambda m: LogitsDial.for_model(m, sites="1")],
    ids=["vector", "lora", "condition", "head"],
)
def test_a_pass_in_another_thread_sees_the_dial(llama, make):
    dial = make(llama)
    if isinstance(dial, LogitsDial):
        with torch.no_grad():
            dial.B.normal_(generator=torch.Generator().manual_seed(0))
    with dial(llama, 1.0):
        here = logits(llama)
        assert torch.equal(in_thread(lambda: logits(llama)), here)
        with paused():  # this thread's own affair
            assert torch.equal(in_thread(lambda: logits(llama)), here)
            assert not torch.equal(logits(llama), here)
    with dial(llama, [1.0, 0.0, -1.0]):
        rows = logits(llama)
        assert torch.equal(in_thread(lambda: logits(llama)), rows)


def test_two_texts_decoded_in_turn_under_one_dial(llama):
    """Streams that take turns, each with a cache of its own; and one that changes its thread."""
    dial = by_prompt()

    def stream(ids: Tensor) -> Iterator[Tensor]:
        cache = None
        for _ in range(4):
            with torch.no_grad():
                out = llama(input_ids=ids, past_key_values=cache, use_cache=True)
            cache, ids = out.past_key_values, out.logits[:, -1:].argmax(-1)
            yield out.logits[:, -1]

    prompts = IDS[:1], IDS[1:, :5]
    with dial(llama, 1.0):
        alone = [list(stream(ids)) for ids in prompts]
        in_turn = list(zip(*(stream(ids) for ids in prompts), strict=True))
        moving = stream(prompts[1])
        moved = [next(moving), in_thread(lambda: next(moving)), next(moving)]
    for step, found in enumerate(in_turn):
        assert torch.equal(found[0], alone[0][step])
        assert torch.equal(found[1], alone[1][step])
    assert all(torch.equal(a, b) for a, b in zip(moved, alone[1], strict=False))


def test_backward_in_another_thread_under_checkpointing(llama):
    llama.requires_grad_(False)
    dial = lora(llama).train()

    def gradient(how: Callable[[Callable[[], None]], Any]) -> Tensor:
        dial.zero_grad()
        with dial(llama, 1.0, training=True):
            loss = llama(input_ids=IDS, use_cache=False).logits.square().mean()
            how(loss.backward)
        return dial.B[0].grad.clone()

    plain = gradient(lambda run: run())
    llama.gradient_checkpointing_enable({"use_reentrant": False})
    llama.train()
    torch.testing.assert_close(gradient(lambda run: run()), plain)
    torch.testing.assert_close(gradient(in_thread), plain)


def test_tasks_of_one_loop_do_not_mix(llama):
    """Two coroutines in one thread are two users as well."""
    bare = logits(llama)

    async def user(dial: Dial, hold: float) -> Any:
        try:
            with dial(llama, 1.0):
                await asyncio.sleep(hold)
                return await asyncio.to_thread(logits, llama)
        except ConfigError as error:
            return error

    async def both() -> list[Any]:
        return await asyncio.gather(user(vector(), 0.05), user(vector(2), 0.0))

    first, second = asyncio.run(both())
    assert "another thread or task" in str(second)
    with vector()(llama, 1.0):
        assert torch.equal(first, logits(llama))
    assert torch.equal(logits(llama), bare)


# ---- leaving ------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 0, 1)])
def test_contexts_are_left_in_any_order(llama, order):
    dials = [vector(0), vector(1, positions="completion"), lora(llama)]
    alphas = [1.0, 0.5, [1.0, 0.0, -1.0]]
    bare = logits(llama)
    contexts = [d(llama, a) for d, a in zip(dials, alphas, strict=True)]
    for context in contexts:
        context.__enter__()
    left = [0, 1, 2]
    for k in order:
        contexts[k].__exit__(None, None, None)
        left.remove(k)
        found = logits(llama)
        assert len(opened(llama)) == len(left)
        assert are_rows_apart(llama) == bool({1, 2}.intersection(left))
        if left == [0]:
            with dials[0](copy.deepcopy(llama), 1.0):
                pass
    assert torch.equal(found, bare)
    check_bare(llama, "afterwards")


def test_a_generator_closed_elsewhere_leaves_its_dial(llama):
    """Streaming: the generator that holds the context is closed by another thread, or another task."""
    bare = logits(llama)

    def stream() -> Iterator[Tensor]:
        with vector(positions="completion")(llama, 1.0):
            while True:
                yield logits(llama)

    for close in (in_thread, lambda run: run()):
        running = stream()
        assert not torch.equal(next(running), bare)
        close(running.close)
        assert torch.equal(logits(llama), bare)
        check_bare(llama, "afterwards")


def test_what_is_left_by_an_exception_on_entering_is_nothing(llama):
    bare = logits(llama)
    late = vector(0, condition=Condition(3, torch.ones(32), 0.0))
    with pytest.raises(ConfigError, match="after the first edit"):
        late(llama, 1.0).__enter__()
    check_bare(llama, "afterwards")
    assert torch.equal(logits(llama), bare)
    assert not are_rows_apart(llama)


# ---- copies -------------------------------------------------------------------------------------


def dials_of(model: Any) -> dict[str, Any]:
    return {
        "vector": vector(),
        "module": vector("model.layers.1.mlp:out"),
        "lora": lora(model),
        "condition": by_prompt(),
        "head": LogitsDial.for_model(model, sites="1"),
    }


@pytest.mark.parametrize("kind", ["vector", "module", "lora", "condition", "head"])
def test_a_deep_copy_taken_inside_is_bare(llama, kind):
    dial = dials_of(llama)[kind]
    if kind == "head":
        with torch.no_grad():
            dial.B.normal_(generator=torch.Generator().manual_seed(0))
    bare = logits(llama)
    for alpha in (1.0, [1.0, 0.0, 2.0]):
        with dial(llama, alpha):
            on = logits(llama)
            twin = copy.deepcopy(llama)
            assert torch.equal(logits(twin), bare)
            part = copy.deepcopy(llama.model)
            again = copy.deepcopy(twin)
            assert torch.equal(logits(llama), on)
        check_bare(twin, "a copy")
        for model in (twin, again):
            assert torch.equal(logits(model), bare)
            with dial(model, alpha):
                assert torch.equal(logits(model), on)
        twin.model = part
        assert torch.equal(logits(twin), bare)


def test_shallow_copies_and_saved_states_are_bare(llama, tmp_path):
    bare = logits(llama)
    with vector()(llama, 1.0), lora(llama)(llama, 0.5), by_prompt()(llama, 1.0):
        layer = copy.copy(models.layers(llama)[1])
        shares = copy.copy(llama)
        stream = io.BytesIO()
        torch.save(llama.state_dict(), stream)
        llama.save_pretrained(tmp_path / "m")
    assert torch.equal(logits(shares), bare)
    twin = copy.deepcopy(llama)
    twin.model.layers[1] = layer
    assert torch.equal(logits(twin), bare)
    stream.seek(0)
    state = torch.load(stream, weights_only=True)
    assert state.keys() == llama.state_dict().keys()
    again, _ = type(llama).from_pretrained(tmp_path / "m", output_loading_info=True)
    assert torch.equal(logits(again.eval()), bare)


def test_replicas_of_data_parallel_raise(llama):
    """Their hooks are the model's own; a bare pass in silence is what they must not be."""
    with vector()(llama, 1.0):
        replica = llama._replicate_for_data_parallel()
        replica.model = llama.model._replicate_for_data_parallel()
        replica.model.layers = llama.model.layers._replicate_for_data_parallel()
        replica.model.layers._modules["1"] = llama.model.layers[1]._replicate_for_data_parallel()
        with pytest.raises(ConfigError, match="DataParallel"):
            logits(replica)


# ---- embeddings made elsewhere -------------------------------------------------------------------


def read_at_embedding() -> VectorDial:
    """A vector at a block, in rows that pass a condition at the embedding."""
    v = torch.randn(32, generator=torch.Generator().manual_seed(3))
    return vector(2, condition=Condition("embed", v, -0.9))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize(
    "make", [lambda: vector("embed"), lambda: vector("embed") + vector(1), read_at_embedding]
)
def test_a_dial_at_the_embedding_is_not_passed_by_in_silence(tiny: Any, name: str, make: Any):
    """A call with `inputs_embeds` did nothing of such a dial, or ended in a KeyError."""
    model, dial = tiny(name, fresh=True), make()
    with torch.no_grad(), dial(model, 1.0, force=True):
        leaning = logits(model)
        for call in (model, model.get_decoder()):
            before = model.get_input_embeddings().weight[IDS].detach()
            with pytest.raises(ConfigError, match="input_ids"):
                call(inputs_embeds=before)
        assert torch.equal(logits(model), leaning)
        inside = model.get_input_embeddings()(IDS)  # where the dial acts on them
        if make is read_at_embedding:  # but no pass has begun
            with pytest.raises(ConfigError, match="not passed between"):
                model(inputs_embeds=inside)
        else:
            again = model(inputs_embeds=inside, use_cache=False).logits
            torch.testing.assert_close(again, leaning, rtol=1e-4, atol=1e-5)
    outside = model.get_input_embeddings()(IDS)
    with torch.no_grad():
        bare = logits(model)
        with vector(1)(model, 1.0, force=True):  # which acts behind them
            model(inputs_embeds=outside)
        found = model(inputs_embeds=outside, use_cache=False).logits
    torch.testing.assert_close(found, bare, rtol=1e-4, atol=1e-5)
