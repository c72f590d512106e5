"""Small kernels between the products of a decode step: norms of rows, and the gate of an MLP, all in float32.

The norms are those of ONNX Runtime's SkipSimplifiedLayerNormalization and RMSNormalization (microsoft/onnxruntime,
docs/ContribOperators.md). A row takes a microsecond or two, less than it costs to wake another core, so few rows are taken
one after the other.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence

from tvm import tirx
from tvm.script import tirx as T
from tvm.script.ir_builder.tirx import arg

from export.processor.kernel_frame import kernel
from export.processor.online_softmax import exp2, tree_reduce
from export.processor.vectors import Index, span, splat

WIDE = 16
"""Numbers of a vector; a narrower processor takes several for it."""

CHAINS = 4
"""Vectors of partial sums."""

SHARED = 1 << 17
"""Numbers from which on rows are shared among cores: some twenty microseconds of one."""


def skip_norm(hidden: int, eps: float, factor: float) -> tirx.PrimFunc:
    """total = x + skip * factor; normed = total / sqrt(mean(total^2) + eps) * weight.

    Arguments, float32, in this order: x, skip (n, hidden), weight (hidden,), normed, total (n, hidden).
    """
    shapes = {
        "x": ("n", hidden),
        "skip": ("n", hidden),
        "weight": (hidden,),
        "normed": ("n", hidden),
        "total": ("n", hidden),
    }

    def row(
        number: tirx.Expr, x: tirx.Buffer, skip: tirx.Buffer, weight: tirx.Buffer, normed: tirx.Buffer, total: tirx.Buffer
    ) -> None:
        def added(at: Index, many: int) -> tirx.Expr:
            value = x[number, span(at, many)]
            step = skip[number, span(at, many)]
            T.buffer_store(total, value + (step if factor == 1 else step * splat(factor, many)), [number, span(at, many)])
            return total[number, span(at, many)]

        scale = root(hidden, eps, added)
        for_pieces(hidden, lambda at, many: scaled(normed, total, weight, scale, number, at, many))

    return row_kernel(shapes, row)


def norm(hidden: int, eps: float) -> tirx.PrimFunc:
    """out = x / sqrt(mean(x^2) + eps) * weight. Arguments, float32: x (n, hidden), weight (hidden,), out (n, hidden)."""

    def row(number: tirx.Expr, x: tirx.Buffer, weight: tirx.Buffer, out: tirx.Buffer) -> None:
        scale = root(hidden, eps, lambda at, many: x[number, span(at, many)])
        for_pieces(hidden, lambda at, many: scaled(out, x, weight, scale, number, at, many))

    return row_kernel({"x": ("n", hidden), "weight": (hidden,), "out": ("n", hidden)}, row)


def gate(width: int) -> tirx.PrimFunc:
    """out = silu(first half) * second half. Arguments, float32: gate_up (n, 2 * width), out (n, width)."""
    return row_kernel({"gate_up": ("n", 2 * width), "out": ("n", width)}, gate_row)


def gate_row(number: tirx.Expr, gate_up: tirx.Buffer, out: tirx.Buffer) -> None:
    """One row of `gate`."""
    width = int(out.shape[1])

    def gated(at: Index, many: int) -> None:
        value, up = (gate_up[number, span(at + first, many)] for first in (0, width))
        T.buffer_store(out, silu(value, many) * up, [number, span(at, many)])

    for_pieces(width, gated)


def row_kernel(shapes: Mapping[str, Sequence[int | str]], row: Callable[..., None]) -> tirx.PrimFunc:
    """``row`` writes the statements of one row of float32 arrays, of which "n" rows are given."""
    with kernel(noalias=True) as builder:
        given = {name: arg(name, T.handle()) for name in shapes}
        n = T.int32()
        # arrays may begin anywhere
        arrays = {
            name: T.match_buffer(given[name], [n if size == "n" else size for size in shape], "float32", align=4)
            for name, shape in shapes.items()
        }

        def write(number: tirx.Expr) -> None:
            with T.sblock("row"):
                T.reads()
                T.writes()
                row(number, **arrays)

        widest = max(size for shape in shapes.values() for size in shape if isinstance(size, int))
        for_rows(n, SHARED // widest + 1, write)
    return builder.get()


def for_rows(count: tirx.Expr, many: int, write: Callable[[tirx.Expr], None]) -> None:
    """``write(row)`` for all rows, one after the other, or from ``many`` of them on shared among cores."""
    with T.If(count < many):
        with T.Then(), T.serial(0, count) as row:
            write(row)
        with T.Else(), T.parallel(0, count) as row:
            write(row)


def for_pieces(count: int, write: Callable[..., None]) -> None:
    """``write(first, how many)`` for all whole vectors, and then for what is left, one by one."""
    whole = count // WIDE
    if whole:
        with T.serial(0, whole) as piece:
            write(piece * WIDE, WIDE)
    for at in range(whole * WIDE, count):
        write(at, 1)


def root(hidden: int, eps: float, read: Callable[..., tirx.Expr]) -> tirx.Expr:
    """1 / sqrt(mean of squares + eps); ``read`` gives numbers of (first, how many)."""
    sums = T.sblock_alloc_buffer((CHAINS + 1, WIDE), "float32")
    rest = hidden // WIDE % CHAINS
    for chain in range(CHAINS):
        T.buffer_store(sums, splat(0.0, WIDE), [chain, span(0, WIDE)])

    def add(at: Index, many: int, chain: int) -> None:
        value, place = read(at, many), [chain, span(0, many)]
        T.buffer_store(sums, sums[tuple(place)] + value * value, place)

    with T.serial(0, hidden // (WIDE * CHAINS)) as step:
        for chain in range(CHAINS):
            add((step * CHAINS + chain) * WIDE, WIDE, chain)
    begun = hidden // (WIDE * CHAINS) * CHAINS
    for chain in range(rest):
        add((begun + chain) * WIDE, WIDE, chain)
    for at in range(hidden // WIDE * WIDE, hidden):
        add(at, 1, 0)
    together = tree_reduce([sums[chain, span(0, WIDE)] for chain in range(CHAINS)], operator.add)
    T.buffer_store(sums, together, [CHAINS, span(0, WIDE)])
    total = tree_reduce([sums[CHAINS, lane] for lane in range(WIDE)], operator.add)
    kept = T.sblock_alloc_buffer((1,), "float32")
    T.buffer_store(kept, T.float32(1) / T.sqrt(total / T.float32(hidden) + T.float32(eps)), [0])
    return kept[0]


def scaled(
    out: tirx.Buffer, x: tirx.Buffer, weight: tirx.Buffer, scale: tirx.Expr, number: tirx.Expr, at: Index, many: int
) -> None:
    """out = x * scale * weight, for ``many`` numbers of a row from ``at`` on."""
    factor = T.broadcast(scale, many) if many > 1 else scale
    value = x[number, span(at, many)] * factor * weight[span(at, many)]
    T.buffer_store(out, value, [number, span(at, many)])


def silu(x: tirx.Expr, many: int) -> tirx.Expr:
    """x / (1 + e^-x), by the power of -|x|, which never grows too large: for x below 0 it is x e^x / (1 + e^x)."""
    one = splat(1.0, many)
    exponent = splat(-math.log2(math.e), many) * T.max(x, -x)
    # `exp2` ends at 2^-126, which a large x would show
    small = tirx.Select(exponent < splat(-126.0, many), splat(0.0, many), exp2(exponent, many))
    return x * tirx.Select(x < splat(0.0, many), small, one) / (one + small)
