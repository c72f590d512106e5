"""Errors of the engine as statuses: whose fault it was, whether to ask again, and how much a caller is told."""

from __future__ import annotations

import logging

import pytest

from runtime_py.engine.service import ClosedError, QueueFullError
from runtime_py.errors import (
    DoesNotFitError,
    EdgeproofError,
    ImageError,
    InternalError,
    MachineError,
    PackageError,
    SchemaError,
    TooLongError,
    UsageError,
)
from runtime_py.serving.refusal import INVALID, of_error

SAID = "a. Expected: b. Next: c."
STOPPING, NOT_NOW = "the server is stopping; ask again when it is back", "the server cannot answer now"


@pytest.mark.parametrize(
    ("error", "status", "message", "kind", "param", "code", "logged"),
    [
        (UsageError, 400, SAID, INVALID, "messages", None, False),
        (ImageError, 400, SAID, INVALID, "messages", None, False),
        (TooLongError, 400, SAID, INVALID, "messages", "context_length_exceeded", False),
        (SchemaError, 400, SAID, INVALID, "response_format", None, False),
        (QueueFullError, 429, SAID, "rate_limit_error", None, "queue_full", False),
        (ClosedError, 503, STOPPING, "server_error", None, "unavailable", False),
        (MachineError, 503, NOT_NOW, "server_error", None, "unavailable", True),
        (DoesNotFitError, 503, NOT_NOW, "server_error", None, "unavailable", True),
        (PackageError, 500, "the server failed", "server_error", None, None, True),
        (InternalError, 500, "the server failed", "server_error", None, None, True),
    ],
)
def test_an_error_of_the_engine_as_a_refusal(
    error: type[EdgeproofError], status: int, message: str, kind: str, param: str | None, code: str | None, logged: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    with caplog.at_level(logging.ERROR):
        refusal = of_error(error("a", "b", "c"))
    assert refusal.status == status
    assert refusal.to_json() == {"error": {"message": message, "type": kind, "param": param, "code": code}}
    assert [record.getMessage() for record in caplog.records] == (["a\n  expected: b\n  next: c"] if logged else [])
