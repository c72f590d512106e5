"""Many rows of float32 with a matrix of codes: panels of the matrix are decoded once for all of them.

A tile of sums stays in registers while columns of a chunk pass by: some rows of numbers, by some rows of the matrix. Lanes
are columns, as where rows are few, so that a row has the same bits here and there.
"""

# mypy: ignore-errors
from __future__ import annotations

import operator
from dataclasses import dataclass

from tvm.script import tirx as T

from export.processor.float_rows import Outputs, decoded
from export.processor.lane_reduction import reduce_lanes
from export.processor.vectors import fused, span, splat

PANEL = 32
"""Rows of the matrix that are decoded together."""

ACROSS = 4
"""Rows of the matrix in a tile."""

CHUNK = 512
"""Columns that are decoded together."""

NUMBERS = {16: 6, 8: 3, 4: 6}
"""Rows of numbers in a tile, by lanes of a vector: 32 registers hold 24 sums, 16 hold 12."""

TILES = 10
"""Tiles of rows of numbers whose sums are kept while chunks pass by."""


@dataclass(frozen=True)
class FloatPanels:
    """Writes the product of many rows."""

    matrix: object
    lanes: int
    outputs: Outputs

    @property
    def numbers(self):
        return NUMBERS[self.lanes]

    def write(self, codes, scales, held, index, count, n):
        rows, lanes, block = self.matrix.rows, self.lanes, self.matrix.block
        at_once = CHUNK // block
        with T.parallel(0, -(-rows // PANEL)) as group, T.sblock("panel"):
            T.reads()
            T.writes()
            panel = T.sblock_alloc_buffer((PANEL // ACROSS, CHUNK // lanes, ACROSS, lanes), "float32")
            sums = T.sblock_alloc_buffer((TILES, PANEL // ACROSS, self.numbers, ACROSS, lanes), "float32")
            first = group * PANEL

            def product():
                with T.serial(0, -(-n // (TILES * self.numbers))) as turn:
                    tiles = T.min(T.int64(TILES), -(-n // self.numbers) - turn * TILES)
                    with T.grid(tiles, PANEL // ACROSS, self.numbers, ACROSS) as place:
                        T.buffer_store(sums, splat(0.0, lanes), [*place, span(0, lanes)])
                    with T.serial(0, T.Cast("int64", -(-count[0] // at_once))) as chunk:
                        blocks = T.min(T.int64(at_once), T.Cast("int64", count[0]) - chunk * at_once)
                        with T.grid(PANEL // ACROSS, ACROSS, blocks) as (part, at, number):
                            row = T.min(first + part * ACROSS + at, rows - 1)
                            read = T.Cast("int64", index[chunk * at_once + number])
                            for piece in range(block // lanes):
                                code = codes[row, read, span(piece * lanes, lanes)]
                                place = [part, number * (block // lanes) + piece, at, span(0, lanes)]
                                T.buffer_store(panel, decoded(code, T.Cast("float32", scales[row, read]), lanes), place)
                        with T.grid(tiles, PANEL // ACROSS) as (tile, part):
                            self._tile(held, panel, sums, turn, tile, part, chunk * CHUNK, blocks)
                    self._end(sums, turn, tiles, first, n)

            self.outputs.write(n, first, PANEL, rows, product)

    def _tile(self, held, panel, sums, turn, tile, part, column, blocks):
        lanes, whole = self.lanes, span(0, self.lanes)
        pairs = [(each, at) for each in range(self.numbers) for at in range(ACROSS)]
        with T.sblock("tile"):
            T.reads()
            T.writes()
            kept = [T.sblock_alloc_buffer((ACROSS, lanes), "float32") for _ in range(self.numbers)]
            for each, at in pairs:
                T.buffer_store(kept[each], sums[tile, part, each, at, whole], [at, whole])
            with T.serial(0, blocks * (self.matrix.block // lanes)) as step:
                for each, at in pairs:
                    x = held[(turn * TILES + tile) * self.numbers + each, span(column + step * lanes, lanes)]
                    T.buffer_store(kept[each], fused(x, panel[part, step, at, whole], kept[each][at, whole]), [at, whole])
            for each, at in pairs:
                T.buffer_store(sums, kept[each][at, whole], [tile, part, each, at, whole])

    def _end(self, sums, turn, tiles, first, n):
        """Lanes are added up, of as many rows of the matrix at once as a vector has lanes."""
        lanes, whole = self.lanes, span(0, self.lanes)
        with T.grid(tiles, self.numbers, PANEL // lanes) as (tile, each, piece):
            number = (turn * TILES + tile) * self.numbers + each
            with T.If(number < n), T.Then(), T.sblock("end"):
                T.reads()
                T.writes()
                vectors = []
                for at in range(lanes):
                    row = piece * lanes + at
                    vectors.append(sums[tile, row // ACROSS, each, row % ACROSS, whole])
                totals = T.sblock_alloc_buffer((lanes,), "float32")
                T.buffer_store(totals, reduce_lanes(vectors, operator.add), [whole])
                with T.serial(0, T.min(lanes, self.matrix.rows - first - piece * lanes)) as at:
                    self.outputs.store(number, first + piece * lanes + at, totals[at])
