"""Headless Chromium over its DevTools protocol: type, drag, read, look."""

from __future__ import annotations

import base64
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from websockets.sync.client import connect


class Browser:
    """One page in a Chromium of its own."""

    def __init__(self, program: str, url: str, width: int, height: int, *, dark: bool = False):
        self.home = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
        flags += [f"--user-data-dir={self.home.name}", "--no-first-run", "--disable-sync"]
        self.process = subprocess.Popen(
            [program, *flags, "about:blank"], stderr=subprocess.PIPE, text=True
        )
        assert self.process.stderr is not None
        place = next(line for line in self.process.stderr if "DevTools listening on" in line)
        self.socket = connect(place.split()[-1].strip(), max_size=None)
        self.session, self.number = "", 0
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.enable")
        self.call("Page.navigate", url=url)

    def call(self, method: str, **given: Any) -> dict[str, Any]:
        """A command of the protocol, and its result."""
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": given}
        if self.session:
            message["sessionId"] = self.session
        self.socket.send(json.dumps(message))
        while True:
            found = json.loads(self.socket.recv(60))
            if found.get("id") == self.number:
                assert "error" not in found, found["error"]
                return found["result"]

    def js(self, expression: str) -> Any:
        """The value of an expression in the page."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = 60) -> Any:
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not (value := self.js(expression)):
            assert time.monotonic() < end, f"{expression} in {self.js('document.body.innerText')}"
            time.sleep(0.05)
        return value

    def type(self, text: str) -> None:
        """Text where the focus is."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, code: int, times: int = 1) -> None:
        """A key by its name and number."""
        for _ in range(times):
            for kind in ("rawKeyDown", "keyUp"):
                self.call(
                    "Input.dispatchKeyEvent",
                    type=kind,
                    key=key,
                    code=key,
                    windowsVirtualKeyCode=code,
                )

    def drag(self, selector: str, share: float) -> None:
        """Take a slider's thumb to a share of its track with the mouse."""
        box = self.js(
            f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView();"
            " const r = e.getBoundingClientRect();"
            " return [r.left + 8, r.top + r.height / 2, r.width - 16,"
            " (e.value - e.min) / (e.max - e.min)] })()"
        )
        left, y, width, now = box
        steps = [("mousePressed", now), ("mouseMoved", share), ("mouseReleased", share)]
        for kind, at in steps:
            self.call(
                "Input.dispatchMouseEvent",
                type=kind,
                x=left + width * at,
                y=y,
                button="left",
                clickCount=1,
            )

    def shot(self, file: Path) -> None:
        """A picture of what is seen."""
        file.write_bytes(
            base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        )

    def close(self) -> None:
        """End the browser."""
        self.socket.close()
        self.process.terminate()
        self.process.wait(20)
        self.home.cleanup()
