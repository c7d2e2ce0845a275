"""`trimtab serve`."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import UseAppendAction

from trimtab.bounds import Count, Whole
from trimtab.cli.parse import parse
from trimtab.cli.ready import check_model, read_dials
from trimtab.errors import ConfigError

if TYPE_CHECKING:
    from trimtab.serve import Engine, Shelf


@dataclass(frozen=True)
class Args:
    """Flags."""

    model: str = "smollm2-135m"
    """Hub id, folder, .gguf file, or smollm2-135m."""
    dial: Annotated[tuple[str, ...], UseAppendAction] = ()
    """NAME=DIR: a dial's folder or Hub id, and what requests call it; repeat for several."""
    name: str | None = None
    """What requests call the model (default: the last part of --model)."""
    host: str = "127.0.0.1"
    """Address to listen at; the default is reached from this machine alone."""
    port: Whole = 8777
    """Port to listen at; 0 takes a free one."""
    api_key: str | None = None
    """Key that clients must send (default: TRIMTAB_API_KEY, else none)."""
    rows: Count = 16
    """Rows of the batch: requests that run together."""
    queue: Count = 128
    """Requests that may wait; more are refused."""
    context: Count = 2048
    """Tokens of the longest request, prompt and answer together."""
    max_tokens: Count = 512
    """Tokens of the longest answer."""
    max_body: Count = 1 << 20
    """Bytes of the largest request."""
    open: bool = False
    """Open the page in a browser."""
    dtype: str = "auto"
    """float32, bfloat16, float16, or auto."""
    load_in: Literal["4bit", "8bit"] | None = None
    """Quantise the model with bitsandbytes as it is loaded (extra `quant`)."""
    device: str = "auto"
    """A torch device, or auto."""
    force: bool = False
    """Go on although a dial was made for another base model."""
    quiet: bool = False
    """No progress."""


def main(words: list[str]) -> None:
    """Serve until interrupted."""
    args = parse(
        Args,
        words,
        verb="serve",
        about="A model with dials behind OpenAI's API, and a page for it.",
    )
    key = args.api_key or os.environ.get("TRIMTAB_API_KEY")
    if not 0 <= args.port < 65536:
        raise ConfigError(f"--port {args.port}: expected 0 to 65535")
    engine, shelf = begin(args)
    from trimtab.serve.app import LOOPBACK, Server
    from trimtab.serve.run import run

    here = args.host in LOOPBACK or args.host.startswith("127.")
    if not here and key is None:
        print(
            f"warning: {args.host} is reached from other machines, and there is no --api-key",
            file=sys.stderr,
        )
    server = Server(
        engine,
        shelf,
        key=key,
        max_tokens=args.max_tokens,
        max_body=args.max_body,
        hosts=(*LOOPBACK, args.host) if here else (),
    )
    run(server, args.host, args.port, open_page=args.open, say=None if args.quiet else print)


def begin(args: Any) -> tuple[Engine, Shelf]:
    """The engine and the dials that the flags of `serve` and `chat` name.

    Raises:
        ConfigError: FastAPI or uvicorn is missing (`serve`); a dial without a name, or one twice.
    """
    named = [_named(text) for text in args.dial]
    names = [name for name, _ in named]
    if again := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"--dial: two are called {again[0]}; give names, as in NAME=DIR")
    check_model(args.model, args.dtype, args.device, args.load_in)
    if hasattr(args, "port"):
        try:
            import fastapi  # noqa: F401
            import uvicorn  # noqa: F401
        except ImportError as error:
            raise ConfigError(f"serve needs {error.name}: pip install 'trimtab[serve]'") from error
    dials = dict(
        zip(names, read_dials([place for _, place in named], args.model, args.force), strict=True)
    )
    from trimtab import models
    from trimtab.progress import Progress
    from trimtab.serve import Engine, Shelf

    shelf = Shelf(getattr(args, "name", None) or _last(args.model), dials)
    progress = Progress(args.quiet)
    progress.say(f"loading {args.model}")
    model, tokenizer = models.load(
        args.model, dtype=args.dtype, device=args.device, load_in=args.load_in
    )
    limits = {"rows": args.rows, "queue": args.queue} if hasattr(args, "port") else {}
    return Engine(model, tokenizer, dials, context=args.context, force=args.force, **limits), shelf


def _named(text: str) -> tuple[str, str]:
    name, equals, place = text.partition("=")
    return (name, place) if equals else (_last(text), text)


def _last(place: str) -> str:
    """The last part of a path or Hub id."""
    return place.rstrip("/").rpartition("/")[2].removesuffix(".gguf")
