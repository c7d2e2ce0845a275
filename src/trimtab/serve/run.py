"""Running the server until it is told to stop."""

from __future__ import annotations

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
    except OSError as error:
        made.close()
        raise ConfigError(
            f"{host}:{port}: {error.strerror or error}; choose another --port"
        ) from error
    return made


def uvicorn_of(server: Server) -> uvicorn.Server:
    """What runs the routes. Setting its `should_exit` ends it."""
    config = uvicorn.Config(
        create_app(server),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=PATIENCE,
    )
    return uvicorn.Server(config)


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
    try:
        uvicorn_of(server).run(sockets=[place])
    except KeyboardInterrupt:  # uvicorn raises it again once it has shut down
        pass
    finally:
        server.engine.close()
