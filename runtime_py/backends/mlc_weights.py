"""Weights of an MLC package as its library takes them: read into one piece of memory, in large pages where there are any.

TVM's own loader gives every tensor an allocation of its own, in small pages; it reads the same numbers from the same files
(apache/tvm, src/runtime/vm/tensor_cache_support.cc).
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path

import numpy as np

from runtime_py.backends.large_pages import fill, large_memory
from runtime_py.backends.tensor_cache import StoredTensor

ALIGNMENT = 64
"""Bytes at which TVM's kernels expect a tensor to begin."""


def read_weights(folder: Path, tensors: Sequence[StoredTensor]) -> list[np.ndarray]:
    """The tensors in their order, float32 ones widened where they lie in the file as bfloat16.

    Args:
        folder: the weight files'.

    Raises:
        OSError: a file cannot be read, or is shorter than its index says.
    """
    kinds = [np.dtype(tensor.dtype) for tensor in tensors]
    sizes = [math.prod(tensor.shape) * kind.itemsize for tensor, kind in zip(tensors, kinds, strict=True)]
    ends = list(accumulate(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes))
    memory = large_memory(ends[-1] if ends else 0)
    parts = [memory[start : start + size] for start, size in zip([0, *ends], sizes, strict=False)]
    with ExitStack() as opened, ThreadPoolExecutor(os.cpu_count()) as pool:
        names = {tensor.shard for tensor in tensors}
        files = {name: opened.enter_context((folder / name).open("rb", buffering=0)).fileno() for name in names}

        def read(tensor: StoredTensor, part: np.ndarray) -> None:
            if not tensor.as_bfloat16:
                fill(files[tensor.shard], part, tensor.offset)
                return
            halves = np.empty(len(part) // 4, np.uint16)
            fill(files[tensor.shard], halves.view(np.uint8), tensor.offset)
            # the upper half of a float32
            np.left_shift(halves, 16, out=part.view(np.uint32), dtype=np.uint32)

        for _ in pool.map(read, tensors, parts):
            pass
    return [part.view(kind).reshape(tensor.shape) for part, kind, tensor in zip(parts, kinds, tensors, strict=True)]
