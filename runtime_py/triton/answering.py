"""One request of Triton's on its way to its client: tokens become responses, and exactly one of them is the last."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from runtime_py.engine.answer import Answer, Token
from runtime_py.engine.service import Ticket
from runtime_py.engine.shown_text import ShownText
from runtime_py.serving.refusal import Refusal
from runtime_py.serving.reply import FINISH, usage
from runtime_py.serving.room import Reservation
from runtime_py.triton.question import usage_text

TEXT, IDS, FINISHED, USAGE = "text_output", "token_ids", "finish_reason", "usage"
OUTPUTS = (TEXT, IDS, FINISHED, USAGE)

CODES: Mapping[int, str] = {
    400: "INVALID_ARG",
    404: "NOT_FOUND",
    413: "INVALID_ARG",
    429: "UNAVAILABLE",
    499: "CANCELLED",
    503: "UNAVAILABLE",
    504: "UNAVAILABLE",
}
"""HTTP's status to the name of Triton's error code; every other one is ``INTERNAL``."""

CANCELLED, TIMEOUT = 499, 504


class Answering:
    """What is sent for one request. Threads may share it; after the last response nothing is sent.

    Args:
        utilities: the module ``triton_python_backend_utils``.
        sender: Triton's response sender of the request.
        stream: a response a token; else one response with the whole answer.
        wanted: names of the outputs that were asked for; none means all.
        ended: called once, with this, how it ended, and the answer if there is one.
    """

    def __init__(
        self,
        utilities: Any,
        sender: Any,
        stream: bool,
        wanted: Collection[str],
        held: Reservation,
        deadline: float,
        ended: Callable[[Answering, str, Answer | None], None],
    ) -> None:
        self._utilities, self._sender, self._stream = utilities, sender, stream
        self._wanted = frozenset(wanted) or frozenset(OUTPUTS)
        self._held, self._deadline, self._ended = held, deadline, ended
        self._shown = ShownText()
        self._lock = threading.Lock()
        self._over = False
        self.ticket: Ticket | None = None

    @property
    def over(self) -> bool:
        """Whether the last response was sent."""
        return self._over

    def token(self, token: Token) -> None:
        """A token of the answer."""
        self._held.release()
        text = self._shown.push(token.text)
        if self._stream:
            self._send({TEXT: [text.encode()], IDS: [token.id]}, last=False)

    def finish(self, answer: Answer) -> None:
        """The whole answer."""
        rest = self._shown.push(answer.tail)
        text = rest if self._stream else answer.text
        ids = () if self._stream else answer.ids
        values: dict[str, list[Any]] = {
            TEXT: [text.encode()],
            IDS: list(ids),
            FINISHED: [FINISH[answer.finish].encode()],
            USAGE: [usage_text(usage(answer))],
        }
        self._send(values, last=True, outcome=str(answer.finish), answer=answer)

    def refuse(self, refusal: Refusal) -> None:
        """An error instead of an answer, or of the rest of it."""
        outcome = {CANCELLED: "cancelled", TIMEOUT: "timeout"}.get(
            refusal.status, "refused" if refusal.status < 500 else "failed"
        )
        code = getattr(self._utilities.TritonError, CODES.get(refusal.status, "INTERNAL"))
        error = self._utilities.TritonError(refusal.message, code)
        self._respond(self._utilities.InferenceResponse(output_tensors=[], error=error), True, outcome)

    def look(self) -> None:
        """Let go of the request if its client did, or if it took too long."""
        if self._over:
            return
        if self._sender.is_cancelled():
            self.refuse(Refusal(CANCELLED, "the client let go of the request"))
        elif time.monotonic() > self._deadline:
            self.refuse(Refusal(TIMEOUT, "the answer took longer than this server allows"))

    def _send(self, values: Mapping[str, list[Any]], last: bool, outcome: str = "", answer: Answer | None = None) -> None:
        tensors = [
            self._utilities.Tensor(name, np.array(row, dtype=np.int32 if name == IDS else np.object_))
            for name, row in values.items()
            if name in self._wanted
        ]
        self._respond(self._utilities.InferenceResponse(output_tensors=tensors), last, outcome, answer)

    def _respond(self, response: Any, last: bool, outcome: str, answer: Answer | None = None) -> None:
        with self._lock:
            if self._over:
                return
            self._over = last
            flags = self._utilities.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0
            try:
                self._sender.send(response, flags)
            finally:
                if last:
                    self._held.release()
                    if self.ticket is not None:
                        self.ticket.cancel()
                    self._ended(self, outcome, answer)
