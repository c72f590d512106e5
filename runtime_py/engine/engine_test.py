"""Answers among others are the answers alone, whatever arrives, is cancelled or fails meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime_py.backends.base import Arrays, Batching, CallHook
from runtime_py.conftest import GENERATION
from runtime_py.engine.answer import Answer, Token
from runtime_py.engine.engine import Engine
from runtime_py.engine.logprobs import EngineEvent, Event, resolve
from runtime_py.engine.preparation import Preparation, Prepared
from runtime_py.engine.running import Running, Wish
from runtime_py.errors import EdgeproofError, UsageError
from runtime_py.generation.generate import Finish, Overrides, settings_of
from runtime_py.generation.session import Session
from runtime_py.model import Model
from runtime_py.preprocess.base import Message

QUESTIONS = [
    "What colour?",
    "How many shapes are there in the picture, and where?",
    "图中有几个图形？",
    "Hello",
    "red " * 30,
]


@dataclass(frozen=True)
class Asked:
    """A question: which one, about which picture (0 for none), how it is answered, when it is cancelled.

    No token stops an answer: the demo has little to say to most of these.
    """

    question: int
    picture: int
    tokens: int
    wait: int = 0
    cancel_after: int | None = None
    sampled: bool = False

    def overrides(self) -> Overrides:
        if self.sampled:
            return Overrides(self.tokens, temperature=1.3, top_k=0, top_p=1.0, seed=self.question, stop_ids=())
        return Overrides(self.tokens, temperature=0.0, repetition_penalty=1.0, stop_ids=())

    def pictures(self) -> list[np.ndarray]:
        draw = np.random.default_rng(self.picture)
        return [draw.integers(0, 256, (40, 30 + self.picture, 3), dtype=np.uint8)] if self.picture else []


@dataclass
class Inbox:
    """What an answer has sent so far."""

    tokens: list[int] = field(default_factory=list)
    end: Answer | EdgeproofError | None = None

    def take(self, sent: EngineEvent) -> None:
        assert self.end is None, "an event after the last one"
        event = resolve(sent)
        if isinstance(event, Token):
            self.tokens.append(event.id)
        else:
            self.end = event


class Room:
    """An engine and what a question needs to enter it."""

    def __init__(self, model: Model, slots: int, chunk: int) -> None:
        self.model = model
        self.engine = Engine(model.backend, model.processor, model.package.limits, slots, chunk)
        self.preparation = Preparation(Session(model.backend, model.processor, model.package.limits), 1 << 20)

    def prepare(self, asked: Asked) -> Prepared:
        text = QUESTIONS[asked.question]
        return self.preparation.prepare([Message("user", text, (0,) if asked.picture else ())], asked.pictures())

    def submit(self, asked: Asked, inbox: Inbox, **wishes: Any) -> Running:
        wish = Wish(settings_of(self.model.package.generation, asked.overrides()), **wishes)
        running = Running(self.prepare(asked), wish, self.model.tokenizer, inbox.take)
        self.engine.submit(running)
        return running

    def run(self, rounds: int = 2000) -> None:
        for _ in range(rounds):
            if not self.engine.step():
                return
        pytest.fail("the engine does not come to an end")


def alone(model: Model, asked: Asked) -> tuple[int, ...]:
    model.reset()
    return model.chat(QUESTIONS[asked.question], asked.pictures(), overrides=asked.overrides()).ids


QUESTION = st.builds(
    Asked,
    question=st.integers(0, len(QUESTIONS) - 1),
    picture=st.integers(0, 2),
    tokens=st.integers(1, 24),
    wait=st.integers(0, 6),
    cancel_after=st.none() | st.integers(0, 6),
    sampled=st.booleans(),
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=st.lists(QUESTION, min_size=2, max_size=9), slots=st.integers(2, 4), chunk=st.sampled_from([7, 64]))
def test_answers_among_others_are_the_answers_alone(model: Model, asked: list[Asked], slots: int, chunk: int) -> None:
    answers_are_those_alone(Room(model, slots, chunk), asked)


def answers_are_those_alone(room: Room, asked: list[Asked]) -> None:
    """Ask all of it, step by step as each says, and compare with the model's own answers."""
    assert room.engine.shares_calls and room.engine.notice == ""
    running: list[tuple[Asked, Running, Inbox]] = []
    for each in asked:
        inbox = Inbox()
        running.append((each, room.submit(each, inbox), inbox))
        for _ in range(each.wait):
            room.engine.step()
            cancel(running)
    while room.engine.step():
        cancel(running)
    for each, run, inbox in running:
        expected = alone(room.model, each)
        if run.cancelled:
            assert tuple(inbox.tokens) == expected[: len(inbox.tokens)]
        else:
            assert isinstance(inbox.end, Answer) and inbox.end.ids == expected == tuple(inbox.tokens)


def cancel(running: list[tuple[Asked, Running, Inbox]]) -> None:
    for each, run, inbox in running:
        if each.cancel_after is not None and len(inbox.tokens) >= each.cancel_after and inbox.end is None:
            run.cancelled = True


def test_one_decoder_call_serves_all_that_answer(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    decode = model.backend._decode  # type: ignore[attr-defined]

    def counted(inputs: Arrays, *more: Any) -> np.ndarray:
        if inputs["inputs_embeds"].shape[1] == 1:
            rows.append(len(inputs["inputs_embeds"]))
        return decode(inputs, *more)  # type: ignore[no-any-return]

    monkeypatch.setattr(model.backend, "_decode", counted)
    room = Room(model, 4, 64)
    inboxes = [Inbox() for _ in range(4)]
    for number, inbox in enumerate(inboxes):
        room.submit(Asked(number % 3, number % 2, 20), inbox, stop_texts=())
    room.run()
    assert max(rows) == 4
    assert sum(rows) == 4 * 19


def test_a_long_prompt_is_read_between_the_others_tokens(numpy_model: Model) -> None:
    room = Room(numpy_model, 2, 8)
    talking, long = Inbox(), Inbox()
    room.submit(Asked(3, 0, 12), talking)
    while not talking.tokens:
        room.engine.step()
    room.submit(Asked(4, 0, 4), long)
    said = []
    while not long.tokens:
        room.engine.step()
        said.append(len(talking.tokens))
    assert len(said) >= 4 and all(later > earlier for earlier, later in pairwise(said))
    assert "takes one a call" in room.engine.notice and not isinstance(numpy_model.backend, Batching)
    room.run()
    for asked, inbox in ((Asked(3, 0, 12), talking), (Asked(4, 0, 4), long)):
        assert isinstance(inbox.end, Answer) and inbox.end.ids == alone(numpy_model, asked)


def test_an_answer_ends_before_its_stop_text_and_every_token_has_logprobs(numpy_model: Model) -> None:
    plain = Inbox()
    room = Room(numpy_model, 2, 16)
    sent: list[EngineEvent] = []
    room.submit(Asked(0, 0, 12), plain)
    room.run()
    assert isinstance(plain.end, Answer)
    text = numpy_model.tokenizer.decode(plain.end.ids)
    stop = text.strip()[4:7]
    wish = Wish(settings_of(GENERATION, Asked(0, 0, 12).overrides()), stop_texts=(stop,), top_logprobs=3)
    room.engine.submit(Running(room.prepare(Asked(0, 0, 12)), wish, numpy_model.tokenizer, sent.append))
    room.run()
    events: list[Event] = [resolve(each) for each in sent]
    end = events[-1]
    assert isinstance(end, Answer) and end.finish is Finish.STOP and end.text == text[: text.index(stop)].strip()
    assert "".join(event.text for event in events if isinstance(event, Token)) + end.tail == text[: text.index(stop)]
    for event in events[:-1]:
        assert isinstance(event, Token) and event.logprobs is not None
        assert event.logprobs.top[0] == (event.id, pytest.approx(event.logprobs.logprob)) and event.logprobs.logprob <= 0
        assert len(event.logprobs.top) == 3 and sum(np.exp(value) for _, value in event.logprobs.top) <= 1.0001


def test_a_penalty_counts_what_the_layout_says(numpy_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    penalised = Overrides(8, temperature=0.0, repetition_penalty=1e6, stop_ids=())
    first = numpy_model.chat(QUESTIONS[0], overrides=penalised).ids[0]
    plain = numpy_model.processor.layout
    counting = np.array([first], np.int64)
    monkeypatch.setattr(
        numpy_model.processor, "layout", lambda *given: replace(plain(*given), penalised_ids=counting), raising=False
    )
    numpy_model.reset()
    assert first not in numpy_model.chat(QUESTIONS[0], overrides=penalised).ids


def test_prompts_beyond_the_context_and_wrong_sizes_are_refused(numpy_model: Model) -> None:
    room = Room(numpy_model, 1, 16)
    with pytest.raises(UsageError, match="tokens"):
        room.preparation.prepare([Message("user", "red " * 200)], [])
    with pytest.raises(UsageError, match="0 slots"):
        Room(numpy_model, 0, 16)


@pytest.mark.parametrize("hooked", [True, False])
def test_the_hook_runs_right_before_each_decoder_call(
    model: Model, numpy_model: Model, hooked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a backend that can, immediately before its library's call; else by the engine, before the backend's."""
    log: list[str] = []

    def logged(inner: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            log.append("call")
            return inner(*given)

        return call

    chosen = model if hooked else numpy_model
    assert isinstance(chosen.backend, CallHook) == hooked
    if hooked:
        session = chosen.backend._decoder("decoder").session  # type: ignore[attr-defined]
        monkeypatch.setattr(session, "run_with_iobinding", logged(session.run_with_iobinding))
    else:
        monkeypatch.setattr(chosen.backend, "forward", logged(chosen.backend.forward))
    room = Room(chosen, slots=2, chunk=16)
    room.engine.before_call = lambda: log.append("ready")
    first, second = Inbox(), Inbox()
    room.submit(Asked(0, 0, 5), first)
    room.submit(Asked(2, 0, 3), second)
    room.run()
    assert len(first.tokens) == 5 and len(second.tokens) == 3
    if hooked:
        assert log == ["ready", "call"] * (len(log) // 2)
    else:  # one word for the calls that follow each other
        assert log[0] == "ready" and "readyready" not in "".join(log)
    assert log.count("call") >= 6
