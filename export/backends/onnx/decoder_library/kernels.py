"""The kernels of one kind of processor, each made once for every shape."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from tvm import tirx
from tvm.target import Target

from export.processor import block_product, row_kernels
from export.processor.block_instructions import block_instructions
from export.processor.block_product import BlockMatrix
from export.processor.flat_attention import flat_attention
from export.processor.flat_rows import FlatHeads
from export.processor.float_product import Columns, float_product
from export.processor.guess_attention import guess_attention
from export.processor.prompt_attention import prompt_attention
from export.processor.row_deltas import gate_logits, row_deltas
from export.processor.targets import TARGETS


class Rows(Enum):
    """What the rows of a call are: a token of each of several sequences; tokens of one in the bits of steps; a prompt's."""

    STEPS = "steps"
    GUESSES = "guesses"
    PROMPT = "prompt"


class LibraryKernels:
    """Makes kernels for ``place``, a key of `export.processor.targets.TARGETS`."""

    def __init__(self, place: str) -> None:
        byte = block_instructions(Target(TARGETS[place]))
        assert byte is not None, "every place has byte instructions"
        self._bytes = byte
        self._made: dict[object, tirx.PrimFunc] = {}

    def product(self, matrix: BlockMatrix, biased: bool = False) -> tirx.PrimFunc:
        return self._once((matrix, biased), lambda: block_product.block_product(matrix, self._bytes, biased=biased))

    def gates(self, matrix: BlockMatrix) -> bool:
        """Whether there is a `gated_product` of the matrix."""
        return block_product.gates(matrix, self._bytes)

    def gated_product(self, matrix: BlockMatrix) -> tirx.PrimFunc:
        """`product` and `gate` in one."""
        return self._once(("gated", matrix), lambda: block_product.block_product(matrix, self._bytes, gated=True))

    def attention(self, heads: FlatHeads, rows: Rows, last: bool = False) -> tirx.PrimFunc:
        """``last``: of a prompt, the last token alone attends."""
        makers = {
            Rows.STEPS: lambda: flat_attention(heads, self._bytes.shared_sums, self._bytes.words),
            Rows.GUESSES: lambda: guess_attention(heads, self._bytes.shared_sums, self._bytes.words),
            Rows.PROMPT: lambda: prompt_attention(heads, self._bytes.words, last),
        }
        return self._once((heads, rows, last), makers[rows])

    def norm(self, hidden: int, eps: float) -> tirx.PrimFunc:
        return self._once(("norm", hidden, eps), lambda: row_kernels.norm(hidden, eps))

    def skip_norm(self, hidden: int, eps: float, factor: float) -> tirx.PrimFunc:
        return self._once(("skip", hidden, eps, factor), lambda: row_kernels.skip_norm(hidden, eps, factor))

    def gate(self, width: int) -> tirx.PrimFunc:
        return self._once(("gate", width), lambda: row_kernels.gate(width))

    def float_product(self, matrix: BlockMatrix, weights: int = 0, into: Columns | None = None) -> tirx.PrimFunc:
        return self._once(("float", matrix, weights, into), lambda: float_product(matrix, self._bytes, weights, into))

    def row_deltas(self, width: int) -> tirx.PrimFunc:
        return self._once(("deltas", width), lambda: row_deltas(width))

    def gate_logits(self, hidden: int, experts: int) -> tirx.PrimFunc:
        return self._once(("logits", hidden, experts), lambda: gate_logits(hidden, experts))

    def _once(self, key: object, make: Callable[[], tirx.PrimFunc]) -> tirx.PrimFunc:
        if key not in self._made:
            # a module names its functions itself
            self._made[key] = make().without_attr("global_symbol")
        return self._made[key]
