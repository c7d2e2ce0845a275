"""Running the server until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import webbrowser
from collections.abc import Callable

import uvicorn

from trimtab.errors import ConfigError
from trimtab.serve.app import Server, create_app

PATIENCE = 3
"""Seconds that answers under way have when the server is told to stop."""


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises ConfigError where the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
        made.listen(128)  # whoever comes before the routes are ready waits
    except OSError as error:
        made.close()
        raise ConfigError(
            f"{host}:{port}: {error.strerror or error}; choose another --port"
        ) from error
    return made


class Serving(uvicorn.Server):
    """Runs the routes. Setting its `should_exit` ends it."""

    def __init__(self, server: Server):
        config = uvicorn.Config(
            create_app(server),
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=PATIENCE,
        )
        super().__init__(config)
        self.engine = server.engine

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the engine first: answers that are not done by then say so and end, too."""
        await asyncio.to_thread(self.engine.close, PATIENCE)
        await super().shutdown(sockets)


def run(
    server: Server,
    host: str,
    port: int,
    *,
    open_page: bool = False,
    say: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM."""
    place = listening(host, port)
    name = f"[{host}]" if ":" in host else host
    address = f"http://{name}:{place.getsockname()[1]}"
    if say:
        dials = ", ".join(server.shelf.dials) or "no dials"
        say(f"{server.shelf.model} with {dials}: {address}/ (API: {address}/v1); Ctrl-C ends it")
    if open_page:
        webbrowser.open(address)
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again once it has shut down
        Serving(server).run(sockets=[place])
