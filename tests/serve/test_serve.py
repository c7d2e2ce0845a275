"""Requests that share a batch get what each gets alone: tokens, draws, strengths, stops."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import transformers

from conftest import _GQA, VOCAB, build
from trimtab import models
from trimtab.dials import AdapterDial, Condition, VectorDial
from trimtab.dials.attach import attach
from trimtab.dials.targets import linear_modules
from trimtab.errors import ConfigError
from trimtab.serve import Begun, Busy, End, Engine, Request, Token
from trimtab.serve.request import Draw, Said
from trimtab.serve.rows import Rows, reads_in_pieces, way_to_serve

TIE = 1e-4
"""Where the two likeliest tokens are nearer than this, rounding may choose."""
PIECE = 6


def vector(site: Any = 1, seed: int = 1, **options: Any) -> VectorDial:
    v = torch.randn(32, generator=torch.Generator().manual_seed(seed))
    return VectorDial({site: v}, {site: 3.0}, **options)


def lora(model: Any) -> AdapterDial:
    generator = torch.Generator().manual_seed(2)
    dial = AdapterDial(linear_modules(model, "q_proj|down_proj"), rank=2, generator=generator)
    with torch.no_grad():
        for B in dial.B:
            B.copy_(0.3 * torch.randn(B.shape, generator=generator))
    return dial.eval()


def prompt(n: int, seed: int = 0) -> list[int]:
    return torch.randint(2, VOCAB, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def tokens(events: Sequence[Any]) -> list[int]:
    return [e.id for e in events if isinstance(e, Token) and e.id is not None]


def together(engine: Engine, requests: Sequence[Request]) -> list[list[Any]]:
    """The events of requests that are sent at once."""
    found: list[list[Any]] = [[] for _ in requests]
    done = [threading.Event() for _ in requests]

    def listener(n: int) -> Callable[[Any], None]:
        def hear(event: Any) -> None:
            found[n].append(event)
            if isinstance(event, End):
                done[n].set()

        return hear

    with engine._lock:  # none is begun before all are there
        for n, request in enumerate(requests):
            engine.submit(request, listener(n))
    assert all(event.wait(60) for event in done)
    idle(engine)
    return found


def idle(engine: Engine) -> None:
    """Wait until its dials are off the model."""
    while engine.load != (0, 0):
        time.sleep(0.001)


def truth(engine: Engine, request: Request) -> tuple[list[int], list[float]]:
    """The likeliest tokens by whole passes over the one row, dials as they are, and by how much each
    is ahead of the second."""
    ids, ahead = list(request.ids), []
    weighted = [(engine.dials[n].edits(engine.model), a) for n, a in request.alphas.items()]
    from trimtab.batching.spans import prompts

    with torch.no_grad(), attach(engine.model, weighted, 1.0), prompts([len(request.ids)]):
        while len(ahead) < request.max_tokens:
            logits = engine.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
            best = logits.topk(2)
            ahead.append(float(best.values[0] - best.values[1]))
            ids.append(int(best.indices[0]))
    return ids[len(request.ids) :], ahead


def check_same(found: list[int], expected: list[int], ahead: list[float]) -> bool:
    """The same tokens, or a tie where they part first (then False)."""
    for a, b, gap in zip(found, expected, ahead, strict=True):
        if a != b:
            assert gap < TIE, (found, expected)
            return False
    return True


MIXED = [  # lengths on both sides of the windows of 8; some begin alike
    Request(prompt(n, seed), alphas, max_tokens=most)
    for n, seed, most, alphas in [
        (3, 0, 20, {}),
        (30, 1, 5, {"a": 1.0}),
        (9, 2, 12, {"a": -1.0, "b": 0.5}),
        (9, 3, 9, {"b": 1.0}),
        (9, 3, 9, {"b": 1.0}),  # the very same: one pass reads both
        (1, 4, 15, {"a": 0.0, "b": -1.5}),
        (14, 5, 3, {"c": 1.0}),
        (7, 6, 20, {"a": 0.5, "b": 0.5, "c": -1.0}),
        (40, 7, 8, {"c": 2.0, "a": 0.0}),
    ]
]


HF: Any = transformers
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8}
OTHERS: dict[str, Callable[[], Any]] = {
    "qwen2": lambda: HF.Qwen2Config(**_GQA),
    "falcon_h1": lambda: HF.FalconH1Config(
        **_GQA, **MAMBA, mamba_n_groups=1, mamba_d_ssm=64, head_dim=8
    ),
    "jamba": lambda: HF.JambaConfig(
        **_GQA, num_experts=2, attn_layer_period=2, attn_layer_offset=1, use_mamba_kernels=False
    ),
    "mamba2": lambda: HF.Mamba2Config(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_heads=8, head_dim=8, n_groups=1
    ),
}


def made_of(kind: str) -> Any:
    if kind not in OTHERS:
        return build(kind)
    torch.manual_seed(0)
    model: Any = transformers.AutoModelForCausalLM.from_config(OTHERS[kind]()).eval()
    model.requires_grad_(False)
    model.get_output_embeddings().weight.data.mul_(30)
    return model


@pytest.fixture(scope="module")
def engines(tokenizer: Any) -> Iterator[Callable[..., Engine]]:
    made: dict[str, Engine] = {}

    def get(name: str) -> Engine:
        kind, _, how = name.partition(", ")
        if name not in made:
            model = made_of(kind)
            v = torch.randn(32, generator=torch.Generator().manual_seed(3))
            where: Any = {"mistral": "last", "falcon_h1": "prompt"}.get(kind, "all")
            over: Any = "last" if kind == "mistral" else "prompt"
            acts = Condition("embed", v, 0.0, over)
            adapts = kind in ("llama", "gemma3", "qwen2")
            dials = {
                "a": vector(1),
                "b": lora(model) if adapts else vector(2, 5, positions=where),
                "c": vector(2, 6, positions="completion", condition=acts),
            }
            with pytest.MonkeyPatch.context() as patch:
                if "row by row" in how:
                    patch.setattr("trimtab.serve.engine.way_to_serve", lambda *_: "rows")
                prefill = PIECE if "in pieces" in how else 256
                options: dict[str, Any] = {"rows": 5, "context": 64, "prefill": prefill}
                made[name] = Engine(model, tokenizer, dials, **options)
        return made[name]

    yield get
    for engine in made.values():
        engine.close()


WAYS = {
    "llama": "batch",
    "gemma3": "batch",  # layers with and without a window
    "qwen2": "batch",
    "gpt2": "batch",  # learned positions
    "lfm2": "batch",  # states of a convolution beside keys and values
    "gemma3, row by row": "rows",
    "mamba": "plain",  # its cache is not taken by the name that others have
    "llama, in pieces": "batch",
    "gemma3, in pieces": "batch",
    "gemma3, row by row, in pieces": "rows",
    "mistral, in pieces": "batch",  # windows everywhere; a dial at the prompt's last token
    "falcon_h1, in pieces": "batch",  # Mamba-2 beside attention; a dial at the prompt
    "jamba, in pieces": "batch",  # whose recurrence forgets what it has read: whole all the same
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", WAYS)
def test_rows_that_share_a_batch_say_what_each_says_alone(engines: Any, kind: str):
    engine = engines(kind)
    assert engine.way == WAYS[kind]
    right = engine.way != "plain" and "jamba" not in kind
    assert engine._piece == (engine.prefill if right else None)
    found = together(engine, MIXED)  # nine requests for five rows: they join and leave
    same = [
        check_same(tokens(events), *truth(engine, request))
        for events, request in zip(found, MIXED, strict=True)
    ]
    assert sum(same) >= len(same) - 1
    assert engine.peak == 5 or "pieces" in kind
    assert all(
        events[-1] == End("length", r.max_tokens) for events, r in zip(found, MIXED, strict=True)
    )
    fired = [events[0].fired for events in found]
    condition = engine.dials["c"].condition
    for request, says in zip(MIXED, fired, strict=True):
        with torch.no_grad():
            h = models.embed(engine.model)(torch.tensor([request.ids]))
        acts = bool(condition.passes(condition.scores(h).mean()))
        assert says == ({"c": acts} if request.alphas.get("c") else {})
    assert len({f["c"] for f in fired if f}) == 2, "the condition never decides"


@pytest.mark.parametrize("alphas", [{"a": 1.0}, {"c": 1.0}])  # c is read twice: judged, then leant
def test_a_long_prompt_does_not_hold_up_the_others(engines: Any, alphas: dict[str, float]):
    engine = engines("llama, in pieces")
    passes: list[tuple[int, int]] = []
    hook = engine.model.register_forward_pre_hook(
        lambda _, __, given: passes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    events: list[Any] = []
    begun, done = threading.Event(), threading.Event()

    def hear(event: Any) -> None:
        events.append(event)
        if len(tokens(events)) == 2:
            begun.set()
            long.acquire()  # the engine waits here until the long one is sent

    long = threading.Semaphore(0)
    engine.submit(Request(prompt(3), max_tokens=40), hear)
    assert begun.wait(30)
    late = Request(prompt(50, 3), alphas, max_tokens=3)
    found: list[Any] = []
    engine.submit(late, lambda e: (found.append(e), isinstance(e, End) and done.set()))
    passes.clear()
    long.release(100)
    assert done.wait(30)
    idle(engine)
    hook.remove()
    reads = [n for n, (_, width) in enumerate(passes) if width > 1]
    assert len(reads) == -(-50 // PIECE) * (2 if "c" in alphas else 1)
    assert all(passes[n][0] * passes[n][1] <= PIECE for n in reads)
    assert all(passes[n + 1] == (1, 1) for n in reads[:-1])  # the other's token, after each
    assert check_same(tokens(found), *truth(engine, late))


def test_a_prompt_that_is_given_up_is_read_no_further(engines: Any):
    engine = engines("llama, in pieces")
    passes: list[int] = []
    events: list[Any] = []
    done = threading.Event()

    def hear(event: Any) -> None:
        events.append(event)
        done.set()

    def look(*_: Any) -> None:
        passes.append(1)
        job.cancel()

    with engine._lock:
        job = engine.submit(Request(prompt(50), max_tokens=3), hear)
        hook = engine.model.register_forward_hook(look)
    assert done.wait(30)
    idle(engine)
    hook.remove()
    assert (len(passes), events) == (1, [End("cancelled", 0)])


def test_prompts_share_what_may_be_read_between_two_tokens(engines: Any):
    """Never more positions than that, whatever comes at once; the same prompt counts once."""
    engine = engines("llama, in pieces")
    passes: list[int] = []
    hook = engine.model.register_forward_pre_hook(
        lambda _, __, given: passes.append(given["input_ids"].numel()), with_kwargs=True
    )
    same = [Request(prompt(PIECE, 1), {}, max_tokens=2)] * 3
    other = [Request(prompt(PIECE - 1, n), {}, max_tokens=2) for n in range(2, 4)]
    together(engine, same + other)
    hook.remove()
    assert max(passes) <= PIECE
    assert sum(passes) < PIECE + 2 * (PIECE - 1) + 2 * 5


@pytest.mark.parametrize("kind", ["jamba", "recurrentgemma", "mamba2", "lfm2", "gpt2", "qwen3moe"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_whether_a_model_may_be_read_in_pieces(kind: str, recwarn: Any):
    """Found by trying: what one pass over two pieces leaves in the cache is told apart from the whole."""
    model = made_of(kind)
    way = way_to_serve(model, 64)
    recwarn.clear()
    right = reads_in_pieces(model, way, 8, 64)
    assert right == (kind not in ("jamba", "recurrentgemma", "mamba2"))
    said = [str(w.message) for w in recwarn]
    assert any("not reading it whole" in s for s in said) == (not right and way != "plain")
    ids = prompt(33, 2)
    rows, whole = Rows(model, [ids], way, 8), Rows(model, [ids], way)
    while rows.unread.shape[1]:
        rows.read_on(8)
    if right:
        torch.testing.assert_close(rows.logits, whole.logits, rtol=0, atol=1e-4)
        assert reads_in_pieces(model, way, 64, 64)  # nothing to be in pieces


def test_a_row_at_zero_is_the_bare_model_beside_it(engines: Any):
    engine = engines("llama")
    zero, bare = ({"a": 0.0, "b": 0.0}, {})
    asked = [Request(prompt(9, s), x, max_tokens=6, top=3) for s in (0, 1) for x in (zero, bare)]
    asked += [Request(prompt(9, s), {"a": 1.0, "b": 2.0}, max_tokens=6, top=3) for s in (0,)]
    beside = together(engine, asked)
    for one, other in (beside[:2], beside[2:4]):
        ours, theirs, dialled = (
            [e for e in events if hasattr(e, "logprob")] for events in (one, other, beside[4])
        )
        assert [t.id for t in ours] == [t.id for t in theirs]
        for a, b in zip(ours, theirs, strict=True):  # a row's place in a product rounds
            assert a.logprob == pytest.approx(b.logprob, abs=1e-5)
        assert abs(ours[0].logprob - dialled[0].logprob) > 1e-3


def test_joining_and_leaving_leaves_keys_and_values_as_they_are_alone(tiny: Any):
    model = tiny("gemma3")
    a, b, c = prompt(20, 1), prompt(3, 2), prompt(11, 3)
    rows = Rows(model, [a])
    rows.feed([5])
    rows.join(Rows(model, [b, prompt(3, 9)]))
    rows.feed([6, 7, 8])
    rows.join(Rows(model, [c]))
    rows.select([3, 1])  # the longest leaves: what stood before the others goes with it
    alone = Rows(model, [[*c]]), Rows(model, [[*b, 7]])
    for n, one in enumerate(alone):
        torch.testing.assert_close(rows.logits[n], one.logits[0], rtol=0, atol=2e-5)
    wide = 11
    mine: list[Any] = rows.caches[0].layers
    theirs: list[Any] = alone[0].caches[0].layers
    for layer, other in zip(mine, theirs, strict=True):
        held = min(wide, 7) if layer.is_sliding else wide
        assert layer.keys.shape[2] == held
        torch.testing.assert_close(layer.keys[0], other.keys[0], rtol=0, atol=2e-5)
        torch.testing.assert_close(layer.values[0], other.values[0], rtol=0, atol=2e-5)


# ---- draws ---------------------------------------------------------------------------------------


def test_draws_hang_on_their_seed_alone(engines: Any):
    engine = engines("llama")

    def asked(seed: int | None, alpha: float = 0.0) -> Request:
        return Request(
            prompt(6), {"a": alpha}, max_tokens=12, temperature=0.9, top_p=0.9, seed=seed
        )

    (alone,) = together(engine, [asked(7)])
    crowd = [asked(3), asked(7), asked(None, 1.0), asked(11), asked(7)]
    beside = together(engine, crowd)
    assert tokens(beside[1]) == tokens(beside[4]) == tokens(alone)
    assert len({tuple(tokens(e)) for e in beside}) == 4


def test_draws_come_as_often_as_their_probability_says():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    draw = Draw(Request([1], temperature=2.0, seed=0))
    counts = torch.bincount(torch.tensor([draw(logits) for _ in range(4000)]), minlength=4) / 4000
    torch.testing.assert_close(counts, (logits / 2).softmax(-1), rtol=0, atol=0.02)
    # 0.644, 0.237, …: the first two hold 0.88, so that 0.8 takes both and 0.6 the first alone
    most = Draw(Request([1], temperature=1.0, top_p=0.8, seed=0))
    assert {most(logits) for _ in range(200)} == {1, 2}
    one = Draw(Request([1], temperature=1.0, top_p=0.6, seed=0))
    assert {one(logits) for _ in range(200)} == {2}


# ---- what is told --------------------------------------------------------------------------------


def test_log_probs_and_what_the_dial_has_moved(engines: Any):
    engine = engines("llama")
    ids = prompt(9)
    asked = [
        Request(ids, {"a": 1.0}, max_tokens=6, top=2, shift=True),
        Request(prompt(5), {"b": 1.0}, max_tokens=9),
        Request(ids, {}, max_tokens=2, top=0, shift=True),
    ]
    events = together(engine, asked)
    drawn = tokens(events[0])
    with torch.no_grad():
        whole = torch.tensor([[*ids, *drawn]])
        bare = engine.model(input_ids=whole).logits[0, 8:-1].log_softmax(-1)
        with engine.dials["a"](engine.model, 1.0, force=True):
            lean = engine.model(input_ids=whole).logits[0, 8:-1].log_softmax(-1)
    for n, (token, event) in enumerate(zip(drawn, events[0][1:], strict=False)):
        assert event.logprob == pytest.approx(float(lean[n, token]), abs=1e-4)
        assert event.shift == pytest.approx(float(lean[n, token] - bare[n, token]), abs=2e-4)
        assert [i for i, _ in event.top] == lean[n].topk(2).indices.tolist()
    assert [e.shift for e in events[2][1:3]] == [0.0, 0.0]
    assert {e.logprob for e in events[1] if isinstance(e, Token)} == {None}


def test_stop_texts_are_never_shown(tokenizer: Any):
    ids = tokenizer("The capital of France is Paris. The capital")["input_ids"]

    def said(*stop: str) -> tuple[str, bool, list[str]]:
        text = Said(tokenizer, stop)
        parts = []
        for i in ids:
            parts.append(text.add(i))
            if text.stopped:
                break
        return "".join(parts) + text.rest(), text.stopped, parts

    whole = "The capital of France is Paris. The capital"
    assert said() == (whole, False, said()[2])
    assert said("is Pa")[:2] == ("The capital of France ", True)
    assert said("Paris!")[:2] == (whole, False)  # held back, then told
    assert said("Rome", ". T", "e is")[:2] == ("The capital of Franc", True)
    assert said("T")[:2] == ("", True)
    assert said("capital!")[:2] == (whole, False)


def test_characters_of_several_tokens_are_shown_whole(tokenizer: Any):
    text = "é 日本 🙂!"
    ids = tokenizer(text)["input_ids"]
    said = Said(tokenizer, ["🙃"])
    parts = [said.add(i) for i in ids]
    assert "".join(parts) + said.rest() == text
    assert not any("\ufffd" in part for part in parts)
    assert len(ids) > len(text)


def test_an_answer_ends_at_its_mark_or_its_stop_text(engines: Any, tokenizer: Any):
    engine = engines("llama")
    free = tokens(list(engine.stream(Request(prompt(9), max_tokens=8))))
    at = max(n for n, t in enumerate(free) if t not in free[:n])
    events = list(engine.stream(Request(prompt(9), max_tokens=8, ends=frozenset([free[at]]))))
    assert tokens(events) == free[:at]
    assert events[-1] == End("stop", at + 1)
    text = tokenizer.decode(free, skip_special_tokens=True)
    events = list(engine.stream(Request(prompt(9), max_tokens=8, stop=(text[4:6],))))
    assert "".join(e.text for e in events if isinstance(e, Token)) == text[: text.find(text[4:6])]
    assert events[-1].reason == "stop"


# ---- a batch that never stops ----------------------------------------------------------------------


def test_what_is_cancelled_leaves_and_the_others_go_on(engines: Any):
    engine = engines("llama")
    kept: list[Any] = []
    done = threading.Event()
    long = [Request(prompt(4, n), {"a": 0.3 * n}, max_tokens=55) for n in range(5)]
    given: list[list[Any]] = [[] for _ in long]
    jobs = [engine.submit(r, given[n].append) for n, r in enumerate(long)]
    waits = engine.submit(Request(prompt(4), max_tokens=50), given[0].append)
    waits.cancel()

    def hear(event: Any) -> None:
        kept.append(event)
        if isinstance(event, End):
            done.set()

    last = Request(prompt(8), {"a": 1.0}, max_tokens=5)
    engine.submit(last, hear)  # waits for a row
    for job in jobs[1:]:
        job.cancel()
    assert done.wait(30)
    idle(engine)
    check_same(tokens(kept), *truth(engine, last))
    check_same(tokens(given[0])[:55], *truth(engine, long[0]))
    ends = [e for events in given for e in events if isinstance(e, End)]
    assert sorted(e.reason for e in ends) == ["cancelled"] * 5 + ["length"]
    assert all(e.tokens < 55 for e in ends if e.reason == "cancelled")
    assert engine.load == (0, 0)


def test_what_fails_takes_no_other_with_it(tiny: Any, tokenizer: Any):
    model = tiny("llama", fresh=True)
    with Engine(model, tokenizer, {"a": vector()}, rows=4, context=32) as engine:
        with torch.no_grad():
            model.model.embed_tokens.weight[7] = float("nan")
        bad, good = Request([5, 7, 9], max_tokens=4), Request([5, 8, 9], {"a": 1.0}, max_tokens=4)
        huge = Request([5, 8, 10], {"a": 1e30}, max_tokens=4)
        first, second, third = together(engine, [bad, good, huge])
        assert first[-1].reason == third[-1].reason == "error"
        assert "finite" in first[-1].error
        assert "alpha" in third[-1].error
        check_same(tokens(second), *truth(engine, good))


def test_what_can_never_run_is_refused(tiny: Any, tokenizer: Any):
    engine = Engine(tiny("llama"), tokenizer, {"a": vector()}, rows=1, queue=1, context=32)
    for request, says in [
        (Request([], max_tokens=3), "empty"),
        (Request([5] * 30, max_tokens=3), "more than 32"),
        (Request([5], {"b": 1.0}, max_tokens=3), "no dial b"),
        (Request([5], {"a": 1.0}, max_tokens=3, shift=True), "two rows"),
    ]:
        with pytest.raises(ConfigError, match=says):
            engine.submit(request, print)
    ended: list[Any] = []
    refused = ""
    for _ in range(50):
        try:
            engine.submit(Request([5], max_tokens=30), ended.append)
        except Busy as busy:
            refused = str(busy)
    assert "1 requests wait" in refused
    engine.close()
    assert ended[-1].reason in ("cancelled", "length")
    with pytest.raises(Busy, match="closing"):
        engine.submit(Request([5], max_tokens=3), print)
    late = VectorDial({0: torch.ones(32)}, {0: 1.0}, condition=Condition(3, torch.ones(32), 0.0))
    with pytest.raises(ConfigError, match="after the first edit"):
        Engine(tiny("llama"), tokenizer, {"late": late})


def test_dials_of_one_site_compose_in_their_order(engines: Any):
    """What requests compose is what `a + b` is: adapters before vectors, whatever their names."""
    engine = engines("llama")
    request = Request(prompt(9), {"a": 1.0, "b": -0.5}, max_tokens=1, top=5)
    event = next(e for e in engine.stream(request) if isinstance(e, Token))
    idle(engine)
    both = engine.dials["a"] + -0.5 * engine.dials["b"]
    with torch.no_grad(), both(engine.model, 1.0, force=True):
        logits = engine.model(input_ids=torch.tensor([prompt(9)])).logits[0, -1].log_softmax(-1)
    assert [i for i, _ in event.top] == logits.topk(5).indices.tolist()
    assert event.top[0][1] == pytest.approx(float(logits.max()), abs=1e-5)
    assert Begun({}) in list(engine.stream(request))


@pytest.mark.slow
def test_eight_together_take_a_third_of_the_time(smollm2: Any):
    model, tokenizer = smollm2
    v = torch.randn(576, generator=torch.Generator().manual_seed(1))
    asked = [
        Request(prompt(20 + 3 * n, n), {"a": (0.0, 1.0, -1.0, 0.5)[n % 4]}, max_tokens=48)
        for n in range(8)
    ]
    with Engine(model, tokenizer, {"a": VectorDial({12: v}, {12: 3.0})}, context=256) as engine:
        together(engine, asked[:1])
        clocks = []
        for batches in ([[request] for request in asked], [asked]):
            started = time.process_time(), time.monotonic()
            said = [events for batch in batches for events in together(engine, batch)]
            clocks.append((time.process_time() - started[0], time.monotonic() - started[1], said))
    (one_by_one, wall, alone), (at_once, short, beside) = clocks
    print(f"eight: {one_by_one:.1f} s of processor time one by one, {at_once:.1f} s together")
    print(f"by the clock {wall:.1f} s and {short:.1f} s: {short / wall:.2f}")
    assert [tokens(e) for e in beside] == [tokens(e) for e in alone]
    assert at_once <= one_by_one / 3
    assert models.n_layers(model) == 30
