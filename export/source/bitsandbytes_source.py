"""A checkpoint that bitsandbytes has quantised, read as the matrices that its own ``dequantize_4bit`` gives.

Rows of a matrix are made of their own codes and scales, `PIECE` elements at a time, so that memory stays that of the rows
asked for. Products are float32 and rounded once to the dtype that the matrix had before. Source:
bitsandbytes-foundation/bitsandbytes, bitsandbytes/backends/default/ops.py (``_dequantize_4bit_compute``,
``_dequantize_blockwise_compute``, ``int8_vectorwise_dequant``), csrc/kernels.cu (``kDequantizeBlockwise``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from export.source.bitsandbytes_state import EightBits, FourBits, NestedScales, code_values, find
from export.source.dtypes import ITEM_BYTES
from export.source.file_ranges import row_bounds
from export.source.tensor_source import TensorInfo, TensorSource

if TYPE_CHECKING:
    import torch

PIECE = 1 << 20
"""Elements that are made at a time, a multiple of every block: some 10 MiB beside what is asked for."""

INT8_STEP = 7.874015718698502e-3
"""The library's constant for 1 / 127."""


def dequantised(source: TensorSource) -> TensorSource:
    """A source whose quantised matrices have their real shape and floats; the source itself where there are none.

    What belongs to a matrix (`export.source.bitsandbytes_state`) is no tensor of its own any more.

    Raises:
        CheckpointError: a matrix that is not whole, or does not fit itself.
    """
    matrices = find(source)
    return Dequantised(source, matrices) if matrices else source


class Dequantised:
    """The tensors of a source, those of ``matrices`` by what their codes stand for."""

    def __init__(self, source: TensorSource, matrices: Mapping[str, FourBits | EightBits]) -> None:
        self._source, self._matrices = source, matrices
        self._pairs = {matrix.kind: _pairs(matrix.kind) for matrix in matrices.values() if isinstance(matrix, FourBits)}
        parts = {part for matrix in matrices.values() for part in matrix.parts}
        self.infos: Mapping[str, TensorInfo] = {
            name: matrices[name].info if name in matrices else info
            for name, info in source.infos.items()
            if name not in parts
        }

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        import torch

        matrix = self._matrices.get(name)
        if matrix is None:
            return self._source.read(name, start, stop)
        info = matrix.info
        start, stop = row_bounds(info, start, stop)
        rows = torch.empty((stop - start, *info.shape[1:]), dtype=getattr(torch, info.dtype))
        flat, width = rows.view(-1), math.prod(info.shape[1:])
        if isinstance(matrix, EightBits):
            self._fill_rows(matrix, flat, start, stop, width)
            return rows
        first, last = start * width, stop * width
        while first < last:
            end = min(last, (first // PIECE + 1) * PIECE)
            flat[first - start * width : end - start * width] = self._elements(matrix, first, end)
            first = end
        return rows

    def _fill_rows(self, matrix: EightBits, out: torch.Tensor, start: int, stop: int, width: int) -> None:
        step = max(1, PIECE // max(1, width))
        for first in range(start, stop, step):
            last = min(first + step, stop)
            codes, scale = self._source.read(matrix.info.name, first, last), self._source.read(matrix.scale, first, last)
            out[(first - start) * width : (last - start) * width] = (codes * scale[:, None] * INT8_STEP).view(-1)

    def _elements(self, matrix: FourBits, first: int, last: int) -> torch.Tensor:
        """Elements ``first`` to ``last`` of the flat matrix in float32; at most `PIECE` of one piece."""
        import torch

        size = matrix.blocksize
        block, blocks = first // size, -(-last // size)
        codes = self._bytes(matrix.info.name, block * size // 2, (last + 1) // 2)
        values = self._pairs[matrix.kind].index_select(0, codes.int()).view(torch.float32)
        scales = self._scales(matrix, block, blocks)
        whole = len(values) // size * size
        values[:whole].view(-1, size).mul_(scales[: whole // size, None])
        if whole < len(values):
            values[whole:].mul_(scales[-1])
        return values[first - block * size : last - block * size]

    def _bytes(self, name: str, first: int, last: int) -> torch.Tensor:
        """Bytes of a column, which may be stored as elements of several (``bnb_4bit_quant_storage``)."""
        import torch

        item = ITEM_BYTES[self._source.infos[name].dtype]
        column = self._source.read(name, first // item, -(-last // item))
        return column.view(-1).view(torch.uint8)[first % item :][: last - first]

    def _scales(self, matrix: FourBits, first: int, last: int) -> torch.Tensor:
        """Scales of the blocks ``first`` to ``last``, float32."""
        stored = self._source.read(matrix.absmax, first, last)
        return stored.float() if matrix.nested is None else self._nested_scales(matrix.nested, stored, first)

    def _nested_scales(self, nested: NestedScales, codes: torch.Tensor, first: int) -> torch.Tensor:
        import torch

        last, size = first + len(codes), nested.blocksize
        values = self._source.read(nested.table).index_select(0, codes.int())
        absmax = self._source.read(nested.absmax, first // size, -(-last // size))
        values *= absmax.index_select(0, torch.arange(first, last) // size - first // size)
        values += nested.offset
        return values


def _pairs(kind: str) -> torch.Tensor:
    """The two float32 that each of 256 bytes stands for, as the bits of one int64: a look-up of bits is the fastest."""
    import torch

    values = code_values(kind)
    pairs = torch.stack([values.repeat_interleave(16), values.repeat(16)], 1)
    return pairs.view(torch.int64).view(-1)
