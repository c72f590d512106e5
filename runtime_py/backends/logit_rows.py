"""Which rows of logits a decoder's graph is asked for, in the words that the graph knows.

The pipeline names tokens (`runtime_py.backends.base.Backend.forward`). Graphs take how many of the last get logits,
``num_logits_to_keep`` (0 for every one); those of packages made before that take ``logit_positions``, an input with a
default, and one whose default was folded away by a tool takes nothing and gives the last token's.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from runtime_py.errors import PackageError

POSITIONS, COUNT = "logit_positions", "num_logits_to_keep"


@dataclass(frozen=True)
class LogitRows:
    """What to feed, and how the answer is read.

    Attributes:
        feeds: the graph's own input, int64 (outputs,) or (); empty where it takes none.
        count: rows that come out.
        rows: int64, which rows of what comes out are those that were asked for, in order; None for all of them.
    """

    feeds: dict[str, np.ndarray]
    count: int
    rows: np.ndarray | None

    def chosen(self, logits: np.ndarray) -> np.ndarray:
        """Of logits (1, rows, vocabulary) those that were asked for."""
        return logits if self.rows is None else logits[:, self.rows]


def logit_rows(inputs: Collection[str], positions: np.ndarray, tokens: int) -> LogitRows:
    """How to ask a graph with these inputs for the logits of some of the tokens that are fed.

    Args:
        positions: indices into the tokens; negative ones count from the end.
        tokens: how many are fed.

    Raises:
        PackageError: the graph gives the last token's logits alone, and others are wanted.
    """
    positions = np.asarray(positions, np.int64)
    if POSITIONS in inputs:
        return LogitRows({POSITIONS: positions}, len(positions), None)
    front = np.where(positions < 0, positions + tokens, positions)
    if COUNT in inputs:
        kept = tokens - int(front.min(initial=tokens - 1))
        rows = front - (tokens - kept)
        return LogitRows({COUNT: np.array(kept, np.int64)}, kept, None if np.array_equal(rows, np.arange(kept)) else rows)
    if front.tolist() == [tokens - 1]:
        return LogitRows({}, 1, None)
    raise PackageError(
        "the decoder's graph gives the logits of the last token alone",
        f"an input {COUNT}, for the logits of {len(front)} of {tokens} tokens",
        "export the package again; the tool that rewrote this graph took its input away",
    )
