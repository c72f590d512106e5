"""Hostile ways to send a request: endless and slow bodies, clients that leave, paths, headers, framing."""

from __future__ import annotations

from collections.abc import Iterator

from parity_tests.laboratory.hostile_requests.attempt import CLOSED, Attempt
from parity_tests.laboratory.hostile_requests.hostile_bodies import HostileBodies

Made = Iterator[bytes | float]
"""Bytes to send, and seconds to wait."""


class HostileConnections(HostileBodies):
    """Attempts whose way of coming is hostile, mostly with a body that is right."""

    def endless(self) -> Attempt:
        """Bodies without an end, in chunks or longer than said."""
        lines = f"POST {self.wire.path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
        kind = self.draw.choice(("application/json", "text/plain"))
        head = f"{lines}Content-Type: {kind}\r\n\r\n".encode()

        def pieces() -> Made:
            yield head
            while True:
                yield b"10000\r\n" + b" " * 65536 + b"\r\n"

        return Attempt("endless bodies", pieces(), frozenset({"413" if kind == "application/json" else "415", CLOSED}))

    def slow(self) -> Attempt:
        """A head or a body a byte at a time."""
        in_head = self.draw.random() < 0.4
        whole = self.wire.post(self.body("Hello" * 2000))
        start = 5 if in_head else whole.index(b"\r\n\r\n") + 4

        def pieces() -> Made:
            yield whole[:start]
            for place in range(start, len(whole)):
                yield 0.2
                yield whole[place : place + 1]

        return Attempt("slow clients", pieces(), frozenset({CLOSED} if in_head else {"408", CLOSED}))

    def leaving(self) -> Attempt:
        """Clients that go before the body is there, before the answer, or within it."""
        whole = self.wire.post(self.body("red " * 50, stream=True, max_tokens=1500, temperature=2), streamed=True)
        choice = self.draw.randrange(3)
        pieces = [whole[: self.draw.randrange(1, len(whole))]] if choice == 0 else [whole]
        read = 0 if choice < 2 else self.draw.randint(20, 400)
        return Attempt("clients that leave", pieces, frozenset({CLOSED, "200"}), read)

    def path(self) -> Attempt:
        target = self.draw.choice(
            (
                "/../../etc/passwd", "/page/../page.py", "/page/%2e%2e/page.py", "/page/..%5cpage.py", "//v1/models/%00",
                "/v1/models/" + "../" * 40, "/v1/models/" + "a" * 3000, "/page/main.js%00.css", "/.git/config",
                "/" + "%41" * 5000,
                "/page/main.js/", "/v1/chat/completions/", "/v1/models/A?" + "a=b&" * 2000, "*",
                "http://127.0.0.1:1/v1/x",
                "/docs", "/v1/completions", "/v1/models/%ff%fe", "/page/%252e%252e/page.py", "/health/../v1/x",
            )
        )  # fmt: skip
        method = self.draw.choice(("GET", "POST", "PUT", "DELETE", "TRACE", "OPTIONS", "PROPFIND", "FOO", "CONNECT"))
        target = target.replace("/v1/", self.wire.version)
        host = self.draw.choice(("x", "127.0.0.1:1", "a" * 500))
        request = f"{method} {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
        return Attempt("paths and URLs", [f"{request}Content-Length: 0\r\n\r\n".encode()], frozenset({"400", "404", "405"}))

    def headers(self) -> Attempt:
        choice = self.draw.randrange(4)
        flood = (
            "".join(f"X-{number}: {number}\r\n" for number in range(self.draw.choice((200, 20_000)))),
            "X-A: " + "a" * self.draw.choice((20_000, 3_000_000)) + "\r\n",
            "Authorization: Bearer " + "\u00ff" * 200 + "\r\n",
            "Content-Type: " + "a/b;" * 5000 + "\r\n",
        )[choice]
        return Attempt(
            "floods of headers", [self.wire.post(self.body("Hello"), flood)], frozenset({"200", "400", "415", "431", CLOSED})
        )

    def framing(self) -> Attempt:
        body = self.body("Hello")
        request = f"POST {self.wire.path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        made = self.draw.choice(
            (
                f"{request}Content-Length: 5\r\nContent-Length: 6\r\n\r\n".encode() + body,
                f"{request}Content-Length: -1\r\n\r\n".encode() + body,
                f"{request}Content-Length: 5, 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".encode(),
                f"{request}Transfer-Encoding: chunked, gzip\r\n\r\n".encode(),
                f"{request}Transfer-Encoding: chunked\r\n\r\nzz\r\n".encode(),
                f"{request}Transfer-Encoding: chunked\r\n\r\n{'f' * 40}\r\n".encode(),
                f"{request}Bad Header : x\r\n\r\n".encode(),
                b"GET / HTTP/1.1\r\n\r\n",
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + self.draw.randbytes(200),
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                self.draw.randbytes(self.draw.randint(1, 3000)) + b"\r\n\r\n",
            )
        )
        return Attempt("framing", [made], frozenset({"400", "404", "413", "501", "505", CLOSED}))
