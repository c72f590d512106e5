"""Indices of tokens that go through weights of their own, in calls of a decoder library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from runtime_py.errors import UsageError

BACK = "restore_index"
"""Where each token stands in the rows of all sets, one behind the other."""

DELTA = "delta_index"
"""Which row of the one set each token is; as many as there are rows, of a token that is none."""


@dataclass(frozen=True)
class TokenRoutes:
    """What a library knows of its decoder's indices.

    Attributes:
        given: those that its functions of prompts take, `BACK` or `DELTA` the last; none where every token is taken alike.
        absent: those that are empty where all tokens are text.

    Raises:
        TypeError, ValueError: they are no such names.
    """

    given: Sequence[str]
    absent: Sequence[str]

    def __post_init__(self) -> None:
        if not all(isinstance(name, str) for name in (*self.given, *self.absent)):
            raise TypeError("indices of tokens that have no names")
        sets = 2 if self.given and self.given[-1] == DELTA else len(self.given)
        known = not self.given or (self.given[-1] in (BACK, DELTA) and len(self.given) == sets)
        if not known or not set(self.absent) <= set(self.given[:-1]):
            raise ValueError(f"indices {', '.join(self.given)}, of which {', '.join(self.absent)} may be empty")

    def text_alone(self, inputs: Mapping[str, np.ndarray]) -> bool:
        """Whether all tokens of a call are text."""
        return not any(np.size(inputs.get(name, ())) for name in self.absent)

    def within(self, inputs: Mapping[str, np.ndarray], start: int, stop: int) -> list[np.ndarray]:
        """The indices of a call for its tokens from ``start`` to before ``stop``, int64.

        Raises:
            UsageError: they do not name each of these tokens once, or its own row.
        """
        if not self.given:
            return []
        sets = [np.asarray(inputs[name]) for name in self.given[:-1]]
        here = [rows[(rows >= start) & (rows < stop)] - start for rows in sets]
        if self.given[-1] == DELTA:
            return [*here, self._own_rows(sets[0], np.asarray(inputs[DELTA]), start, stop)]
        return [*here, self._order(here, start, stop)]

    def _order(self, here: Sequence[np.ndarray], start: int, stop: int) -> np.ndarray:
        """Where each token stands among the sets."""
        order = np.argsort(np.concatenate(here), kind="stable")
        if not np.array_equal(np.concatenate(here)[order], np.arange(stop - start)):
            names = ", ".join(self.given[:-1])
            raise UsageError(
                f"{names} do not name the tokens {start} to {stop - 1}, each once",
                "every token in one of them",
                "correct the indices",
            )
        return order

    def _own_rows(self, rows: np.ndarray, last: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Which of the rows here each token is."""
        inside = (rows >= start) & (rows < stop)
        expected, own = np.full(stop - start, len(rows)), np.full(stop - start, inside.sum())
        expected[rows[inside] - start] = np.flatnonzero(inside)
        own[rows[inside] - start] = np.arange(inside.sum())
        once = len(np.unique(rows[inside])) == inside.sum()
        if not once or not np.array_equal(last[start:stop], expected):
            raise UsageError(
                f"{self.given[0]} and {DELTA} do not agree on the tokens {start} to {stop - 1}",
                f"every image row once, and of each token its place among them, or {len(rows)}",
                "correct the indices",
            )
        return own
