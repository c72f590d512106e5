"""Good content made strange: bytes, JSON, safetensors headers, pickles in archives, protocol buffers, PNG headers."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from copy import deepcopy
from random import Random
from typing import Any

Mutation = Callable[[bytes, Random], bytes]

NUMBERS = (0, 1, -1, 2, 127, 255, 65535, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, 10**400)
STRANGE: tuple[Any, ...] = (
    *(None, True, False, *NUMBERS, 0.5, -0.5, 1e308, float("nan"), float("inf"), float("-inf")),
    *("", "a", "../x", "/etc/passwd", "a\0b", "\ud800", "\x1b[2J\u202e", "9" * 300, "x" * 5000, "C:/x", "..", "CON"),
    *([], {}, [[]], [None], [-1], {"": ""}, [1] * 3000, {"a": {"b": {}}}, [[[[[[[[]]]]]]]]),
)
TEXTS = (
    *(
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        b"\0",
        b"[" * 3000,
        b"{" * 300,
        b'{"a":' * 1500,
        b'"',
        b"\\",
        b"version https://git-lfs\n",
    ),
    *(b"NaN", b"1e999", b"-", b"9" * 6000, b"true", b'"\\ud800"', b",", b"]", b"}"),
)
OPCODES = (
    *(
        b"(",
        b"]",
        b"}",
        b")",
        b"t",
        b"l",
        b"d",
        b"e",
        b"u",
        b"a",
        b"s",
        b"0",
        b"1",
        b"2",
        b".",
        b"N",
        b"\x88",
        b"\x8f",
        b"\x90",
    ),
    *(
        b"\x91",
        b"\x85",
        b"\x86",
        b"\x87",
        b"R",
        b"b",
        b"Q",
        b"h\x00",
        b"q\x00",
        b"q\x01",
        b"\x94",
        b"\x93",
        b"K\x05",
        b"J\xff\xff\xff\xff",
    ),
    *(
        b"\x8b" + struct.pack("<i", 60) + b"\x7f" * 60,
        b"I" + b"9" * 5000 + b"\n",
        b"F1e5\n",
        b"X\x05\x00\x00\x00\xff\xff\xff\xff\xff",
    ),
    *(b"cos\nsystem\n(X\x0c\x00\x00\x00touch PWNED\x20tR", b"cbuiltins\nexec\n", b"csubprocess\nPopen\n", b"ios\nsystem\n"),
    *(
        b"ctorch\nSize\n",
        b"ccollections\nOrderedDict\n)R",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"\x80\x05",
        b"\x95" + b"\xff" * 8,
    ),
)


def bytes_changed(content: bytes, draw: Random) -> bytes:
    """One to four places overwritten, cut, doubled, inserted or taken out."""
    made = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        at, length = draw.randrange(len(made) + 1), draw.choice((1, 1, 2, 4, 8, 64))
        kind = draw.randrange(6)
        if kind == 0:
            made[at : at + length] = draw.randbytes(min(length, max(len(made) - at, 0)))
        elif kind == 1:
            del made[at:]
        elif kind == 2:
            made[at:at] = made[at : at + length]
        elif kind == 3:
            made[at:at] = draw.choice(TEXTS)[:4000]
        elif kind == 4:
            del made[at : at + length]
        elif at < len(made):
            made[at] ^= 1 << draw.randrange(8)
    return bytes(made)


def json_changed(content: bytes, draw: Random) -> bytes:
    """One to three values replaced, taken out, moved or given twice; now and then the text itself is changed too."""
    value = json.loads(content)
    for _ in range(draw.randint(1, 3)):
        places = list(_places(value))
        if not places:
            break
        inner, key = draw.choice(places)
        kind = draw.randrange(8)
        if kind == 0:
            del inner[key]
        elif kind == 1:
            other, place = draw.choice(places)
            inner[key] = deepcopy(other[place]) if _has(other, place) else None
        else:
            inner[key] = deepcopy(draw.choice(STRANGE))
    text = json.dumps(value).encode("utf-8", "surrogatepass")
    if draw.randrange(8) == 0:
        at = text.find(b'"', draw.randrange(len(text) + 1))
        text = text[:at] + draw.choice(TEXTS)[:4000] + text[at:] if at >= 0 else text
    if draw.randrange(16) == 0 and text.startswith(b"{") and b":" in text:
        first = text[1 : text.find(b":")]
        text = b"{" + first + b":1," + text[1:]
    return bytes_changed(text, draw) if draw.randrange(8) == 0 else text


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)


def _has(container: Any, key: Any) -> bool:
    return key in container if isinstance(container, dict) else key < len(container)


def safetensors_changed(content: bytes, draw: Random) -> bytes:
    """The header changed as JSON, with its length made true again more often than not; or plain bytes."""
    if draw.randrange(4) == 0:
        return bytes_changed(content, draw)
    (length,) = struct.unpack("<Q", content[:8])
    header = json_changed(content[8 : 8 + length], draw)
    size = len(header) if draw.randrange(8) else draw.choice(NUMBERS[3:14]) % 2**64
    return struct.pack("<Q", size) + header + content[8 + length :]


def archive_changed(content: bytes, draw: Random) -> bytes:
    """data.pkl of a torch archive changed opcode by opcode, packed again; or another member, or plain bytes."""
    kind = draw.randrange(6)
    if kind == 0:
        return bytes_changed(content, draw)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as good, zipfile.ZipFile(out, "w") as made:
        for member in good.infolist():
            name, data = member.filename, good.read(member.filename)
            if name.endswith("data.pkl"):
                data = opcodes_changed(data, draw) if kind < 5 else data
            elif kind == 5 and draw.randrange(3) == 0:
                data = bytes_changed(data, draw)
                name = draw.choice((name, "../" + name, name + "x", "/" + name))
            method = zipfile.ZIP_DEFLATED if draw.randrange(30) == 0 else zipfile.ZIP_STORED
            made.writestr(zipfile.ZipInfo(name), data, method)
    return out.getvalue()


def opcodes_changed(content: bytes, draw: Random) -> bytes:
    """Opcodes put in, many times over now and then, or bytes changed."""
    made = content
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(2, max(len(made), 3))
        if draw.randrange(3):
            often = draw.choice((1, 1, 1, 2, 50, 20_000))
            made = made[:at] + draw.choice(OPCODES) * often + made[at:]
        else:
            made = bytes_changed(made, draw)
    return made[:2_000_000]


def protobuf_changed(content: bytes, draw: Random) -> bytes:
    """A length or a number of the message made strange, a field repeated or cut, or plain bytes."""
    kind = draw.randrange(4)
    at = draw.randrange(len(content) + 1)
    if kind == 0:
        return (
            content[:at]
            + draw.choice((b"\xff" * 9 + b"\x01", b"\x80" * 5000, b"\x0a\xff\xff\xff\xff\x7f", b"\x0b"))
            + content[at:]
        )
    if kind == 1:
        return content[:at] + content[:at][-200:] * draw.choice((1, 50)) + content[at:]
    return bytes_changed(content, draw)


def picture_changed(content: bytes, draw: Random) -> bytes:
    """Plain bytes, or a PNG's sizes with their checksum made true."""
    if not content.startswith(b"\x89PNG") or draw.randrange(2):
        return bytes_changed(content, draw)
    sizes = [draw.choice((0, 1, 7, 8000, 8001, 65_535, 2**31 - 1, 2**31, 2**32 - 1)) for _ in range(2)]
    header = (
        b"IHDR"
        + struct.pack(">II", *sizes)
        + bytes(draw.choice((1, 2, 4, 8, 16)) if i == 0 else v for i, v in enumerate(content[24:29]))
    )
    made = content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]
    return bytes_changed(made, draw) if draw.randrange(3) == 0 else made
