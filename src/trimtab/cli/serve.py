"""`trimtab serve`."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trimtab.bounds import Count, Whole
from trimtab.cli.flags import OnModel, WithDials, last_part
from trimtab.cli.parse import parse
from trimtab.errors import ConfigError

if TYPE_CHECKING:
    from trimtab.serve import Engine, Shelf


@dataclass(frozen=True, kw_only=True)
class Args(WithDials, OnModel):
    """Flags."""

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
    prefill: Count = 128
    """Positions of prompts that are read between two tokens of the answers under way."""
    max_new_tokens: Count = 512
    """Tokens of the longest answer."""
    max_body: Count = 1 << 20
    """Bytes of the largest request."""
    open: bool = False
    """Open the page in a browser."""


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
        max_tokens=args.max_new_tokens,
        max_body=args.max_body,
        hosts=(*LOOPBACK, args.host) if here else (),
    )
    run(server, args.host, args.port, open_page=args.open, say=None if args.quiet else print)


def begin(args: Any) -> tuple[Engine, Shelf]:
    """The engine and the dials that the flags of `serve` and `chat` name.

    Raises:
        ConfigError: FastAPI or uvicorn is missing (`serve`); a dial without a name, or one twice.
    """
    args.check_model()
    if hasattr(args, "port"):
        try:
            import fastapi  # noqa: F401
            import uvicorn  # noqa: F401
        except ImportError as error:
            raise ConfigError(f"serve needs {error.name}: pip install 'trimtab[serve]'") from error
    dials = args.named_dials()
    from trimtab.serve import Engine, Shelf

    shelf = Shelf(getattr(args, "name", None) or last_part(args.model), dials)
    model, tokenizer = args.load()
    limits = {n: getattr(args, n) for n in ("rows", "queue", "prefill") if hasattr(args, n)}
    return Engine(model, tokenizer, dials, context=args.context, force=args.force, **limits), shelf
