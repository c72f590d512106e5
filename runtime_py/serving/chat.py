"""A chat completion: the request read, its pictures opened, the answer handed on as it comes.

The event loop does nothing that takes long: bodies are parsed and pictures decoded in threads, answers are made in those
of the service. A client that goes away takes its question with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from runtime_py.engine.answer import Answer, Token
from runtime_py.engine.running import Event, Wish
from runtime_py.engine.service import Question, Service, Ticket
from runtime_py.errors import EdgeproofError, UsageError
from runtime_py.files.json_file import parse_json
from runtime_py.generation.generate import settings_of
from runtime_py.serving import reply, request
from runtime_py.serving.grammar import Grammars
from runtime_py.serving.metrics import Metrics
from runtime_py.serving.pictures import PictureLimits, picture_at
from runtime_py.serving.refusal import Refusal, invalid, of_error
from runtime_py.serving.room import Reservation, Room

BODY_SECONDS = 60.0
"""For a request's body to arrive."""


@dataclass(frozen=True)
class ServerLimits:
    """What one request may be.

    Attributes:
        body_bytes: of the whole request; seconds: from its arrival to the end of its answer.
    """

    pictures: PictureLimits
    body_bytes: int
    seconds: float


class Gone(Exception):
    """The client went away."""


class ChatCompletions:
    """``POST /v1/chat/completions``."""

    def __init__(self, service: Service, name: str, limits: ServerLimits, metrics: Metrics) -> None:
        self.service, self.name, self.limits, self.metrics = service, name, limits, metrics
        self._grammars: Grammars | None = None
        self._room = Room()

    async def __call__(self, incoming: Request) -> Response:
        """Answer a request, or say in OpenAI's form why not."""
        deadline = asyncio.get_running_loop().time() + self.limits.seconds
        held = Reservation(self._room, self.limits.pictures.pixels)
        try:
            asked, question = await run_in_threadpool(self._read, await self._body(incoming, held), held)
            events = Events(self.service, question, held)
        except BaseException as error:
            held.release()
            self.metrics.ended("refused" if isinstance(error, Refusal | EdgeproofError) else "failed")
            if isinstance(error, EdgeproofError):
                raise of_error(error) from error
            raise
        answer = reply.Reply(self.name, self.service.tokenizer, asked.usage, asked.token_ids)
        if not asked.stream:
            return await self._whole(incoming, events, answer, deadline)
        async with self._counted(events):
            first = await events.next(incoming, deadline)
        stream = self._stream(incoming, events, answer, first, deadline)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)

    async def _whole(self, incoming: Request, events: Events, answer: reply.Reply, deadline: float) -> Response:
        tokens: list[Token] = []
        async with self._counted(events):
            while True:
                event = await events.next(incoming, deadline)
                if isinstance(event, Answer):
                    self.metrics.answered(event)
                    return JSONResponse(answer.whole(event, tokens))
                tokens.append(event)

    async def _stream(
        self, incoming: Request, events: Events, answer: reply.Reply, first: Token | Answer, deadline: float
    ) -> AsyncIterator[bytes]:
        """The status is sent already: what goes wrong now is an event of the stream."""
        event = first
        yield answer.opening()
        try:
            async with self._counted(events):
                while not isinstance(event, Answer):
                    chunk = answer.token(event)
                    if chunk:
                        yield chunk
                    event = await events.next(incoming, deadline)
                self.metrics.answered(event)
                yield answer.ending(event)
        except Refusal as refusal:
            yield reply.failure(refusal.to_json())
        except Gone:
            return

    @asynccontextmanager
    async def _counted(self, events: Events) -> AsyncIterator[None]:
        """Let go of the question and count it, however it ends without an answer."""
        try:
            yield
        except Refusal as refusal:
            events.ticket.cancel()
            self.metrics.ended("timeout" if refusal.status == 504 else "refused" if refusal.status < 500 else "failed")
            raise
        except BaseException:
            events.ticket.cancel()
            self.metrics.ended("cancelled")
            raise

    async def _body(self, incoming: Request, held: Reservation) -> bytes:
        kind = incoming.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refusal(415, "the content type is not application/json")
        most = self.limits.body_bytes
        too_large = Refusal(413, f"the request is larger than {most:,} bytes", code="request_too_large")
        length = incoming.headers.get("content-length", "")
        if length.isdigit() and int(length) > most:
            raise too_large
        pieces, size = [], 0
        try:
            async with asyncio.timeout(min(BODY_SECONDS, self.limits.seconds)):
                async for piece in incoming.stream():
                    pieces.append(piece)
                    size += len(piece)
                    if size > most:
                        raise too_large
                    held.add_bytes(len(piece))
        except TimeoutError as error:
            raise Refusal(408, "the request did not arrive in time") from error
        return b"".join(pieces)

    def _read(self, body: bytes, held: Reservation) -> tuple[request.ChatRequest, Question]:
        try:
            value = parse_json(body, Path("the request"), UsageError, "send JSON")
        except UsageError as error:
            raise invalid(f"{error.what}; {error.expected} is expected", code="invalid_json") from error
        asked = request.read(value, self.limits.pictures.count)
        if asked.model != self.name:
            raise Refusal(404, f"there is no model {asked.model[:200]!r} here", param="model", code="model_not_found")
        settings = settings_of(self.service.package.generation, asked.overrides)
        constraint = None
        if asked.schema is not None:
            if not settings.stop_ids:
                raise invalid("this package names no token that ends an answer, which a schema needs", "response_format")
            self._grammars = self._grammars or Grammars(self.service.tokenizer, settings.stop_ids[0])
            constraint = self._grammars.of_schema(asked.schema)
        known: dict[str, np.ndarray] = {}

        def check(name: str, width: int, height: int) -> None:
            if self.limits.pictures.check is not None:
                self.limits.pictures.check(name, width, height)
            held.add_picture(width, height)

        limits = replace(self.limits.pictures, check=check)
        for url in asked.urls:
            if url not in known:
                known[url] = picture_at(url, limits)
        wish = Wish(settings, asked.stops, asked.logprobs, constraint)
        return asked, Question(asked.turns, [known[url] for url in asked.urls], wish)


class Events:
    """What the service sends of one question, for the event loop.

    Args:
        held: given back when the first event comes, for then the pictures are features, or none does.
    """

    def __init__(self, service: Service, question: Question, held: Reservation) -> None:
        self._held = held
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Event] = asyncio.Queue()
        self._leaving: asyncio.Task[Any] | None = None
        self.ticket: Ticket = service.ask(question, self._put)

    def _put(self, event: Event) -> None:
        with suppress(RuntimeError):  # the loop was closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._queue.put_nowait, event)

    async def next(self, incoming: Request, deadline: float) -> Token | Answer:
        """The next token, or the whole answer.

        Raises:
            Refusal: an error of the engine, or the request took too long (504).
            Gone: the client went away.
        """
        if self._leaving is None:
            self._leaving = asyncio.ensure_future(_departure(incoming))
        coming = asyncio.ensure_future(self._queue.get())
        try:
            left = deadline - self._loop.time()
            done, _ = await asyncio.wait({coming, self._leaving}, timeout=max(left, 0), return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            self._leaving.cancel()
            raise
        finally:
            self._held.release()
            if not coming.done():
                coming.cancel()
        event = coming.result() if coming in done else None
        if event is None or not isinstance(event, Token):
            self._leaving.cancel()
        if event is None:
            if done:
                raise Gone
            raise Refusal(504, "the answer took longer than this server allows", "server_error", code="timeout")
        if isinstance(event, EdgeproofError):
            raise of_error(event) from event
        return event


async def _departure(incoming: Request) -> None:
    while (await incoming.receive())["type"] != "http.disconnect":
        pass
