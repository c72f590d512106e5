"""A vision tower as machine code, over its graph's own weight file.

ONNX Runtime attends in float32, and writes and reads all tokens for every step between its products. The library keeps
tokens in panels, multiplies attention in 16 bits, and joins those steps (docs/results/vision.md). It lies beside the graph,
never in its place: where it cannot run, or the processor has AMX, which it does not use, the graph does.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runtime_py.backends.compiled_stage import CompiledStage, aligned
from runtime_py.backends.ort_inputs import checked
from runtime_py.backends.processor import VARIANTS, architecture, instructions
from runtime_py.backends.records import ONNX, VISION_LIBRARY
from runtime_py.backends.tvm_runtime import give_memory_back, require_tvm, use_threads
from runtime_py.contracts import VISION, StageContract
from runtime_py.errors import MachineError, PackageError

log = logging.getLogger(__name__)

TOWER = "tower"
"""The function of a library: pixels (3, height, width), positions (tokens, width), parameters to tokens (tokens, width).
Where positions are `ROTARY`: patches (tokens, patch_values), turns (tokens, head_dim), parameters."""

ROTARY = "rotary"
"""The kind of positions that turn queries and keys; the others are of `export.specs.PositionKind`, and have a table."""

VISION_VARIANTS = ("x86-64-vnni",)
"""Of `VARIANTS`, those that kernels of towers are written for."""

FASTER_GRAPH = "amx_int8"
"""An instruction with which ONNX Runtime multiplies bytes and a library does not."""

PIXELS, ANGLES = "pixel_values", "rotary_angles"
FLOAT32 = np.dtype(np.float32)

LARGE = 4096
"""Tokens of a picture behind which memory is not kept for the next one: a gigabyte for 16,384, of Qwen2-VL's width."""

SIZES = {ROTARY: (ANGLES,), "indexed": ("patch_positions",), "resampled": ("row_weights", "column_weights")}
"""Inputs whose rows, multiplied, are the patches of a picture, by kind of positions; others are of one size."""


class VisionLibrary:
    """Runs the vision tower of one package.

    Args:
        folder: the package.
        manifest: its manifest.json.
        threads: of a call; 0 leaves it to TVM.

    Attributes:
        variant: which of the package's libraries runs.

    Raises:
        MachineError: TVM's runtime is missing or another version, or no library is for this processor.
        PackageError: library, index and weights do not fit one another.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], threads: int = 0) -> None:
        block = ONNX.block(manifest)[VISION_LIBRARY]
        require_tvm(block["tvm"])
        self.variant, self._threads = chosen_variant(block["libraries"]), threads
        self._running, self._noted = threading.Lock(), False  # TVM's machine runs one call at a time
        self._contract = StageContract.from_json(manifest["contracts"][VISION])
        self._compiled = CompiledStage(folder, manifest, block, self.variant, (TOWER,), threads)
        with self._compiled.fitting():
            index = self._compiled.index
            self._kind, self._most = str(index["kind"]), int(index["most"])
            self._first: list[np.ndarray] = []
            if self._kind != ROTARY:
                self._side, self._table = int(index["side"]), self._compiled.placed(index["table"])
                self._first = [self._compiled.placed(row) for row in index["first"]]
            self._parameters = self._compiled.parameters(index["parameters"])

    def takes(self, inputs: Mapping[str, np.ndarray]) -> bool:
        """Whether memory is planned for pictures of this size; where it is not, a note says so, once."""
        tokens = self._tokens(inputs)
        if tokens > self._most and not self._noted:
            self._noted = True
            log.warning("the graph runs a picture of %d tokens: the vision library has memory for %d", tokens, self._most)
        return tokens <= self._most

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The stage's outputs, float32, as its graph gives them; keys are contract names.

        Raises:
            PackageError: an input does not fit the contract, or has more tokens than memory is planned for (`takes`).
        """
        kinds = {tensor.name: np.dtype(tensor.dtype) for tensor in self._contract.inputs}
        fed = checked(self._contract, VISION, kinds, inputs)
        tokens = self._tokens(fed)
        if tokens > self._most:
            raise PackageError(
                f"a picture of {tokens} tokens for the vision library",
                f"at most {self._most}",
                "give a smaller picture, or let the graph run it",
            )
        if self._kind == ROTARY and fed[PIXELS].shape[1] != tokens:
            raise PackageError(
                f"pictures of {fed[PIXELS].shape[1]} patches and angles of {tokens} for the vision library",
                f"a row of '{ANGLES}' for each patch",
                "check that the package's processor belongs to it",
            )
        use_threads(self._threads)
        placed = np.concatenate([*self._first, self._positions(fed)])
        positions = self._compiled.tensor(aligned(placed, FLOAT32))
        made = []
        with self._running:
            for pixels in fed[PIXELS]:
                given = self._compiled.tensor(aligned(pixels, FLOAT32))
                made.append(np.from_dlpack(self._compiled.functions[TOWER](given, positions, self._parameters)))
        features = np.stack(made)
        made.clear()
        if tokens > LARGE:
            give_memory_back()
        return {self._contract.outputs[0].name: features}

    def _tokens(self, inputs: Mapping[str, np.ndarray]) -> int:
        """Of a picture with these inputs, those that stand before its patches too."""
        rows = [inputs[name] for name in SIZES[self._kind] if name in inputs] if self._kind in SIZES else [self._table]
        return len(self._first) + math.prod(size for each in rows for size in np.shape(each)[:1])

    def _positions(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """(patches, width), as `export.modules.vision.transformer` makes them, or (patches, head_dim), cosines and sines."""
        if self._kind == ROTARY:
            angles = inputs[ANGLES].astype(FLOAT32)
            return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
        table = self._table
        if self._kind == "indexed":
            return table[inputs["patch_positions"]]
        if self._kind == "resampled":
            rows, columns = (inputs[name].astype(np.float32) for name in ("row_weights", "column_weights"))
            resampled = np.matmul(columns, (rows @ table.reshape(self._side, -1)).reshape(len(rows), self._side, -1))
            return np.asarray(resampled.reshape(-1, table.shape[1]))
        return table


def chosen_variant(libraries: Mapping[str, str]) -> str:
    """The one of these that this processor runs, and runs faster than the graph.

    Raises:
        MachineError: there is none.
    """
    here, has = architecture(), instructions()
    for variant in VISION_VARIANTS:
        machine, needed = VARIANTS[variant]
        if variant in libraries and machine == here and has.issuperset(needed) and FASTER_GRAPH not in has:
            return variant
    raise MachineError(
        f"this processor ({here}) runs none of the package's vision libraries, or its graph faster: {', '.join(libraries)}",
        "x86-64 with AVX-512 and VNNI, and without AMX",
        "nothing needs to be done: the graph runs",
    )
