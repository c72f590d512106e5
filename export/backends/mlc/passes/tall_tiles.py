"""The schedule of a product of many rows on an Adreno: a thread makes 8 rows x 8 columns, a block 32 rows x 256 columns.

TVM's own configuration for an Adreno (tvm/s_tir/dlight/gpu/matmul.py, 0.27.0.post1) makes 2 rows x 8 columns a thread
where the matrix is stored along the sum: every weight is decoded again for every second row, and every 8 rows ask the
caches for the whole matrix. Its schedule of matrices stored along the output makes 16 rows x 8 columns a thread.
"""

from __future__ import annotations

from dataclasses import replace

from tvm import s_tir, tirx
from tvm.s_tir import dlight as dl
from tvm.target import Target

ROWS = 8
"""Of one thread, each with 8 float32 sums: half of what TVM's other schedule of the same device keeps."""

LEAST_ROWS = 256
"""Of a product whose rows are known: with fewer there would be too few blocks of 32 rows to keep a device busy."""

PROMPT = "seq_len"
"""What the number of rows of a prompt's products is called; a batch's and the head's are few, and keep tiles of 8 rows."""

SYSTEM = "linux-android"
"""Of the host of a phone with an Adreno, as a triple of LLVM names it; OpenCL elsewhere is no Adreno."""


class TallTiles(dl.gpu.Matmul):
    """Takes products of many rows for an Adreno; leaves others to the next rule.

    Args:
        prompts: also those of a prompt's rows, whose number is not known: not where decoding runs them with one row.
    """

    def __init__(self, prompts: bool) -> None:
        self.prompts = prompts

    def get_configs(self, target: Target) -> dl.gpu.Matmul.Config:
        return replace(super().get_configs(target), micro_size_y=ROWS)

    def apply(self, func: tirx.PrimFunc, target: Target, tunable: bool) -> s_tir.Schedule | None:
        adreno = target.kind.name == "opencl" and SYSTEM in str(target.host)
        return super().apply(func, target, tunable) if adreno and self._tall(func) else None

    def _tall(self, func: tirx.PrimFunc) -> bool:
        if not isinstance(func, tirx.PrimFunc) or not func.params or not isinstance(func.params[0].ty, tirx.BufferType):
            return False
        shape = func.params[0].ty.shape
        if len(shape) != 3:
            return False
        if isinstance(shape[1], tirx.IntImm):
            return int(shape[1]) >= LEAST_ROWS
        return self.prompts and str(getattr(shape[1], "name", "")) == PROMPT
