"""Connections that keep the server waiting are closed: no whole head of a request in time, a body that outlasts its answer.

uvicorn bounds the time between two requests and nothing else of the kind; such connections count against all that may be
open.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 15.0
"""From a connection's opening, or from its last answer, to the end of the next request's head."""


class PatientProtocol(H11Protocol):
    """HTTP/1.1 over h11, with a bound on waiting."""

    seconds = HEAD_SECONDS
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._go_on()
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
