r"""What is written to stdout and stderr: whatever their encoding, and with nothing in it that a terminal would obey.

Names of files, tensors and families come from strangers. What a terminal takes for an order (control characters) or that
turns text around (bidirectional overrides) is shown escaped, as ``\x1b``; line ends and tabs stay.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any, TextIO

_ORDERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_RAW_BYTE = range(0xDC80, 0xDD00)
"""How Python holds a byte of a file name or argument that is no UTF-8 (surrogateescape)."""


def prepare() -> None:
    r"""Let stdout and stderr show what their encoding lacks as ``\u4f60``, and let stdin hand undecodable bytes on."""
    for stream, errors in (
        (sys.stdout, "backslashreplace"),
        (sys.stderr, "backslashreplace"),
        (sys.stdin, "surrogateescape"),
    ):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=errors)


def escaped(text: str) -> str:
    """Text without orders to a terminal."""
    return _ORDERS.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code in _RAW_BYTE:
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def say(text: str) -> None:
    """A line of talk on stderr."""
    sys.stderr.write(escaped(text) + "\n")
    sys.stderr.flush()


def out(text: str) -> None:
    """A result for people on stdout, with a line end."""
    sys.stdout.write(escaped(text) + "\n")
    sys.stdout.flush()


def out_json(value: Any, indent: int | None = 2) -> None:
    """A result for programs on stdout: one JSON document, or one line of it when ``indent`` is None."""
    sys.stdout.write(json_text(value, sys.stdout, indent) + "\n")
    sys.stdout.flush()


def json_text(value: Any, stream: TextIO, indent: int | None = 2) -> str:
    """JSON that ``stream`` can encode and that orders a terminal nothing."""
    text = json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=True)
    text = _ORDERS.sub(lambda match: match.group() if match.group() == "\n" else f"\\u{ord(match.group()):04x}", text)
    try:
        text.encode(stream.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return json.dumps(value, ensure_ascii=True, indent=indent)
    return text


def decoded(line: str, stream: TextIO | None) -> str | None:
    """A line read after `prepare`, its undecodable bytes taken for UTF-8; None where they are not."""
    try:
        line.encode("utf-8")
        return line
    except UnicodeEncodeError:
        pass
    try:
        return line.encode(getattr(stream, "encoding", None) or "utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        return None
