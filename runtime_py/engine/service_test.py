"""The engine's threads: answers for many, room that runs out, questions that are let go of, an orderly end."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime_py.backends.base import Arrays
from runtime_py.conftest import AttentionBackend, model_of
from runtime_py.engine import logprobs
from runtime_py.engine.answer import Answer, Token
from runtime_py.engine.conftest import opened, until_nothing_is_held
from runtime_py.engine.logprobs import Event
from runtime_py.engine.running import Wish
from runtime_py.engine.service import ClosedError, Question, QueueFullError, Service, Sizes, Ticket
from runtime_py.errors import EdgeproofError, MachineError, UsageError
from runtime_py.generation.generate import Overrides, settings_of
from runtime_py.generation.session import Limits
from runtime_py.model import Model
from runtime_py.preprocess.base import Message
from runtime_py.tokenizer import Tokenizer


@pytest.fixture
def service(model: Model) -> Iterator[Service]:
    with opened(model, queue=3, slots=2, chunk=64) as made:
        yield made


def question(model: Model, text: str, tokens: int, pictures: tuple[np.ndarray, ...] = ()) -> Question:
    overrides = Overrides(tokens, temperature=0.0, repetition_penalty=1.0, stop_ids=())
    turns = [Message("user", text, tuple(range(len(pictures))))]
    return Question(turns, pictures, Wish(settings_of(model.package.generation, overrides)))


def whole(events: queue.Queue[Event]) -> Answer | EdgeproofError:
    while True:
        event = events.get(timeout=60)
        if not isinstance(event, Token):
            return event


def ends_early(service: Service, ticket: Ticket, tokens: int) -> None:
    """The engine stops at work on a question well before its answer has this many tokens."""
    ends = time.monotonic() + 30
    while service.engine.busy and time.monotonic() < ends:
        time.sleep(0.005)
    assert ticket.running is not None and 0 < len(ticket.running.choosing.ids) < tokens


def test_questions_from_many_threads(service: Service, model: Model, picture: np.ndarray) -> None:
    said: dict[int, tuple[int, ...]] = {}

    def ask(number: int) -> None:
        pictures = (np.roll(picture, number, axis=0),)
        while True:
            events: queue.Queue[Event] = queue.Queue()
            try:
                service.ask(question(model, "red " * number, 10, pictures), events.put)
            except QueueFullError:
                time.sleep(0.01)
                continue
            answer = whole(events)
            assert isinstance(answer, Answer), answer
            said[number] = answer.ids
            return

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert service.held == 0 and len(said) == 12
    for number, ids in said.items():
        overrides = Overrides(10, temperature=0.0, repetition_penalty=1.0, stop_ids=())
        turns = [Message("user", "red " * number, (0,))]
        assert model.chat(turns, [np.roll(picture, number, axis=0)], overrides=overrides).ids == ids


class OneThing(AttentionBackend):
    """Says whether it was called while it was at work."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__(vocabulary)
        self.free = threading.Lock()
        self.together = False

    @contextmanager
    def at_work(self) -> Iterator[None]:
        free = self.free.acquire(blocking=False)
        self.together |= not free
        time.sleep(0.001)
        yield
        if free:
            self.free.release()

    def run(self, stage: str, inputs: Arrays) -> dict[str, np.ndarray]:
        with self.at_work():
            return super().run(stage, inputs)

    def forward(self, state: object, inputs: Arrays, logit_positions: np.ndarray) -> np.ndarray:
        with self.at_work():
            return super().forward(state, inputs, logit_positions)


@pytest.mark.parametrize("name", ["unknown", "mlc", "trt"])
def test_a_backend_that_does_one_thing_at_a_time_is_asked_for_one(
    words: Tokenizer, tmp_path: Path, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Pictures are prepared in another thread than answers are decoded in."""
    plain = model_of(words, tmp_path, Limits(160, 16))
    monkeypatch.setattr(OneThing, "name", name)
    backend = OneThing(len(words.pieces))
    inboxes: list[queue.Queue[Event]] = [queue.Queue() for _ in range(4)]
    with opened(Model(plain.package, backend, plain.processor, words), queue=4) as service:
        for number, inbox in enumerate(inboxes):
            service.ask(question(plain, "What colour?", 12, (np.roll(picture, number, axis=0),)), inbox.put)
        assert all(isinstance(whole(inbox), Answer) for inbox in inboxes)
    assert not backend.together


def test_room_runs_out_and_comes_back(service: Service, model: Model) -> None:
    inboxes: list[queue.Queue[Event]] = [queue.Queue() for _ in range(5)]
    for inbox in inboxes:
        service.ask(question(model, "Hello", 300), inbox.put)
    with pytest.raises(QueueFullError, match="at most 5"):
        service.ask(question(model, "Hello", 3), inboxes[0].put)
    assert all(isinstance(whole(inbox), Answer) for inbox in inboxes)
    assert service.held == 0


def test_a_question_that_is_let_go_of_sends_nothing_more(service: Service, model: Model) -> None:
    events: queue.Queue[Event] = queue.Queue()
    ticket = service.ask(question(model, "Hello", 1500), events.put)
    events.get(timeout=60)
    ticket.cancel()
    until_nothing_is_held(service)
    ends_early(service, ticket, 1500)
    assert all(isinstance(event, Token) for event in events.queue)


def test_a_question_that_is_let_go_of_while_it_is_prepared_is_not_answered(
    service: Service, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    preparing, cancelled, prepare = threading.Event(), threading.Event(), service._preparation.prepare

    def slow(*given: Any) -> Any:
        preparing.set()
        assert cancelled.wait(60)
        return prepare(*given)

    monkeypatch.setattr(service._preparation, "prepare", slow)
    events: queue.Queue[Event] = queue.Queue()
    ticket = service.ask(question(model, "Hello", 20), events.put)
    assert preparing.wait(60)
    ticket.cancel()
    cancelled.set()
    until_nothing_is_held(service)
    while service.engine.queued or service.engine.busy:
        time.sleep(0.005)
    assert ticket.running is not None and not ticket.running.choosing.ids and events.empty()


def test_a_question_that_cannot_be_prepared_says_so(service: Service, model: Model) -> None:
    events: queue.Queue[Event] = queue.Queue()
    turns = [Message("assistant", "I begin")]
    service.ask(Question(turns, (), question(model, "", 1).wish), events.put)
    assert isinstance(whole(events), UsageError) and service.held == 0


def test_an_end_with_answers_at_work(model: Model) -> None:
    with opened(model, queue=3) as patient:
        finished: queue.Queue[Event] = queue.Queue()
        patient.ask(question(model, "Hello", 5), finished.put)
        patient.close(patience=30)
        assert isinstance(whole(finished), Answer)
    with pytest.raises(ClosedError, match="closed"):
        patient.ask(question(model, "Hello", 5), finished.put)
    with opened(model, queue=3) as hasty:
        left: queue.Queue[Event] = queue.Queue()
        hasty.ask(question(model, "Hello", 2000), left.put)
        left.get(timeout=60)
    assert isinstance(whole(left), MachineError)


def test_nothing_is_sent_after_the_end(model: Model) -> None:
    """The service is closed while an answer is at work, and whoever is told takes a while to hear it."""
    events: list[Event] = []
    begun = threading.Event()

    def slow(event: Event) -> None:
        events.append(event)
        begun.set()
        if isinstance(event, EdgeproofError):
            time.sleep(0.3)

    with opened(model) as service:
        service.ask(question(model, "Hello", 2000), slow)
        assert begun.wait(60)
    assert isinstance(events[-1], MachineError) and all(isinstance(event, Token) for event in events[:-1])


def test_a_question_has_one_last_event() -> None:
    """Closing a service ends a question whose answer may be on its way to its receiver."""
    events: list[Event] = []
    ticket = Ticket(events.append)
    last = ClosedError("closed", "open", "wait")
    ticket.send(Token(1, "a"), last=False)
    ticket.send(last, last=True)
    ticket.send(Token(2, "b"), last=False)
    ticket.send(last, last=True)
    assert events == [Token(1, "a"), last]


def test_closing_without_patience_ends_a_patient_closing(model: Model) -> None:
    with opened(model) as service:
        events: queue.Queue[Event] = queue.Queue()
        service.ask(question(model, "Hello", 2000), events.put)
        events.get(timeout=60)
        patient = threading.Thread(target=service.close, args=(600.0,))
        patient.start()
        while not service._closing:
            time.sleep(0.01)
    assert not service._thread.is_alive(), "the backend may be closed now"
    patient.join(30)
    assert not patient.is_alive() and isinstance(whole(events), MachineError)


def test_whoever_receives_an_event_may_cancel(model: Model) -> None:
    events: list[Event] = []
    asked = threading.Event()

    def cancelling(event: Event) -> None:
        events.append(event)
        asked.wait(60)
        ticket.cancel()

    with opened(model) as service:
        ticket = service.ask(question(model, "Hello", 50), cancelling)
        asked.set()
        until_nothing_is_held(service)
        assert len(events) == 1


def test_a_service_that_nobody_asks_does_nothing(service: Service, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    began, step = list[float](), service.engine.step

    def counted() -> bool:
        began.append(time.monotonic())
        return step()

    monkeypatch.setattr(service.engine, "step", counted)
    time.sleep(0.05)
    assert not began
    events: queue.Queue[Event] = queue.Queue()
    service.ask(question(model, "Hello", 3), events.put)
    assert isinstance(whole(events), Answer)
    taken = len(began)
    time.sleep(0.05)
    assert 0 < taken <= len(began) <= taken + 1, "the step that tells of nothing more to do"


def test_a_receiver_that_fails_is_let_go_of_and_others_are_answered(service: Service, model: Model) -> None:
    def fails(_event: Event) -> None:
        raise OSError("nobody listens")

    events: queue.Queue[Event] = queue.Queue()
    ticket = service.ask(question(model, "Hello", 1500), fails)
    service.ask(question(model, "What colour?", 8), events.put)
    assert isinstance(whole(events), Answer)
    until_nothing_is_held(service)
    ends_early(service, ticket, 1500)


def test_logprobs_that_cannot_be_computed_end_its_answer_and_no_other(
    service: Service, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(logprobs, "token_logprobs", fails)
    asked = question(model, "Hello", 2000)
    wanted, plain = queue.Queue[Event](), queue.Queue[Event]()
    ticket = service.ask(Question(asked.turns, (), replace(asked.wish, top_logprobs=1)), wanted.put)
    service.ask(question(model, "What colour?", 8), plain.put)
    end = whole(wanted)
    assert isinstance(end, MachineError) and "memory" in str(end)
    assert isinstance(whole(plain), Answer)
    until_nothing_is_held(service)
    assert wanted.empty()
    ends_early(service, ticket, 2000)


@pytest.mark.parametrize("sizes", [{"slots": 0}, {"slots": -1}, {"slots": 10**9}, {"queue": -1}])
def test_numbers_that_no_service_can_have(sizes: dict[str, int]) -> None:
    """A billion slots were made one by one, before the memory of their caches was asked about."""
    with pytest.raises(UsageError, match="slots and a queue"):
        Sizes(**sizes)
