"""Protocol buffer messages walked without their library: field numbers and values, bounded by the bytes there are.

Source of the wire format: protobuf.dev/programming-guides/encoding. Groups, which proto3 does not have, are refused.
"""

from __future__ import annotations

from collections.abc import Iterator

MAX_VARINT_BYTES = 10


def fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of every field in order: an integer of a varint, the bytes of any other kind.

    Raises:
        ValueError: the message is cut off, or no protocol buffer.
    """
    at = 0
    while at < len(message):
        key, at = varint(message, at)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise ValueError("a field of number 0")
        if kind == 0:
            value, at = varint(message, at)
            yield number, value
            continue
        if kind == 2:
            size, at = varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of wire type {kind}")
        if size > len(message) - at:
            raise ValueError(f"a field of {size} bytes where {len(message) - at} are left")
        yield number, message[at : at + size]
        at += size


def message_of(value: int | memoryview) -> memoryview:
    """The bytes of a field that holds a message.

    Raises:
        ValueError: it holds an integer.
    """
    if isinstance(value, int):
        raise ValueError(f"the integer {value} where a message was expected")
    return value


def varint(message: memoryview, at: int) -> tuple[int, int]:
    """The unsigned integer at ``at``, and where it ends.

    Raises:
        ValueError: it is cut off or longer than 64 bits need.
    """
    value = 0
    for shift, byte in enumerate(message[at : at + MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value, at + shift + 1
    raise ValueError("a number that does not end")
