"""A client of OpenAI's chat interface in the standard library: what measures and proves a server asks through it."""

from __future__ import annotations

import base64
import http.client
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from runtime_py.errors import EdgeproofError, MachineError, UsageError
from runtime_py.files.json_file import shortened

MAX_LINE = 1 << 20


class Client:
    """Asks one server; every request has a connection of its own, so that threads may share a client.

    Args:
        url: with or without ``/v1``; only http.
        key: sent as a bearer.

    Raises:
        UsageError: it is no such URL.
    """

    def __init__(self, url: str, key: str | None = None, seconds: float = 600.0) -> None:
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            self._host, self._port = parts.hostname or "", parts.port or 80
        except ValueError as error:
            raise UsageError(f"{shortened(url)} is no URL: {error}", "http://HOST:PORT", "correct it") from error
        if parts.scheme != "http" or not self._host:
            raise UsageError(f"{shortened(url)} is no server's URL", "http://HOST:PORT", "correct it")
        self.url = f"http://{parts.netloc}"
        self._seconds = seconds
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})

    def facts(self) -> dict[str, Any]:
        """What the server says of its first model; ``id`` is its name."""
        try:
            facts: dict[str, Any] = self._whole("GET", "/v1/models", None)["data"][0]
            return {**facts, "id": str(facts["id"])}
        except (KeyError, IndexError, TypeError) as error:
            raise MachineError(f"{self.url} names no model", "one under /v1/models", "correct the URL") from error

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A whole answer."""
        return self._whole("POST", "/v1/chat/completions", body)

    def gauges(self) -> dict[str, float]:
        """What the server tells of itself under /metrics, rows without labels alone; nothing where it has no such page."""
        try:
            with self._answer("GET", "/metrics", None) as answer:
                lines = answer.read().decode("utf-8", "replace").splitlines()
        except EdgeproofError:
            return {}
        rows = [line.split() for line in lines if line and line[0] != "#" and "{" not in line]
        return {row[0]: float(row[1]) for row in rows if len(row) == 2}

    def stream(self, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The chunks of a streamed answer.

        Raises:
            MachineError: the server is not there, or the stream ends before its end.
            UsageError: the server refuses the request.
        """
        with self._answer("POST", "/v1/chat/completions", {**body, "stream": True}) as answer:
            while line := answer.readline(MAX_LINE):
                if not line.startswith(b"data: "):
                    continue
                if line.strip() == b"data: [DONE]":
                    return
                value = _object(line[6:])
                if "error" in value:
                    raise _refused(200, value)
                yield value
        raise MachineError(f"{self.url} broke off in the middle of an answer", "data: [DONE]", "ask again")

    def _whole(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        with self._answer(method, path, body) as answer:
            return _object(answer.read())

    @contextmanager
    def _answer(self, method: str, path: str, body: Mapping[str, Any] | None) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=self._seconds)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), self._headers)
            answer = connection.getresponse()
            if answer.status != 200:
                raise _refused(answer.status, _object(answer.read()))
            yield answer
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise MachineError(
                f"{self.url} does not answer as a server of OpenAI's interface does: {type(error).__name__}: {error}",
                "edgeproof serve running there",
                "start it, or correct the URL",
            ) from error
        finally:
            connection.close()


def _object(text: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: it is something else.
    """
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"{shortened(value)} where an object is expected")
    return value


def _refused(status: int, value: Mapping[str, Any]) -> UsageError:
    said = value.get("error", value)
    message = said.get("message", said) if isinstance(said, Mapping) else said
    return UsageError(f"the server refuses ({status}): {message}", "200", "correct the request or the server")


def user_message(text: str, pictures: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """One question about uint8 RGB (height, width, 3) pictures, which travel as PNG."""
    parts: list[dict[str, Any]] = []
    for picture in pictures:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG", compress_level=1)
        url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
