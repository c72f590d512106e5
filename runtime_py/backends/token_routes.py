"""Indices of tokens that go through weights of their own, in calls of a decoder library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from runtime_py.errors import UsageError

BACK = "restore_index"
"""Where each token stands in the rows of all sets, one behind the other."""


@dataclass(frozen=True)
class TokenRoutes:
    """What a library knows of its decoder's indices.

    Attributes:
        given: those that its functions of prompts take, `BACK` the last; none where every token is taken alike, or prompts
            with image rows are the graph's.
        absent: those that are empty where all tokens are text.

    Raises:
        TypeError, ValueError: they are no such names.
    """

    given: Sequence[str]
    absent: Sequence[str]

    def __post_init__(self) -> None:
        if not all(isinstance(name, str) for name in (*self.given, *self.absent)):
            raise TypeError("indices of tokens that have no names")
        if self.given and (self.given[-1] != BACK or not set(self.absent) < set(self.given)):
            raise ValueError(f"indices {', '.join(self.given)}, of which {', '.join(self.absent)} may be empty")

    @property
    def complete(self) -> bool:
        """Whether the library reads every prompt."""
        return bool(self.given) or not self.absent

    def text_alone(self, inputs: Mapping[str, np.ndarray]) -> bool:
        """Whether all tokens of a call are text."""
        return not any(np.size(inputs.get(name, ())) for name in self.absent)

    def take(self, inputs: Mapping[str, np.ndarray]) -> bool:
        """Whether the library has a function for a call."""
        return self.complete or self.text_alone(inputs)

    def within(self, inputs: Mapping[str, np.ndarray], start: int, stop: int) -> list[np.ndarray]:
        """The indices of a call for its tokens from ``start`` to before ``stop``, int64.

        Raises:
            UsageError: they do not name each of these tokens once.
        """
        if not self.given:
            return []
        sets = [np.asarray(inputs[name]) for name in self.given[:-1]]
        here = [rows[(rows >= start) & (rows < stop)] - start for rows in sets]
        order = np.argsort(np.concatenate(here), kind="stable")
        if not np.array_equal(np.concatenate(here)[order], np.arange(stop - start)):
            names = ", ".join(self.given[:-1])
            raise UsageError(
                f"{names} do not name the tokens {start} to {stop - 1}, each once",
                "every token in one of them",
                "correct the indices",
            )
        return [*here, order]
