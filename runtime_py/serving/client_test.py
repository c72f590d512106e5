"""What the client makes of servers that speak another language."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest

from runtime_py.errors import MachineError, UsageError
from runtime_py.serving.client import Client

BODY = {"model": "m", "messages": []}


class Strange(http.server.BaseHTTPRequestHandler):
    """Answers with the status and the body that the server was given last."""

    def do_GET(self) -> None:
        status, content = self.server.told  # type: ignore[attr-defined]
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def strange() -> Iterator[http.server.HTTPServer]:
    server = http.server.HTTPServer(("127.0.0.1", 0), Strange)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("content", [b"[]", b"3", b"<html>", b"", b"\xff", b'{"data": []}', b'{"data": 3}'])
def test_what_is_no_server_of_the_interface_is_said(strange: http.server.HTTPServer, content: bytes) -> None:
    strange.told = 200, content  # type: ignore[attr-defined]
    client = Client(f"http://127.0.0.1:{strange.server_address[1]}/v1")
    with pytest.raises(MachineError):
        client.facts()
    with pytest.raises(MachineError):
        list(client.stream(BODY))


@pytest.mark.parametrize("line", [b"data: 3", b"data: []", b"data: {", b"data: "])
def test_what_is_no_chunk_is_said(strange: http.server.HTTPServer, line: bytes) -> None:
    strange.told = 200, line + b"\n\ndata: [DONE]\n\n"  # type: ignore[attr-defined]
    with pytest.raises(MachineError, match="does not answer as a server"):
        list(Client(f"127.0.0.1:{strange.server_address[1]}").stream(BODY))


@pytest.mark.parametrize(
    ("content", "said"),
    [(b'{"error": {"message": "no room"}}', "no room"), (b'{"error": "broken"}', "broken"), (b'{"detail": "x"}', "detail")],
)
def test_refusals_of_every_form_are_told(strange: http.server.HTTPServer, content: bytes, said: str) -> None:
    strange.told = 503, content  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match=rf"refuses \(503\): .*{said}"):
        Client(f"127.0.0.1:{strange.server_address[1]}").complete(BODY)
