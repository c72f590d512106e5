"""Runs a large MLC package within a small memory: its weight files are mapped, and their pages given back after each kernel.

Library, weight files and calls are the package's own; only the place of the weights differs. What a process holds is then
what one kernel reads, instead of the package.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runtime_py.backends.mlc import MlcBackend
from runtime_py.backends.tensor_cache import StoredTensor
from runtime_py.errors import PackageError

ALIGNMENT = 64
"""Bytes at which TVM's kernels expect a tensor to begin."""

HELD_BYTES = 640 << 20
"""Resident bytes that the exporter, TVM with a library, the pages of its largest kernel and a prompt's logits add to the
reference (measured on the published MiniCPM-V)."""


class MappedWeights:
    """For an `MlcBackend`: parameters that lie in the weight files."""

    _tvm: Any
    _machine: Any
    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]

    def _load_parameters(self, folder: Path) -> Any:
        import tvm_ffi

        self._shards: dict[str, mmap.mmap] = {}
        try:
            tensors = [self._tensor(folder, self.tensors[entry["name"]]) for entry in self.metadata["params"]]
        except (KeyError, OSError, ValueError) as error:
            raise PackageError(
                f"{folder} does not hold the library's parameters: {error}",
                "weights and library of one export",
                "export the package again",
            ) from error
        self._machine["set_instrument"](tvm_ffi.convert(self._give_back))
        return tvm_ffi.convert(tensors)

    def _tensor(self, folder: Path, stored: StoredTensor) -> Any:
        if stored.shard not in self._shards:
            with (folder / stored.shard).open("rb") as file:
                # writable, since NumPy lends out no read-only memory; private, so that nothing reaches the file
                self._shards[stored.shard] = mmap.mmap(
                    file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
                )
        shard, count = self._shards[stored.shard], math.prod(stored.shape)
        if stored.as_bfloat16:
            return self._tvm.runtime.tensor(_widened(shard, stored.offset, count).reshape(stored.shape))
        array = np.frombuffer(shard, np.dtype(stored.dtype), count, stored.offset).reshape(stored.shape)
        return self._tvm.runtime.from_dlpack(array) if stored.offset % ALIGNMENT == 0 else self._tvm.runtime.tensor(array)

    def _give_back(self, _function: Any, _name: str, before: bool, _result: Any, *_arguments: Any) -> int:
        if not before:
            for shard in self._shards.values():
                shard.madvise(mmap.MADV_DONTNEED)
        return 0  # kNoOp: the kernel runs


class MappedMlcBackend(MappedWeights, MlcBackend):
    """A package opened with its own library."""


def _widened(shard: mmap.mmap, begin: int, count: int) -> np.ndarray:
    """float32 values that the file holds as bfloat16."""
    halves = np.frombuffer(shard, np.uint16, count, begin)
    return (halves.astype(np.uint32) << 16).view(np.float32)  # bfloat16 is the upper half of float32


def predicted_peak(working: Mapping[str, int], share_of_context: float) -> int:
    """Resident bytes that running a large package from its files adds to a process, roughly.

    Args:
        working: device bytes beside the weights, by name (export.backends.mlc.prediction.working_bytes).
        share_of_context: of the cache's positions that are filled; the others are never touched.
    """
    cache = round(working["kv_cache"] * share_of_context)
    return HELD_BYTES + cache + sum(size for name, size in working.items() if name not in ("kv_cache", "weights"))
