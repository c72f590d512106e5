"""Pieces of weights worked on by all cores of one process, with the results in order.

PyTorch splits one operator over its threads, which costs more than it brings on pieces that fit a processor's cache. Here
every thread takes a piece of its own through all operators, each on one thread; PyTorch holds no lock while it computes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from export.source.kept_memory import keep_freed_memory

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_THREADS = 8
"""Every thread holds a piece; this bounds the memory on machines with many cores."""

_ELSEWHERE: list[Callable[[], bool]] = []
"""Whether each piece of other work that takes a core is still under way."""


@contextmanager
def busy_elsewhere(under_way: Callable[[], bool]) -> Iterator[None]:
    """One thread of rows less inside, as long as ``under_way`` says so: more threads than cores cost time in all of them."""
    _ELSEWHERE.append(under_way)
    try:
        yield
    finally:
        _ELSEWHERE.remove(under_way)


class _Turns:
    """Lets as many threads work as there are cores left over, one at least."""

    def __init__(self, threads: int) -> None:
        self._threads, self._working = threads, 0
        self._changed = threading.Condition()

    def __enter__(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._working < max(1, self._threads - sum(busy() for busy in tuple(_ELSEWHERE))))
            self._working += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._working -= 1
            self._changed.notify_all()


def in_order(work: Callable[[Item], Result], items: Iterable[Item]) -> Generator[Result, None, None]:
    """``work(item)`` of every item, in the order of the items; one item more than there are threads is under way.

    There are as many threads as PyTorch would use for one operator (OMP_NUM_THREADS, else the cores), less what is
    `busy_elsewhere`. Close the iterator
    (`contextlib.closing`) where an unfinished ``work`` must not outlive the loop over it.

    Raises:
        whatever ``work`` raises; what was not begun then never is.
    """
    import torch

    keep_freed_memory()
    threads = min(torch.get_num_threads(), MOST_THREADS)
    if threads == 1:
        yield from map(work, items)
        return
    whole = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, "rows", partial(torch.set_num_threads, 1))
    under_way: deque[Future[Result]] = deque()
    turns = _Turns(threads)

    def in_turn(item: Item) -> Result:
        with turns:
            return work(item)

    try:
        for item in items:
            under_way.append(pool.submit(in_turn, item))
            if len(under_way) > threads:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        # what a thread set is the default of every thread begun later
        torch.set_num_threads(whole)
