"""What an answer is made of: tokens as they come, where the time went, and the whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from runtime_py.generation.generate import Finish


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities at one token: natural logarithms of the softmax of the decoder's logits, before sampling.

    Attributes:
        logprob: of the token itself.
        top: (token, log-probability) of the likeliest ones, best first, as many as were asked for.
    """

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Token:
    """One token of an answer; ``text`` may be empty while a character lacks bytes."""

    id: int
    text: str
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True)
class Timing:
    """Where an answer's time went, in seconds; ``decode_rate`` is tokens per second.

    Attributes:
        prompt_tokens: the whole prompt; ``kept_tokens`` of them were in the cache already.
        image_seconds: preprocessing and vision encoder; 0 when every picture was known.
        steps: answer tokens fed after the prefill, ``decode_seconds`` in all.
        first_token_seconds: from the call to the first token.
        queue_seconds: of these, waiting for a slot.
        guessed_tokens: accepted draft tokens of prompt lookup, each of which saved a decoder call.
    """

    prompt_tokens: int
    kept_tokens: int
    answer_tokens: int
    steps: int
    image_seconds: float
    prefill_seconds: float
    first_token_seconds: float
    decode_seconds: float
    queue_seconds: float = 0.0
    guessed_tokens: int = 0

    @property
    def decode_rate(self) -> float:
        return self.steps / max(self.decode_seconds, 1e-9)


@dataclass(frozen=True)
class Answer:
    """A finished answer. ``text`` is stripped of white space at both ends, as the published chat functions do.

    Attributes:
        tail: the end of the text that no token brought, unstripped.
    """

    text: str
    ids: tuple[int, ...]
    finish: Finish
    timing: Timing
    tail: str = ""


class AnswerStream:
    """Iterates over the answer's `Token`s; ``answer`` is there when the iteration has ended."""

    def __init__(self, tokens: Iterator[Token]) -> None:
        self._tokens = tokens
        self.answer: Answer | None = None
        self.stopped = False

    def stop(self) -> None:
        """End the answer at its next token; safe to call from a signal handler or another thread."""
        self.stopped = True

    def __iter__(self) -> Iterator[Token]:
        return self._tokens
