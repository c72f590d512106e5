"""The engine at work in threads of its own: questions come from anywhere, answers go where each question says.

One thread steps the engine. Another prepares questions, pictures among them, one after the other, beside the decoding; a
backend that cannot do both at once does one or the other. A third passes events on (`runtime_py.engine.event_dispatch`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np

from runtime_py.backends.base import Backend, LoadsAhead
from runtime_py.backends.record import Ability
from runtime_py.backends.registry import runtime_backends
from runtime_py.engine.answer import Token
from runtime_py.engine.engine import ANSWERING, Engine
from runtime_py.engine.event_dispatch import EventDispatcher
from runtime_py.engine.fair_lock import FairLock
from runtime_py.engine.logprobs import EngineEvent, Event, resolve
from runtime_py.engine.preparation import Preparation
from runtime_py.engine.running import Running, Wish
from runtime_py.engine.thread_stack import STACK_BYTES, thread_stack_size
from runtime_py.errors import EdgeproofError, MachineError, UsageError, wrap_errors
from runtime_py.generation.limits import MOST_SLOTS, SLOTS
from runtime_py.generation.session import Session
from runtime_py.package import Package
from runtime_py.preprocess.base import Message, Processor
from runtime_py.tokenizer import Tokenizer

log = logging.getLogger("edgeproof")

KEPT_FEATURES = 256 << 20
"""Bytes of picture features that wait for another question."""


class QueueFullError(MachineError):
    """More questions wait than a service takes."""


class ClosedError(MachineError):
    """The service is closed, or was before the answer was whole."""


@dataclass(frozen=True)
class Question:
    """A conversation that ends with a question, and what is asked of the answer.

    Attributes:
        pictures: uint8 RGB (height, width, 3), which the turns index.
    """

    turns: Sequence[Message]
    pictures: Sequence[np.ndarray]
    wish: Wish


class Ticket:
    """A question that was taken; nothing is sent after its last event, nor after `cancel`.

    Attributes:
        running: None until the question is prepared.
    """

    def __init__(self, send: Callable[[Event], None]) -> None:
        self.cancelled = False
        self.running: Running | None = None
        self._send = send
        self._over = False
        self._lock = threading.RLock()  # not Lock: whoever receives an event may cancel

    def cancel(self) -> None:
        """Let go of it, once an event that is being sent is sent."""
        with self._lock:
            self.cancelled = True
            if self.running is not None:
                self.running.cancelled = True

    def begin(self, running: Running) -> None:
        """The question is prepared; it may have been cancelled meanwhile."""
        with self._lock:
            self.running = running
            running.cancelled = self.cancelled

    def send(self, event: Event, last: bool) -> None:
        """Send an event unless the last one was sent, or nobody wants any."""
        with self._lock:
            if not (self._over or self.cancelled):
                self._over = last
                self._send(event)


@dataclass(frozen=True)
class Sizes:
    """How much a service takes at a time.

    Attributes:
        slots: answers at a time; queue: questions that may wait beside them.
        chunk: tokens of a prompt in one decoder call; None for the package's own.

    Raises:
        UsageError: a number that no service can have.
    """

    slots: int = SLOTS
    queue: int = 64
    chunk: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.slots <= MOST_SLOTS or self.queue < 0:
            raise UsageError(
                f"{self.slots} slots and a queue of {self.queue}",
                f"1 to {MOST_SLOTS} slots, and a queue of 0 or more",
                "correct the number",
            )


class Service:
    """Answers many questions at a time.

    Args:
        backend: nobody else uses it while the service is open; closing the service leaves it open.
    """

    def __init__(self, package: Package, backend: Backend, processor: Processor, words: Tokenizer, sizes: Sizes) -> None:
        self.sizes = sizes
        self.package, self.processor, self.tokenizer = package, processor, words
        processor.prompt.cuts = False  # who asks over a wire sees no warning
        processor.prompt.most = package.limits.context
        if isinstance(backend, LoadsAhead):
            backend.load()
        self._dispatcher = EventDispatcher[Ticket](self._deliver)
        slots, chunk = self.sizes.slots, self.sizes.chunk
        self.engine = Engine(backend, processor, package.limits, slots, chunk, self._dispatcher.flush)
        self._preparation = Preparation(Session(backend, processor, package.limits), KEPT_FEATURES)
        record = runtime_backends().get(backend.name)
        self._beside = record is not None and record.can(Ability.BESIDE)
        self._device: AbstractContextManager[object] = nullcontext() if self._beside else FairLock()
        self._tickets: dict[int, Ticket] = {}
        self._work = threading.Condition()
        self._closing = self._stopped = False
        self._preparing = ThreadPoolExecutor(1, "preparation")
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        with thread_stack_size(STACK_BYTES):
            self._thread.start()

    @property
    def held(self) -> int:
        """Questions that are waiting, being prepared or being answered."""
        return len(self._tickets)

    def ask(self, question: Question, send: Callable[[Event], None]) -> Ticket:
        """Take a question; ``send`` receives tokens and at last an answer or an error, in a thread of the service.

        Raises:
            QueueFullError: too many are waiting.
            ClosedError: the service is closed.
        """
        ticket = Ticket(send)
        with self._work:
            if self._closing:
                raise ClosedError("the service is closed", "one that is open", "start it again")
            most = len(self.engine.slots) + self.sizes.queue
            if len(self._tickets) >= most:
                raise QueueFullError(
                    f"{len(self._tickets)} requests are being answered or waiting", f"at most {most}", "try again later"
                )
            self._tickets[id(ticket)] = ticket
            self._preparing.submit(self._prepare, question, ticket)  # in here: not while it is being shut down
        return ticket

    def close(self, patience: float = 0.0) -> None:
        """Take no more questions, wait up to ``patience`` seconds for the answers at work, and let go of the rest.

        May be called again, from another thread meanwhile too: whoever has no patience ends the waiting of the others.
        Nobody returns before the threads have ended.
        """
        with self._work:
            self._closing = True
            self._work.notify_all()
            self._work.wait_for(lambda: not self._tickets, patience)
            left = list(self._tickets.values())
        for ticket in left:
            self._end(ticket, ClosedError("the service was closed", "to run on", "ask again when it is back"))
            ticket.cancel()
        self._preparing.shutdown(cancel_futures=True)
        with self._work:
            self._stopped = True
            self._work.notify_all()
        self._thread.join()
        self._dispatcher.close()

    def _prepare(self, question: Question, ticket: Ticket) -> None:
        if ticket.cancelled:
            self._forget(ticket)
            return
        try:
            with wrap_errors("preparing the question"), self._device:
                prompt = self._preparation.prepare(question.turns, question.pictures)
        except EdgeproofError as error:
            self._end(ticket, error)
            return

        def send(event: EngineEvent) -> None:
            self._dispatcher.add(ticket, event)

        running = Running(prompt, question.wish, self.tokenizer, send)
        ticket.begin(running)
        self.engine.submit(running)
        with self._work:
            self._work.notify_all()

    def _run(self) -> None:
        while self._awaited():
            more = True
            while more and not self._stopped:
                with self._device:
                    more = self.engine.step()
                if not (more and self._beside):  # there may be no further call soon
                    self._dispatcher.flush()
                gone = [each for each in list(self._tickets.values()) if each.cancelled and each.running is not None]
                for ticket in gone:
                    self._forget(ticket)

    def _deliver(self, ticket: Ticket, event: EngineEvent) -> None:
        """Send an event, in the dispatcher's thread; what goes wrong with it ends its question and no other."""
        try:
            resolved = self._resolved(event)
            if isinstance(resolved, Token):
                ticket.send(resolved, last=False)
            else:
                self._end(ticket, resolved)
            if isinstance(resolved, EdgeproofError):
                ticket.cancel()
        except Exception:  # of one receiver: the others go on
            log.exception("a receiver of events failed; its question is cancelled")
            ticket.cancel()

    @staticmethod
    def _resolved(event: EngineEvent) -> Event:
        try:
            with wrap_errors(ANSWERING):
                return resolve(event)
        except EdgeproofError as error:
            return error

    def _awaited(self) -> bool:
        """Wait for a prepared question; False when the service is closed."""
        with self._work:
            self._work.wait_for(lambda: self._stopped or self.engine.queued > 0)
            return not self._stopped

    def _end(self, ticket: Ticket, event: Event) -> None:
        """The last event of a question."""
        self._forget(ticket)
        ticket.send(event, last=True)

    def _forget(self, ticket: Ticket) -> None:
        with self._work:
            self._tickets.pop(id(ticket), None)
            self._work.notify_all()
