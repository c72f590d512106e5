"""Hostile contents of requests that are framed rightly: pictures, sizes, JSON, schemas, addresses."""

from __future__ import annotations

import base64
import io
import random
import zlib
from typing import Any

from PIL import Image

from parity_tests.laboratory.hostile_requests.attempt import Attempt
from parity_tests.laboratory.hostile_requests.wires import Wire

REFUSED = frozenset({"400"})
ANSWERED = frozenset({"200", "400"})


class HostileBodies:
    """Attempts for a model of this name, drawn from random numbers."""

    def __init__(self, name: str, draw: random.Random, wire: Wire) -> None:
        self.name, self.draw, self.wire = name, draw, wire

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
                {"type": "integer", "multipleOf": 123456789},
                {"allOf": [{"type": "string", "pattern": f"^.*a.{{{number}}}b.*$"} for number in range(20, 60)]},
                {"allOf": [{"anyOf": [{"type": "string", "pattern": f"a{{{number}}}"} for number in range(30)]}] * 6},
                {"properties": {f"p{number}": {"type": "string"} for number in range(3_000)}},
                nested,
            )
        )
        wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        return Attempt("hostile schemas", [self.wire.post(self.body("Hello", response_format=wanted))], ANSWERED)

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
