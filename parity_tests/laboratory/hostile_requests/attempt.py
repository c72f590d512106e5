"""One hostile request as bytes on a connection, and what came back."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

CLOSED = "closed"
"""The server ended the connection without an answer."""
HANGS = "hangs"
"""Neither an answer nor an end came in time."""


@dataclass(frozen=True)
class Attempt:
    """What is sent.

    Attributes:
        pieces: in turn; a number is a pause of so many seconds.
        right: statuses that are right, and `CLOSED` where that is.
        read: bytes of the answer that are waited for; the client leaves then.
    """

    kind: str
    pieces: Iterable[bytes | float]
    right: frozenset[str] = field(default_factory=lambda: frozenset({"400"}))
    read: int = 1 << 24


def outcome(attempt: Attempt, address: tuple[str, int], seconds: float) -> str:
    """The status, `CLOSED`, or `HANGS` when neither came in time."""
    ends = time.monotonic() + seconds
    try:
        with socket.create_connection(address, seconds) as connection:
            received = b""
            try:
                for piece in attempt.pieces:
                    if isinstance(piece, float):
                        time.sleep(piece)
                    else:
                        connection.sendall(piece)
                    if time.monotonic() > ends:
                        return HANGS
                    if received := received + _there(connection):
                        break
            except (BrokenPipeError, ConnectionResetError):
                pass
            received += b"".join(_rest(connection, ends, attempt.read - len(received)))
    except TimeoutError:
        return HANGS
    except OSError as error:
        return CLOSED if isinstance(error, ConnectionResetError) else type(error).__name__
    if not received:
        return CLOSED
    line = received.split(b"\r\n", 1)[0].split()
    return line[1].decode() if len(line) > 1 and line[0].startswith(b"HTTP/") else "no HTTP"


def _there(connection: socket.socket) -> bytes:
    """What can be read without waiting."""
    connection.setblocking(False)
    try:
        return connection.recv(1 << 16)
    except (BlockingIOError, InterruptedError):
        return b""
    finally:
        connection.setblocking(True)


def _rest(connection: socket.socket, ends: float, most: int) -> Iterator[bytes]:
    while most > 0:
        connection.settimeout(max(ends - time.monotonic(), 0.01))
        try:
            piece = connection.recv(min(1 << 16, most))
        except ConnectionResetError:
            return
        if not piece:
            return
        most -= len(piece)
        yield piece
