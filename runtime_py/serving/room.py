"""How many bytes of bodies and decoded pictures a server holds for requests that nobody has answered yet.

A few kilobytes can decode to two hundred megabytes; without a common bound, many requests that are each within their own
limits would fill the machine.
"""

from __future__ import annotations

import threading

from runtime_py.serving.refusal import Refusal

HELD_BYTES = 1 << 30


class Room:
    """The bound that all requests of a server share."""

    def __init__(self, held_bytes: int = HELD_BYTES) -> None:
        self.free = held_bytes
        self.lock = threading.Lock()


class Reservation:
    """One request's part of a room: filled by one thread at a time, given back by any with `release`.

    Args:
        pixels: of all its pictures at most.
    """

    def __init__(self, room: Room, pixels: int) -> None:
        self._room, self._pixels, self._most = room, 0, pixels
        self._bytes = 0
        self._released = False

    def add_bytes(self, count: int) -> None:
        """Hold more.

        Raises:
            Refusal: 429, the room is full.
        """
        with self._room.lock:
            if count > self._room.free or self._released:
                raise Refusal(429, "too much is being held for other requests", "rate_limit_error", code="queue_full")
            self._room.free -= count
            self._bytes += count

    def add_picture(self, width: int, height: int) -> None:
        """Hold a decoded picture, uint8 RGB.

        Raises:
            Refusal: the request's pictures have too many pixels together, or the room is full.
        """
        self._pixels += width * height
        if self._pixels > self._most:
            raise Refusal(
                400,
                f"the pictures have {self._pixels:,} pixels together; at most {self._most:,}",
                param="messages",
                code="image_too_large",
            )
        self.add_bytes(3 * width * height)

    def release(self) -> None:
        """Give everything back; doing so again does nothing."""
        with self._room.lock:
            self._room.free += self._bytes
            self._bytes, self._released = 0, True
