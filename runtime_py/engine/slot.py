"""One place for a sequence: its cache, and what the cache was filled with, which the next sequence may begin with."""

from __future__ import annotations

import numpy as np

from runtime_py.engine.preparation import Prepared
from runtime_py.generation.session import Session


class Slot:
    """A session and the prompt and answer that are in its cache.

    Attributes:
        used: a number that grows, of when a sequence last entered.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.used = 0
        self._prompt: Prepared | None = None
        self._answer: list[int] = []

    def begin(self, prompt: Prepared, answer: list[int]) -> None:
        """The cache is about to hold ``prompt`` and then ``answer``, which grows."""
        self._prompt, self._answer = prompt, answer

    def forget(self) -> None:
        self.session.reset()
        self._prompt, self._answer = None, []

    def common(self, prompt: Prepared) -> int:
        """How many leading positions of the cache a prompt can keep; at least its last token is fed again."""
        ids, origins = self._fed()
        count = min(len(ids), prompt.tokens - 1)
        equal = (ids[:count] == prompt.layout.input_ids[0, :count]) & (origins[:count] == prompt.origins[:count])
        keep = count if equal.all() else int(equal.argmin())
        return keep if self.session.can_keep(prompt.layout, keep) else 0

    def copy_of(self, other: Slot, tokens: int) -> None:
        """Take the first ``tokens`` positions of another slot's cache; where that fails, this slot is empty."""
        self.forget()
        self.session.take_over(other.session, tokens)
        self._prompt, self._answer = other._prompt, list(other._answer)

    def _fed(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the cached positions, and where their image rows come from."""
        if self._prompt is None:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        length, answer = self.session.length, np.array(self._answer, dtype=np.int64)
        ids = np.concatenate([self._prompt.layout.input_ids[0], answer])[:length]
        return ids, np.concatenate([self._prompt.origins, np.full(len(answer), -1)])[:length]
