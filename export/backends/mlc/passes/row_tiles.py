"""The schedule of a matrix times one vector on a device: every thread takes several rows for each piece of the vector.

TVM's own rule (tvm/s_tir/dlight/gpu/gemv.py, 0.27.0.post1) gives an Adreno's block of threads two rows of the matrix and
another device's block one, so that the vector is asked for again by every second row: at four bits a weight 1.8 to 3.6
times the bytes of the matrix, out of the caches. Here a block has 32 rows or more, and the vector is a ninth of the matrix.
"""

from __future__ import annotations

from tvm import s_tir, tirx
from tvm.s_tir import dlight as dl
from tvm.s_tir.dlight.analysis import SBlockInfo, is_gemv, normalize, normalize_prim_func
from tvm.s_tir.dlight.base import get_extent, try_inline_contiguous_spatial
from tvm.target import Target

THREADS = 64
"""Of a block: one wave of an Adreno."""

ROWS = 8
"""Of one thread, each with a sum in a register."""

PIECE = 8
"""Elements of the vector that a thread reads at a time: one word of int4 codes."""

METAL_LANES = 4
"""Of Metal's widest vectors; OpenCL has those of eight too."""

LANES = (16, 8, 4)
"""Threads that share a row, in the order in which they are tried: 16 read 64 bytes of codes side by side."""


class RowTiles(dl.base.ScheduleRule):
    """Takes products with a vector whose matrix has a fixed size; leaves others to the next rule."""

    def apply(self, func: tirx.PrimFunc, target: Target, tunable: bool) -> s_tir.Schedule | None:
        if not isinstance(func, tirx.PrimFunc):
            return None
        schedule = s_tir.Schedule(func)
        infos = try_inline_contiguous_spatial(schedule, normalize_prim_func(schedule))
        if not infos or not _is_product_with_vector(schedule, infos):
            return None
        product, *finish = (info.block_rv for info in infos)
        extents = [get_extent(schedule, loop) for loop in schedule.get_loops(product)]
        fixed = all(isinstance(extent, int) for extent in extents)
        fitting = [lanes for lanes in LANES if fixed and extents[2] * extents[3] % (lanes * PIECE) == 0]
        if not fitting:
            return None
        return _tiled(schedule, product, finish[0] if finish else None, fitting[0], _widest(target))


def _widest(target: Target) -> int:
    """Elements of the vector that one load takes."""
    metal = target.host is not None and "apple" in str(target.host.attrs.get("mtriple", ""))
    return METAL_LANES if metal else PIECE


def _is_product_with_vector(schedule: s_tir.Schedule, infos: list[SBlockInfo]) -> bool:
    """Whether these blocks are sum over k of x[k] w[n, k], and at most one more that works on each result alone."""
    product, *finish = infos
    if len(product.iters) not in (2, 3) or len(finish) > 1 or not all(info.is_injective() for info in finish):
        return False
    return is_gemv(schedule, product) is not None and normalize(schedule, product) is True


def _tiled(
    schedule: s_tir.Schedule,
    product: s_tir.schedule.SBlockRV,
    finish: s_tir.schedule.SBlockRV | None,
    lanes: int,
    width: int,
) -> s_tir.Schedule:
    """Blocks of THREADS threads, ``lanes`` of them along a row; their sums are joined at the end.

    Args:
        width: elements of the vector that a thread loads at once.
    """
    groups = THREADS // lanes
    batch, row, k, inner = schedule.get_loops(product)
    rows, columns = schedule.fuse(batch, row), schedule.fuse(k, inner)
    block, group, tile = schedule.split(rows, [None, groups, ROWS], preserve_unit_iters=True)
    step, lane, element = schedule.split(columns, [None, lanes, PIECE], preserve_unit_iters=True)
    partial = schedule.rfactor(lane, 0)

    block, group, tile, step, lane, element = schedule.get_loops(partial)
    schedule.reorder(block, group, lane, step, tile, element)
    schedule.bind(block, "blockIdx.x")
    schedule.bind(group, "threadIdx.y")
    schedule.bind(lane, "threadIdx.x")
    for number, at in ((0, step), (1, tile)):
        read = schedule.cache_read(partial, number, "local")
        schedule.compute_at(read, at, preserve_unit_loops=True)
        if number == 0:
            last = schedule.get_loops(read)[-1]
            schedule.vectorize(last if width == PIECE else schedule.split(last, [None, width])[1])
    schedule.unroll(tile)
    schedule.unroll(element)
    schedule.set_scope(partial, 0, "local")
    schedule.decompose_reduction(partial, step)

    schedule.reverse_compute_at(product, block, preserve_unit_loops=True)
    _over_threads(schedule, product, groups, joined=True)
    if finish is not None:
        schedule.reverse_compute_at(finish, block, preserve_unit_loops=True)
        schedule.set_scope(product, 0, "local")
        _over_threads(schedule, finish, groups, joined=False)
    return schedule


def _over_threads(schedule: s_tir.Schedule, block: s_tir.schedule.SBlockRV, groups: int, joined: bool) -> None:
    """The rows of a block of threads, each by the threads that summed it; ``joined``: with their lanes' sums added up."""
    _, *loops = schedule.get_loops(block)
    if joined:
        lane, *loops = loops
        schedule.bind(lane, "threadIdx.x")
    group, tile = schedule.split(schedule.fuse(*loops), [groups, ROWS], preserve_unit_iters=True)
    if joined:
        schedule.reorder(group, tile, lane)
    schedule.bind(group, "threadIdx.y")
