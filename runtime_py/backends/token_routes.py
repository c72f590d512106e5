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
        sets = len(self.given) - 1
        known = not self.given or (self.given[-1] == BACK and sets > 0) or (self.given[-1] == DELTA and sets == 1)
        if not known or not set(self.absent) <= set(self.given[:-1]):
            raise ValueError(f"indices {', '.join(self.given)}, of which {', '.join(self.absent)} may be empty")

    def text_alone(self, inputs: Mapping[str, np.ndarray]) -> bool:
        """Whether all tokens of a call are text."""
        return not any(np.size(inputs.get(name, ())) for name in self.absent)

    def check(self, inputs: Mapping[str, np.ndarray], tokens: int) -> None:
        """Hold the indices of a whole call against one another.

        Raises:
            UsageError: a row is none of the ``tokens`` or there twice, or a token's place among the rows is another.
        """
        if not self.given:
            return
        rows, last = np.concatenate([inputs[name] for name in self.given[:-1]]), inputs[self.given[-1]]
        inside = bool(((rows >= 0) & (rows < tokens)).all())
        whole = len(np.unique(rows)) == len(rows) and (self.given[-1] == DELTA or len(rows) == tokens)
        if not inside or not whole or not np.array_equal(last, _places(rows, tokens)):
            none = f" (or {len(rows)})" if self.given[-1] == DELTA else ""
            raise UsageError(
                f"{', '.join(self.given)} do not fit the tokens 0 to {tokens - 1}",
                f"each row one of these tokens and once; in {self.given[-1]} the place of every token among the rows{none}",
                "correct the indices",
            )

    def within(self, inputs: Mapping[str, np.ndarray], start: int, stop: int) -> list[np.ndarray]:
        """The indices of a call (`check`), for its tokens from ``start`` to before ``stop``; int64."""
        if not self.given:
            return []
        sets = [np.asarray(inputs[name]) for name in self.given[:-1]]
        here = [rows[(rows >= start) & (rows < stop)] - start for rows in sets]
        return [*here, _places(np.concatenate(here), stop - start)]


def _places(rows: np.ndarray, tokens: int) -> np.ndarray:
    """Where each token stands among ``rows``, int64 (tokens,); their number for one that does not."""
    places = np.full(tokens, len(rows))
    places[rows] = np.arange(len(rows))
    return places
