"""A decode step of several sequences at a time: one decoder call for all of them where the backend can."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np

from runtime_py.backends.base import Batching
from runtime_py.generation.session import Session


def step_batch(
    sessions: Sequence[Session], tokens: Sequence[int], before_call: Callable[[], None] = lambda: None
) -> list[np.ndarray]:
    """Feed one answer token to each of several sessions of one backend; the logits that each `Session.step` gives.

    Args:
        before_call: called when all is ready for the decoder.

    Raises:
        UsageError: a cache is full, or nothing was prefilled.
    """
    embeds = sessions[0].embed(np.array([tokens], dtype=np.int64))
    fed = [session.step_inputs(embeds[:, place : place + 1]) for place, session in enumerate(sessions)]
    before_call()
    if len(sessions) == 1 or not all(session.shares_calls for session in sessions):
        last = np.array([-1], dtype=np.int64)
        pairs = zip(sessions, fed, strict=True)
        return [session.stepped(session.backend.forward(state, inputs, last)) for session, (state, inputs) in pairs]
    backend = cast(Batching, sessions[0].backend)
    rows = backend.forward_batch([state for state, _ in fed], [inputs for _, inputs in fed])
    return [session.stepped(row[None]) for session, row in zip(sessions, rows, strict=True)]
