"""How a question travels to a server: OpenAI's chat interface, or Triton's generation interface."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from parity_tests.laboratory.hostile_requests.attempt import CLOSED, HANGS
from runtime_py.triton.question import MESSAGES, OWN, SAMPLING, STREAM

CHAT = "/v1/chat/completions"

UNBOUNDED = frozenset({"absurd sizes", "endless bodies", "slow clients", "framing"})
"""Triton's HTTP front end (2.51) sets neither a time nor a size for a request's body."""

DEEPEST = 1000
"""Triton's own reader of JSON (2.51) takes a part of the stack for each level, and the process ends where they are too many
(mended in triton-inference-server/common, pull request 156)."""


@dataclass(frozen=True)
class Wire:
    """One way to ask.

    Attributes:
        path, streamed: where whole answers and streamed ones are asked for.
        wrap: a body of OpenAI's interface as this one has it, as JSON.
        carry: bytes in place of a whole body, as they are or where they meet our own reader; they may be anything.
        version: what its paths begin with.
        busy: the status of a server that is full or took too long.
        also: a status of `Attempt.right` to what this server says in its place.
        unbounded: kinds whose requests never end, and which this server waits for as long as the client does.
    """

    path: str
    streamed: str
    wrap: Callable[[Mapping[str, Any]], bytes]
    carry: Callable[[bytes], bytes]
    version: str
    busy: str
    also: Mapping[str, frozenset[str]]
    unbounded: frozenset[str] = frozenset()

    def post(self, body: bytes, head: str = "", length: int | None = None, streamed: bool = False) -> bytes:
        """A request whose connection ends with it."""
        path, size = self.streamed if streamed else self.path, len(body) if length is None else length
        lines = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n{head}"
        return f"{lines}Content-Length: {size}\r\n\r\n".encode() + body

    def right(self, kind: str, statuses: frozenset[str]) -> frozenset[str]:
        """The outcomes that are right here, where these are in OpenAI's interface."""
        waits = {HANGS} if kind in self.unbounded else set()
        return statuses.union(waits, *(self.also.get(status, frozenset()) for status in statuses))


def openai() -> Wire:
    """What ``runtime_py serve`` speaks."""
    return Wire(CHAT, CHAT, lambda body: json.dumps(body).encode(), bytes, "/v1/", "429", {})


def triton(name: str) -> Wire:
    """A model of this name in a Triton repository.

    Its own codes have no 404, 413 and 415 for a request's content (`runtime_py.triton.answering.CODES`). Triton asks for no
    content type, ends a CONNECT and an absurd length without a word, and says 500 of JSON that it cannot read itself; a 500
    of our own is in its log, where `Server.faults` sees it.
    """
    at = f"/v2/models/{name}/generate"
    also = {
        "400": frozenset({"500"}),
        "404": frozenset({"400"}),
        "405": frozenset({CLOSED}),
        "413": frozenset({"400", CLOSED}),
        "415": frozenset({"200", "400"}),
    }
    return Wire(at, f"{at}_stream", _tensors, _carried, "/v2/", "503", also, UNBOUNDED)


def _tensors(body: Mapping[str, Any]) -> bytes:
    sampling = {key: value for key, value in body.items() if key not in OWN}
    asked = {MESSAGES: json.dumps(body.get("messages")), SAMPLING: json.dumps(sampling)}
    return json.dumps({**asked, STREAM: body.get("stream") is True}).encode()


def _carried(content: bytes) -> bytes:
    """Every other one as the text of a tensor, which our own reader gets, and what Triton's would not survive."""
    deep = max(content.count(b"["), content.count(b"{")) > DEEPEST
    return content if len(content) % 2 and not deep else json.dumps({MESSAGES: content.decode("latin-1")}).encode()
