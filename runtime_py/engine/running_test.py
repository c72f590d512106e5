"""One answer from its first chunk to its end: what a constraint decides, and where its time went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runtime_py.conftest import GENERATION
from runtime_py.engine.answer import Answer, Timing, Token
from runtime_py.engine.engine_test import Asked, Inbox, Room
from runtime_py.engine.logprobs import EngineEvent, resolve
from runtime_py.engine.running import Running, Wish
from runtime_py.generation.generate import Finish, settings_of
from runtime_py.model import Model


class Spelled:
    """A constraint: these tokens and then nothing more."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.left = list(tokens)

    def masked(self, logits: np.ndarray) -> np.ndarray:
        return np.where(np.arange(len(logits)) == self.left[0], logits, np.float32(-1e30))

    def accept(self, token: int) -> None:
        assert token == self.left.pop(0)

    def complete(self) -> bool:
        return not self.left


def test_a_constraint_chooses_every_token_and_ends_the_answer(numpy_model: Model) -> None:
    room, inbox, sent = Room(numpy_model, 1, 16), Inbox(), list[EngineEvent]()
    tokens = [140, 7, 140]
    room.submit(Asked(0, 0, 12), inbox, constraint=Spelled(tokens))
    room.run()
    assert isinstance(inbox.end, Answer) and inbox.tokens == tokens == list(inbox.end.ids)
    assert inbox.end.finish is Finish.STOP
    wish = Wish(settings_of(GENERATION, Asked(0, 0, 3).overrides()), top_logprobs=1, constraint=Spelled(tokens))
    room.engine.submit(Running(room.prepare(Asked(0, 0, 3)), wish, numpy_model.tokenizer, sent.append))
    room.run()
    *told, end = map(resolve, sent)
    assert isinstance(end, Answer) and end.finish is Finish.STOP, "at its last token a limit and the constraint end it"
    assert [event.id for event in told if isinstance(event, Token)] == tokens
    first = next(event.logprobs for event in told if isinstance(event, Token) and event.logprobs is not None)
    assert first.logprob < first.top[0][1], "log-probabilities are those of the decoder"


def test_the_beginning_of_a_stop_text_that_does_not_come_is_a_part_of_the_answer(numpy_model: Model) -> None:
    room, plain, held = Room(numpy_model, 1, 16), Inbox(), Inbox()
    room.submit(Asked(0, 0, 12), plain)
    room.run()
    assert isinstance(plain.end, Answer)
    text = numpy_model.tokenizer.decode(plain.end.ids)
    room.submit(Asked(0, 0, 12), held, stop_texts=(f"{text[-3:]}and more",))
    room.run()
    assert isinstance(held.end, Answer) and held.end.finish is Finish.LENGTH
    assert held.end.tail.endswith(text[-3:]) and held.end.text == plain.end.text == text.strip()


def test_the_times_of_an_answer_are_those_of_its_stages(numpy_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by one second in each decoder call."""
    now = [10.0]
    forward = numpy_model.backend.forward

    def counted(*given: Any) -> np.ndarray:
        now[0] += 1.0
        return forward(*given)

    monkeypatch.setattr("runtime_py.engine.running.time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(numpy_model.backend, "forward", counted)
    room, inbox = Room(numpy_model, 1, 8), Inbox()
    prompt = replace(room.prepare(Asked(1, 0, 5)), began=8.0, image_seconds=0.5)
    running = Running(prompt, Wish(settings_of(GENERATION, Asked(1, 0, 5).overrides())), numpy_model.tokenizer, inbox.take)
    now[0] = 13.0
    room.engine.submit(running)
    room.run()
    assert isinstance(inbox.end, Answer)
    chunks = -(-prompt.tokens // 8)
    assert chunks > 1 and inbox.end.timing == Timing(
        prompt_tokens=prompt.tokens, kept_tokens=0, answer_tokens=5, steps=4, image_seconds=0.5, prefill_seconds=chunks,
        first_token_seconds=5.0 + chunks, decode_seconds=4.0, queue_seconds=3.0,
    )  # fmt: skip
    assert inbox.end.timing.decode_rate == 1.0
