"""The server, asked by the `openai` client: what it answers is what the engine says of one row alone."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import torch

from trimtab.dials import VectorDial
from trimtab.evaluation import generate
from trimtab.evaluation.generation import Sampling
from trimtab.serve import Begun, End, Engine, Shelf, Token
from trimtab.serve.answers import Answer, Choice
from trimtab.serve.app import Server
from trimtab.serve.run import Serving, listening

KEY = "a key"


class Running:
    """A server in a thread, with a tiny model."""

    def __init__(self, model: Any, tokenizer: Any, dials: dict[str, Any], **options: Any):
        limits = {"rows": 16, "queue": 256, "context": 128, "prefill": 48} | options.pop(
            "limits", {}
        )
        self.engine = Engine(model, tokenizer, dials, **limits)
        self.server = Serving(Server(self.engine, Shelf("tiny", dials), **options))
        place = listening("127.0.0.1", 0)
        self.port = place.getsockname()[1]
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [place]})
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def client(self, kind: Any = openai.OpenAI, key: str = KEY) -> Any:
        return kind(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=key, max_retries=0)

    def raw(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        given = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        connection.request(method, path, data, given | headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, json.loads(text) if text.startswith("{") else text

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)


def dials() -> dict[str, VectorDial]:
    found = {}
    for seed, name in enumerate(("honesty", "tone")):
        v = torch.randn(32, generator=torch.Generator().manual_seed(seed))
        found[name] = VectorDial({1 + seed: v}, {1 + seed: 3.0})
    found["honesty"].info.measured = {
        "alphas": [-1.0, 0.0, 1.5],
        "kl_nats_per_token": {"-1": 0.2, "0": 0.0, "1.5": 0.4},
    }
    return found


@pytest.fixture(scope="module")
def running(tiny: Any, tokenizer: Any) -> Iterator[Running]:
    made = Running(tiny("llama", fresh=True), tokenizer, dials(), key=KEY, max_tokens=100)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def client(running: Running) -> Any:
    return running.client()


def alone(running: Running, prompt: Any, name: str | None, alpha: float, n: int, style: Any) -> str:
    """The likeliest continuation by `generate`, on a model of its own."""
    from conftest import build

    dial = running.engine.dials[name] if name else None
    (found,) = generate(
        build("llama"),
        running.engine.tokenizer,
        [prompt],
        dial,
        [alpha],
        sampling=Sampling(max_new_tokens=n),
        prompt_style=style,
        force=True,
    )
    return found.text


CHAT = [{"role": "user", "content": "Is the sky blue?"}]


# ---- answers -------------------------------------------------------------------------------------


def test_models_are_listed_with_what_is_known_of_their_dials(client: Any):
    listed = client.models.list().data
    assert [m.id for m in listed] == ["tiny", "tiny+honesty", "tiny+tone"]
    about = listed[0].model_extra["dials"]
    assert about[0] == {
        "name": "honesty",
        "method": "vector",
        "range": [-1.0, 1.5],
        "damage": [[-1.0, 0.2], [0.0, 0.0], [1.5, 0.4]],
        "data": [],
    }
    assert about[1]["range"] is None
    assert client.models.retrieve("tiny+tone").id == "tiny+tone"


def test_a_chat_is_answered_as_generate_does(running: Running, client: Any):
    texts = []
    for model, extra, alpha in [
        ("tiny", {}, 0.0),
        ("tiny", {"dials": {"honesty": 1.5}}, 1.5),
        ("tiny+honesty@1.5", {}, 1.5),
        ("tiny+honesty", {}, 1.0),
        ("tiny", {"dials": {"honesty": "light"}}, 0.5),
    ]:
        found = client.chat.completions.create(
            model=model, messages=CHAT, temperature=0, max_tokens=9, extra_body=extra
        )
        name = "honesty" if alpha else None
        choice = found.choices[0]
        assert choice.message.content == alone(running, CHAT, name, alpha, 9, "chat")
        assert choice.finish_reason in ("length", "stop")
        assert found.model == model
        prompt = running.engine.tokenizer.apply_chat_template(CHAT, add_generation_prompt=True)
        assert found.usage.prompt_tokens == len(prompt["input_ids"])
        assert 1 <= found.usage.completion_tokens <= 9
        assert "warnings" not in found.model_extra
        texts.append(choice.message.content)
    assert len(set(texts)) == 4


def test_a_stream_says_what_the_whole_answer_says(client: Any):
    asked = {"model": "tiny+tone", "messages": CHAT, "seed": 3, "max_tokens": 12, "n": 2}
    whole = client.chat.completions.create(**asked)
    texts = ["", ""]
    reasons = {}
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    for chunk in chunks[:-1]:
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
        if choice.finish_reason:
            reasons[choice.index] = choice.finish_reason
    assert texts == [c.message.content for c in whole.choices]
    assert texts[0] != texts[1]
    assert reasons == {c.index: c.finish_reason for c in whole.choices}
    assert chunks[-1].usage == whole.usage
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "never measured" in chunks[0].model_extra["warnings"][0]


def test_completions_take_texts_and_tokens_and_stop(running: Running, client: Any):
    prompts = ["The sky is", "Two and two"]
    found = client.completions.create(
        model="tiny", prompt=prompts, max_tokens=8, temperature=0, n=2
    )
    texts = [alone(running, p, None, 0.0, 8, "plain") for p in prompts for _ in range(2)]
    assert [c.text for c in found.choices] == texts
    assert [c.index for c in found.choices] == [0, 1, 2, 3]
    ids = running.engine.tokenizer(prompts[0])["input_ids"]
    by_ids = client.completions.create(model="tiny", prompt=ids, max_tokens=8, temperature=0)
    assert by_ids.choices[0].text == texts[0]
    stop = texts[0][3:5]
    cut = client.completions.create(
        model="tiny", prompt=ids, max_tokens=8, temperature=0, stop=[stop, "never"]
    )
    assert cut.choices[0].text == texts[0][: texts[0].find(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_log_probs_in_both_forms(client: Any):
    asked = {"model": "tiny", "temperature": 0, "max_tokens": 4}
    chat = client.chat.completions.create(
        **asked,
        messages=CHAT,
        logprobs=True,
        top_logprobs=2,
        extra_body={"dials": {"tone": 1}, "shift": True},
    )
    entries = chat.choices[0].logprobs.content
    assert len(entries) == chat.usage.completion_tokens - (chat.choices[0].finish_reason == "stop")
    for entry in entries:
        assert entry.top_logprobs[0].token == entry.token  # the likeliest was taken
        assert entry.logprob == entry.top_logprobs[0].logprob > entry.top_logprobs[1].logprob
        assert isinstance(entry.model_extra["shift"], float)
    text = client.completions.create(**asked, prompt="The sky", logprobs=3)
    found = text.choices[0].logprobs
    assert "".join(found.tokens) == text.choices[0].text
    assert found.text_offset[1] == len(found.tokens[0])
    assert [max(top.values()) for top in found.top_logprobs] == found.token_logprobs


def test_alphas_beyond_what_was_measured_are_warned_of(client: Any):
    def said(model: str, **alphas: Any) -> list[str]:
        found = client.chat.completions.create(
            model=model, messages=CHAT, max_tokens=1, extra_body={"dials": alphas}
        )
        return found.model_extra.get("warnings", [])

    assert said("tiny", honesty=1.5) == said("tiny", honesty=-1) == said("tiny", tone=0) == []
    assert "outside the range" in said("tiny", honesty=1.6)[0]
    assert "-1 to 1.5" in said("tiny+honesty@-1.01")[0]
    assert len(said("tiny+honesty@9", tone=1)) == 2


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ({"model": "other"}, openai.NotFoundError, "there is tiny"),
        ({"model": "tinyhonesty"}, openai.NotFoundError, "no model"),
        ({"model": "tiny+honest"}, openai.BadRequestError, "did you mean"),
        ({"model": "tiny+honesty@much"}, openai.BadRequestError, "the dial honesty: alpha"),
        ({"model": "tiny+honesty@nan"}, openai.BadRequestError, "finite"),
        ({"extra_body": {"dials": {"honesty": 1e9}}}, openai.BadRequestError, "within"),
        ({"extra_body": {"dials": {"kindness": 1}}}, openai.BadRequestError, "no dial"),
        ({"extra_body": {"dials": [1]}}, openai.BadRequestError, "dials"),
        (
            {"model": "tiny+tone", "extra_body": {"dials": {"tone": 1}}},
            openai.BadRequestError,
            "twice",
        ),
        ({"extra_body": {"top_k": 3}}, openai.BadRequestError, "no such field"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"messages": [{"content": "a"}]}, openai.BadRequestError, "messages.0.role"),
        ({"max_tokens": 101}, openai.BadRequestError, "100 are the most"),
        ({"max_tokens": 0}, openai.BadRequestError, "greater than or equal to 1"),
        (
            {"messages": [{"role": "user", "content": "a b " * 90}]},
            openai.BadRequestError,
            "more than 128",
        ),
        ({"temperature": 3}, openai.BadRequestError, "temperature"),
        ({"presence_penalty": 1.0}, openai.BadRequestError, "presence_penalty"),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
            openai.BadRequestError,
            "tools",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_openais_form(client: Any, change: Any, kind: Any, says: str):
    with pytest.raises(kind, match=says) as caught:
        client.chat.completions.create(
            **{"model": "tiny", "messages": CHAT, "max_tokens": 2} | change
        )
    assert caught.value.body["type"] == "invalid_request_error"


def test_who_may_ask(running: Running):
    with pytest.raises(openai.AuthenticationError, match="key"):
        running.client(key="another").models.list()
    body = {"model": "tiny", "messages": CHAT, "max_tokens": 1}
    path, here = "/v1/chat/completions", f"127.0.0.1:{running.port}"
    assert running.raw("POST", path, body)[0] == 200
    assert running.raw("POST", path, body, Origin=f"http://{here}")[0] == 200
    for origin in (
        "http://evil.example",
        "null",
        "http://localhost:1",
        f"http://{here}.evil.example",
        "http://[",
        "http://[1:]/",
    ):
        status, said = running.raw("POST", path, body, Origin=origin)
        assert (status, said["error"]["code"]) == (403, "origin_not_allowed")
    for host in ("rebound.example", "[", "[1:]", "localhost.evil.example"):
        status, said = running.raw("POST", path, body, Host=host)
        assert (status, said["error"]["code"]) == (403, "host_not_allowed")
    assert running.raw("POST", path, b"x" * (1 << 20) + b"y")[0] == 413
    for bad in (b"", b"[1]", b"{", b'{"model": NaN}', b"\xff\xfe"):
        assert running.raw("POST", path, bad)[0] == 400
    assert running.raw("GET", "/v1/nothing")[1]["error"]["type"] == "invalid_request_error"
    assert running.raw("GET", path)[0] == 405
    status, page = running.raw("GET", "/", Authorization="")
    assert status == 200
    assert "<title>" in page


def test_a_body_that_comes_too_slowly_is_not_waited_for(running: Running, monkeypatch: Any):
    monkeypatch.setattr("trimtab.serve.app.PATIENCE", 0.3)
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {KEY}\r\n"
    )
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as line:
        line.sendall(f'{head}Content-Length: 9\r\n\r\n{{"mod'.encode())
        assert line.recv(100).startswith(b"HTTP/1.1 408")
    assert running.raw("GET", "/v1/models")[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        *("/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/v1/../../etc/passwd"),
        *(
            "/static/../app.py",
            "/page.html",
            "/v1/models/..%2f..%2fapp.py",
            "/docs",
            "/openapi.json",
        ),
    ],
)
def test_no_path_leads_to_a_file(running: Running, path: str):
    status, said = running.raw("GET", path)
    assert status == 404
    assert "root:" not in str(said)


def test_a_model_without_a_template_refuses_chats(tiny: Any, tokenizer: Any):
    import copy

    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    running = Running(tiny("llama", fresh=True), plain, {}, limits={"queue": 1, "rows": 1})
    try:
        client = running.client()
        with pytest.raises(openai.BadRequestError, match="no chat template"):
            client.chat.completions.create(model="tiny", messages=CHAT)
        found = client.completions.create(model="tiny", prompt="The sky", max_tokens=2)
        assert found.usage.completion_tokens == 2
        with pytest.raises(openai.RateLimitError, match="wait"):
            client.completions.create(model="tiny", prompt="The sky", max_tokens=30, n=9)
    finally:
        running.stop()


def test_it_ends_cleanly_while_answers_are_under_way(
    tiny: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("trimtab.serve.run.PATIENCE", 1)
    running = Running(tiny("llama", fresh=True), tokenizer, {})
    running.engine.model.register_forward_hook(lambda *_: time.sleep(0.4))
    stream = running.client().completions.create(
        model="tiny", prompt="The sky is", max_tokens=100, stream=True, temperature=0
    )
    events = iter(stream)
    next(events)
    started = time.monotonic()
    running.stop()
    with pytest.raises(openai.APIError, match="closing"):
        list(events)
    assert not running.thread.is_alive()
    assert not running.engine._thread.is_alive()
    assert time.monotonic() - started < 6


@pytest.mark.parametrize("stream", [False, True])
def test_whoever_hangs_up_is_given_up(running: Running, stream: bool):
    slow = running.engine.model.register_forward_hook(lambda *_: time.sleep(0.1))
    body = {"model": "tiny", "prompt": "The sky is", "max_tokens": 100, "temperature": 0}
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
    given = {"Authorization": f"Bearer {KEY}"}
    connection.request("POST", "/v1/completions", json.dumps(body | {"stream": stream}), given)
    while running.engine.load != (1, 0):
        time.sleep(0.01)
    connection.close()
    started = time.monotonic()
    while running.engine.load != (0, 0):
        time.sleep(0.01)
    slow.remove()
    assert time.monotonic() - started < 3  # of ten


# ---- many at once --------------------------------------------------------------------------------


def test_a_hundred_requests_at_once(running: Running):
    """Mixed strengths, streams and whole answers; some hang up, one is too long."""
    texts = ["Is the sky blue?", "What has three sides?", "Two and two?", "The capital of Italy?"]
    alphas = [0.0, 0.5, -1.0, 1.5, 3.0]
    gone = set(range(0, 100, 10))  # hang up after two tokens

    async def one(client: Any, n: int) -> tuple[str, Any]:
        chat = [{"role": "user", "content": texts[n % 4] if n != 99 else "a b " * 200}]
        asked = {
            "model": "tiny",
            "messages": chat,
            "temperature": 0,
            "max_tokens": 60 if n in gone else 6 + n % 7,
            "extra_body": {"dials": {"honesty": alphas[n % 5], "tone": 0.5 * (n % 3)}},
        }
        try:
            if n % 2:
                found = await client.chat.completions.create(**asked)
                return "whole", found.choices[0].message.content
            text, stream = "", await client.chat.completions.create(**asked, stream=True)
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""
                if n in gone and text:
                    await stream.close()
                    return "gone", text
            return "stream", text
        except openai.BadRequestError as error:
            return "refused", error.code

    async def everyone() -> list[tuple[str, Any]]:
        async with running.client(openai.AsyncOpenAI) as client:
            return await asyncio.gather(*(one(client, n) for n in range(100)))

    running.engine.peak = 0
    started = time.monotonic()
    found = asyncio.run(everyone())
    seconds = time.monotonic() - started
    kinds = [kind for kind, _ in found]
    counts = {kind: kinds.count(kind) for kind in ("whole", "stream", "gone", "refused")}
    assert counts == {"whole": 49, "stream": 40, "gone": 10, "refused": 1}
    assert found[99] == ("refused", "context_length_exceeded")
    while running.engine.load != (0, 0):
        time.sleep(0.01)
    sync, same, answered = running.client(), 0, 0
    known: dict[Any, str] = {}
    for n, (kind, text) in enumerate(found):
        if kind not in ("whole", "stream"):
            continue
        key = (n % 4, n % 5, n % 3, n % 7)
        if key not in known:
            known[key] = (
                sync.chat.completions.create(
                    model="tiny",
                    messages=[{"role": "user", "content": texts[n % 4]}],
                    temperature=0,
                    max_tokens=6 + n % 7,
                    extra_body={"dials": {"honesty": alphas[n % 5], "tone": 0.5 * (n % 3)}},
                )
                .choices[0]
                .message.content
            )
        same += text == known[key]
        answered += 1
    print(
        f"100 at once in {seconds:.1f} s: {counts}; {same} of {answered} as alone; "
        f"{running.engine.peak} rows together at most"
    )
    assert same >= answered - 1  # a near tie may fall otherwise
    assert 8 <= running.engine.peak <= 16  # prompts are read in pieces of 48


def test_conditions_are_told_as_they_are_judged(tokenizer: Any):
    form = Answer(tokenizer, "tiny", chat=True, told=False, extra={"dials": {"a": 1.0}})
    choice = Choice()
    for event in (begun := Begun({"a": False})), Token(5, "x"), End("stop", 2):
        choice.add(event)
    first = form.chunk(0, choice, begun)
    assert first["choices"][0]["fired"] == {"a": False}
    assert first["dials"] == {"a": 1.0}
    assert form.whole([choice], 3)["choices"][0]["fired"] == {"a": False}
    assert form.whole([Choice(end=End("stop", 1))], 3)["choices"][0].keys() == {
        "index", "message", "logprobs", "finish_reason",
    }  # fmt: skip
