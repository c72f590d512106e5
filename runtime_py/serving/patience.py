"""Connections that keep the server waiting are closed: no whole head of a request in time, a body that outlasts its answer,
an answer that is not read.

uvicorn bounds the time between two requests and nothing else of the kind; such connections count against all that may be
open.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 15.0
"""From a connection's opening, or from its last answer, to the end of the next request's head."""

READ_SECONDS = 60.0
"""For a client that takes no more of its answer to go on reading."""


class PatientProtocol(H11Protocol):
    """HTTP/1.1 over h11, with a bound on waiting."""

    seconds = HEAD_SECONDS
    read_seconds = READ_SECONDS
    _late: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._go_on()
        self._read_again()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came; a request that is being answered has the time that the application gives it."""
        super().data_received(data)
        self._go_on_when_busy()

    def on_response_complete(self) -> None:
        """Wait for the rest of the request, or the next one, which may have come already."""
        self._wait()
        super().on_response_complete()
        self._go_on_when_busy()

    def pause_writing(self) -> None:
        """The client does not read: all that may wait for it waits already."""
        super().pause_writing()
        self._read_again()
        self._unread = self.loop.call_later(self.read_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads again."""
        self._read_again()
        super().resume_writing()

    def _read_again(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _wait(self) -> None:
        self._go_on()
        self._late = self.loop.call_later(self.seconds, self._close)

    def _go_on(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _go_on_when_busy(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._go_on()

    def _close(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
