"""What is said no to, in the form of OpenAI's errors.

Source of the form: openai/openai-openapi, ErrorResponse: message, type, param, code.
"""

from __future__ import annotations

import logging
from typing import Any

from runtime_py.engine.service import ClosedError, QueueFullError
from runtime_py.errors import DoesNotFitError, EdgeproofError, MachineError, SchemaError, TooLongError, UsageError

log = logging.getLogger(__name__)

INVALID = "invalid_request_error"


class Refusal(Exception):
    """An HTTP status and what is wrong.

    Args:
        param: the field of the request that it is about.
    """

    def __init__(
        self, status: int, message: str, kind: str = INVALID, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param, self.code = status, message, kind, param, code

    def to_json(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def invalid(message: str, param: str | None = None, code: str | None = None) -> Refusal:
    """A request that cannot be carried out as asked."""
    return Refusal(400, message, param=param, code=code)


def of_error(error: EdgeproofError) -> Refusal:
    """An error of the engine: the caller's (400), too much work (429), no room or no service (503), or a fault (500). Of the
    last two the server's log says more, unless it was told to stop.
    """
    said = f"{error.what}. Expected: {error.expected}. Next: {error.next_step}."
    if isinstance(error, QueueFullError):
        return Refusal(429, said, "rate_limit_error", code="queue_full")
    if isinstance(error, SchemaError):
        return invalid(said, "response_format")
    if isinstance(error, UsageError):
        return invalid(said, "messages", "context_length_exceeded" if isinstance(error, TooLongError) else None)
    if isinstance(error, ClosedError):
        return Refusal(503, "the server is stopping; ask again when it is back", "server_error", code="unavailable")
    log.error("%s", error)
    if isinstance(error, MachineError | DoesNotFitError):
        return Refusal(503, "the server cannot answer now", "server_error", code="unavailable")
    return Refusal(500, "the server failed", "server_error")
