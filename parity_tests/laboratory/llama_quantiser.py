"""A GGUF of float16 matrices as llama.cpp's quantiser makes Q4_0 of it, by the kernels of xllamacpp.

    python llama_quantiser.py SOURCE.gguf OUT THREADS

Run by an interpreter that has xllamacpp and gguf. The library has llama.cpp's kernels and not the function that quantises a
file, so what that does a tensor is called here in its order (ggml-org/llama.cpp, src/llama-quant.cpp,
`llama_tensor_dequantize_impl` and `llama_tensor_quantize_impl`): float16 to float32, quantising, the check of the rows, each
thread a share of the rows; then the bytes are written, without a header.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

Q4_0, BLOCK, BLOCK_BYTES = 2, 32, 18
"""Its number among types (ggml.h, ggml_type), values of a block, and bytes of one."""


class Kernels:
    """What the quantiser calls of the library."""

    def __init__(self) -> None:
        (folder,) = importlib.import_module("xllamacpp").__path__
        self._library = library = ctypes.CDLL(str(next(Path(folder).glob("*.so"))))
        pointer, count = ctypes.c_void_p, ctypes.c_int64
        library.ggml_fp16_to_fp32_row.argtypes = [pointer, pointer, count]
        library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]
        library.ggml_quantize_chunk.restype = ctypes.c_size_t
        library.ggml_validate_row_data.argtypes = [ctypes.c_int, pointer, ctypes.c_size_t]
        library.ggml_validate_row_data.restype = ctypes.c_bool
        library.ggml_quantize_init(Q4_0)

    def rows(self, stored: np.ndarray, wide: np.ndarray, packed: np.ndarray, start: int, stop: int) -> None:
        """Quantise rows of float16 (rows, columns) by way of float32 ``wide`` into bytes (rows, bytes).

        Raises:
            ValueError: a row that is no Q4_0 came out.
        """
        columns, row = stored.shape[1], packed.shape[1]
        self._library.ggml_fp16_to_fp32_row(stored[start:].ctypes.data, wide[start:].ctypes.data, (stop - start) * columns)
        self._library.ggml_quantize_chunk(
            Q4_0, wide.ctypes.data, packed.ctypes.data, start * columns, stop - start, columns, None
        )
        if not self._library.ggml_validate_row_data(Q4_0, packed[start:].ctypes.data, (stop - start) * row):
            raise ValueError(f"rows {start} to {stop} are no Q4_0")


def quantise(source: str, out: str, threads: int) -> None:
    """Write the bytes of every tensor, matrices in Q4_0 and the others as they are."""
    gguf: Any = importlib.import_module("gguf")
    kernels, room = Kernels(), np.empty(0, np.float32)
    with Path(out).open("wb") as file, ThreadPoolExecutor(threads) as pool:
        for tensor in gguf.GGUFReader(source).tensors:
            stored = tensor.data
            if stored.ndim != 2:
                file.write(stored.tobytes())
                continue
            rows, columns = stored.shape
            room = room if room.size >= stored.size else np.empty(stored.size, np.float32)
            wide, packed = (
                room[: stored.size].reshape(rows, columns),
                np.empty((rows, columns // BLOCK * BLOCK_BYTES), np.uint8),
            )
            cuts = [rows * part // threads for part in range(threads + 1)]
            for done in [pool.submit(kernels.rows, stored, wide, packed, *cut) for cut in pairwise(cuts)]:
                done.result()
            file.write(packed.data)


if __name__ == "__main__":
    quantise(sys.argv[1], sys.argv[2], int(sys.argv[3]))
