"""Norms on a processor: each sum of a row in vectors, and rows shared out over the cores.

TVM adds a row up number by number, each waiting for the one before. Here every lane of some vectors adds its own part.
"""

from __future__ import annotations

from tvm import s_tir, tirx

SUMS = 32
"""Sums of a row that are added up side by side: four vectors of eight."""


def with_row_norm(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function, where it is sums over the last axis of (1, tokens, width) and what is made of them alone."""
    schedule = s_tir.Schedule(function)
    root = schedule.get_sblock("root")
    *before, last = schedule.get_child_blocks(root)
    sums = [block for block in before if _is_sum(schedule, block)]
    if not sums or len(schedule.get(root).alloc_buffers) < len(before) or len(schedule.get_loops(last)) != 3:
        return function
    for block in before:
        if block not in sums:
            schedule.compute_inline(block)
    parts = [(schedule.rfactor(schedule.split(schedule.get_loops(block)[-1], [None, SUMS])[1], 2), block) for block in sums]
    tokens = schedule.get(schedule.get_loops(last)[1]).extent
    row = schedule.fuse(*schedule.get_loops(last)[:-1])
    for block in reversed([each for pair in parts for each in pair]):
        schedule.compute_at(block, row)
    if not isinstance(tokens, tirx.IntImm) or int(tokens) > 1:
        schedule.parallel(row)
    for block, _ in parts:
        lane, pieces = schedule.get_loops(block)[-2:]
        schedule.reorder(pieces, lane)
        schedule.vectorize(lane)
        schedule.decompose_reduction(block, pieces)
    return schedule.mod["main"]


def _is_sum(schedule: s_tir.Schedule, block: s_tir.schedule.SBlockRV) -> bool:
    """Whether it adds up the numbers of (1, tokens), as many as several whole groups of sums take."""
    width = schedule.get(schedule.get_loops(block)[-1]).extent
    kinds = [variable.iter_type for variable in schedule.get(block).iter_vars]
    groups, rest = divmod(int(width), SUMS) if isinstance(width, tirx.IntImm) else (0, 0)
    return kinds[2:] == [tirx.IterVar.CommReduce] and groups > 1 and rest == 0
