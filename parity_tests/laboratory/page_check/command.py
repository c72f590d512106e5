"""The command line: a server, a browser, a visit, and what was wrong."""

from __future__ import annotations

import argparse
import base64
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from parity_tests.laboratory.browser.program import installed
from parity_tests.laboratory.page_check.chromium import Chromium, chromium
from parity_tests.laboratory.page_check.visit import QUESTION, Visitor
from parity_tests.laboratory.served import served
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode, MachineError
from runtime_py.serving.client import Client

KEY = "a key for one visit"
SIZES = ((1280, 900), (390, 844))
SERIOUS = ("serious", "critical")
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]

EXAMPLES = """\
examples:
  npm install --prefix /tmp/axe axe-core
  python -m parity_tests.laboratory.page_check --package out --axe /tmp/axe/node_modules/axe-core/axe.min.js --shots shots

exit code 0 when every step went well and nothing is wrong, 5 when not, 7 where no Chromium is
"""


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Use the page of `edgeproof serve` in a headless Chromium as a person does.", EXAMPLES)
    flags.package(made)
    made.add_argument(
        "--axe", type=Path, metavar="FILE", help="axe.min.js of npm's axe-core; without it no rules are checked"
    )
    made.add_argument("--shots", type=Path, metavar="DIR", help="where screenshots are written; default nowhere")
    flags.talk(made)
    return made


def _run(given: argparse.Namespace) -> int:
    if installed() is None:
        console.out("not run: no Chromium is installed")
        return ExitCode.ENVIRONMENT
    with tempfile.TemporaryDirectory(prefix="edgeproof-page-") as made:
        faults = visited(given.package, Path(made), given.shots or Path(made), given.axe)
    for fault in faults:
        console.out(f"wrong: {fault}")
    return ExitCode.PARITY_FAILED if faults else ExitCode.OK


def visited(package: Path, folder: Path, shots: Path, axe: Path | None) -> list[str]:
    """What was wrong in one visit to a server of a package; results go to stdout as they come.

    Args:
        folder: for a picture and a key; shots: for screenshots.
        axe: axe-core's script.
    """
    shots.mkdir(parents=True, exist_ok=True)
    keys, picture = folder / "keys.txt", folder / "circle.png"
    keys.write_text(KEY + "\n", encoding="utf-8")
    _drawn().save(picture)
    url = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
    with served(package, ["--api-key-file", str(keys), "--slots", "2"]) as server, chromium() as page:
        page.screen(*SIZES[0])
        visitor = Visitor(page, server.url, Client(server.url, KEY), server.name, picture, url, KEY, shots)
        try:
            for what, came in visitor.steps():
                console.out(f"{what}: {came}")
        except MachineError as error:
            page.picture(shots / "failed.png")
            return [str(error), *_console_messages(page)]
        rules = axe.read_text(encoding="utf-8") if axe else None
        faults = _looks(visitor, rules)
        console.out(
            f"requests of the page: {_requests(page)}, all to the server" if not _strangers(page, server.url) else ""
        )
        return faults + _console_messages(page) + _strangers(page, server.url)


def _drawn() -> Image.Image:
    """A red circle on white."""
    image = Image.new("RGB", (320, 240), "white")
    ImageDraw.Draw(image).ellipse((90, 50, 230, 190), fill=(200, 30, 30))
    return image


def _looks(visitor: Visitor, axe: str | None) -> list[str]:
    """The page empty and in use, at each width, light and dark: screenshots, overflow, and axe-core's rules."""
    faults, violations, checked = [], 0, 0
    for width, height in SIZES:
        for dark in (False, True):
            page = visitor.page
            page.screen(width, height, dark)
            page.value("document.querySelector('#anew').click(), document.querySelector('#temperature').value = '0'")
            for state in ("empty", "used"):
                if state == "used":
                    _use(visitor)
                shot = f"{state}-{width}-{'dark' if dark else 'light'}"
                page.picture(visitor.shots / f"{shot}.png")
                wide = page.value("document.documentElement.scrollWidth")
                if wide > width:
                    faults.append(f"{shot}: {wide} pixels wide")
                if axe is not None:
                    found = _rules(page, axe)
                    checked += 1
                    violations += len(found)
                    faults += [
                        f"{shot}: {row['impact']}: {row['id']}: {row['at']}" for row in found if row["impact"] in SERIOUS
                    ]
                    for row in found:
                        console.out(f"axe-core, {shot}: {row['impact']}: {row['id']}: {row['help']}: {row['at']}")
    accessibility = "axe-core was not given" if axe is None else f"axe-core: {violations} violations in {checked} views"
    console.out(f"screenshots at {' and '.join(str(width) for width, _ in SIZES)} pixels, light and dark; {accessibility}")
    return faults


def _use(visitor: Visitor) -> None:
    """Two turns, the first about a picture, its times unfolded, a picture in the tray, the package's facts open."""
    page = visitor.page
    node = page.send("DOM.getDocument")["root"]["nodeId"]
    file = page.send("DOM.querySelector", nodeId=node, selector="#file")["nodeId"]
    for number, text in enumerate((QUESTION, "Where is it?"), 1):
        if number == 1:
            page.send("DOM.setFileInputFiles", files=[str(visitor.picture)], nodeId=file)
            page.until("document.querySelectorAll('#tray li').length === 1", "the picture is there")
        page.value("document.querySelector('#question').focus()")
        page.type(text)
        page.key("Enter", 13, "\r")
        page.until(f"document.querySelectorAll('.timing').length === {number}", "the answer is whole")
    page.value("document.querySelector('.timing').open = true")
    page.send("DOM.setFileInputFiles", files=[str(visitor.picture)], nodeId=file)
    page.until("document.querySelectorAll('#tray li').length === 1", "the picture is there")


def _rules(page: Chromium, axe: str) -> list[dict[str, Any]]:
    page.send("Runtime.evaluate", expression=axe)
    options = {"runOnly": {"type": "tag", "values": RULES}}
    row = (
        "({id: row.id, impact: row.impact, help: row.help, at: row.nodes.map(node => node.html).join(' | ').slice(0, 300)})"
    )
    run = f"axe.run(document, {options}).then(found => found.violations.map(row => {row}))"
    result: list[dict[str, Any]] = page.value(run)
    return result


def _console_messages(page: Chromium) -> list[str]:
    """Errors and warnings of the console; the refusal of the wrong key is the one that was asked for."""
    messages = []
    for method, event in page.events:
        if method == "Runtime.exceptionThrown":
            messages.append(
                f"exception: {event['exceptionDetails'].get('text')} {event['exceptionDetails'].get('exception')}"
            )
        elif method == "Runtime.consoleAPICalled" and event["type"] in ("error", "warning", "assert"):
            messages.append(f"console {event['type']}: {event['args']}")
        elif method == "Log.entryAdded" and event["entry"]["level"] in ("error", "warning"):
            messages.append(f"{event['entry']['level']}: {event['entry']['text']} {event['entry'].get('url', '')}")
    refused = [line for line in messages if "401" in line and "/v1/models" in line]
    if refused:
        messages.remove(refused[0])
    return messages


def _requests(page: Chromium) -> int:
    return sum(method == "Network.requestWillBeSent" for method, _ in page.events)


def _strangers(page: Chromium, origin: str) -> list[str]:
    """Requests to anywhere but the server."""
    urls = [event["request"]["url"] for method, event in page.events if method == "Network.requestWillBeSent"]
    return [f"a request to {url[:100]}" for url in urls if not url.startswith((origin, "data:", "blob:", "about:"))]


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what came of each step; returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.page_check", arguments)
