"""What kernels share whose lanes are rows of the matrix: how a panel's rows become lanes, and in which order they add up.

Products of a row of numbers have the bits that they have where lanes lie along the row (`block_strides`): chunks are added
in the order of those lanes, and halves of lanes as soon as both are whole.
"""

# mypy: ignore-errors
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.script import tirx as T

from export.processor.block_instructions import CHUNK, VECTORS, BlockInstructions
from export.processor.block_kernel import unforeseen
from export.processor.block_strides import Strides

HALVES = CHUNK // 2
"""Scales that are read of a row at once."""


def lines_of(byte: BlockInstructions, first, read, many):
    """16 bytes, ``many`` numbers, of each row of a vector: four, of which `turned` makes four with rows as lanes.

    Args:
        first: the matrix's row that is the first lane.
        read: what is read of a row of this number.
    """
    sections = byte.width // CHUNK
    for at in range(VECTORS):
        parts = [read(first + section * VECTORS + at) for section in range(sections)]
        whole = tirx.Shuffle(parts, [*range(sections * many)]) if sections > 1 else parts[0]
        yield T.reinterpret(f"uint8x{byte.width}", whole)


def widen_scales(byte: BlockInstructions, single: tirx.Buffer, first_row: Callable, scales: tirx.Buffer):
    """Scales of all rows of a panel; the last that are read at once may have been read before.

    Args:
        single: float32 (blocks, vectors, lanes), which is written.
        first_row: of the matrix, by vector.
        scales: float16 (rows, blocks).
    """
    blocks, vectors, lanes = int(single.shape[0]), int(single.shape[1]), byte.lanes
    with T.serial(0, -(-blocks // HALVES)) as part:
        begin = T.min(part * HALVES, blocks - HALVES)
        for vector in range(vectors):
            lines = lines_of(byte, first_row(vector), lambda row: scales[row, T.ramp(begin, 1, HALVES)], HALVES)
            for at, turned in enumerate(byte.turned(lines)):
                pairs = T.reinterpret(f"float16x{2 * lanes}", turned)
                for side in range(2):
                    halves = T.Cast(f"float32x{lanes}", tirx.Shuffle([pairs], [*range(side, 2 * lanes, 2)]))
                    T.buffer_store(single, halves, [begin + 2 * at + side, vector, T.ramp(0, 1, lanes)])


@dataclass(frozen=True)
class OrderedSums:
    """Sums of some vectors over all chunks of a row.

    Attributes:
        strides: in whose order chunks are added.
        sums: float32 (many, lanes), where the sums are in the end.
        waiting: halves of lanes that are whole.
    """

    strides: Strides
    sums: tirx.Buffer
    waiting: tirx.Buffer

    @staticmethod
    def of(strides: Strides, many: int, lanes: int) -> OrderedSums:
        waiting = T.sblock_alloc_buffer((strides.byte.lanes.bit_length(), many, lanes), "float32")
        return OrderedSums(strides, T.sblock_alloc_buffer((many, lanes), "float32"), waiting)

    def write(self, rows, add: Callable) -> None:
        """Args:
        rows: of numbers, of the whole call.
        add: adds the products of a chunk to ``sums``, of its slot (`Strides.slot`) and its number.
        """
        strides, sums, waiting = self.strides, self.sums, self.waiting
        many, lanes = (int(size) for size in sums.shape)
        whole = T.ramp(0, 1, lanes)
        with T.serial(0, strides.byte.lanes) as turn:
            lane = strides.turn_of(turn)
            for at in range(many):
                T.buffer_store(sums, T.broadcast(T.float32(0), lanes), [at, whole])
            with T.serial(0, unforeseen(strides.count_of(lane), rows)) as stride:
                add(turn * strides.count + stride, strides.chunk_of(lane, stride))
            # as many halves are whole now as there are ones at the end of the turn's number
            level = T.popcount(T.bitwise_and(turn, T.bitwise_not(turn + 1)))
            with T.serial(0, level) as half:
                for at in range(many):
                    T.buffer_store(sums, waiting[half, at, whole] + sums[at, whole], [at, whole])
            for at in range(many):
                T.buffer_store(waiting, sums[at, whole], [level, at, whole])


@dataclass(frozen=True)
class PanelTile:
    """Some rows of numbers times some vectors of a panel; how codes are multiplied is up to the kernel.

    Attributes:
        byte: the instructions whose lanes are rows of the matrix.
        part: the number of the tile among those of all rows.
        first: its first row of numbers.
        side: its first vector.
    """

    byte: BlockInstructions
    part: tirx.Expr
    first: tirx.Expr
    side: tirx.Expr

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Rows and vectors that are multiplied with each other, in the order of their sums."""
        return [(row, vector) for row in range(self.byte.rows_at_once) for vector in range(self.byte.panel_vectors)]


def each_tile(byte: BlockInstructions, rows, vectors: int, write: Callable) -> None:
    """``write``, of what a `PanelTile` is made of, for all ``rows`` of numbers and all ``vectors`` of a panel."""
    tile = byte.rows_at_once
    with T.serial(0, (rows + tile - 1) // tile) as part:
        # the last tile has rows of the one before where too few are left
        first = T.min(part * tile, rows - tile)
        with T.serial(0, vectors // byte.panel_vectors) as side:
            write(byte, part, first, side * byte.panel_vectors)
