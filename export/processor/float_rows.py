"""A few rows of float32 with a matrix of codes, each of which is decoded in registers as it is read."""

# mypy: ignore-errors
from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.script import tirx as T

from export.processor.block_strides import added_up
from export.processor.online_softmax import tree_reduce
from export.processor.row_kernels import for_pieces
from export.processor.vectors import LINE, fused, prefetch, span, splat

SIDE = 4
"""Rows of the matrix that are multiplied at once."""

TILE = 4
"""Rows of numbers that are multiplied at once."""

AHEAD = 12288
"""Bytes of codes from those that are multiplied to those that are asked for, at least."""

TOGETHER = 16
"""Rows of the matrix that one thread takes."""


def decoded(codes: tirx.Expr, scale: tirx.Expr, lanes: int) -> tirx.Expr:
    """float32 by lane: a code less 128, times its block's scale, float32 of eleven bits; exact."""
    signed = T.reinterpret(f"int8x{lanes}", T.bitwise_xor(codes, T.broadcast(T.uint8(128), lanes)))
    return T.Cast(f"float32x{lanes}", signed) * T.broadcast(scale, lanes)


@dataclass(frozen=True)
class Outputs:
    """Where a product goes.

    Attributes:
        out: float32 (n, columns).
        start: the first column of ``out`` to which the product is added; None where it is written.
        weights: float32 by channel; None of channels that are taken as they are.
    """

    out: tirx.Buffer
    start: int | None
    weights: tirx.Buffer | None

    def weight(self, row):
        return self.weights[row % int(self.weights.shape[0])]

    def store(self, number, row, total):
        """The sum of one row of numbers with one of the matrix."""
        if self.weights is not None:
            total = total * self.weight(row)
        place = [number, row] if self.start is None else [number, self.start + row]
        T.buffer_store(self.out, total if self.start is None else self.out[tuple(place)] + total, place)

    def write(self, n, first, count, rows, product):
        """``product()`` for ``count`` of the matrix's ``rows``; zeros where none of their channels has a weight."""
        if self.weights is None:
            product()
            return
        weightless = [self.weight(T.min(first + at, rows - 1)) == T.float32(0) for at in range(count)]
        with T.If(tree_reduce(weightless, T.And)):
            with T.Then(), T.grid(n, T.min(count, rows - first)) as (number, at):
                self.store(number, first + at, T.float32(0))
            with T.Else():
                product()


@dataclass(frozen=True)
class FloatRows:
    """Writes the product of a few rows.

    Attributes:
        lanes: numbers of a vector.
    """

    matrix: object
    lanes: int
    outputs: Outputs
    locality: int

    def write(self, codes, scales, held, index, count, n):
        rows = self.matrix.rows
        side = min(SIDE, rows)
        with T.parallel(0, -(-rows // TOGETHER)) as group:  # noqa: SIM117
            with T.serial(0, T.min(TOGETHER // side, -(-rows // side) - group * (TOGETHER // side))) as within:
                first = group * TOGETHER + within * side

                def tiles(first=first):
                    with T.serial(0, n // TILE) as tile:
                        self._tile(codes, scales, held, index, count, first, side, tile * TILE, TILE)
                    for some in range(1, TILE):
                        with T.If(n % TILE == some), T.Then():
                            self._tile(codes, scales, held, index, count, first, side, n // TILE * TILE, some)

                self.outputs.write(n, first, side, rows, tiles)

    def _tile(self, codes, scales, held, index, count, first, side, number, some):
        lanes, block, whole = self.lanes, self.matrix.block, span(0, self.lanes)
        rows = [T.min(first + at, self.matrix.rows - 1) for at in range(side)]
        with T.sblock("tile"):
            T.reads()
            T.writes()
            # buffers of a kilobyte are no longer the compiler's to keep in registers
            sums = [T.sblock_alloc_buffer((some, lanes), "float32") for _ in rows]
            factors = T.sblock_alloc_buffer((side, self.matrix.blocks), "float32")
            for at in range(side):
                for each in range(some):
                    T.buffer_store(sums[at], splat(0.0, lanes), [each, whole])
            for at, row in enumerate(rows):
                for_pieces(
                    self.matrix.blocks,
                    lambda first, many, at=at, row=row: self._widen(scales, factors, row, at, first, many),
                )
            ahead = -(-AHEAD // (self.matrix.blocks * block) // side) * side
            for at in range(side):
                for line in range(-(-self.matrix.blocks * 2 // LINE)):
                    T.evaluate(prefetch(scales[first + ahead + at, line * (LINE // 2)], self.locality))
            with T.serial(0, T.Cast("int64", count[0])) as place:
                read = T.Cast("int64", index[place])
                for at in range(side):
                    for line in range(0, block, LINE):
                        T.evaluate(prefetch(codes[first + ahead + at, read, line], self.locality))
                for piece in range(0, block, lanes):
                    for at, row in enumerate(rows):
                        weight = decoded(codes[row, read, span(piece, lanes)], factors[at, read], lanes)
                        for each in range(some):
                            x = held[number + each, span(place * block + piece, lanes)]
                            T.buffer_store(sums[at], fused(x, weight, sums[at][each, whole]), [each, whole])
            for at, row in enumerate(rows):
                guard = first + at < self.matrix.rows
                for each in range(some):
                    with T.If(guard), T.Then():
                        self.outputs.store(number + each, row, added_up(sums[at][each, whole], lanes))

    def _widen(self, scales, factors, row, at, first, many):
        kind = f"float32x{many}" if many > 1 else "float32"
        T.buffer_store(factors, T.Cast(kind, scales[row, span(first, many)]), [at, span(first, many)])
