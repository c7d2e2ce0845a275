"""A stand-in of the Hub's HTTP API, as far as uploading a folder and fetching it again need it."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_" + "a" * 20
COMMIT = "c" * 40


class StandIn:
    """Repositories by id: files, and whether each is private; data sets by id, with their cards."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.cards: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.url = ""

    def answer(self, method: str, path: str, body: bytes, token: str) -> tuple[int, Any, dict]:
        """Status, JSON or bytes, and further headers."""
        self.asked.append(f"{method} {path}")
        parts = path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "datasets"]:
            name = "/".join(parts[2:4])
            known = name in self.cards
            return (200, {"id": name, "cardData": self.cards[name]}, {}) if known else (404, {}, {})
        if parts == ["api", "validate-yaml"]:
            return 200, {"errors": [], "warnings": []}, {}
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid credentials"}, {}
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            if asked.get("organization") != "me":
                return 403, {"error": "You don't have the rights to create a model there"}, {}
            name = f"{asked['organization']}/{asked['name']}"
            there = name in self.files
            self.files.setdefault(name, {})
            self.private.setdefault(
                name, asked.get("private") or asked.get("visibility") == "private"
            )
            return 409 if there else 200, {"url": f"{self.url}/{name}"}, {}
        repo = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if repo not in self.files:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        mine = self.files[repo]
        if parts[0] == "api" and parts[4:5] == ["preupload"]:
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            wanted = [{"path": f["path"], **modes} for f in json.loads(body)["files"]]
            return 200, {"files": wanted}, {}
        if parts[0] == "api" and parts[4:5] == ["commit"]:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    mine[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"{self.url}/{repo}/commit/{COMMIT}"
            return 200, {"success": True, "commitOid": COMMIT, "commitUrl": url}, {}
        if parts[0] == "api" and parts[4:5] == ["tree"]:
            found = [
                {"type": "file", "path": f, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                for f, d in mine.items()
            ]
            return 200, found, {}
        if parts[0] == "api":
            about = {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": f} for f in mine]}
            return 200, about, {}
        if parts[2] == "resolve" and (data := mine.get("/".join(parts[4:]))) is not None:
            etag = hashlib.sha256(data).hexdigest()
            return 200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
        return 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"}


@contextmanager
def stand_in() -> Iterator[StandIn]:
    """A server on a free port of this machine."""
    hub = StandIn()

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            body = self._body()
            token = self.headers.get("Authorization", "")
            status, found, more = hub.answer(self.command, self.path, body, token)
            data = found if isinstance(found, bytes) else json.dumps(found).encode()
            self.send_response(status)
            kind = "application/octet-stream" if isinstance(found, bytes) else "application/json"
            for key, value in {"Content-Type": kind, "Content-Length": len(data), **more}.items():
                self.send_header(key, str(value))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            found = b""
            while size := int(self.rfile.readline(), 16):
                found += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return found

        do_GET = do_HEAD = do_POST = _serve  # noqa: N815

        def log_message(self, *_: Any) -> None:
            """Nothing on the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
