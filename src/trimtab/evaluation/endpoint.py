"""Requests to a model behind an OpenAI-compatible address: the key goes there and nowhere else."""

from __future__ import annotations

import json
import queue
import re
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from trimtab.errors import ConfigError, JudgeError
from trimtab.foreign import Malformed, parse_json

LARGEST = 8 << 20
"""Bytes of a reply."""
AGAIN = (429, 500, 502, 503, 504)
"""States of a server that pass."""


class _Stay(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer of its own: nobody else gets the key or is believed."""

    def redirect_request(self, *_: Any) -> None:
        return None


@dataclass(frozen=True)
class Endpoint:
    """An address, and the key to it, which no text of an object or an error holds.

    Attributes:
        url: as `http://localhost:8000/v1`.
        attempts: how often a server that is busy, or cannot be reached, is asked.
        timeout: seconds that an answer may take in all, however slowly it comes.
    """

    url: str
    key: str = field(default="", repr=False)
    attempts: int = 3
    timeout: float = 60.0

    def __post_init__(self) -> None:
        """Raises ConfigError: no address, one with a name and password in it, or a key that cannot be
        sent."""
        try:
            parts = urlsplit(self.url)
            good = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
            good = good and re.fullmatch(r"[\x21-\x7e]+", self.url)
        except ValueError:
            parts, good = None, False
        if parts and "@" in parts.netloc:
            raise ConfigError(
                "judge: the address has a name or password in it; give the key in an environment "
                "variable (--key NAME), and the address without"
            )
        if not good:
            raise ConfigError(f"judge: {self.url!r} is no address; expected http(s)://…/v1")
        if not re.fullmatch(r"[\x21-\x7e]*", self.key):
            raise ConfigError(
                "judge: the key has a blank, a line break or another character that no key has"
            )

    def post(self, path: str, body: Any) -> Any:
        """The JSON that a request is answered with.

        Raises:
            JudgeError: it cannot be reached, refuses, wants to send us elsewhere, takes too long, or
                answers without JSON.
        """
        url = f"{self.url.rstrip('/')}/{path}"
        for attempt in range(self.attempts):
            last = attempt + 1 == self.attempts
            try:
                return parse_json(self._within(url, json.dumps(body).encode()))
            except Malformed as error:
                raise JudgeError(f"{url}: its reply is no JSON ({self._hidden(error)})") from None
            except urllib.error.HTTPError as error:
                if 300 <= error.code < 400:
                    to = urlsplit(error.headers.get("Location", "")).netloc.rpartition("@")[2]
                    where = self._hidden(f" to {to}" if to else "")
                    raise JudgeError(
                        f"{url}: HTTP {error.code}, a redirect{where}, which is not followed; give the "
                        "address that it ends at"
                    ) from None
                if error.code not in AGAIN or last:
                    said = f"HTTP {error.code} {self._hidden(error.reason)}"
                    raise JudgeError(f"{url}: {said}") from None
            except OSError as error:
                if last:
                    raise JudgeError(f"{url}: cannot be reached ({error})") from None
            time.sleep(2.0**attempt / 2)
        raise AssertionError

    def _hidden(self, said: object) -> str:
        """What a server said, without the key, which it may have said back."""
        return str(said).replace(self.key, "[key]") if self.key else str(said)

    def _within(self, url: str, data: bytes) -> bytes:
        """The reply, if it is there in time. A socket's own limit is for each of its bytes."""
        done: queue.Queue[bytes | Exception] = queue.Queue()
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {self.key}"} if self.key else {}

        def ask() -> None:
            try:
                request = urllib.request.Request(url, data, headers)
                opener = urllib.request.build_opener(_Stay)
                with opener.open(request, timeout=self.timeout) as reply:
                    done.put(reply.read(LARGEST + 1))
            except Exception as error:  # told where it is waited for
                done.put(error)

        threading.Thread(target=ask, daemon=True).start()
        try:
            found = done.get(timeout=self.timeout)
        except queue.Empty:
            raise JudgeError(f"{url}: no whole answer within {self.timeout:g} s") from None
        if isinstance(found, Exception):
            if isinstance(found, OSError):
                raise found
            raise JudgeError(f"{url}: its answer is no HTTP ({type(found).__name__})") from None
        if len(found) > LARGEST:
            raise JudgeError(f"{url}: its answer is larger than {LARGEST >> 20} MiB")
        return found
