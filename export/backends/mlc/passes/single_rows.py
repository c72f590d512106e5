"""A row of a matrix at a time, times a row of numbers: what `row_product` does by AVX2 and on arm64."""

# mypy: ignore-errors
from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import partial

from tvm.script import tirx as T

from export.backends.mlc.parameters import GROUP, PER_WORD
from export.backends.mlc.passes.row_steps import TOGETHER, RowProducts
from export.processor.online_softmax import tree_reduce
from export.processor.vectors import LINE, Index, prefetch

AHEAD = 4608
"""Bytes of codes from those that are multiplied to those that are asked for: what memory answers in the time of two rows."""

FIRST = 3
"""The cache that memory is asked into."""


@dataclass(frozen=True)
class SingleRows(RowProducts):
    """Writes them row by row."""

    def write(self, block: Index) -> None:
        steps, fixed, lanes = self.steps, self.fixed, self.steps.byte.words
        rows, columns = int(self.words.shape[0]), steps.columns
        batch, tokens = self.out.shape[:2]
        numbers, pieces, count, _, width = fixed.planes.shape
        together = steps.step * steps.groups
        whole, all_of = T.ramp(0, 1, lanes), T.ramp(0, 1, together) if together > 1 else 0
        with T.grid(numbers, T.min(TOGETHER, rows - block * TOGETHER)) as (number, within):  # noqa: SIM117
            with T.sblock("row"):
                row = T.axis.spatial(rows, block * TOGETHER + within)
                T.reads(
                    fixed.planes[number, 0:pieces, 0:count, 0:2, 0:width],
                    fixed.zeros[number, 0 : columns // PER_WORD],
                    fixed.powers[number, 0 : columns // GROUP],
                    self.words[row, 0 : columns // PER_WORD],
                    self.scales[row, 0 : columns // GROUP],
                )
                T.writes(self.out[0:batch, 0:tokens, row])
                sums = T.sblock_alloc_buffer((lanes,), "float32")
                factors = T.sblock_alloc_buffer((together,), "float32")
                T.buffer_store(sums, T.broadcast(T.float32(0), lanes), [whole])
                with T.serial(0, steps.pieces // steps.step) as at:
                    first = at * steps.step
                    T.buffer_store(factors, steps.factors(self.scales, fixed.powers, number, row, first), [all_of])
                    T.buffer_store(sums, self._added(sums[whole], factors[all_of], number, row, first), [whole])
                    self._prefetch_codes(row, first)
                    with T.If(at % self._between_scales == 0), T.Then():
                        T.evaluate(prefetch(self.scales[row, first * steps.groups + AHEAD * 2 // GROUP], FIRST))
                made = tree_reduce([sums[lane] for lane in range(lanes)], operator.add)
                T.buffer_store(self.out, made, [number // tokens, number % tokens, row])

    def _added(self, total, factors, number, row, first):
        """float32 sums by lane: ``total`` and the products of one step of the row ``number`` with the matrix's ``row``."""
        steps, lanes = self.steps, self.steps.byte.words
        for place in range(steps.step):
            piece = first + place
            at, plane = T.ramp(piece * lanes, 1, lanes), partial(steps.plane, self.fixed.planes, number, piece)
            exact = steps.exact(self.words[row, at], plane) + self.fixed.zeros[number, at]
            total = total + T.Cast(f"float32x{lanes}", exact) * steps.factor_of(factors, place * lanes, lanes)
        return total

    def _prefetch_codes(self, row, first):
        """Ask memory for the codes that lie ahead of a step, line by line."""
        byte = self.steps.byte
        for line in range(-(-self.steps.step * byte.width // LINE)):
            T.evaluate(prefetch(self.words[row, first * byte.words + (line * LINE + AHEAD) // 4], FIRST))

    @property
    def _between_scales(self):
        """Steps that one line of scales serves."""
        return max(1, LINE // (self.steps.step * self.steps.groups * self.steps.scale_bytes))
