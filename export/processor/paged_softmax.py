"""An online softmax over a cache of pages, as TVM's paged cache has them, for some heads of keys and their queries.

Keys and values are read a page at a time, in the order in which they lie in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tvm import tirx
from tvm.script import tirx as T

from export.processor.online_softmax import (
    BLOCK,
    LANES,
    LOWEST,
    PAGE,
    WIDE,
    Heads,
    Index,
    OnlineSoftmax,
    Vectors,
    lanes,
    wide,
)

PageVectors = Callable[[Index, Index, Index, Index], tirx.Expr]
"""(part of PAGE positions, head of keys, position of the part, number of the vector) to float32 vectors."""


AT_ONCE = 8
"""Vectors of sums that stay in registers."""


@dataclass(frozen=True)
class PagedSoftmax(OnlineSoftmax):
    """The state of the queries of several heads of keys.

    Attributes:
        unpacked: (PAGE, size), keys or values that several heads of queries read.
    """

    unpacked: tirx.Buffer

    def add(self, seen: Index, key: PageVectors, value: PageVectors) -> None:
        """Write one block of ``seen`` positions."""
        parts = (seen + WIDE - 1) // WIDE
        with T.serial(0, self.members) as member:
            T.buffer_store(self.scores, T.broadcast(T.float32(LOWEST), WIDE), [member, wide(parts - 1)])
        self._each(seen, key, self._score)
        with T.serial(0, self.members) as member:
            self._weigh(member, parts)
        self._each(seen, value, self._add_values)

    def _each(self, seen: Index, read: PageVectors, work: Callable[[Index, Index, Index, Vectors], None]) -> None:
        """Write ``work`` for every part and every member, in the order in which they lie in memory."""
        heads = self.heads
        with T.serial(0, (seen + PAGE - 1) // PAGE) as part:
            there = T.min(PAGE, seen - part * PAGE)
            with T.serial(0, self.members // heads.group) as head:
                if heads.group == 1:
                    work(head, part * PAGE, there, partial(read, part, head))
                    return
                with T.serial(0, there) as position:
                    for piece in range(heads.vectors):
                        T.buffer_store(self.unpacked, read(part, head, position, piece), [position, lanes(piece)])
                with T.serial(0, heads.group) as member:
                    work(head * heads.group + member, part * PAGE, there, self._unpacked)

    def _unpacked(self, position: Index, piece: Index) -> tirx.Expr:
        return self.unpacked[position, lanes(piece)]

    def _add_values(self, member: Index, begin: Index, there: Index, value: Vectors) -> None:
        for first in range(0, self.heads.vectors, AT_ONCE):
            pieces = range(first, min(first + AT_ONCE, self.heads.vectors))
            for at, piece in enumerate(pieces):
                T.buffer_store(self.sums, self.total[member, lanes(piece)], [at, lanes(0)])
            with T.serial(0, there) as position:
                weight = T.broadcast(self.scores[member, begin + position], LANES)
                for at, piece in enumerate(pieces):
                    T.buffer_store(self.sums, self.sums[at, lanes(0)] + weight * value(position, piece), [at, lanes(0)])
            for at, piece in enumerate(pieces):
                T.buffer_store(self.total, self.sums[at, lanes(0)], [member, lanes(piece)])

    def end(self, row: Index, first: Index, output: tirx.Buffer, lse: tirx.Buffer) -> None:
        """Write the row's output (row, head, size) and base-2 log-sum-exp (row, head) from the head ``first`` on."""
        with T.serial(0, self.members) as member:
            for piece in range(self.heads.vectors):
                share = self.total[member, lanes(piece)] / T.broadcast(self.state[member, 1], LANES)
                T.buffer_store(output, T.Cast(f"{self.heads.dtype}x{LANES}", share), [row, first + member, lanes(piece)])
            T.buffer_store(lse, self.state[member, 0] + T.log2(self.state[member, 1]), [row, first + member])


def paged_softmax(heads: Heads, most: int, together: Index) -> PagedSoftmax:
    """Its buffers, in the block that is being written, of ``together`` heads of keys, at most ``most``."""
    rows = most * heads.group
    row = rows, heads.size
    sizes = row, row, (rows, 2), (rows, BLOCK), (WIDE,), (AT_ONCE, LANES), (2,), (PAGE, heads.size)
    return PagedSoftmax(heads, together * heads.group, *(T.sblock_alloc_buffer(size, "float32") for size in sizes))
