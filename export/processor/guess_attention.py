"""Attention of tokens that were guessed, behind one that is certain: each has the bits of a step of its own.

Keys and values of all of them go into the cache first. Then every row goes through the cache as `flat_attention` does, up
to its own position, in the same order; the rows of one head follow each other on a core, so its keys and values come from
memory once. `prompt_attention` reads many tokens faster, and adds in another order.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from export.processor.flat_attention import Step
from export.processor.flat_rows import FlatHeads, arguments, keep_all
from export.processor.kernel_frame import kernel
from export.processor.score_tiles import SUMS


def guess_attention(heads: FlatHeads, sums: int = SUMS, words: bool = False) -> tirx.PrimFunc:
    """Several tokens of one sequence: what as many calls of `export.processor.flat_attention.flat_attention` give.

    Arguments: those of `export.processor.prompt_attention.prompt_attention`.

    Args:
        sums, words: as of `flat_attention`.

    Raises:
        ValueError: `export.processor.flat_rows.unsupported` says why.
    """
    with kernel(noalias=True) as builder:
        n = T.int32()
        arrays = arguments(heads, n, 1)
        keep_all(heads, n, arrays)
        with T.parallel(0, n * heads.keys) as item, T.sblock("attention"):
            T.reads()
            T.writes()
            Guess(heads=heads, sums=sums, words=words, item=item, rows=n, row=item % n, head=item // n, **arrays).write()
    return builder.get()


class Guess(Step):
    """The statements of one row and one head of keys."""

    @property
    def length(self) -> tirx.Expr:
        return self.lengths[0] + self.row

    def sequence(self, row: tirx.Expr) -> tirx.Expr:
        """The first, whatever the row."""
        return T.int32(0)

    def keep(self, place: tirx.Buffer) -> None:
        """Nothing: keys and values of all rows lie in the caches."""
