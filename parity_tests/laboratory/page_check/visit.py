"""One visit to the page, a step after the other, with the keys and the mouse's drop of a person."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from parity_tests.laboratory.page_check.chromium import Chromium
from runtime_py.errors import MachineError
from runtime_py.serving.client import Client

TAB, ENTER, ESCAPE = ("Tab", 9), ("Enter", 13, "\r"), ("Escape", 27)
QUESTION, SECOND = "Describe the picture.", "How many shapes are there?"
LONG = "red " * 60
TRIES = 40
IDLE = "document.querySelector('#stop').hidden"
ANSWERS = "[...document.querySelectorAll('.answered')]"
LAST = f"{ANSWERS}.at(-1)"
TRAY = "document.querySelectorAll('#tray li').length"
FOCUS = "document.activeElement.id || document.activeElement.className || document.activeElement.tagName"


@dataclass(frozen=True)
class Visitor:
    """Who visits.

    Attributes:
        picture: a file to ask about; ``url`` the same as a data URL.
        key: the server's.
        shots: folder of screenshots.
    """

    page: Chromium
    address: str
    client: Client
    name: str
    picture: Path
    url: str
    key: str
    shots: Path

    def steps(self) -> Iterator[tuple[str, str]]:
        """What was done, and what came of it.

        Raises:
            MachineError: the page does not get where it should.
        """
        steps: list[tuple[str, Callable[[], str]]] = [
            ("the page asks for the key; a wrong one is told, the right one opens it", self.unlock),
            ("the package's facts and its verdict", self.facts),
            ("by keyboard alone: a picture chosen, a question asked", self.ask_by_keyboard),
            ("the answer grows and is the server's own", self.compare),
            ("the stages' times are told", self.stages),
            ("a second turn", self.second),
            ("stopped with Escape", self.stop),
            ("a picture pasted, one dropped, one from the camera", self.bring),
            ("a new conversation", self.anew),
        ]
        for what, step in steps:
            yield what, step()

    def press(self, key: tuple[Any, ...]) -> None:
        self.page.key(*key)

    def tab_to(self, wanted: str) -> int:
        """Presses of Tab until an element has the focus."""
        for presses in range(30):
            if self.page.value(FOCUS) == wanted:
                return presses
            self.press(TAB)
        raise MachineError(f"Tab does not lead to {wanted}", "every control reachable by keyboard", "look at its markup")

    def unlock(self) -> str:
        self.page.open(self.address)
        self.page.until(f"{FOCUS} === 'key'", "the key's field has the focus")
        self.page.type("wrong")
        self.press(ENTER)
        self.page.until("document.querySelector('#problem').textContent", "a wrong key is told")
        said = self.page.value("document.querySelector('#problem').textContent")
        self.page.value("document.querySelector('#key').select()")
        self.page.type(self.key)
        self.press(ENTER)
        self.page.until(
            "document.querySelector('#key-form').hidden && document.querySelector('#facts').children.length", "open"
        )
        return str(said)

    def facts(self) -> str:
        rows = self.page.value("[...document.querySelectorAll('#facts dt')].map(row => row.textContent)")
        verdict = self.page.value("document.querySelector('#verdict').textContent")
        return f"{verdict}; {len(rows)} facts: {', '.join(rows)}"

    def ask_by_keyboard(self) -> str:
        self.page.value("document.activeElement.blur(), document.querySelector('#temperature').value = '0'")
        self.page.send("Page.setInterceptFileChooserDialog", enabled=True)
        self.tab_to("skip")
        self.press(ENTER)
        presses = self.tab_to("choose")
        chooser = self.page.awaited("Page.fileChooserOpened", lambda: self.press(ENTER))
        self.page.send("DOM.setFileInputFiles", files=[str(self.picture)], backendNodeId=chooser["backendNodeId"])
        self.page.until(f"{TRAY} === 1", "the picture is there")
        self.page.until(f"{FOCUS} === 'question'", "the question has the focus again")
        self.page.value(
            "window.seen = []; new MutationObserver(() => { const text = document.querySelector('.answered p')?.textContent;"
            " if (text !== undefined && window.seen.at(-1)?.[1] !== text) window.seen.push([performance.now(), text]); })"
            ".observe(document.querySelector('#turns'), {childList: true, subtree: true, characterData: true})"
        )
        self.page.type(QUESTION)
        self.press(ENTER)
        self.page.until(f"{LAST}?.querySelector('.timing')", "the answer is whole")
        return f"skip link, {presses} presses of Tab, Enter, and Enter"

    def compare(self) -> str:
        seen = self.page.value("window.seen")
        parts = [{"type": "image_url", "image_url": {"url": self.url}}, {"type": "text", "text": QUESTION}]
        body = {"model": self.name, "messages": [{"role": "user", "content": parts}], "temperature": 0}
        own = self.client.complete(body)["choices"][0]["message"]["content"]
        if seen[-1][1] != own:
            raise MachineError(f"the page shows {seen[-1][1]!r}", repr(own), "look at what it does to the text")
        grown = [text for _, text in seen if text]
        if len(grown) < 2 or any(not later.startswith(earlier) for earlier, later in pairwise(grown)):
            raise MachineError(f"the text came as {grown}", "a text that grows", "look at how the page reads the stream")
        return f"{own!r}, in {len(grown)} pieces over {seen[-1][0] - seen[0][0]:.0f} ms"

    def stages(self) -> str:
        summary = self.page.value(f"{LAST}.querySelector('summary').textContent")
        rows = self.page.value(
            f"[...{LAST}.querySelectorAll('tr')].map(row => [...row.children].map(cell => cell.textContent))"
        )
        return f"{summary}; " + ", ".join(f"{name} {seconds}" for name, seconds in rows)

    def second(self) -> str:
        self.page.type(SECOND)
        self.press(ENTER)
        self.page.until(f"{ANSWERS}.length === 2 && {LAST}.querySelector('.timing')", "the second answer is whole")
        said = self.page.value(f"{LAST}.querySelector('.timing > p').textContent")
        if "known already" not in said:
            raise MachineError(f"the second turn read {said}", "the picture known from the first", "look at the request")
        return f"{self.page.value(f'{LAST}.querySelector(`p`).textContent')!r}; {said}"

    def stop(self) -> str:
        """A hot answer is long now and then; others are over before the key, the more of them the busier the machine: where
        half of the tries met none, the key comes while the prompt is read. Each is the first of its conversation, whose
        context would be full after a few.
        """
        self.page.value(
            "document.querySelector('#temperature').value = '2', document.querySelector('#longest').value = '1500'"
        )
        for number in range(TRIES):
            self.page.value("document.querySelector('#anew').click()")
            self.page.value(f"{FOCUS} === 'question' || document.querySelector('#question').focus()")
            before = self.page.value(f"{ANSWERS}.length")
            self.page.type(LONG)
            self.press(ENTER)
            begun = f"({LAST}.querySelector('p').textContent || {IDLE})" if number < TRIES // 2 else "true"
            self.page.until(f"{ANSWERS}.length > {before} && {begun}", "it begins")
            self.press(ESCAPE)
            self.page.until(IDLE, "it stops")
            said = self.page.value(f"{LAST}.querySelector('p.small')?.textContent ?? ''")
            if said.startswith("Stopped"):
                return f"{said} Nothing at work in the server {self._idle():.2f} s later; try {number + 1}"
        raise MachineError(f"{TRIES} answers were over before Escape", "one that is stopped", "try again")

    def _idle(self) -> float:
        began = time.monotonic()
        while self.page.value("fetch('/health').then(answer => answer.json()).then(health => health.busy)"):
            if time.monotonic() - began > 20:
                raise MachineError("the server goes on after a stop", "no slot busy", "look at its log")
            time.sleep(0.02)
        return time.monotonic() - began

    def bring(self) -> str:
        self.page.value("document.querySelector('#anew').click()")
        content = json.dumps(self.url.partition(",")[2])
        self.page.value(
            f"(() => {{ const bytes = Uint8Array.from(atob({content}), letter => letter.charCodeAt(0));"
            " const carried = new DataTransfer(); carried.items.add(new File([bytes], 'pasted.png', {type: 'image/png'}));"
            " document.querySelector('#question').dispatchEvent("
            "new ClipboardEvent('paste', {clipboardData: carried, bubbles: true})) })()"
        )
        self._newest("pasted.png")
        carried = {"items": [], "files": [str(self.picture)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.page.send("Input.dispatchDragEvent", type=kind, x=300, y=300, data=carried)
        self._newest(self.picture.name)
        self.page.value("document.querySelector('#photograph').click()")
        self.page.until(
            "document.querySelector('#camera').open && document.querySelector('#view').videoWidth", "the camera is on"
        )
        self.page.value("document.querySelector('#take').click()")
        self._newest("Photograph")
        return f"pasted, dropped, photographed; {self.page.value(TRAY)} in the tray, whose model takes no more at a time"

    def _newest(self, name: str) -> None:
        """Wait for a picture at the end of the tray; a model of one picture has the newest alone."""
        there = f"document.querySelector('#tray li:last-child img')?.alt === {json.dumps(name)}"
        self.page.until(f"{there} && {TRAY} === 1", f"{name} is there")

    def anew(self) -> str:
        self.page.value("document.querySelector('#anew').click()")
        self.page.until(f"{TRAY} === 0 && {ANSWERS}.length === 0", "all is gone")
        return "empty"
