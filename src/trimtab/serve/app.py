"""The server: OpenAI's routes over the engine, and the page at `/`."""

from __future__ import annotations

import asyncio
import hmac
import importlib.resources
import json
import threading
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from trimtab import models
from trimtab.errors import TrimtabError
from trimtab.evaluation.formats import Format, Style, format_for
from trimtab.evaluation.generation import ends_of
from trimtab.serve import request as engine_request
from trimtab.serve.answers import Answer, Choice
from trimtab.serve.bodies import Body, ChatBody, CompletionBody, Refused, parsed
from trimtab.serve.engine import Busy, Engine, TooLong
from trimtab.serve.job import Job
from trimtab.serve.request import End
from trimtab.serve.shelf import Shelf

LOOPBACK = ("localhost", "127.0.0.1", "::1")
PATIENCE = 30.0
"""Seconds within which the whole body of a request has to be there."""
POLICY = (
    "default-src 'none'; connect-src 'self'; img-src data:; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"
)


class Server:
    """What the routes share.

    Args:
        key: what clients must send as their key, if anything.
        max_tokens: longest answer that may be asked for; also how long one is that says nothing.
        max_body: bytes of a request.
        hosts: names by which the server may be called; empty for any.
    """

    def __init__(
        self,
        engine: Engine,
        shelf: Shelf,
        *,
        key: str | None = None,
        max_tokens: int = 512,
        max_body: int = 1 << 20,
        hosts: Sequence[str] = LOOPBACK,
    ):
        self.engine, self.shelf, self.key = engine, shelf, key
        self.max_tokens, self.max_body, self.hosts = max_tokens, max_body, tuple(hosts)
        self.fingerprint = models.source_of(engine.model).digest[:12]
        self.started = int(time.time())
        self._encoding = threading.Lock()  # a tokenizer is no two threads' at a time

    # ---- who may ask ----------------------------------------------------------------------------

    def check(self, request: Request) -> None:
        """Raise Refused for a page of another site, another name of this host, or a wrong key."""
        host = request.headers.get("host", "")
        name = _parts(f"//{host}")[0]
        if self.hosts and name not in self.hosts:
            raise Refused(403, f"this server is not called {name[:200]!r}", code="host_not_allowed")
        origin = request.headers.get("origin")
        if origin is not None and _parts(origin)[1] != host:
            said = f"pages of {origin[:200]} may not ask here"
            raise Refused(403, said, code="origin_not_allowed")
        if self.key is not None and request.url.path != "/":
            given = request.headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self.key.encode()):
                raise Refused(401, "expected the key of this server", code="invalid_api_key")

    async def body(self, request: Request) -> bytes:
        """The body of a request. Raises Refused where it is too large, or comes too slowly."""
        data = bytearray()
        try:
            async with asyncio.timeout(PATIENCE):
                async for part in request.stream():
                    data += part
                    if len(data) > self.max_body:
                        raise Refused(413, f"the body has more than {self.max_body} bytes")
        except TimeoutError:
            raise Refused(408, f"the body was not there within {PATIENCE:g} s") from None
        return bytes(data)

    # ---- what is asked --------------------------------------------------------------------------

    def requests(
        self, body: Body, prompts: Sequence[Any], style: Style, top: int | None, most: int | None
    ) -> tuple[list[engine_request.Request], dict[str, Any], int]:
        """A request of the engine for every answer that is wanted, what is said beside them, and the
        tokens of the prompts."""
        try:
            alphas = self.shelf.alphas(body.model, body.dials)
        except LookupError as error:
            raise Refused(404, str(error.args[0]), param="model", code="model_not_found") from error
        turned = [self.shelf.dials[name] for name, alpha in alphas.items() if alpha]
        form = replace(format_for(turned, style), style=style)
        found, tokens = [], 0
        for number, prompt in enumerate(prompts):
            with self._encoding:
                ids, ends = self._encoded(prompt, form)
            tokens += len(ids)
            room = max(1, self.engine.context - len(ids))
            asked = engine_request.Request(
                ids,
                alphas,
                ends,
                min(self.max_tokens, room) if most is None else most,
                body.temperature,
                body.top_p,
                None,
                tuple(body.stop),
                top,
                body.shift,
            )
            if asked.max_tokens > self.max_tokens:
                raise Refused(
                    400,
                    f"max_tokens: {asked.max_tokens}, and {self.max_tokens} are the most here",
                    param="max_tokens",
                )
            self.engine.check(asked)
            for index in range(body.n):
                seed = (
                    None
                    if body.seed is None
                    else engine_request.seed_of(body.seed, number * body.n + index)
                )
                found.append(replace(asked, seed=seed))
        extra: dict[str, Any] = {"dials": alphas, "system_fingerprint": self.fingerprint}
        if warnings := self.shelf.warnings(alphas, style):
            extra["warnings"] = warnings
        return found, extra, tokens

    def _encoded(self, prompt: Any, form: Format) -> tuple[list[int], frozenset[int]]:
        tokenizer, model = self.engine.tokenizer, self.engine.model
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
            vocabulary = models.text_config(model).vocab_size
            if bad := [i for i in prompt if not 0 <= i < vocabulary]:
                raise Refused(400, f"prompt: there is no token {bad[0]}", param="prompt")
            return prompt, frozenset(ends_of(model, tokenizer, form, ["a"]))
        text: Any = prompt
        ids = form.ids(tokenizer, text)
        return ids, frozenset(ends_of(model, tokenizer, form, [text]))

    async def answer(
        self,
        http: Request,
        body: Body,
        prompts: Sequence[Any],
        *,
        chat: bool,
        top: int | None,
        most: int | None,
    ) -> Response:
        """The answer to a request, whole or in a stream."""
        style: Style = "chat" if chat else "plain"
        asked, extra, tokens = await asyncio.to_thread(
            self.requests, body, prompts, style, top, most
        )
        form = Answer(
            self.engine.tokenizer, body.model, chat=chat, told=top is not None, extra=extra
        )
        running = Running(self.engine, asked)
        if body.stream:
            usage = body.stream_options.include_usage
            return StreamingResponse(
                running.told(form, tokens if usage else None),
                media_type="text/event-stream",
                headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
            )
        done = asyncio.create_task(running.done())
        gone = asyncio.create_task(_gone(http))
        try:
            await asyncio.wait({done, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not done.done():
                return Response(status_code=499)  # nobody reads it
            return JSONResponse(form.whole(await done, tokens))
        finally:
            running.cancel()
            for task in (done, gone):
                task.cancel()

    def catalogue(self) -> dict[str, Any]:
        """The models on offer: the bare one, which tells of all dials, and it with each dial at 1."""
        names = [self.shelf.model, *(f"{self.shelf.model}+{name}" for name in self.shelf.dials)]
        entries: list[dict[str, Any]] = [
            {"id": name, "object": "model", "created": self.started, "owned_by": "trimtab"}
            for name in names
        ]
        template = getattr(self.engine.tokenizer, "chat_template", None)
        entries[0] |= {
            "dials": self.shelf.about(),
            "chat": bool(template),
            "rows": self.engine.rows,
            "context": self.engine.context,
            "max_tokens": self.max_tokens,
        }
        return {"object": "list", "data": entries}


class Running:
    """The answers of one request, on their way."""

    def __init__(self, engine: Engine, asked: Sequence[engine_request.Request]):
        loop = asyncio.get_running_loop()
        self.events: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()
        self.choices = [Choice() for _ in asked]
        self.jobs: list[Job] = []
        try:
            for index, one in enumerate(asked):

                def deliver(event: Any, index: int = index) -> None:
                    loop.call_soon_threadsafe(self.events.put_nowait, (index, event))

                self.jobs.append(engine.submit(one, deliver))
        except TrimtabError:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Give up what is not done."""
        for job in self.jobs:
            job.cancel()

    async def __aiter__(self) -> AsyncIterator[tuple[int, Choice, Any]]:
        """Every event, with the answer that it belongs to. Raises Refused where one fails."""
        left = len(self.choices)
        while left:
            index, event = await self.events.get()
            choice = self.choices[index]
            choice.add(event)
            if isinstance(event, End):
                left -= 1
                if event.reason == "cancelled":
                    raise Refused(503, "the server is closing")
                if event.reason == "error":
                    raise Refused(500, event.error)
            yield index, choice, event

    async def done(self) -> list[Choice]:
        """All answers, whole."""
        async for _ in self:
            pass
        return self.choices

    async def told(self, form: Answer, prompt_tokens: int | None) -> AsyncIterator[str]:
        """Server-sent events. Left early, what is not done is given up."""
        try:
            async for index, choice, event in self:
                yield _line(form.chunk(index, choice, event))
            if prompt_tokens is not None:
                yield _line(form.last(self.choices, prompt_tokens))
        except Refused as refused:
            yield _line({"error": refused.error})
        finally:
            self.cancel()
        yield "data: [DONE]\n\n"


class Guard:
    """What is before every route."""

    def __init__(self, app: Any, server: Server):
        self.app, self.server = app, server

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Let a request pass, or refuse it."""
        try:
            if scope["type"] == "http":
                self.server.check(Request(scope))
        except Refused as refused:
            return await _refusal(refused)(scope, receive, send)
        await self.app(scope, receive, send)


def create_app(server: Server) -> FastAPI:
    """The routes. Every error is in OpenAI's form."""

    app = FastAPI(title="trimtab", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, server=server)  # type: ignore[arg-type]

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        return _refusal(error)

    @app.exception_handler(TrimtabError)
    async def unfit(_: Request, error: TrimtabError) -> Response:
        if isinstance(error, Busy):
            return _refusal(Refused(429, str(error), code="queue_full"))
        code = "context_length_exceeded" if isinstance(error, TooLong) else None
        return _refusal(Refused(400, str(error), code=code))

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        what = f"{request.method} {request.url.path}: {error.detail}"
        return _refusal(Refused(error.status_code, what))

    @app.get("/")
    async def page() -> Response:
        text = importlib.resources.files("trimtab.serve").joinpath("page.html").read_text("utf-8")
        return HTMLResponse(text, headers={"Content-Security-Policy": POLICY})

    @app.get("/health")
    async def health() -> dict[str, Any]:
        running, waiting = server.engine.load
        return {"status": "ok", "running": running, "waiting": waiting}

    @app.get("/v1/models")
    async def catalogue() -> dict[str, Any]:
        return server.catalogue()

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        for entry in server.catalogue()["data"]:
            if entry["id"] == name:
                return entry
        raise Refused(404, f"no model {name!r} here", param="model", code="model_not_found")

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = parsed(ChatBody, await server.body(request))
        told = body.logprobs or body.shift
        messages = [m.model_dump() for m in body.messages]
        for message in messages:
            if message["role"] == "developer":
                message["role"] = "system"
        return await server.answer(
            request,
            body,
            [messages],
            chat=True,
            top=body.top_logprobs if told else None,
            most=body.max_completion_tokens or body.max_tokens,
        )

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        body = parsed(CompletionBody, await server.body(request))
        top = 0 if body.logprobs is None and body.shift else body.logprobs
        return await server.answer(
            request, body, body.prompts, chat=False, top=top, most=body.max_tokens or 16
        )

    return app


def _parts(address: str) -> tuple[str, str]:
    """Name of the host, and the host with its port; nothing of what is no address."""
    try:
        parts = urlsplit(address)
        return parts.hostname or "", parts.netloc
    except ValueError:
        return "", ""


def _line(found: dict[str, Any]) -> str:
    return f"data: {json.dumps(found, ensure_ascii=False)}\n\n"


def _refusal(refused: Refused) -> Response:
    return JSONResponse({"error": refused.error}, refused.status)


async def _gone(request: Request) -> None:
    """Wait until the client has hung up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
