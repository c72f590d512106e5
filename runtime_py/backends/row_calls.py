"""One token of each of several sequences through as few decoder calls as their inputs allow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from runtime_py.backends.base import Arrays
from runtime_py.backends.row_pool import PoolRow
from runtime_py.contracts import TensorContract

BATCH = "batch"
"""Name of the axis of sequences in a contract."""


def decode_rows(
    taken: Sequence[TensorContract],
    rows: Sequence[PoolRow[Any]],
    inputs: Sequence[Arrays],
    decode: Callable[..., np.ndarray],
) -> list[np.ndarray]:
    """One token of each row of a pool through as few decoder calls as the contract allows.

    Args:
        taken: what a call is fed, without caches.
        decode: takes a call's inputs, how many positions of each row are filled, int64 (rows,), and the pool's caches.

    Returns:
        float32 logits (1, vocabulary) of each.
    """
    pool = rows[0].pool
    logits: list[np.ndarray] = [np.empty(0)] * len(rows)
    for places in alike(taken, inputs):
        first = pool.gather([rows[place] for place in places])
        places.sort(key=lambda place: rows[place].row)
        feeds = stacked(taken, [inputs[place] for place in places])
        lengths = np.array([rows[place].length for place in places], np.int64)
        made = decode(feeds, lengths, pool.values(first, first + len(places)))
        for row, place in enumerate(places):
            rows[place].length += 1
            logits[place] = made[row]
    return logits


def alike(taken: Sequence[TensorContract], inputs: Sequence[Arrays]) -> list[list[int]]:
    """Which sequences may share a call: an input without an axis of sequences holds for all of them, so it is equal."""
    shared = [tensor.name for tensor in taken if BATCH not in tensor.shape]
    groups: dict[tuple[bytes | None, ...], list[int]] = {}
    for place, given in enumerate(inputs):
        key = tuple(np.asarray(given[name]).tobytes() if name in given else None for name in shared)
        groups.setdefault(key, []).append(place)
    return list(groups.values())


def stacked(taken: Sequence[TensorContract], inputs: Sequence[Arrays]) -> dict[str, np.ndarray]:
    """The inputs of several sequences, which have the same ones, as those of one call."""
    feeds = {}
    for tensor in taken:
        if tensor.name in inputs[0]:
            axis = tensor.shape.index(BATCH) if BATCH in tensor.shape else None
            given = [each[tensor.name] for each in inputs]
            feeds[tensor.name] = given[0] if axis is None else np.concatenate(given, axis=axis)
    return feeds
