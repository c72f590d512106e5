"""What stands between the products of adapters: deltas that some rows have, and the logits of a gate."""

# mypy: ignore-errors
from __future__ import annotations

import operator

from tvm import tirx
from tvm.script import tirx as T
from tvm.script.ir_builder.tirx import arg

from export.processor.kernel_frame import kernel
from export.processor.online_softmax import tree_reduce
from export.processor.row_kernels import SHARED, WIDE, for_pieces, for_rows, row_kernel
from export.processor.vectors import fused, span, splat


def row_deltas(width: int) -> tirx.PrimFunc:
    """Add to each row the delta that is its own, where it has one.

    Arguments: deltas float32 (m, width), index int64 (n,), which is m or more, or below 0, of a row without a delta, and
    rows float32 (n, width), which are changed.
    """
    with kernel(noalias=True) as builder:
        given = [arg(name, T.handle()) for name in ("deltas", "index", "rows")]
        n, m = T.int64(), T.int64()
        deltas = T.match_buffer(given[0], (m, width), "float32", align=4)
        index = T.match_buffer(given[1], (n,), "int64", align=8)
        rows = T.match_buffer(given[2], (n, width), "float32", align=4)

        def write(row):
            with T.If(T.And(index[row] >= 0, index[row] < m)), T.Then():

                def add(at, many):
                    place = [row, span(at, many)]
                    T.buffer_store(rows, rows[tuple(place)] + deltas[index[row], span(at, many)], place)

                for_pieces(width, add)

        with T.sblock("deltas"):
            T.reads()
            T.writes()
            for_rows(n, SHARED // width + 1, write)
    return builder.get()


def gate_logits(hidden: int, experts: int) -> tirx.PrimFunc:
    """out = x @ weight^T + bias; float32 x (n, hidden), weight (experts, hidden), bias (experts,), out (n, experts)."""

    def row(number, x, weight, bias, out):
        with T.serial(0, experts) as expert, T.sblock("expert"):
            T.reads()
            T.writes()
            sums = T.sblock_alloc_buffer((WIDE,), "float32")
            T.buffer_store(sums, splat(0.0, WIDE), [span(0, WIDE)])

            def add(at, many):
                place = [span(0, many)]
                total = fused(x[number, span(at, many)], weight[expert, span(at, many)], sums[tuple(place)])
                T.buffer_store(sums, total, place)

            for_pieces(hidden, add)
            total = tree_reduce([sums[lane] for lane in range(WIDE)], operator.add)
            T.buffer_store(out, total + bias[expert], [number, expert])

    shapes = {"x": ("n", hidden), "weight": (experts, hidden), "bias": (experts,), "out": ("n", experts)}
    return row_kernel(shapes, row)
