"""The kinds of hostile requests, each a generator of attempts from random numbers."""

from __future__ import annotations

import base64
import io
import random
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

from PIL import Image

from parity_tests.laboratory.hostile_requests.attempt import CLOSED, Attempt
from parity_tests.laboratory.hostile_requests.triton_kinds import FATAL, Call
from parity_tests.laboratory.hostile_requests.wires import Wire
from runtime_py.errors import UsageError

REFUSED = frozenset({"400"})
ANSWERED = frozenset({"200", "400"})

Made = Iterator[bytes | float]


class Kinds:
    """What can be made for a model of this name.

    Args:
        more: kinds that only this server has.
    """

    def __init__(
        self, name: str, draw: random.Random, wire: Wire, more: Mapping[str, Callable[[], Attempt | Call]] | None = None
    ) -> None:
        self.name, self.draw, self.wire = name, draw, wire
        self.kinds: Mapping[str, Callable[[], Attempt | Call]] = {
            "broken pictures": self.broken_picture,
            "decompression bombs": self.bomb,
            "absurd sizes": self.absurd_size,
            "wrong types": self.wrong_type,
            "deep or malformed JSON": self.malformed,
            "hostile schemas": self.schema,
            "endless bodies": self.endless,
            "slow clients": self.slow,
            "clients that leave": self.leaving,
            "paths and URLs": self.path,
            "addresses of pictures": self.address,
            "floods of headers": self.headers,
            "framing": self.framing,
            **(more or {}),
        }

    def choose(self, only: str | None, without: Collection[str]) -> None:
        """Keep one kind alone, or leave some out; one that ends the server is left out unless it is kept.

        Raises:
            UsageError: there is no such kind.
        """
        unknown = {*without, *([only] if only else [])} - set(self.kinds)
        if unknown:
            raise UsageError(f"no kind {min(unknown)!r}", ", ".join(self.kinds), "choose another")
        kept = {only} if only else set(self.kinds) - {*without, FATAL}
        self.kinds = {name: make for name, make in self.kinds.items() if name in kept}

    def any(self, number: int) -> Attempt | Call:
        """The kinds in turn, with what is right of this server."""
        names = list(self.kinds)
        made = self.kinds[names[number % len(names)]]()
        return replace(made, right=self.wire.right(made.kind, made.right))

    def body(self, content: Any, **fields: Any) -> bytes:
        asked = {"model": self.name, "messages": [{"role": "user", "content": content}], "max_tokens": 1}
        return self.wire.wrap({**asked, **fields})

    def asked_about(self, picture: bytes, kind: str = "png") -> bytes:
        url = f"data:image/{kind};base64," + base64.b64encode(picture).decode()
        return self.wire.post(self.body([{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "?"}]))

    def broken_picture(self) -> Attempt:
        kind = self.draw.choice(("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM"))
        size = (self.draw.randint(1, 90), self.draw.randint(1, 90))
        buffer = io.BytesIO()
        Image.frombytes("RGB", size, self.draw.randbytes(3 * size[0] * size[1])).save(buffer, kind)
        content = bytearray(buffer.getvalue())
        for _ in range(self.draw.randint(1, 40)):
            content[self.draw.randrange(len(content))] = self.draw.randrange(256)
        if self.draw.random() < 0.5:
            del content[self.draw.randrange(len(content)) :]
        return Attempt("broken pictures", [self.asked_about(bytes(content), kind.lower())], ANSWERED)

    def bomb(self) -> Attempt:
        """Pictures of few bytes and very many pixels, with rows in them or without."""
        side = self.draw.choice((9_000, 20_000, 65_000, 2**31 - 1))
        rows = zlib.compress(bytes(min(side * side // 8, 40_000_000)), 9) if self.draw.random() < 0.3 else zlib.compress(b"")
        kind = self.draw.choice(("png", "gif", "bmp", "ppm", "comment"))
        if kind in ("png", "comment"):
            header = side.to_bytes(4, "big") * 2 + bytes((self.draw.choice((1, 8)), 0, 0, 0, 0))
            words = b"a\0\0" + zlib.compress(bytes(30_000_000), 9)
            chunks = [(b"IHDR", header if kind == "png" else (16).to_bytes(4, "big") * 2 + b"\x08\0\0\0\0")]
            chunks += [(b"zTXt", words)] if kind == "comment" else []
            content = b"\x89PNG\r\n\x1a\n" + b"".join(
                len(inner).to_bytes(4, "big") + name + inner + zlib.crc32(name + inner).to_bytes(4, "big")
                for name, inner in [*chunks, (b"IDAT", rows), (b"IEND", b"")]
            )
        elif kind == "gif":
            frame = b"\x2c\0\0\0\0" + b"\xff\xff" * 2 + b"\0\x08\x02\x4c\x01\0"
            content = b"GIF89a" + b"\xff\xff" * 2 + b"\x80\0\0" + bytes(6) + frame * self.draw.choice((1, 5000)) + b";"
        elif kind == "bmp":
            content = b"BM" + bytes(8) + b"\x36\0\0\0\x28\0\0\0" + min(side, 2**31 - 1).to_bytes(4, "little") * 2
            content += b"\x01\0\x01\0" + bytes(24)
        else:
            content = b"P6 %d %d 255\n" % (side, side)
        right = ANSWERED if kind == "comment" else REFUSED  # a small picture, whose comment nobody unpacks
        return Attempt("decompression bombs", [self.asked_about(content)], right)

    def absurd_size(self) -> Attempt:
        huge = self.draw.choice((2**33, 10**15, 10**40))
        choice = self.draw.randrange(4)
        if choice == 0:
            return Attempt("absurd sizes", [self.wire.post(b"{}", length=huge)], frozenset({"413", "400"}))
        if choice == 1:
            return Attempt("absurd sizes", [self.asked_about(bytes(3 << 20))], frozenset({"413"}))
        if choice == 2:
            messages = [{"role": "user", "content": "a"}] * self.draw.choice((1000, 20_000))
            return Attempt("absurd sizes", [self.wire.post(self.body("a", messages=messages))], frozenset({"400"}))
        words = self.body("word " * self.draw.choice((5_000, 400_000)))  # some families cut a prompt, as published
        return Attempt("absurd sizes", [self.wire.post(words)], ANSWERED)

    def wrong_type(self) -> Attempt:
        """A field with any value, or content of any form."""
        names = [
            "messages",
            "model",
            "stop",
            "seed",
            "top_p",
            "top_k",
            "max_tokens",
            "response_format",
            "stream",
            "logprobs",
        ]
        names += ["stream_options", "n", "tools", "temperature", "modalities", "x\u0000", "__proto__", "ignore_eos"]
        fields = {self.draw.choice(names): self.value() for _ in range(self.draw.randint(1, 3))}
        content = self.value() if self.draw.random() < 0.3 else "Hello"
        return Attempt("wrong types", [self.wire.post(self.body(content, **fields))], frozenset({"200", "400", "404"}))

    def value(self, depth: int = 0) -> Any:
        simple: tuple[Any, ...] = (
            None,
            True,
            0,
            -1,
            10**30,
            1.5,
            float("inf"),
            "",
            "a",
            "\ud800",
            "\u0000",
            "a" * 5000,
            [],
            {},
        )
        if depth > 3 or self.draw.random() < 0.6:
            return self.draw.choice(simple)
        if self.draw.random() < 0.5:
            return [self.value(depth + 1) for _ in range(self.draw.randint(0, 4))]
        keys = ("role", "content", "type", "text", "image_url", "url", "schema", "json_schema", "")
        return {self.draw.choice(keys): self.value(depth + 1) for _ in range(self.draw.randint(0, 4))}

    def malformed(self) -> Attempt:
        deep = self.draw.choice((100, 5_000, 200_000))
        whole = self.body("Hello")
        body = self.draw.choice(
            (
                b"[" * deep,
                b'{"a":' * deep + b"1" + b"}" * deep,
                whole[: self.draw.randrange(len(whole))],
                whole + whole,
                b"\xef\xbb\xbf" + self.draw.randbytes(50),
                b'{"model": ' + b"9" * deep + b"}",
                b'{"model": "a", "model": "b"}',
                b'"' + b"\\u0000" * 1000 + b'"',
                b"NaN",
                self.draw.randbytes(self.draw.randint(0, 500)),
            )
        )
        return Attempt("deep or malformed JSON", [self.wire.post(self.wire.carry(body))])

    def schema(self) -> Attempt:
        """Answers' schemas that are large, endless, impossible or no schemas."""
        nested: Any = {"type": "string"}
        for _ in range(self.draw.choice((10, 40))):
            nested = {"type": "object", "properties": {"a": nested}, "required": ["a"]}
        schema: Any = self.draw.choice(
            (
                {"type": "string", "pattern": "(a+)+$"},
                {"type": "string", "pattern": "((a{1,1000}){1,1000}){1,1000}"},
                {"type": "string", "pattern": "("},
                {"type": "array", "minItems": 10**9, "items": {"type": "integer"}},
                {"type": "string", "minLength": 10**7},
                {"$ref": "#"},
                {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
                {"$ref": "http://127.0.0.1/a.json"},
                {"$ref": "file:///etc/passwd"},
                {"enum": [f"word {number}" for number in range(20_000)]},
                {"enum": []},
                {"type": "nothing"},
                {"type": "integer", "minimum": 10, "maximum": 1},
                {"allOf": [{"anyOf": [{"type": "string", "pattern": f"a{{{number}}}"} for number in range(30)]}] * 6},
                {"properties": {f"p{number}": {"type": "string"} for number in range(3_000)}},
                nested,
            )
        )
        wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        return Attempt("hostile schemas", [self.wire.post(self.body("Hello", response_format=wanted))], ANSWERED)

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

    def address(self) -> Attempt:
        url = self.draw.choice(
            (
                "file:///etc/passwd",
                "http://169.254.169.254/latest/meta-data",
                "http://127.0.0.1:22/", "http://[::1]/",
                "ftp://a/b",
                "gopher://127.0.0.1:25/x", "data:text/html,<script>", "data:image/png;base64,", "data:image/png;base64,%%%",
                "data:,",
                "javascript:alert(1)", "http://0x7f000001/", "//evil/x.png",
                "data:image/svg+xml;base64,PHN2Zy8+", "\u0000", "",
                "data:image/png;base64," + "A" * 1000, "data:" + ";a=b" * 20_000 + ";base64,AAAA", "http://a" * 10_000,
            )
        )  # fmt: skip
        part = {"type": "image_url", "image_url": {"url": url}}
        body = self.wire.post(self.body([part] * self.draw.choice((1, 1, 500))))
        return Attempt("addresses of pictures", [body], frozenset({"400", "413"}))  # 500 long ones exceed the body's limit

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
