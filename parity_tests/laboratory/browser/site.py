"""A page served to a headless Chromium on this machine, and what the page posts back."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from parity_tests.laboratory.browser.program import running
from runtime_py.errors import MachineError

HERE = Path(__file__).parent
FLAGS = ("--enable-unsafe-webgpu",)
SOFTWARE = ("--use-webgpu-adapter=swiftshader",)
"""A GPU in software, for machines without one."""


class Site(ThreadingHTTPServer):
    """Serves the page, a folder of node modules and one of packages, and waits for one result.

    Args:
        task: what the page fetches.
        folders: first part of a path (``packages``) to the folder it stands for.
    """

    def __init__(self, task: Mapping[str, Any], folders: Mapping[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), partial(_Request, directory=str(HERE)))
        self.task, self.folders = json.dumps(task).encode(), folders
        self.result: dict[str, Any] = {}
        self.answered = threading.Event()

    @property
    def address(self) -> str:
        """URL of the page."""
        return f"http://127.0.0.1:{self.server_port}/page.html"


class _Request(SimpleHTTPRequestHandler):
    server: Site

    def translate_path(self, path: str) -> str:
        first, *rest = PurePosixPath(unquote(urlsplit(path).path).lstrip("/") or "page.html").parts
        if ".." in rest:
            return str(HERE / "none")
        return str(
            self.server.folders[first].joinpath(*rest) if first in self.server.folders else HERE.joinpath(first, *rest)
        )

    def do_GET(self) -> None:
        if self.path != "/task":
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.task)))
        self.end_headers()
        self.wfile.write(self.server.task)

    def do_POST(self) -> None:
        self.server.result = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()
        self.server.answered.set()

    def log_message(self, *_: object) -> None:
        """Nothing: the page's requests are of no interest."""


def asked(task: Mapping[str, Any], folders: Mapping[str, Path], seconds: float, software: bool = True) -> dict[str, Any]:
    """What the page posts.

    Args:
        software: on a GPU in software; else on the machine's own.

    Raises:
        MachineError: no Chromium is here, or it does not answer in time.
    """
    with Site(task, folders) as site, _serving(site), running([*FLAGS, *(SOFTWARE if software else ()), site.address]):
        if not site.answered.wait(seconds):
            raise MachineError(
                f"Chromium did not answer in {seconds:.0f} s", "a page that posts its result", "give it more --seconds"
            )
    return site.result


@contextlib.contextmanager
def _serving(site: Site) -> Iterator[None]:
    thread = threading.Thread(target=site.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        site.shutdown()
        thread.join()
