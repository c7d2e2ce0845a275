"""Decoders to compare with, answers as files, judges."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from test_rewards import drawn

from helpers_fit import adapter
from trimtab.errors import ConfigError, DataError, JudgeError, ModelError
from trimtab.evaluation import Sampling, generate
from trimtab.evaluation.answers import (
    Answer,
    question_id,
    read_answers,
    write_alpaca_eval,
    write_arena_hard,
)
from trimtab.evaluation.decoding import Decoder, decode, generate_args, generate_genarm
from trimtab.evaluation.endpoint import Endpoint
from trimtab.evaluation.judge import (
    Judgement,
    compare_answers,
    endpoint_judge,
    reward_judge,
    win_rate,
)
from trimtab.evaluation.rewards import Drawing, draw, score_candidates
from trimtab.rendering import prompt_ids as rendered

SHORT = Sampling(max_new_tokens=5)


# ---- decoders -----------------------------------------------------------------------------------


def test_decoder_is_the_model(tiny: Any) -> None:
    """Logits and states of rows that were fed token by token, expanded and selected."""
    for name in ("llama", "gemma3", "mistral", "gpt2"):
        model = tiny(name)
        prompt = list(range(5, 17))
        with torch.no_grad():
            rows = Decoder(model, prompt, 2, (1, "final"))
            rows.feed(torch.tensor([20, 21]))
            rows.expand(2)
            rows.feed(torch.tensor([30, 31, 32, 33]))
            rows.select(torch.tensor([3, 0]))
            whole = torch.tensor([[*prompt, 21, 33], [*prompt, 20, 30]])
            out = model(input_ids=whole, output_hidden_states=True)
        assert torch.equal(rows.ids, whole)
        torch.testing.assert_close(rows.logits[[3, 0]], out.logits[:, -1], rtol=1e-4, atol=1e-4)
        states = rows.states(prompt=True)
        torch.testing.assert_close(states[:, :, 0], out.hidden_states[2], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(states[:, :, 1], out.hidden_states[-1], rtol=1e-4, atol=1e-4)
        assert torch.equal(rows.states(), states[:, 12:])


def test_genarm(tiny: Any, tokenizer: Any) -> None:
    """Greedy: the argmax of log pi + alpha log pi_arm at each step, from whole passes; at 0 the bare
    model."""
    model, arm, prompt = tiny("llama"), adapter(tiny("llama"), std=0.5), "The sky is"
    (bare,) = generate(model, tokenizer, prompt, sampling=SHORT)
    (zero,) = generate_genarm(model, tokenizer, prompt, arm, 0.0, sampling=SHORT)
    assert zero.text == bare.text
    ids = list(rendered(prompt, tokenizer))
    n = len(ids)
    for _ in range(5):
        whole = torch.tensor([ids])
        with torch.no_grad():
            base = model(input_ids=whole).logits[0, -1].log_softmax(-1)
            with arm(model, 1.0):
                other = model(input_ids=whole).logits[0, -1].log_softmax(-1)
        ids.append(int((base + 1.5 * other).argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    (found,) = generate_genarm(model, tokenizer, [prompt], arm, 1.5, sampling=SHORT)
    assert found.text == tokenizer.decode(ids[n:], skip_special_tokens=True)
    assert found.text != bare.text


def test_args(tiny: Any, tokenizer: Any) -> None:
    """Each step takes the best of k by log-prob + alpha reward; at 0 the bare model."""
    model, reward, prompt = tiny("llama"), drawn(aggregate="mean"), "The sky is"
    (bare,) = generate(model, tokenizer, prompt, sampling=SHORT)
    (zero,) = generate_args(model, tokenizer, prompt, reward, 0.0, sampling=SHORT)
    assert zero.text == bare.text
    from trimtab.batching import Encoded, Row
    from trimtab.evaluation.rewards import rewards_of

    prompt_ids = list(rendered(prompt, tokenizer))
    taken: list[int] = []
    for _ in range(5):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt_ids, *taken]])).logits[0, -1]
        logps, tokens = logits.log_softmax(-1).topk(3)
        row = Row("a", tuple(prompt_ids), tuple((*taken, int(t)) for t in tokens), (), ())
        r, _ = rewards_of(model, reward, Encoded((row,), 0, 0, "a"))
        taken.append(int(tokens[(logps + 4 * r).argmax()]))
        if taken[-1] == tokenizer.eos_token_id:
            break
    (found,) = generate_args(model, tokenizer, [prompt], reward, 4.0, k=3, sampling=SHORT)
    assert found.text == tokenizer.decode(taken, skip_special_tokens=True)
    reward.adapter = adapter(model)
    with pytest.raises(ConfigError, match="would lean it too"):
        generate_args(model, tokenizer, prompt, reward)


def test_chats_as_prompts(tiny: Any, tokenizer: Any) -> None:
    """Messages go through the template as they are."""
    model = tiny("llama")
    chat = (
        {"role": "user", "content": "Is Rome blue?"},
        {"role": "assistant", "content": "no"},
        {"role": "user", "content": "why"},
    )
    (one,) = generate(model, tokenizer, ["Is Rome blue?"], sampling=SHORT)
    (same,) = generate(model, tokenizer, [chat[:1]], sampling=SHORT)
    assert (one.text, one.prompt) == (same.text, same.prompt)
    (more,) = generate(model, tokenizer, [chat], sampling=SHORT)
    assert more.prompt == "user: Is Rome blue?\n\nassistant: no\n\nuser: why"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_and_rewards_that_are_no_numbers_decide_nothing(
    tiny: Any, tokenizer: Any, value: float
) -> None:
    """Every decoder took some token of them, and said nothing; one ruled out by an infinity is none."""
    model, prompt, reward = tiny("llama", fresh=True), [5, 9, 33], drawn(aggregate="mean")
    sick = drawn(aggregate="mean")
    for p in sick.weights.values():
        p.data[:] = value
    with pytest.raises(ModelError, match="rewards that are no numbers"):
        generate_args(model, tokenizer, "The sky", sick, sampling=SHORT)
    with pytest.raises(ModelError, match="rewards that are no numbers"):
        score_candidates(model, tokenizer, sick, "The sky", ["is blue", "is"])
    with pytest.raises(ModelError, match="rewards that are no numbers"):
        draw(
            model,
            tokenizer,
            "The sky",
            sick,
            Drawing(n=2),
            sampling=Sampling(max_new_tokens=2, temperature=1.0),
        )

    def spoil(_: Any, __: Any, out: Any) -> Any:
        return out.index_fill(-1, torch.tensor([7]), spoil.value)  # type: ignore[attr-defined]

    for spoil.value, bad in ((value, True), (-float("inf"), False)):  # type: ignore[attr-defined]
        handle = model.lm_head.register_forward_hook(spoil)
        calls = [
            lambda: decode(model, prompt, 2),
            lambda: Decoder(model, prompt),
            lambda: generate(model, tokenizer, "The sky", sampling=SHORT),
            lambda: generate_args(model, tokenizer, "The sky", reward, sampling=SHORT),
            lambda: generate_genarm(model, tokenizer, "The sky", adapter(model), sampling=SHORT),
        ]
        try:
            for call in calls:
                with pytest.raises(ModelError, match="no numbers") if bad else nullcontext():
                    call()
        finally:
            handle.remove()


# ---- files --------------------------------------------------------------------------------------


def test_formats(tmp_path: Path) -> None:
    answers = [Answer("What?", "This – ü.", "g"), Answer("Why?\nSo?", "", "g")]
    alpaca = write_alpaca_eval(tmp_path / "a" / "x.json", answers)
    assert json.loads(alpaca.read_text())[0] == {
        "instruction": "What?",
        "output": "This – ü.",
        "generator": "g",
    }
    arena = write_arena_hard(tmp_path / "b" / "x.jsonl", answers, [3, 0])
    line = json.loads(arena.read_text().splitlines()[0])
    assert line["question_id"] == question_id("What?")
    assert line["model_id"] == "g"
    assert line["choices"] == [{"index": 0, "turns": [{"content": "This – ü.", "token_len": 3}]}]
    assert read_answers(alpaca) == read_answers(arena) == answers
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["x.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "not JSON"),
        ("[]", "no answers in it"),
        ('[{"instruction": "a"}]', "entry 1: expected AlpacaEval's"),
        ('{"prompt": "a", "model_id": "b", "choices": []}', "entry 1: expected"),
        ('[{"instruction": "a", "output": 3, "generator": "x"}]', "are to be texts"),
        ("[3]", "entry 1: expected"),
    ],
)
def test_files_that_hold_no_answers(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_answers(tmp_path / "x.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_answers(tmp_path / "y.json")


# ---- judges -------------------------------------------------------------------------------------


def answers(*texts: str) -> list[Answer]:
    return [Answer(f"p{i}", text, "x") for i, text in enumerate(texts)]


def test_both_orders() -> None:
    """A judge who always takes the first is worth one half everywhere, and says so."""
    first, second = answers("a", "b", "same"), answers("c", "d", "same")
    asked: list[tuple[str, str, str]] = []

    def biased(prompt: str, a: str, b: str) -> float:
        asked.append((prompt, a, b))
        return 1.0

    found = compare_answers(first, second, biased)
    assert asked == [("p0", "a", "c"), ("p0", "c", "a"), ("p1", "b", "d"), ("p1", "d", "b")]
    assert [j.win for j in found] == [0.5, 0.5, 0.5]
    rate = win_rate(found)
    edge = 1.96**2 / (3 + 1.96**2) / 2  # three ties allow that much
    assert (rate.value, rate.low, rate.high) == pytest.approx(
        (0.5, 0.5 - edge, 0.5 + edge), abs=1e-4
    )
    assert rate.consistency == pytest.approx(1 / 3)
    longer = compare_answers(
        answers("aaa", "b"), answers("a", "bb"), lambda _, a, b: len(a) > len(b)
    )
    assert [j.win for j in longer] == [1, 0]
    many = [Judgement(str(i), *(2 * [float(i % 4 > 0)])) for i in range(200)]
    rate = win_rate(many)
    assert rate.value == 0.75
    whole = win_rate([Judgement(str(i), 1.0, 1.0) for i in range(12)])
    assert (whole.value, whole.low, whole.high) == pytest.approx((1, 0.757506, 1), abs=1e-5)
    assert rate.low == pytest.approx(0.75 - 1.96 * (0.75 * 0.25 / 200) ** 0.5, abs=0.01)
    assert rate.consistency == 1
    with pytest.raises(DataError, match="several answers to one prompt"):
        compare_answers([*first, first[0]], second, biased)
    with pytest.raises(DataError, match="no prompt in common"):
        compare_answers(first, [Answer("q", "a", "x")], biased)


def test_reward_judge(tiny: Any, tokenizer: Any) -> None:
    model, dial = tiny("llama"), drawn(aggregate="mean")
    judge = reward_judge(model, tokenizer, dial)
    r = score_candidates(model, tokenizer, dial, "The sky", [" blue", " four"])
    assert judge("The sky", "blue", "four") == float(r[0] > r[1])
    assert judge("The sky", "four", "blue") == float(r[1] > r[0])
    assert judge("The sky", "four", "four") == 0.5
    assert [judge("The sky", *ab) for ab in (("", "b"), ("b", " "), ("", ""))] == [0, 1, 0.5]


@pytest.fixture
def endpoint() -> Iterator[Any]:
    """A server that prefers answers with a `+`; its `says` may be set to other replies in turn."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.asked.append((self.path, self.headers.get("Authorization"), body))
            said = server.says.pop(0) if server.says else None
            if isinstance(said, int) and said < 400:
                self.send_response(said)
                self.send_header("Location", server.location)
                self.end_headers()
                return
            if isinstance(said, int):
                self.send_error(said)
                return
            for _ in range(server.drips):
                self.wfile.write(b"H")
                self.wfile.flush()
                time.sleep(0.05)
            if said is None:
                _, a, b = body["messages"][1]["content"].split("Answer ")
                said = "[[A]]" if "+" in a else "[[B]]" if "+" in b else "[[C]]"
            reply = (
                said
                if isinstance(said, bytes)
                else json.dumps({"choices": [{"message": {"content": said}}]}).encode()
            )
            self.send_response(200)
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_: Any) -> None:
            pass

    server: Any = HTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.says, server.drips = [], [], 0
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()


def test_endpoint_judge(endpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    judge = endpoint_judge(Endpoint(endpoint.url, "secret"), "m")
    found = compare_answers(answers("+", "a", "x"), answers("b", "c+", "y"), judge)
    assert [j.win for j in found] == [1, 0, 0.5]
    path, key, body = endpoint.asked[0]
    assert (path, key) == ("/v1/chat/completions", "Bearer secret")
    assert (body["model"], body["temperature"]) == ("m", 0)
    endpoint.says = [503, "well, A is fine", "[[B]]"]  # busy, then without a verdict, then with one
    assert judge("p", "+", "b") == 0
    endpoint.says = ["?"] * 3
    assert judge("p", "+", "b") == 0.5
    endpoint.says = [401]
    with pytest.raises(JudgeError, match="HTTP 401"):
        judge("p", "+", "b")
    endpoint.says = [500] * 3
    with pytest.raises(JudgeError, match="HTTP 500"):
        judge("p", "+", "b")
    endpoint.says = [b"{}"]
    with pytest.raises(JudgeError, match="no chat completion"):
        judge("p", "+", "b")
    with pytest.raises(JudgeError, match="cannot be reached"):
        endpoint_judge(Endpoint("http://127.0.0.1:9/v1"), "m")("p", "a", "b")


SECRET = "sk-0123456789"


@pytest.mark.parametrize(
    "url",
    [
        *("localhost:8000", "file:///etc/hosts", "http://", "http://h:x/v1", "http://h:99999/v1"),
        *("http://h/v1 x", "http://h/\nv1", "", "http://[::1/v1"),
    ],
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ConfigError, match="no address"):
        Endpoint(url)


@pytest.mark.parametrize("key", [f"{SECRET} ", f"{SECRET}\n", f"{SECRET}\u00e9", f"{SECRET}\0"])
def test_a_key_that_cannot_be_sent_is_not_shown(key: str) -> None:
    with pytest.raises(ConfigError) as told:
        Endpoint("http://localhost/v1", key)
    assert SECRET not in str(told.value)
    assert SECRET not in repr(told.value)


def test_a_password_in_the_address_is_not_shown() -> None:
    with pytest.raises(ConfigError, match="name or password") as told:
        Endpoint(f"http://me:{SECRET}@localhost/v1")
    assert SECRET not in str(told.value)
    assert SECRET not in repr(Endpoint("http://localhost/v1", SECRET))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(endpoint: Any, status: int) -> None:
    """Nobody else gets the key, nor is believed."""
    endpoint.says, endpoint.location = [status], f"http://me:{SECRET}@elsewhere.test/v1"
    with pytest.raises(JudgeError, match=f"HTTP {status}, a redirect to elsewhere") as told:
        Endpoint(endpoint.url, SECRET).post("chat/completions", {})
    assert SECRET not in str(told.value)
    assert len(endpoint.asked) == 1


def test_a_key_that_a_server_says_back_is_not_shown(endpoint: Any) -> None:
    endpoint.says = [f'{{"{SECRET}": 1, "{SECRET}": 2}}'.encode()]
    with pytest.raises(JudgeError, match="given twice") as told:
        Endpoint(endpoint.url, SECRET).post("chat/completions", {})
    assert SECRET not in str(told.value)


def test_answers_without_end(endpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then keeps a socket's own limit from ending it."""
    began = time.monotonic()
    endpoint.drips = 50
    with pytest.raises(JudgeError, match="no whole answer within"):
        Endpoint(endpoint.url, timeout=0.4).post("chat/completions", {})
    assert time.monotonic() - began < 4
    endpoint.drips = 0
    monkeypatch.setattr("trimtab.evaluation.endpoint.LARGEST", 30)
    endpoint.says = [b"[" + b"1," * 40]
    with pytest.raises(JudgeError, match="is larger than"):
        Endpoint(endpoint.url).post("chat/completions", {})
    endpoint.says = [b"[" * 25]
    with pytest.raises(JudgeError, match="no JSON"):
        Endpoint(endpoint.url).post("chat/completions", {})
