"""Rows of a layer that a method gets at a time, each piece on one thread and several side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

CHUNK_ELEMENTS = 1 << 23
"""Weights of a layer that a method gets at a time, on one thread; chunks run side by side on the others. The result depends
on the chunks alone, so that it is the same with any number of threads."""

LEAST_ELEMENTS = 1 << 20
"""Weights of a layer that are worth several chunks: from these on their number is even, and they are of equal length, so
that no thread waits for the other's last."""


def chunk_rows(rows: int, columns: int) -> int:
    """Rows of a layer that are solved at a time."""
    elements = rows * columns
    if elements < LEAST_ELEMENTS:
        return rows
    pairs = -(-elements // (2 * CHUNK_ELEMENTS))
    return -(-rows // (2 * pairs))


def busy_threads(rows: int, columns: int, threads: int) -> int:
    """How many of so many threads a layer's chunks keep at work."""
    return min(threads, -(-rows // chunk_rows(rows, columns)))


def side_by_side(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Results in order, with as many items at a time as torch has threads, each on one of them.

    Short operations that are spread over threads one by one wait for the slowest thread every time; whole chunks do not.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # new threads start with this
    try:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(work, items))
    finally:
        torch.set_num_threads(threads)
