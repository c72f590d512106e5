"""A headless Chromium, driven by its DevTools protocol over two pipes.

Source: the protocol's pages at chromedevtools.github.io/devtools-protocol; the pipes are file descriptors 3 and 4, messages
end with a zero byte (chromium/chromium, content/browser/devtools/devtools_pipe_handler.cc).
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from parity_tests.laboratory.browser.program import running
from runtime_py.errors import MachineError

FLAGS = (
    "--disable-gpu", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
    "--remote-debugging-pipe",
)  # fmt: skip
SECONDS = 60.0


class Chromium:
    """One page of a browser.

    Attributes:
        events: what the browser told of, oldest first: method and parameters.
    """

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read = write, read
        self._rest = b""
        self._number = 0
        self._session = ""
        self._answers: dict[int, dict[str, Any]] = {}
        self.events: list[tuple[str, dict[str, Any]]] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self.send(f"{domain}.enable")

    def send(self, method: str, /, **parameters: Any) -> dict[str, Any]:
        """What the browser answers to a command of the protocol.

        Raises:
            MachineError: it refuses, or does not answer in time.
        """
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        ends = time.monotonic() + SECONDS
        while self._number not in self._answers:
            self._take(ends - time.monotonic(), method)
        answer = self._answers.pop(self._number)
        if "error" in answer:
            raise MachineError(f"Chromium refuses {method}: {answer['error']}", "an answer", "another Chromium")
        result: dict[str, Any] = answer["result"]
        return result

    def value(self, script: str) -> Any:
        """What a script of the page comes to; promises are waited for."""
        answer = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise MachineError(
                f"the page fails at {script[:80]}: {answer['exceptionDetails']}", "a value", "correct the script"
            )
        return answer["result"].get("value")

    def until(self, script: str, what: str, seconds: float = SECONDS) -> None:
        """Wait until a script comes to something true.

        Raises:
            MachineError: none in time; ``what`` says for what was waited.
        """
        ends = time.monotonic() + seconds
        while not self.value(f"!!({script})"):
            if time.monotonic() > ends:
                raise MachineError(f"{what}: not within {seconds:.0f} s", "the page to get there", "look at its screenshot")
            time.sleep(0.02)

    def open(self, url: str) -> None:
        """Go to a page and wait until it is there."""
        self.send("Page.navigate", url=url)
        self.until("document.readyState === 'complete'", f"{url} opens")

    def key(self, name: str, code: int, text: str = "", modifiers: int = 0) -> None:
        """Press and release one key."""
        shared = {"key": name, "code": name, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **shared)
        self.send("Input.dispatchKeyEvent", type="keyUp", **shared)

    def type(self, text: str) -> None:
        """Write into whatever has the focus."""
        self.send("Input.insertText", text=text)

    def screen(self, width: int, height: int, dark: bool = False) -> None:
        """Make the window so large, and its colours so."""
        phone = width < 600
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, path: Path) -> None:
        """Write what is to be seen as PNG."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))

    def awaited(self, method: str, act: Callable[[], None]) -> dict[str, Any]:
        """The parameters of an event that an action brings."""
        before, ends = len(self.events), time.monotonic() + SECONDS
        act()
        while True:
            for name, parameters in self.events[before:]:
                if name == method:
                    return parameters
            self._take(ends - time.monotonic(), method)

    def _take(self, seconds: float, what: str) -> None:
        if not select.select([self._read], [], [], max(seconds, 0))[0]:
            raise MachineError(
                f"Chromium does not answer: {what}", f"an answer in {SECONDS:.0f} s", "look at the machine's load"
            )
        piece = os.read(self._read, 1 << 20)
        if not piece:
            raise MachineError("Chromium ended", "a browser that runs", "start it by hand and see why")
        *messages, self._rest = (self._rest + piece).split(b"\0")
        for message in map(json.loads, messages):
            if "id" in message:
                self._answers[message["id"]] = message
            else:
                self.events.append((message["method"], message.get("params", {})))


@contextlib.contextmanager
def chromium() -> Iterator[Chromium]:
    """A browser that ends with the context.

    Raises:
        MachineError: none is installed.
    """
    to_browser, from_us = os.pipe()
    to_us, from_browser = os.pipe()
    script = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
    theirs = (to_browser, from_browser)
    with contextlib.ExitStack() as ours:
        for own in (from_us, to_us):
            ours.callback(os.close, own)
        with contextlib.ExitStack() as lent:
            for one in theirs:
                lent.callback(os.close, one)
            ours.enter_context(running(FLAGS, ("/bin/bash", "-c", script, "bash"), theirs))
        yield Chromium(from_us, to_us)
