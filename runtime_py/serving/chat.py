"""A chat completion: the request read, its pictures opened, the answer handed on as it comes.

The event loop does nothing that takes long: bodies are parsed and pictures decoded in threads, answers are made in those
of the service. A client that goes away takes its question with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from runtime_py.engine.answer import Answer, Token
from runtime_py.engine.logprobs import Event
from runtime_py.engine.service import ClosedError, Question, Service, Ticket
from runtime_py.errors import EdgeproofError, UsageError
from runtime_py.files.json_file import parse_json, shortened
from runtime_py.serving import reply, request
from runtime_py.serving.metrics import Metrics
from runtime_py.serving.pictures import PictureLimits, picture_at
from runtime_py.serving.question import Questions
from runtime_py.serving.refusal import Refusal, invalid, of_error
from runtime_py.serving.room import Reservation, Room

T = TypeVar("T")

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
    """``POST /v1/chat/completions``.

    Attributes:
        stopping: for whoever stops the server to set; requests that are not taken by then are refused.
    """

    def __init__(self, service: Service, name: str, limits: ServerLimits, metrics: Metrics) -> None:
        self.service, self.name, self.limits, self.metrics = service, name, limits, metrics
        self._questions = Questions(service, limits.pictures)
        self._room = Room()
        self.stopping = asyncio.Event()

    async def __call__(self, incoming: Request) -> Response:
        """Answer a request, or say in OpenAI's form why not."""
        deadline = asyncio.get_running_loop().time() + self.limits.seconds
        held = Reservation(self._room, self.limits.pictures.pixels)
        try:
            asked, events = await _unless_it_stops(self.stopping, self._taken(incoming, held))
        except BaseException as error:
            held.release()
            self.metrics.ended(outcome_of(error))
            raise
        answer = reply.Reply(self.name, self.service.tokenizer, asked.usage, asked.token_ids)
        with events.let_go_of_when_it_fails():
            if not asked.stream:
                return await self._whole(incoming, events, answer, deadline)
            first = await events.next(incoming, deadline)
        stream = self._stream(incoming, events, answer, first, deadline)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return _Stream(stream, events, headers=headers)

    async def _taken(self, incoming: Request, held: Reservation) -> tuple[request.ChatRequest, Events]:
        """A request that the service has taken."""
        try:
            asked, question = await run_in_threadpool(self._read, await self._body(incoming, held), held)
            return asked, Events(self.service, question, held, self.metrics)
        except EdgeproofError as error:
            raise of_error(error) from error

    async def _whole(self, incoming: Request, events: Events, answer: reply.Reply, deadline: float) -> Response:
        tokens: list[Token] = []
        while not isinstance(event := await events.next(incoming, deadline), Answer):
            tokens.append(event)
        return JSONResponse(answer.whole(event, tokens))

    async def _stream(
        self, incoming: Request, events: Events, answer: reply.Reply, first: Token | Answer, deadline: float
    ) -> AsyncIterator[bytes]:
        """The status is sent already: what goes wrong now is an event of the stream."""
        event = first
        try:
            with events.let_go_of_when_it_fails():
                yield answer.opening()
                while not isinstance(event, Answer):
                    chunk = answer.token(event)
                    if chunk:
                        yield chunk
                    event = await events.next(incoming, deadline)
                yield answer.ending(event)
        except Refusal as refusal:
            yield reply.failure(refusal.to_json())
        except Gone:
            return

    async def _body(self, incoming: Request, held: Reservation) -> bytes:
        kind = incoming.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refusal(
                415, f"the content type is {shortened(kind)}; the header Content-Type: application/json is expected"
            )
        packed = incoming.headers.get("content-encoding", "identity").strip().lower()
        if packed != "identity":
            raise Refusal(415, f"the content encoding {shortened(packed)} is not unpacked here; send the JSON as it is")
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
        except ClientDisconnect as error:
            raise Gone from error
        return b"".join(pieces)

    def _read(self, body: bytes, held: Reservation) -> tuple[request.ChatRequest, Question]:
        try:
            value = parse_json(body, Path("the request"), UsageError, "send JSON")
        except UsageError as error:
            raise invalid(f"{error.what}; {error.expected} is expected", code="invalid_json") from error
        asked = request.read(value, self.limits.pictures.count)
        if asked.model != self.name:
            said = f"there is no model {shortened(asked.model)} here: {self.name!r} is, as GET /v1/models tells"
            raise Refusal(404, said, param="model", code="model_not_found")
        return asked, self._questions.of(asked, held, asked.urls, picture_at)


def outcome_of(error: BaseException) -> str:
    """What a request that ends so is counted as."""
    if isinstance(error, Refusal):
        return "timeout" if error.status in (408, 504) else "refused" if error.status < 500 else "failed"
    return "cancelled" if isinstance(error, Gone | asyncio.CancelledError | GeneratorExit) else "failed"


class Events:
    """What the service sends of one question, for the event loop; counted once, however it ends.

    Args:
        held: given back when the first event comes, for then the pictures are features, or none does.
    """

    def __init__(self, service: Service, question: Question, held: Reservation, metrics: Metrics) -> None:
        self._held = held
        self._metrics = metrics
        self._counted = False
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
            if left <= 0:  # what lies ready is not taken either, or tokens that come fast would go on past the deadline
                raise _too_long()
            done, _ = await asyncio.wait({coming, self._leaving}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._held.release()
            coming.cancel()
        event = coming.result() if coming in done else None
        if event is None:
            if done:
                raise Gone
            raise _too_long()
        if isinstance(event, EdgeproofError):
            raise of_error(event) from event
        if isinstance(event, Answer):
            self._metrics.answered(event)
            self._end()
        return event

    @contextmanager
    def let_go_of_when_it_fails(self) -> Iterator[None]:
        """Whatever is raised ends the question."""
        try:
            yield
        except BaseException as error:
            self.leave(outcome_of(error))
            raise

    def leave(self, outcome: str) -> None:
        """Let go of the question and count it, unless it ended before."""
        if not self._counted:
            self._metrics.ended(outcome)
            self._end()

    def _end(self) -> None:
        self._counted = True
        self.ticket.cancel()
        if self._leaving is not None:
            self._leaving.cancel()


class _Stream(StreamingResponse):
    """A stream of events; a client that goes before the first of them is read has let go of its question too."""

    media_type = "text/event-stream"

    def __init__(self, content: AsyncIterator[bytes], events: Events, headers: Mapping[str, str]) -> None:
        super().__init__(content, headers=headers)
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._events.leave("cancelled")


async def _unless_it_stops(stopping: asyncio.Event, taking: Coroutine[Any, Any, T]) -> T:
    """What becomes of a request that is still on its way. A server that stops does not wait for it: nothing is asked yet.

    Raises:
        Refusal: the server was told to stop before the request was taken (503).
    """
    task, told = asyncio.ensure_future(taking), asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait({task, told}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise of_error(ClosedError("the service is closing", "to run on", "ask again when it is back"))
        return task.result()
    finally:
        task.cancel()
        told.cancel()


def _too_long() -> Refusal:
    return Refusal(504, "the answer took longer than this server allows", "server_error", code="timeout")


async def _departure(incoming: Request) -> None:
    while (await incoming.receive())["type"] != "http.disconnect":
        pass
