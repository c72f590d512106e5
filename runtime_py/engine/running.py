"""One answer on its way through the engine: waiting, being read, answering, finished."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from runtime_py.engine.answer import Answer, Timing, Token
from runtime_py.engine.logprobs import DeferredToken, EngineEvent
from runtime_py.engine.preparation import Prepared
from runtime_py.engine.slot import Slot
from runtime_py.engine.stop_text import StopText
from runtime_py.errors import EdgeproofError
from runtime_py.generation.generate import Choosing, Finish, Settings
from runtime_py.generation.prompt_lookup import PromptLookup
from runtime_py.tokenizer import Tokenizer


class Constraint(Protocol):
    """What an answer has to look like, e.g. JSON of a schema."""

    def masked(self, logits: np.ndarray) -> np.ndarray:
        """The logits (vocabulary,) with those of forbidden tokens very low."""
        ...

    def accept(self, token: int) -> None:
        """The token was chosen."""
        ...

    def complete(self) -> bool:
        """Nothing may follow."""
        ...


@dataclass(frozen=True)
class Wish:
    """What is asked of an answer beside its prompt.

    Attributes:
        stop_texts: texts that end the answer; they are not part of it.
        top_logprobs: report log-probabilities of every token and of this many of the likeliest beside it; None reports none.
    """

    settings: Settings
    stop_texts: tuple[str, ...] = ()
    top_logprobs: int | None = None
    constraint: Constraint | None = None


class Running:
    """A prompt, what is asked, and how far it has come.

    Args:
        send: receives every event, in the engine's thread; `runtime_py.engine.logprobs.resolve` completes it.

    Attributes:
        cancelled, stopped: set by anyone, from any thread; at its next step the engine lets go of it, or ends it with what
            there is of it.
        over: nothing more is sent.
        waiting: the token that the next step feeds.
        lookup: drafts tokens; None where the answer's settings ask for no speculation.
        accepted: draft tokens accepted so far.
    """

    def __init__(self, prompt: Prepared, wish: Wish, words: Tokenizer, send: Callable[[EngineEvent], None]) -> None:
        self.prompt, self.wish, self.send = prompt, wish, send
        self.choosing = Choosing(wish.settings, prompt.layout.penalised_ids)
        self.lookup = _lookup(prompt, wish)
        self.accepted = 0
        self.cancelled = False
        self.stopped = False
        self.over = False
        self.slot: Slot | None = None
        self.prefill: Iterator[np.ndarray | None] | None = None
        self.waiting: int | None = None
        self.kept = 0
        self._words = words.stream()
        self._text: list[str] = []
        self._stop = StopText(wish.stop_texts)
        self.queued = time.perf_counter()
        self.admitted = self.filled = self.first = 0.0

    def enter(self, slot: Slot, kept: int, chunk: int) -> None:
        """Begin in a slot whose cache holds the first ``kept`` positions of the prompt."""
        self.slot, self.kept, self.admitted = slot, kept, time.perf_counter()
        self.prefill = slot.session.prefilling(self.prompt.merged, self.prompt.layout, "last", chunk, kept)

    def read_on(self) -> None:
        """Feed the next chunk of the prompt; choose the first token when it was the last."""
        assert self.slot is not None and self.prefill is not None
        self.slot.begin(self.prompt, self.choosing.ids)  # from the first chunk on the cache is this prompt's
        logits = next(self.prefill)
        if logits is not None:
            self.prefill = None
            self.filled = time.perf_counter()
            self.choose(logits[0, -1])

    def choose(self, logits: np.ndarray) -> None:
        """Choose the next token of (vocabulary,) logits, send it, and end the answer where it ends."""
        assert self.slot is not None
        constraint = self.wish.constraint
        token = self.choosing.choose(logits if constraint is None else constraint.masked(logits))
        self.first = self.first or time.perf_counter()
        self.waiting = token
        if token is None:
            self._finish()
            return
        if self.lookup is not None:
            self.lookup.add(token)
        text = self._stop.push(self._words.push(token))
        self._text.append(text)
        self.choosing.check_limits(self.slot.session.room)
        if constraint is not None:
            constraint.accept(token)
            if constraint.complete():
                self.choosing.finish = Finish.STOP
        if self._stop.reached:
            self.choosing.finish = Finish.STOP
        top = self.wish.top_logprobs
        self.send(Token(token, text) if top is None else DeferredToken(token, text, logits, top))
        if self.choosing.finish is not None:
            self._finish()

    def stop(self) -> None:
        """End the answer with what there is of it."""
        self.choosing.finish = Finish.STOPPED
        self._finish()

    def fail(self, error: EdgeproofError) -> None:
        """End without an answer."""
        if not self.over:
            self.over = True
            self.send(error)

    def _finish(self) -> None:
        assert self.slot is not None and self.choosing.finish is not None
        ended = time.perf_counter()
        rest = self._stop.push(self._words.finish()) + self._stop.finish()
        self._text.append(rest)
        timing = Timing(
            prompt_tokens=self.prompt.tokens,
            kept_tokens=self.kept,
            answer_tokens=len(self.choosing.ids),
            steps=self.slot.session.length - self.prompt.tokens,
            image_seconds=self.prompt.image_seconds,
            prefill_seconds=self.filled - self.admitted,
            first_token_seconds=self.first - self.prompt.began,
            decode_seconds=ended - self.first,
            queue_seconds=self.admitted - self.queued,
            guessed_tokens=self.accepted,
        )
        self.over = True
        text = "".join(self._text).strip()
        self.send(Answer(text, tuple(self.choosing.ids), self.choosing.finish, timing, rest))


def _lookup(prompt: Prepared, wish: Wish) -> PromptLookup | None:
    """None where no speculation is asked for, or where the last bits of logits show: in draws and log-probabilities."""
    settings = wish.settings
    if not settings.prompt_lookup or settings.sampling.temperature or wish.top_logprobs is not None:
        return None
    return PromptLookup(prompt.layout.input_ids[0].tolist(), settings.prompt_lookup)
