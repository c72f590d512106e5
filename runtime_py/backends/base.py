"""What a backend offers the runtime: run a stage, and run the decoder over a cache it owns.

The PyTorch reference of parity_tests implements the same interface, so that one pipeline
(`runtime_py.generation.session`) drives both sides of every comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from runtime_py.errors import UsageError

Arrays = Mapping[str, np.ndarray]


def closed(backend: str) -> UsageError:
    """The error of a backend that is asked after `Backend.close`."""
    return UsageError(f"the backend {backend} is closed", "one that is open", "load the package again")


class DecoderState(Protocol):
    """One sequence in the decoder: a key/value cache and how much of it is filled."""

    length: int
    """Positions already in the cache."""
    capacity: int
    """Positions the cache can hold."""


def check_rewind(length: int, filled: int) -> None:
    """Raise UsageError unless a sequence of ``filled`` positions can be cut back to ``length``."""
    if not 0 <= length <= filled:
        raise UsageError(f"rewind to {length}", f"between 0 and {filled}", "ask for fewer positions")


class Backend(Protocol):
    """Runs the stages of one package on one device.

    Arrays are NumPy, float32 at the border whatever the graph computes in; integer inputs are int64.
    """

    name: str

    def run(self, stage: str, inputs: Arrays) -> dict[str, np.ndarray]:
        """Run a cache-less stage (vision_encoder, connector, embed_tokens); keys are contract names."""
        ...

    def start(self, capacity: int) -> DecoderState:
        """Make an empty cache for one sequence of at most ``capacity`` positions."""
        ...

    def forward(self, state: Any, inputs: Arrays, logit_positions: np.ndarray) -> np.ndarray:
        """Feed tokens to the decoder and advance ``state``.

        Args:
            state: what `start` returned, in the backend's own type.
            inputs: ``inputs_embeds`` (1, tokens, hidden), ``position_ids`` (1, tokens) or (axes, 1, tokens), and
                whatever else the decoder contract names, except cache and mask, which the backend supplies.
            logit_positions: int64 (outputs,), indices into the tokens fed; negative counts from the end.

        Returns:
            float32 logits (1, outputs, vocabulary).
        """
        ...

    def close(self) -> None:
        """Free the device memory; the backend is not used afterwards."""
        ...


@runtime_checkable
class Rewinding(Protocol):
    """A backend that can shorten a sequence, so that a changed conversation keeps the common part of its cache."""

    def rewind(self, state: Any, length: int) -> None:
        """Forget every position from ``length`` on; the next `Backend.forward` writes there."""
        ...


@runtime_checkable
class Evicting(Protocol):
    """A backend whose newer sequences take over the memory of older ones; `Backend.forward` refuses those from then on."""

    def holds(self, state: Any) -> bool:
        """Whether a sequence has its memory still."""
        ...


@runtime_checkable
class SeparatePrefill(Protocol):
    """A backend with a decoder of its own for prompts, whose tokens come many at a time."""

    def prefill(self, state: Any, inputs: Arrays, logit_positions: np.ndarray) -> np.ndarray:
        """What `Backend.forward` does, for tokens of a prompt, however many there are."""
        ...


@runtime_checkable
class Batching(Protocol):
    """A backend that can feed a token of each of several sequences in one decoder call. It is `Rewinding` too."""

    def why_not_batched(self, count: int) -> str:
        """Why ``count`` sequences of this package cannot share a decoder call; "" where they can."""
        ...

    def start_batch(self, count: int, capacity: int) -> Sequence[Any]:
        """Empty caches, as `Backend.start` makes one, that `forward_batch` may take; `Backend.forward` takes each."""
        ...

    def forward_batch(self, states: Sequence[Any], inputs: Sequence[Arrays]) -> Sequence[np.ndarray]:
        """Feed one token of each sequence and advance its state.

        Args:
            states: different ones of one `start_batch`.
            inputs: for each what `Backend.forward` takes, of one token.

        Returns:
            float32 logits (1, vocabulary) of each, not copied: a whole vocabulary of eight rows takes a millisecond.
        """
        ...

    def copy_prefix(self, source: Any, target: Any, length: int) -> None:
        """Make ``target`` hold the first ``length`` positions of ``source`` and nothing else; of one `start_batch`."""
        ...


@runtime_checkable
class DecoderTimer(Protocol):
    """A backend that adds up the time of its decoder calls."""

    decoder_seconds: float
    """Inside the library's decoder calls, all of them so far; the rest of a step's time is our own code's."""


@runtime_checkable
class CallHook(Protocol):
    """A backend that calls back right before each decoder call."""

    before_call: Callable[[], None]
    """Called when nothing is left to do but the library's call, which releases the interpreter's lock."""


@runtime_checkable
class Releasing(Protocol):
    """A backend that can give its memory back and take it again when it is next used."""

    def release(self) -> None: ...


@runtime_checkable
class LoadsAhead(Protocol):
    """A backend that can load everything now, instead of when it is first used, so that what is missing shows at once."""

    def load(self) -> None: ...


@runtime_checkable
class OpensAhead(Protocol):
    """A backend that can open stages beside other work, for a caller that knows which ones it will run."""

    def open_ahead(self, stages: Collection[str]) -> None:
        """Begin to open these stages; `Backend.run` and `Backend.forward` wait for theirs. Raises nothing of their own."""
        ...
