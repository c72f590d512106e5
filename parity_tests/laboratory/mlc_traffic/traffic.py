"""Bytes that a kernel moves, from its accesses: what it touches at all, and what its blocks of threads ask for in all."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from parity_tests.laboratory.mlc_traffic.index_values import Loop, grid, looked_up, loops_of, value_of
from parity_tests.laboratory.mlc_traffic.launches import Access, Launch

MOST_POINTS = 1 << 23
"""Values of loops that are tried at once; a buffer with more is taken as touched whole."""


@dataclass(frozen=True)
class Touched:
    """Distinct elements that accesses of one buffer touch: bytes, over the whole launch and by one block of threads."""

    whole: int
    block: int


@dataclass(frozen=True)
class Traffic:
    """Bytes of one launch by buffer.

    Attributes:
        read, written: distinct bytes; a cache that keeps all of them needs no more.
        asked: distinct bytes of each block of threads, added up over the blocks; no block keeps anything for another.
    """

    read: dict[str, int]
    written: dict[str, int]
    asked: int


def traffic(launch: Launch) -> Traffic:
    """What a launch moves."""
    read: dict[str, int] = {}
    written: dict[str, int] = {}
    asked = 0
    for stores, total in ((False, read), (True, written)):
        for name in dict.fromkeys(access.buffer for access in launch.accesses if access.stores is stores):
            same = [access for access in launch.accesses if access.buffer == name and access.stores is stores]
            touched = union(same)
            total[name] = touched.whole
            asked += touched.block * launch.blocks
    return Traffic(read, written, asked)


def union(accesses: list[Access]) -> Touched:
    """What several accesses of a buffer touch together: equal sets once, others added, no more than the buffer holds."""
    sizes = []
    for block_only in (False, True):
        sets = dict(elements(access, block_only) for access in accesses)
        total, shape = sum(sets.values()), accesses[0].shape
        sizes.append(total if None in shape else min(total, math.prod(size or 0 for size in shape)))
    return Touched(sizes[0] * accesses[0].item, sizes[1] * accesses[0].item)


def elements(access: Access, block_only: bool) -> tuple[str, int]:
    """A digest of the set of elements that an access touches, and how many they are.

    Args:
        block_only: of one block of threads (the first) alone.
    """
    digest, count = hashlib.sha256(), 1
    for axes in _groups(access, block_only):
        loops = sorted({loop for axis in axes for loop in _free(access, axis, block_only)}, key=lambda loop: loop.extent)
        if math.prod(loop.extent for loop in loops) > MOST_POINTS:
            sizes = [access.shape[axis] for axis in axes]
            count *= math.prod(size or 1 for size in sizes)
            digest.update(repr(("whole", axes)).encode())
            continue
        values = grid(loops)
        places: np.ndarray = np.zeros((), np.int64)
        inside: np.ndarray = np.ones((), bool)
        for axis in axes:
            at, size = np.asarray(value_of(access.index[axis], values)), access.shape[axis]
            places_read = looked_up(access.index[axis])
            for place, length in places_read:
                inside = inside & (np.asarray(value_of(place, values)) < length)
            if not places_read and size is not None:
                inside = inside & (at >= 0) & (at < size)
            places = places * (size or int(at.max(initial=0)) + 1) + at
        shape = np.broadcast_shapes(places.shape, inside.shape)
        marks = _marks(np.broadcast_to(places, shape)[np.broadcast_to(inside, shape)])
        count *= int(np.count_nonzero(marks))
        digest.update(repr(axes).encode() + np.packbits(marks).tobytes())
    return digest.hexdigest(), count


def _marks(places: np.ndarray) -> np.ndarray:
    """True at every place that occurs."""
    marks: np.ndarray = np.zeros(int(places.max(initial=-1)) + 1, bool)
    marks[places] = True
    return marks


def _free(access: Access, axis: int, block_only: bool) -> set[Loop]:
    return {loop for loop in loops_of(access.index[axis]) if not (block_only and loop.over_blocks)}


def _groups(access: Access, block_only: bool) -> list[list[int]]:
    """Axes that depend on a common loop, together; sets of elements are products over these groups."""
    groups: list[tuple[set[Loop], list[int]]] = []
    for axis in range(len(access.index)):
        loops, axes = set(_free(access, axis, block_only)), [axis]
        for other in [group for group in groups if group[0] & loops]:
            groups.remove(other)
            loops, axes = loops | other[0], other[1] + axes
        groups.append((loops, axes))
    return [axes for _, axes in groups]
