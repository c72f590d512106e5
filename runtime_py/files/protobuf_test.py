"""Protocol buffer messages against the library's own writer, and messages that lie about their lengths."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_py.files.protobuf import fields, varint


def listed(message: bytes) -> list[tuple[int, int | bytes]]:
    return [(number, value if isinstance(value, int) else bytes(value)) for number, value in fields(memoryview(message))]


def test_every_wire_type() -> None:
    message = b"\x08\x96\x01" + b"\x12\x03abc" + b"\x1d\x00\x00\x80\x3f" + b"\x21" + bytes(8)
    assert listed(message) == [(1, 150), (2, b"abc"), (3, b"\x00\x00\x80\x3f"), (4, bytes(8))]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"\x08", "does not end"),
        (b"\x80" * 1_000_000, "does not end"),
        (b"\x08" + b"\xff" * 10 + b"\x01", "does not end"),
        (b"\x12\x05abc", "5 bytes where 3"),
        (b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "bytes where 0"),
        (b"\x1d\x00", "4 bytes where 1"),
        (b"\x0b", "wire type 3"),
        (b"\x02\x00", "number 0"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_damaged_messages_are_refused_at_once(message: bytes, words: str) -> None:
    began = time.process_time()
    with pytest.raises(ValueError, match=words):
        listed(message)
    assert time.process_time() - began < 1


@given(st.integers(0, 2**64 - 1))
def test_varints_decode_to_what_was_encoded(value: int) -> None:
    encoded, left = bytearray(), value
    while True:
        encoded.append(left & 0x7F | (0x80 if left > 0x7F else 0))
        left >>= 7
        if not left:
            break
    assert varint(memoryview(bytes(encoded) + b"x"), 0) == (value, len(encoded))


def test_a_message_of_the_onnx_library() -> None:
    onnx = pytest.importorskip("onnx")
    entry = onnx.StringStringEntryProto(key="location", value="weights.bin")
    assert listed(entry.SerializeToString()) == [(1, b"location"), (2, b"weights.bin")]
