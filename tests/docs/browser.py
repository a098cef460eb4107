"""A headless Chromium, told what to do over its debugging pipe."""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from attrs import define, field

PROGRAM: Final = "chromium-headless-shell"
_LIMIT: Final = 60.0
_FLAGS: Final = ("--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe")
#: Where no name leads anywhere, only this machine's own address does.
_ALONE: Final = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"

_Message = dict[str, Any]


@define
class Browser:
    """One page of a browser."""

    _requests: int
    _answers: int
    #: The URLs that were asked for, and what the console says, since the page was opened.
    requested: list[str] = field(factory=list, init=False)
    complaints: list[str] = field(factory=list, init=False)
    _received: bytearray = field(factory=bytearray, init=False)
    _events: deque[str] = field(factory=deque, init=False)
    _session: str | None = field(default=None, init=False)
    _number: int = field(default=0, init=False)

    def begin(self) -> None:
        """Open an empty page, whose requests and complaints are listened to."""
        target = self._do("Target.createTarget", url="about:blank")["targetId"]
        attached = self._do("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Network", "Runtime", "Log", "Page"):
            self._do(f"{domain}.enable")

    def open(self, url: str) -> None:
        """Open a page, and wait until it has loaded."""
        self._events.clear()
        self._do("Page.navigate", url=url)
        while "Page.loadEventFired" not in self._events:
            self._receive(time.monotonic() + _LIMIT)

    def run(self, script: str) -> Any:
        """Return what an expression of JavaScript gives."""
        done = self._do("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def until(self, script: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + _LIMIT
        while not self.run(script):
            assert time.monotonic() < end, f"{script}\n{self.run('document.body.innerText')}"
            time.sleep(0.05)

    def resize(self, width: int, height: int) -> None:
        """Become a window of this size."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._do("Emulation.setDeviceMetricsOverride", **size)

    def photograph(self, path: Path) -> None:
        """Write what is to be seen to a PNG file."""
        path.write_bytes(base64.b64decode(self._do("Page.captureScreenshot")["data"]))

    def _do(self, method: str, **params: object) -> _Message:
        self._number += 1
        message: _Message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._requests, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + _LIMIT
        while (answer := self._receive(end)).get("id") != self._number:
            pass
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: _Message = answer["result"]
        return result

    def _receive(self, end: float) -> _Message:
        while b"\0" not in self._received:
            ready = select.select([self._answers], [], [], max(0.0, end - time.monotonic()))[0]
            data = os.read(self._answers, 1 << 16) if ready else b""
            assert data, "the browser does not answer"
            self._received += data
        text, _, rest = self._received.partition(b"\0")
        self._received = rest
        message: _Message = json.loads(text)
        if method := message.get("method"):
            self._events.append(method)
            _EVENTS.get(method, _ignored)(self, message["params"])
        return message


def _ignored(browser: Browser, event: _Message) -> None: ...


def _requested(browser: Browser, event: _Message) -> None:
    browser.requested.append(event["request"]["url"])


def _complained(browser: Browser, event: _Message) -> None:
    browser.complaints.append(json.dumps(event))


_EVENTS: Final[dict[str, Callable[[Browser, _Message], None]]] = {
    "Network.requestWillBeSent": _requested,
    "Log.entryAdded": _complained,
    "Runtime.consoleAPICalled": _complained,
    "Runtime.exceptionThrown": _complained,
}


@contextmanager
def open_browser(folder: Path) -> Iterator[Browser]:
    """Start a browser, with an empty profile in a folder; it ends with the block."""
    requests, answers = os.pipe(), os.pipe()
    given = (requests[0], answers[1])
    # Chromium reads from 3 and writes to 4; first to 5, for the pipes can have these numbers.
    script = f'exec 5<&{given[0]} 6>&{given[1]}; exec "$@" 3<&5 4>&6 5<&- 6>&-'
    words = (PROGRAM, *_FLAGS, _ALONE, f"--user-data-dir={folder}/profile", "about:blank")
    with subprocess.Popen(
        ["bash", "-c", script, "bash", *words],
        env={**os.environ, "HOME": str(folder)},
        pass_fds=given,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        for fd in given:
            os.close(fd)
        try:
            browser = Browser(requests[1], answers[0])
            browser.begin()
            yield browser
        finally:
            process.kill()
            os.close(requests[1])
            os.close(answers[0])
