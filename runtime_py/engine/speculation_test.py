"""Whatever is drafted, the answer is the one without drafts, and the cache holds that answer and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime_py.conftest import GENERATION, AttentionBackend, model_of
from runtime_py.engine.answer import Answer, Token
from runtime_py.engine.engine_test import Room
from runtime_py.engine.logprobs import EngineEvent
from runtime_py.engine.running import Running, Wish
from runtime_py.errors import UsageError
from runtime_py.generation.generate import Finish, Overrides, settings_of
from runtime_py.generation.prompt_lookup import PromptLookup
from runtime_py.generation.session import Limits
from runtime_py.model import Model
from runtime_py.preprocess.base import Message
from runtime_py.tokenizer import Tokenizer

QUESTIONS = ["red red red red red red", "What colour?", "How many, and where? How many, and where?"]
DATA = 'Write again: {"colour": "red", "number": 3} {"colour": "blue", "number": 3} {"colour": "red", "number": 3}'


class OracleDraft(PromptLookup):
    """Drafts the true answer, with faults, and goes on when it is at its end.

    Attributes:
        rooms: the answer's tokens, and what was offered, at every call.
        records: what every call drafted, and how much of it was accepted.
    """

    def __init__(self, answer: Sequence[int], seed: int, faults: float) -> None:
        super().__init__((), 8)
        self.answer, self.draw, self.faults, self.place = list(answer), np.random.default_rng(seed), faults, 0
        self.rooms: list[tuple[int, int]] = []
        self.records: list[tuple[int, int]] = []

    def add(self, token: int) -> None:
        self.place = getattr(self, "place", 0) + 1

    def draft(self, room: int) -> list[int]:
        self.rooms.append((self.place, room))
        true = [*self.answer, *self.answer][self.place : self.place + int(self.draw.integers(0, 7))][: max(room, 0)]
        return [token if self.draw.random() > self.faults else int(self.draw.integers(3, 100)) for token in true]

    def record(self, drafted: int, accepted: int) -> None:
        self.records.append((drafted, accepted))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    question=st.sampled_from(QUESTIONS),
    tokens=st.integers(1, 60),
    penalty=st.sampled_from([1.0, 1.3]),
    context=st.integers(40, 160),
    stop=st.integers(0, 30),
    chunk=st.sampled_from([3, 16]),
    faults=st.sampled_from([0.0, 0.2, 1.0]),
    seed=st.integers(0, 9),
)
def test_the_answer_is_the_same_whatever_is_drafted(
    words: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, question: str, tokens: int, penalty: float,
    context: int, stop: int, chunk: int, faults: float, seed: int,
) -> None:  # fmt: skip
    model = model_of(words, tmp_path, Limits(context, chunk))
    free = Overrides(tokens, temperature=0.0, repetition_penalty=penalty, stop_ids=())
    try:
        whole = model.chat(question, overrides=free)
    except UsageError:  # the prompt does not fit this context
        return
    chosen = replace(free, stop_ids=tuple(whole.ids[stop : stop + 1]))
    model.reset()
    plain = model.chat(question, overrides=chosen)
    cached = np.array(model.session._started().keys)  # type: ignore[attr-defined]
    oracle = OracleDraft(whole.ids, seed, faults)
    monkeypatch.setattr("runtime_py.engine.running._lookup", lambda *_: oracle)
    model.reset()
    drafted = model.chat(question, overrides=chosen)
    assert (drafted.ids, drafted.finish, drafted.text) == (plain.ids, plain.finish, plain.text)
    assert drafted.timing.steps == plain.timing.steps
    for said, room in oracle.rooms:
        assert room == min(context - plain.timing.prompt_tokens - said + 1, tokens - said, chunk) - 1
    assert sum(accepted for _, accepted in oracle.records) == drafted.timing.guessed_tokens
    np.testing.assert_array_equal(np.array(model.session._started().keys), cached)  # type: ignore[attr-defined]
    monkeypatch.undo()
    assert model.chat(question, overrides=chosen).timing.kept_tokens == plain.timing.prompt_tokens - 1


def test_accepted_drafts_save_decoder_calls(words: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(words, tmp_path, Limits(160, 16))
    asked = Overrides(40, temperature=0.0, stop_ids=())
    plain = model.chat(QUESTIONS[0], overrides=asked)
    oracle = OracleDraft(plain.ids, 0, 0.0)
    monkeypatch.setattr("runtime_py.engine.running._lookup", lambda *_: oracle)
    model.reset()
    backend = model.backend
    assert isinstance(backend, AttentionBackend)
    backend.calls.clear()
    seen: list[np.ndarray] = []
    model.record(lambda probe, array: seen.append(array) if probe == "step_logits" else None)
    run = model.generate(QUESTIONS[0], overrides=asked)
    streamed = [token.id for token in run]
    answer = run.answer
    assert answer is not None and tuple(streamed) == answer.ids, "tokens of one call come in their order"
    prompt_calls = -(-answer.timing.prompt_tokens // 16)
    assert len(backend.calls) - prompt_calls == answer.timing.steps - answer.timing.guessed_tokens < 20
    assert len(seen) == answer.timing.steps and {array.shape[:2] for array in seen} == {(1, 1)}


def test_nothing_follows_a_stop_text_in_the_middle_of_a_draft(
    words: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(words, tmp_path, Limits(160, 16))
    asked = Overrides(20, temperature=0.0, stop_ids=())
    whole = model.chat(QUESTIONS[1], overrides=asked)
    text = model.tokenizer.decode(whole.ids)
    stop = text.strip()[4:7]
    oracle = OracleDraft(whole.ids, 0, 0.0)
    monkeypatch.setattr(oracle, "draft", lambda room: list(whole.ids[oracle.place :][:room]))
    monkeypatch.setattr("runtime_py.engine.running._lookup", lambda *_: oracle)
    room, sent = Room(model, 1, 16), list[EngineEvent]()
    wish = Wish(settings_of(GENERATION, asked), stop_texts=(stop,))
    prompt = room.preparation.prepare([Message("user", QUESTIONS[1])], [])
    room.engine.submit(Running(prompt, wish, words, sent.append))
    room.run()
    *tokens, end = sent
    assert isinstance(end, Answer) and end.finish is Finish.STOP and end.text == text[: text.index(stop)].strip()
    assert end.ids == tuple(token.id for token in tokens if isinstance(token, Token)) == whole.ids[: len(tokens)]
    assert end.timing.guessed_tokens == len(end.ids) - 2 < 16, "all but the first and the last, in one call"
    assert room.engine.slots[0].session.length == prompt.tokens + len(end.ids) - 1


class Forgetless:
    """An `AttentionBackend` without a rewind."""

    name = "numpy"
    __init__ = AttentionBackend.__init__
    run, start, forward, close = (
        AttentionBackend.run, AttentionBackend.start, AttentionBackend.forward, AttentionBackend.close
    )  # fmt: skip


def test_a_cache_that_cannot_forget_is_fed_no_drafts(
    words: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewinding = model_of(words, tmp_path, Limits(160, 16))
    asked = Overrides(20, temperature=0.0, stop_ids=())
    plain = rewinding.chat(QUESTIONS[0], overrides=asked)
    model = Model(rewinding.package, Forgetless(len(words.pieces)), rewinding.processor, words)
    monkeypatch.setattr("runtime_py.engine.running._lookup", lambda *_: OracleDraft(plain.ids, 0, 0.0))
    drafted = model.chat(QUESTIONS[0], overrides=asked)
    assert drafted.ids == plain.ids and drafted.timing.guessed_tokens == 0


@pytest.mark.parametrize("penalty", [1.0, 1.2])
def test_a_package_says_the_same(model: Model, penalty: float) -> None:
    for question in (DATA, *QUESTIONS):
        asked = Overrides(48, temperature=0.0, repetition_penalty=penalty, stop_ids=())
        model.reset()
        plain = model.chat(question, overrides=asked)
        model.reset()
        assert model.chat(question, overrides=replace(asked, prompt_lookup=7)).ids == plain.ids


def test_draws_and_logprobs_are_not_drafted(words: Tokenizer, tmp_path: Path) -> None:
    model = model_of(words, tmp_path, Limits(160, 16))
    prompt = model._preparation.prepare([Message("user", DATA)], [])

    def lookup(top_logprobs: int | None, **changes: float) -> PromptLookup | None:
        settled = settings_of(GENERATION, Overrides(**changes, prompt_lookup=7))  # type: ignore[arg-type]
        return Running(prompt, Wish(settled, top_logprobs=top_logprobs), words, lambda _: None).lookup

    assert lookup(None) is not None
    assert lookup(2) is None and lookup(None, temperature=0.7) is None


def test_a_number_below_none_is_refused() -> None:
    with pytest.raises(UsageError, match="-1 guessed tokens"):
        settings_of(GENERATION, Overrides(prompt_lookup=-1))
