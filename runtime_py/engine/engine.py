"""Continuous batching: sequences enter and leave between two decoder calls.

A step lets waiting sequences into free slots, feeds one token of every sequence that is answering, all in one decoder call
where the backend can, and then one chunk of the prompt that has waited longest. So a long prompt delays the others by one
chunk at a time. A sequence begins in the cache of one that began alike; its answer is the one it would get alone.

One thread steps; `Engine.submit` and the flags of `Running` may be used from any.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from runtime_py.backends.base import Backend, Batching, CallHook, DecoderTimer
from runtime_py.backends.record import Ability
from runtime_py.backends.registry import runtime_backends
from runtime_py.engine.running import Running
from runtime_py.engine.slot import Slot
from runtime_py.engine.speculation import draft_tokens, step_speculatively
from runtime_py.errors import EdgeproofError, UsageError, wrap_errors
from runtime_py.generation.batch_step import step_batch
from runtime_py.generation.session import Session, SessionLimits
from runtime_py.preprocess.base import Processor

ANSWERING = "answering"

IN_PLACE = 0.5
"""A slot's own cache is cut back to what a new prompt shares with it if that is at least this part of it; else, with
another slot free, the shared part is copied there and the longer one stays for those who come back to it."""


class Engine:
    """Slots of one backend.

    Args:
        slots: sequences at a time.
        chunk: tokens of a prompt in one decoder call; the package's own, and never more, when None.
        before_call: called in the engine's thread when all is ready for a decoder call, which takes its time and leaves the
            interpreter to other threads: the moment for work that would hold a step up. By the backend where it can, at the
            last moment, for such work wakes threads that would take the interpreter from what is left to do.

    Attributes:
        notice: why sequences do not share decoder calls, or why there are fewer slots than asked for; "" otherwise.
        seconds: of all steps so far; `decoder_seconds` of them were in decoder calls.

    Raises:
        DoesNotFitError: this machine's memory does not hold the caches.
    """

    def __init__(
        self,
        backend: Backend,
        processor: Processor,
        limits: SessionLimits,
        slots: int = 1,
        chunk: int | None = None,
        before_call: Callable[[], None] = lambda: None,
    ) -> None:
        if slots < 1 or (chunk is not None and chunk < 1):
            raise UsageError(f"{slots} slots, {chunk} tokens a chunk", "at least 1 of each", "correct the numbers")
        self.chunk = min(chunk or limits.prefill_chunk, limits.prefill_chunk)
        self.backend = backend
        self.before_call = before_call
        self._hooked = backend if isinstance(backend, CallHook) else None
        self.notice = ""
        self.seconds = 0.0
        self.shares_calls = False
        if slots > 1:
            slots = self._possible(slots)
        reserved = [None] * slots
        if slots > 1 and self.shares_calls and isinstance(backend, Batching):
            reserved = list(backend.start_batch(slots, limits.context))
        self.slots = [Slot(Session(backend, processor, limits, reserved=state)) for state in reserved]
        self._waiting: deque[Running] = deque()
        self._reading: deque[Running] = deque()
        self._answering: list[Running] = []
        self._lock = threading.Lock()
        self._entered = 0

    def _possible(self, slots: int) -> int:
        record = runtime_backends().get(self.backend.name)
        reason = f"the backend {self.backend.name} takes one a call"
        if isinstance(self.backend, Batching):
            reason = self.backend.why_not_batched(slots)
        if reason and record is not None and not record.can(Ability.SEVERAL_SEQUENCES):
            self.notice = f"requests are answered one after the other: {reason}"
            return 1
        if reason:
            self.notice = f"every sequence gets a decoder call of its own: {reason}"
        self.shares_calls = not reason
        return slots

    def submit(self, running: Running) -> None:
        """Put a prompt at the end of the queue."""
        with self._lock:
            self._waiting.append(running)

    @property
    def queued(self) -> int:
        """Prompts that no slot has taken yet."""
        return len(self._waiting)

    @property
    def busy(self) -> int:
        """Slots at work."""
        return len(self._reading) + len(self._answering)

    @property
    def decoder_seconds(self) -> float:
        """Spent in decoder calls so far; 0 where the backend does not tell. The rest of `seconds` is the engine's own."""
        return self.backend.decoder_seconds if isinstance(self.backend, DecoderTimer) else 0.0

    def step(self) -> bool:
        """One round of work; False when there was none."""
        began = time.perf_counter()
        if self._hooked is not None:
            self._hooked.before_call = self.before_call  # another engine may have stepped on this backend
        self._let_go()
        self._admit()
        if self._answering:
            self._decode()
        if self._reading:
            self._read()
        self.seconds += time.perf_counter() - began
        return bool(self._reading or self._answering or self._waiting)

    def drop_all(self) -> None:
        """Let go of every sequence, waiting ones too."""
        with self._lock:
            self._waiting.clear()
        self._reading.clear()
        self._answering.clear()

    def forget(self) -> None:
        """Drop every sequence and the contents of every cache."""
        self.drop_all()
        for slot in self.slots:
            slot.forget()

    def _let_go(self) -> None:
        for running in self._answering:
            if running.stopped and not running.cancelled:
                running.stop()
        self._answering = [each for each in self._answering if not (each.over or each.cancelled)]
        self._reading = deque(each for each in self._reading if not each.cancelled)
        with self._lock:
            self._waiting = deque(each for each in self._waiting if not each.cancelled)

    def _admit(self) -> None:
        while True:
            taken = {id(each.slot) for each in (*self._reading, *self._answering)}
            free = [slot for slot in self.slots if id(slot) not in taken]
            with self._lock:
                if not free or not self._waiting:
                    return
                running = self._waiting.popleft()
            if self._safely([running], partial(self._enter, running, free)):
                self._reading.append(running)

    def _enter(self, running: Running, free: list[Slot]) -> None:
        """Choose a slot: one whose cache begins like the prompt, or the one that was left longest ago."""
        common = {id(slot): slot.common(running.prompt) for slot in self.slots}
        source = max(self.slots, key=lambda slot: (common[id(slot)], slot.used))
        keep = common[id(source)]
        oldest = min(free, key=lambda slot: slot.used)
        target = oldest
        if source in free and (len(free) == 1 or not self.shares_calls or keep >= IN_PLACE * source.session.length):
            target = source if keep else oldest
        if keep and target is not source:
            if self.shares_calls:
                target.copy_of(source, keep)
            else:
                keep = common[id(target)]
        self._entered += 1
        target.used = self._entered
        running.enter(target, keep, self.chunk)

    def _read(self) -> None:
        running = self._reading[0]
        self._ready()
        if self._safely([running], running.read_on) and running.prefill is not None:
            return
        self._reading.popleft()
        if not running.over:
            self._answering.append(running)

    def _decode(self) -> None:
        together = list(self._answering)
        if len(together) == 1 and (draft := draft_tokens(together[0])):
            self._ready()
            self._safely(together, partial(step_speculatively, together[0], draft))
            self._answering = [running for running in together if not running.over]
            return
        logits: list[np.ndarray] = []

        def feed() -> None:
            sessions = [running.slot.session for running in together if running.slot is not None]
            logits.extend(step_batch(sessions, [running.waiting or 0 for running in together], self._ready))

        if self._safely(together, feed):
            for running, row in zip(together, logits, strict=True):
                self._safely([running], partial(running.choose, row[0, -1]))
        self._answering = [running for running in together if not running.over]

    def _ready(self) -> None:
        """A decoder call is next, as far as can be seen from here."""
        if self._hooked is None:
            self.before_call()

    @staticmethod
    def _safely(sequences: Sequence[Running], work: Callable[[], None]) -> bool:
        """Do some work for sequences; what goes wrong ends these and no other."""
        try:
            with wrap_errors(ANSWERING):
                work()
        except EdgeproofError as error:
            for running in sequences:
                if running.slot is not None:
                    running.slot.forget()
                running.fail(error)
            return False
        return True
