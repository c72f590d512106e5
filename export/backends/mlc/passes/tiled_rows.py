"""Rows of a matrix some at a time, times rows of numbers some at a time: what `row_product` does by AVX-512.

Four rows of the matrix are read side by side for one row of numbers, whose fixed-point bytes are read once for all of them;
of a prompt's rows four share each code that is decoded. Sums are those of eight lanes, as AVX2's are, in the same order.
"""

# mypy: ignore-errors
from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import partial

from tvm import tirx
from tvm.script import tirx as T

from export.backends.mlc.parameters import GROUP, PER_WORD
from export.backends.mlc.passes.row_steps import TOGETHER, RowProducts
from export.processor.lane_reduction import reduce_lanes
from export.processor.vectors import LINE, Index, prefetch

SIDE = 4
"""Rows of the matrix that are multiplied side by side."""

TILE = 4
"""Rows of numbers that share each code that is decoded; one alone is multiplied where there are fewer."""

LANES = 8
"""float32 sums of one product."""

AHEAD = 16384
"""Bytes of codes from those that are multiplied to those that are asked for."""

SECOND = 2
"""The cache that memory is asked into: the first has no room for what lies so far ahead."""


@dataclass(frozen=True)
class TiledRows(RowProducts):
    """Writes them in tiles."""

    def write(self, block: Index) -> None:
        numbers = self.fixed.planes.shape[0]
        if isinstance(numbers, tirx.IntImm) and int(numbers) < TILE:
            whole = 0
        else:
            whole = numbers // TILE * TILE
            with T.serial(0, numbers // TILE) as part:
                self._rows(block, part * TILE, TILE)
        with T.serial(0, numbers - whole) as rest:
            self._rows(block, whole + rest, 1)

    def _rows(self, block, first, count):
        """``count`` rows of numbers from ``first`` on, times the block."""
        rows, tokens, together = int(self.words.shape[0]), self.out.shape[1], TOGETHER // SIDE
        with T.serial(0, T.min(together, -(-rows // SIDE) - block * together)) as within:  # noqa: SIM117
            with T.sblock("row"):
                buffers = (self.fixed.planes, self.fixed.zeros, self.fixed.powers, self.words, self.scales)
                T.reads(*(buffer[tuple(slice(None) for _ in buffer.shape)] for buffer in buffers))
                T.writes(self.out[:, :, :])
                sums = T.sblock_alloc_buffer((SIDE, count, LANES), "float32")
                exact = T.sblock_alloc_buffer((SIDE, count, self.steps.byte.words), "int32")
                factors = T.sblock_alloc_buffer((SIDE, count, self.steps.step * self.steps.groups), "float32")
                chosen = [block * TOGETHER + within * SIDE + at for at in range(SIDE)]
                if rows % SIDE:
                    # the last row is multiplied more than once where there are too few
                    chosen = [T.min(row, rows - 1) for row in chosen]
                result = T.sblock_alloc_buffer((SIDE,), "float32")
                pairs = [(at, number) for number in range(count) for at in range(SIDE)]
                for pair in pairs:
                    T.buffer_store(sums, T.broadcast(T.float32(0), LANES), [*pair, T.ramp(0, 1, LANES)])
                with T.serial(0, self.steps.pieces // self.steps.step) as step:
                    self._prefetch(block, within, step)
                    self._add(sums, exact, factors, first, chosen, step * self.steps.step, pairs)
                for number in range(count):
                    place = [(first + number) // tokens, (first + number) % tokens]
                    halves = [[sums[at, number, T.ramp(half, 1, 4)] for half in (0, 4)] for at in range(SIDE)]
                    made = reduce_lanes([one + other for one, other in halves], operator.add)
                    if rows % SIDE == 0:
                        T.buffer_store(self.out, made, [*place, T.ramp(chosen[0], 1, SIDE)])
                    else:
                        T.buffer_store(result, made, [T.ramp(0, 1, SIDE)])
                        for at in range(SIDE):
                            T.buffer_store(self.out, result[at], [*place, chosen[at]])

    def _prefetch(self, block, within, step):
        """Memory is asked for line after line, whatever rows are multiplied."""
        columns, byte = self.steps.columns, self.steps.byte
        lines = SIDE * self.steps.step * byte.width // LINE
        passed = within * SIDE * (columns // PER_WORD) + step * (lines * LINE // 4)
        for line in range(lines):
            T.evaluate(prefetch(self.words[block * TOGETHER, passed + (line * LINE + AHEAD) // 4], SECOND))
        taken = SIDE * self.steps.step * self.steps.groups
        behind = within * SIDE * (columns // GROUP) + step * taken + AHEAD * 2 // GROUP
        every = max(1, LINE // (taken * self.steps.scale_bytes))
        with T.If(step % every == 0), T.Then():
            T.evaluate(prefetch(self.scales[block * TOGETHER, behind], SECOND))

    def _add(self, sums, exact, factors, first, chosen, begin, pairs):
        """The products of the pieces from ``begin`` on, one step."""
        steps, lanes = self.steps, self.steps.byte.words
        groups = steps.step * steps.groups
        all_of = T.ramp(0, 1, groups) if groups > 1 else 0
        for at, number in pairs:
            made = steps.factors(self.scales, self.fixed.powers, first + number, chosen[at], begin)
            T.buffer_store(factors, made, [at, number, all_of])
        for place in range(steps.step):
            piece = begin + place
            these = T.ramp(piece * lanes, 1, lanes)
            for at, number in pairs:
                plane = partial(steps.plane, self.fixed.planes, first + number, piece)
                total = steps.exact(self.words[chosen[at], these], plane) + self.fixed.zeros[first + number, these]
                T.buffer_store(exact, total, [at, number, T.ramp(0, 1, lanes)])
            for eighth in range(lanes // LANES):
                for at, number in pairs:
                    whole = T.ramp(0, 1, LANES)
                    part = T.Cast(f"float32x{LANES}", exact[at, number, T.ramp(eighth * LANES, 1, LANES)])
                    factor = steps.factor_of(factors[at, number, all_of], place * lanes + eighth * LANES, LANES)
                    T.buffer_store(sums, sums[at, number, whole] + part * factor, [at, number, whole])
