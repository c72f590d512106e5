"""TensorRT engines as a `Backend`: everything stays on one GPU but the inputs and outputs of a stage.

A stage's engine is loaded when first used; each of its profiles gets an execution context. Stages run one after the
other, so all contexts share one scratch buffer. The key/value cache is written in place by the engine (KVCacheUpdate):
an output ``present.*`` has the address of its ``past_key_values.*``. An engine that was built for several sequences takes
a token of each in one call (`runtime_py.backends.trt_rows`).

Source: docs.nvidia.com/deeplearning/tensorrt (Python API; "KV Cache").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from runtime_py.backends.base import Arrays, check_rewind, closed
from runtime_py.backends.cuda_driver import CudaDriver
from runtime_py.backends.records import TENSORRT
from runtime_py.backends.row_calls import BATCH, decode_rows
from runtime_py.backends.trt_device import DeviceMemory, KernelCache, tensorrt_of
from runtime_py.backends.trt_engine import LoadedEngine
from runtime_py.backends.trt_plan import PAST, read_plans, split_positions
from runtime_py.backends.trt_rows import ALIGNED, RowShape, TrtRow, TrtRows
from runtime_py.contracts import DECODER, TensorContract
from runtime_py.errors import PackageError, UsageError


class TrtBackend:
    """Runs the engines of a package.

    Args:
        folder: the package.
        manifest: its manifest.json; ``backends.tensorrt`` says which TensorRT built the engines.
        device: index of the GPU.

    Raises:
        MachineError: TensorRT, the driver or a GPU is missing.
        PackageError: the package has no engines.
    """

    name = TENSORRT.runtime_name
    _closed = False

    def __init__(self, folder: Path, manifest: Mapping[str, Any], device: int = 0) -> None:
        self.plans = read_plans(folder, manifest)
        self.block = TENSORRT.block(manifest)
        self.trt = tensorrt_of(self.block["flavour"], self.block["version"])
        self.cuda = CudaDriver(device)
        self.stream = self.cuda.stream()
        self.memory = DeviceMemory(self.cuda)
        self.runtime = self.trt.Runtime(self.trt.Logger(self.trt.Logger.ERROR))
        self.kernels = KernelCache(self.trt, self.cuda.device.name)
        self._engines: dict[str, LoadedEngine] = {}
        self._alone: TrtRows | None = None
        self._together: TrtRows | None = None

    def run(self, stage: str, inputs: Arrays) -> dict[str, np.ndarray]:
        """Run a cache-less stage; pictures beyond what one call was built for run in several."""
        self._use_device()
        engine = self._engine(stage)
        pieces = [engine.run(part, {}) for _, part in engine.plan.cut(inputs, "images")]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    def start(self, capacity: int) -> TrtRow:
        """An empty cache in the one buffer for a sequence alone, which the newest owns.

        Raises:
            UsageError: more positions than the engine's cache has.
        """
        self._check_capacity(capacity)
        self._use_device()
        if self._alone is None:
            self._alone = self._rows(1, capacity)
        return self._alone.renewed(capacity)

    def forward(self, state: TrtRow, inputs: Arrays, logit_positions: np.ndarray) -> np.ndarray:
        """Feed tokens to the decoder; prompts longer than the engine's chunk are fed in several calls.

        Raises:
            UsageError: the tokens do not fit the cache, or its memory was taken over by a newer sequence.
        """
        tokens = inputs["inputs_embeds"].shape[1]
        self._check_room(state, tokens)
        self._use_device()
        engine = self._engine(DECODER)
        wanted = split_positions(list(logit_positions), tokens)
        rows: dict[int, np.ndarray] = {}
        for start, part in engine.plan.cut(inputs, "tokens"):
            fed = part["inputs_embeds"].shape[1]
            here = sorted({position for position in wanted if start <= position < start + fed})
            own = {
                "attention_mask": np.ones((1, state.length + fed), np.int64),
                "logit_positions": np.array([position - start for position in here] or [fed - 1], np.int64),
            }
            logits = engine.run({**part, **own}, state.buffers)["logits"]
            state.length += fed
            rows |= {position: logits[:, index] for index, position in enumerate(here)}
        return np.stack([rows[position] for position in wanted], axis=1)

    def rewind(self, state: TrtRow, length: int) -> None:
        """Forget every position from ``length`` on."""
        check_rewind(length, state.length)
        state.length = length

    def holds(self, state: TrtRow) -> bool:
        """Whether no newer sequence took over the memory of this one."""
        return state.pool.holds(state)

    # several sequences

    def why_not_batched(self, count: int) -> str:
        """See runtime_py.backends.base.Batching."""
        if self._sequences == 1:
            return "the decoder's engine was built for one sequence a call (export with --batch for more)"
        if any(shape.size % ALIGNED for shape in self._row_shapes().values()):
            return f"a sequence's cache is no multiple of {ALIGNED} bytes (export with another --context)"
        return ""

    def start_batch(self, count: int, capacity: int) -> list[TrtRow]:
        """See runtime_py.backends.base.Batching; these take over the memory of all sequences before."""
        self._check_capacity(capacity)
        self._use_device()
        self._free_caches()
        self._together = self._rows(count, capacity)
        return list(self._together.rows)

    def forward_batch(self, states: Sequence[TrtRow], inputs: Sequence[Arrays]) -> list[np.ndarray]:
        """See runtime_py.backends.base.Batching; more than the engine takes are fed in several calls."""
        for state in states:
            self._check_room(state, 1)
        self._use_device()
        logits: list[np.ndarray] = []
        for start in range(0, len(states), self._sequences):
            some = slice(start, start + self._sequences)
            logits += decode_rows(self._decoder_inputs, states[some], inputs[some], self._decode_rows)
        return logits

    def copy_prefix(self, source: TrtRow, target: TrtRow, length: int) -> None:
        """See runtime_py.backends.base.Batching."""
        self._use_device()
        source.pool.copy(source, target, length)

    def _decode_rows(self, inputs: Arrays, lengths: np.ndarray, cache: Mapping[str, int]) -> np.ndarray:
        mask = (np.arange(lengths.max() + 1) <= lengths[:, None]).astype(np.int64)
        own = {"attention_mask": mask, "logit_positions": np.zeros(1, np.int64)}
        return self._engine(DECODER).run({**inputs, **own}, cache)["logits"]

    @cached_property
    def _sequences(self) -> int:
        """That a decoder call takes at most."""
        return self.plans[DECODER].largest(BATCH)

    @cached_property
    def _decoder_inputs(self) -> list[TensorContract]:
        """What a decoder call is fed, without caches."""
        return [tensor for tensor in self.plans[DECODER].contract.inputs if not tensor.name.startswith(PAST)]

    def _check_capacity(self, capacity: int) -> None:
        built = self.block["cache"]["capacity"]
        if not 0 < capacity <= built:
            raise UsageError(f"a cache of {capacity} positions", f"1 to {built}", "export with a larger --context")

    def _check_room(self, state: TrtRow, tokens: int) -> None:
        if not self.holds(state):
            raise UsageError("this sequence's cache was taken over", "the newest state of this backend", "start again")
        if state.length + tokens > state.capacity:
            raise UsageError(
                f"{tokens} tokens after {state.length} in a cache of {state.capacity} positions",
                f"at most {state.capacity} positions in all",
                "shorten the conversation, or export with a larger --context",
            )

    def load(self) -> None:
        """Load every engine now, instead of when it is first used.

        Raises:
            MachineError: an engine does not load on this GPU.
        """
        self.cuda.make_current()
        for stage in self.plans:
            self._engine(stage)

    def close(self) -> None:
        """Free the device memory."""
        self._closed = True
        self.cuda.make_current()
        self.cuda.synchronise(self.stream)
        self.kernels.save()
        self._engines.clear()
        self._free_caches()
        self.memory.free()
        self.cuda.destroy_stream(self.stream)
        self.cuda.release()

    def _use_device(self) -> None:
        if self._closed:
            raise closed(self.name)
        self.cuda.make_current()

    def _free_caches(self) -> None:
        for pool in (self._alone, self._together):
            if pool is not None:
                pool.free()
        self._alone = self._together = None

    def _rows(self, count: int, capacity: int) -> TrtRows:
        return TrtRows(self.cuda, self.stream, self._row_shapes(), count, capacity)

    def _row_shapes(self) -> dict[str, RowShape]:
        engine = self._engine(DECODER)
        caches = engine.plan.caches.items()
        return {
            name: RowShape(heads, positions, width, engine.dtype(name).itemsize)
            for name, (heads, positions, width) in caches
        }

    def _engine(self, stage: str) -> LoadedEngine:
        if stage not in self.plans:
            raise PackageError(f"the package has no engine for {stage}", "one of " + ", ".join(self.plans), "export again")
        if stage not in self._engines:
            self._engines[stage] = LoadedEngine(self, self.plans[stage])
        return self._engines[stage]
