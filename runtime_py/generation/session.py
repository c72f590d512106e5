"""The one pipeline: pictures and ids through vision encoder, connector, embedding and decoder of any backend.

The runtime drives a package with it and parity_tests drives the PyTorch reference with it, so that both sides of a
comparison differ in their `Backend` alone. A recorder receives the named arrays on the way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from runtime_py.backends.base import Backend, Batching, DecoderState, Evicting, Rewinding, SeparatePrefill
from runtime_py.errors import TooLongError, UsageError
from runtime_py.generation.input_rows import InputRows, Recorder
from runtime_py.generation.limits import Limits, SessionLimits
from runtime_py.preprocess.base import ArrangesRows, Layout, Processor, ReadsEmbeddings

__all__ = ["Limits", "Session", "SessionLimits"]


class Session(InputRows):
    """One conversation on one backend.

    Args:
        recorder: receives every probe; None costs nothing.
        reserved: an empty cache that every prefill of this session takes, as one of several in
            `runtime_py.backends.base.Batching.start_batch`; a new one each time when None.

    Attributes:
        shares_calls: a step can be part of a decoder call with those of other sessions.
    """

    def __init__(
        self,
        backend: Backend,
        processor: Processor,
        limits: SessionLimits,
        recorder: Recorder | None = None,
        reserved: DecoderState | None = None,
    ) -> None:
        if limits.prefill_chunk < 1 or limits.context < 1:
            raise UsageError(
                f"context {limits.context} and prefill chunk {limits.prefill_chunk}", "both at least 1", "correct the limits"
            )
        super().__init__(backend, processor, limits, recorder)
        self.shares_calls = reserved is not None and isinstance(backend, Batching)
        self._reserved = reserved
        self._arranges = processor.arrange if isinstance(processor, ArrangesRows) else None
        self._state: DecoderState | None = None
        self._layout: Layout | None = None
        self._decode_inputs: Mapping[str, np.ndarray] | None = None
        self._drafted = 0

    @property
    def length(self) -> int:
        """Positions in the cache, without drafted ones."""
        return self._state.length - self._drafted if self._state is not None else 0

    @property
    def room(self) -> int:
        """Positions the cache can still take."""
        return (self._state.capacity if self._state is not None else self.limits.context) - self.length

    def reset(self) -> None:
        """Drop the cache; the next prefill starts from nothing."""
        self._state = self._layout = self._decode_inputs = None
        self._drafted = 0

    def check_room(self, tokens: int) -> None:
        """Raise UsageError when a prompt of this many tokens leaves no cache position for an answer."""
        if tokens > self.limits.context:
            raise TooLongError(
                f"the prompt has {tokens} tokens, image rows included",
                f"at most {self.limits.context}, the context this package was built for",
                "shorten the conversation, send fewer or smaller pictures, or export with a larger --context",
            )

    def prefill(
        self,
        embeds: np.ndarray,
        layout: Layout,
        logit_positions: Literal["all", "last"] = "last",
        chunk: int | None = None,
        keep: int = 0,
    ) -> np.ndarray:
        """Feed a prompt to the decoder.

        Args:
            embeds: (1, tokens, hidden) of the whole prompt, as `merge` gives it.
            logit_positions: logits of every token fed, or of the last alone.
            chunk: tokens per decoder call; ``limits.prefill_chunk`` when None.
            keep: leading tokens that are in the cache already, from the prefill and steps before (`can_keep`);
                everything behind them is forgotten.

        Returns:
            float32 logits (1, tokens - keep or 1, vocabulary).

        Raises:
            UsageError: the prompt does not fit the context; nothing has run then.
        """
        *_, logits = self.prefilling(embeds, layout, logit_positions, chunk, keep)
        assert logits is not None
        return logits

    def prefilling(
        self,
        embeds: np.ndarray,
        layout: Layout,
        logit_positions: Literal["all", "last"] = "last",
        chunk: int | None = None,
        keep: int = 0,
    ) -> Iterator[np.ndarray | None]:
        """The same in pieces, for a caller with other work between them: None after each decoder call but the last,
        which gives the logits.
        """
        tokens = embeds.shape[1]
        size = chunk or self.limits.prefill_chunk
        self.check_room(tokens)
        if tokens - keep < 1 or keep > self.length or size < 1:
            raise UsageError(
                f"a prompt of {tokens} tokens with {keep} kept of {self.length} cached, {size} at a time",
                "at least one new token, no more kept than cached, at least one at a time",
                "start without keep",
            )
        further = self._further_inputs(layout, embeds, "prefill")
        if keep == 0:
            self._empty_cache()
        elif keep < self._started().length:
            self._rewind(keep)
        self._drafted = 0
        state = self._started()
        self._layout, self._decode_inputs = layout, None
        if isinstance(self.processor, ReadsEmbeddings):
            self._decode_inputs = self._further_inputs(layout, embeds, "decode")
        forward = self.backend.prefill if isinstance(self.backend, SeparatePrefill) else self.backend.forward
        chunks = []
        for start in range(keep, tokens, size):
            stop = min(start + size, tokens)
            inputs = {name: value[..., start:stop] for name, value in layout.decoder.items()}
            inputs = self._arranged(inputs) | {"inputs_embeds": embeds[:, start:stop], **further}
            positions = np.arange(stop - start) if logit_positions == "all" else np.array([-1])
            logits = forward(state, inputs, positions.astype(np.int64))
            if logit_positions == "all" or stop == tokens:
                chunks.append(logits)
            if stop < tokens:
                yield None
        logits = chunks[0] if len(chunks) == 1 else np.concatenate(chunks, axis=1)
        self._record("prefill_logits", logits)
        yield logits

    def step(self, token: int) -> np.ndarray:
        """Feed one answer token; float32 logits (1, 1, vocabulary) of the token after it.

        Raises:
            UsageError: the cache is full, or nothing was prefilled.
        """
        state, inputs = self.step_inputs(self.embed(np.array([[token]], dtype=np.int64)))
        return self.stepped(self.backend.forward(state, inputs, np.array([-1], dtype=np.int64)))

    def stepped(self, logits: np.ndarray) -> np.ndarray:
        """Tell the recorder what a step gave."""
        self._record("step_logits", logits)
        return logits

    def step_inputs(self, embeds: np.ndarray) -> tuple[DecoderState, dict[str, np.ndarray]]:
        """What a step feeds: this sequence's cache, and the decoder's inputs for embedded tokens (1, tokens, hidden).

        Raises:
            UsageError: as `step`.
        """
        state = self._started()
        if self._layout is None or self.room < 1:
            raise UsageError(
                f"no cache position for another token after {self.length}",
                f"a context of at most {state.capacity} positions, prompt and answer together",
                "ask for fewer new tokens, or export with a larger --context",
            )
        rows = [self.processor.next_inputs(self._layout, state.length + place) for place in range(embeds.shape[1])]
        joined = {name: np.concatenate([row[name] for row in rows], axis=-1) for name in rows[0]} if rows[1:] else rows[0]
        inputs = self._arranged(joined)
        return state, {**inputs, "inputs_embeds": embeds, **(self._decode_inputs or {})}

    @property
    def can_draft(self) -> bool:
        """Whether `verify_draft` works: the backend can rewind its cache."""
        return isinstance(self.backend, Rewinding)

    def verify_draft(self, tokens: Sequence[int]) -> np.ndarray:
        """Feed an answer token and draft tokens behind it; float32 logits (1, tokens, vocabulary) of what follows each.

        None of them counts towards `length` before `accept_draft_token`; `reject_draft` rewinds the cache to what counts.

        Raises:
            UsageError: as `step`, or the cache has no room for all of them.
        """
        state, inputs = self.step_inputs(self.embed(np.array([tokens], dtype=np.int64)))
        logits = self.backend.forward(state, inputs, np.arange(len(tokens), dtype=np.int64))
        self._drafted = len(tokens)
        return logits

    def accept_draft_token(self) -> None:
        """Accept the next token of `verify_draft`."""
        self._drafted -= 1

    def reject_draft(self) -> None:
        """Drop the tokens of `verify_draft` that were not accepted from the cache."""
        length, self._drafted = self.length, 0
        if length < self._started().length:
            self._rewind(length)

    def take_over(self, other: Session, tokens: int) -> None:
        """Begin with a copy of the first ``tokens`` positions of another session's cache, which stays as it is.

        Both sessions have reserved caches of one `Batching` backend.
        """
        assert isinstance(self.backend, Batching) and self._reserved is not None and other._layout is not None
        self.backend.copy_prefix(other._started(), self._reserved, tokens)
        self._state, self._drafted = self._reserved, 0
        self._layout, self._decode_inputs = other._layout, other._decode_inputs

    def can_keep(self, layout: Layout, tokens: int) -> bool:
        """Whether the first ``tokens`` cached positions mean the same in ``layout`` as when they were fed.

        False for processors whose decoder inputs depend on the whole prompt, when a rewind is needed and the backend has
        none, and when a newer sequence took over the cache.
        """
        if tokens < 1 or isinstance(self.processor, ReadsEmbeddings) or not self._holds_cache():
            return False
        if tokens < self.length and not isinstance(self.backend, Rewinding):
            return False
        return all(np.array_equal(self._fed(name, tokens), value[..., :tokens]) for name, value in layout.decoder.items())

    def _fed(self, name: str, tokens: int) -> np.ndarray:
        """A decoder input of the cached positions: of the prompt, then of the answer's steps."""
        layout = self._layout
        assert layout is not None
        prompt = layout.decoder[name]
        answer = range(prompt.shape[-1], tokens)
        return np.concatenate(
            [prompt[..., :tokens], *(self.processor.next_inputs(layout, index)[name] for index in answer)], axis=-1
        )

    def _empty_cache(self) -> None:
        """Begin in the cache that is there, or in another where there is none that can be emptied."""
        if self._holds_cache() and isinstance(self.backend, Rewinding):
            self._rewind(0)
        else:
            self._state = None  # its memory is free before another is asked for
            self._state = self._empty()

    def _empty(self) -> DecoderState:
        if self._reserved is None:
            return self.backend.start(self.limits.context)
        if isinstance(self.backend, Rewinding):
            self.backend.rewind(self._reserved, 0)
        return self._reserved

    def _holds_cache(self) -> bool:
        """Whether there is a cache, and no newer sequence of the backend took it over."""
        if self._state is None:
            return False
        return not isinstance(self.backend, Evicting) or self.backend.holds(self._state)

    def _rewind(self, length: int) -> None:
        if not isinstance(self.backend, Rewinding):
            raise UsageError(
                f"backend {self.backend.name} cannot forget cached tokens", "a backend with rewind", "start without keep"
            )
        self.backend.rewind(self._started(), length)

    def _started(self) -> DecoderState:
        if self._state is None:
            raise UsageError("nothing is in the cache", "a prefill before the first step", "call prefill first")
        return self._state

    def _further_inputs(
        self, layout: Layout, merged: np.ndarray, phase: Literal["prefill", "decode"]
    ) -> Mapping[str, np.ndarray]:
        if not isinstance(self.processor, ReadsEmbeddings):
            return {}
        return self.processor.embedding_inputs(layout, merged, self.embed(layout.input_ids), phase)

    def _arranged(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return inputs if self._arranges is None else self._arranges(inputs)
