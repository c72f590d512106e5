"""A server that is told to stop: answers at work get some seconds, and whose answer is not whole by then is told so; whoever
is still sending a question is told at once.

uvicorn alone cancels what is at work when its patience ends: a stream breaks off without a word, and the log gets a trace
for each.
"""

from __future__ import annotations

import asyncio
import socket

import uvicorn

from runtime_py.engine.service import Service

GOODBYE_SECONDS = 5
"""For the last words to arrive; whoever does not take them by then is cut off."""


class EndingServer(uvicorn.Server):
    """Serves until it is told to stop, then lets go of the service beside its connections.

    Args:
        config: of an `runtime_py.serving.application.application`.
        patience: seconds for answers at work.
    """

    def __init__(self, config: uvicorn.Config, service: Service, patience: int) -> None:
        config.timeout_graceful_shutdown = patience + GOODBYE_SECONDS
        super().__init__(config)
        self._service, self._patience = service, patience
        self._stopping: asyncio.Event = config.app.state.stopping  # type: ignore[union-attr]  # uvicorn takes any callable

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, and return when the last answer is whole or was ended."""
        self._stopping.set()
        closing = asyncio.create_task(asyncio.to_thread(self._service.close, self._patience))
        try:
            await super().shutdown(sockets)
        finally:
            if self.force_exit:  # Ctrl-C again
                await asyncio.to_thread(self._service.close)
            await closing
