"""TensorRT engines as a `Backend`: everything stays on one GPU but the inputs and outputs of a stage.

A stage's engine is loaded when first used; each of its profiles gets an execution context. Stages run one after the
other, so all contexts share one scratch buffer. The key/value cache is written in place by the engine (KVCacheUpdate):
an output ``present.*`` has the address of its ``past_key_values.*``.

Source: docs.nvidia.com/deeplearning/tensorrt (Python API; "KV Cache").
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime_py.backends.base import Arrays, check_rewind, closed
from runtime_py.backends.cuda_driver import CudaDriver
from runtime_py.backends.records import ONNX, TENSORRT
from runtime_py.backends.trt_device import DeviceMemory, KernelCache, tensorrt_of
from runtime_py.backends.trt_plan import PAST, PRESENT, EnginePlan, read_plans, split_positions
from runtime_py.contracts import DECODER
from runtime_py.errors import MachineError, PackageError, UsageError


@dataclass
class TrtState:
    """One sequence. The backend has one cache: a newer state takes it over, and this one is then refused."""

    capacity: int
    number: int
    length: int = 0


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
        self._cache: dict[str, int] = {}
        self._newest = 0

    def run(self, stage: str, inputs: Arrays) -> dict[str, np.ndarray]:
        """Run a cache-less stage; pictures beyond what one call was built for run in several."""
        self._use_device()
        engine = self._engine(stage)
        pieces = [engine.run(part, {}) for _, part in engine.plan.cut(inputs, "images")]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    def start(self, capacity: int) -> TrtState:
        """An empty cache in the engine's one buffer, which the newest state owns.

        Raises:
            UsageError: more positions than the engine's cache has.
        """
        built = self.block["cache"]["capacity"]
        if not 0 < capacity <= built:
            raise UsageError(f"a cache of {capacity} positions", f"1 to {built}", "export with a larger --context")
        self._use_device()
        if not self._cache:
            self._cache = self._allocate_cache()
        self._newest += 1
        return TrtState(capacity, self._newest)

    def forward(self, state: TrtState, inputs: Arrays, logit_positions: np.ndarray) -> np.ndarray:
        """Feed tokens to the decoder; prompts longer than the engine's chunk are fed in several calls.

        Raises:
            UsageError: the tokens do not fit the cache, or a newer sequence was started.
        """
        tokens = inputs["inputs_embeds"].shape[1]
        if state.number != self._newest:
            raise UsageError("this sequence's cache was taken over", "the newest state of this backend", "start again")
        if state.length + tokens > state.capacity:
            raise UsageError(
                f"{tokens} tokens after {state.length} in a cache of {state.capacity} positions",
                f"at most {state.capacity} positions in all",
                "shorten the conversation, or export with a larger --context",
            )
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
            logits = engine.run({**part, **own}, self._cache)["logits"]
            state.length += fed
            rows |= {position: logits[:, index] for index, position in enumerate(here)}
        return np.stack([rows[position] for position in wanted], axis=1)

    def rewind(self, state: TrtState, length: int) -> None:
        """Forget every position from ``length`` on."""
        check_rewind(length, state.length)
        state.length = length

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
        self._cache.clear()
        self.memory.free()
        self.cuda.destroy_stream(self.stream)
        self.cuda.release()

    def _use_device(self) -> None:
        if self._closed:
            raise closed(self.name)
        self.cuda.make_current()

    def _allocate_cache(self) -> dict[str, int]:
        """Zeroed buffers by tensor name: what is masked out must still be a number."""
        engine = self._engine(DECODER)
        buffers = {}
        for name, shape in engine.plan.profiles[0].greatest.items():
            if name.startswith(PAST):
                size = int(np.prod(shape)) * engine.dtype(name).itemsize
                buffers[name] = self.memory.buffer(f"cache {name}", size)
                self.cuda.clear(buffers[name], size, self.stream)
        return buffers

    def _engine(self, stage: str) -> LoadedEngine:
        if stage not in self.plans:
            raise PackageError(f"the package has no engine for {stage}", "one of " + ", ".join(self.plans), "export again")
        if stage not in self._engines:
            self._engines[stage] = LoadedEngine(self, self.plans[stage])
        return self._engines[stage]


class LoadedEngine:
    """One engine on the device and its execution contexts, one a profile."""

    def __init__(self, backend: TrtBackend, plan: EnginePlan) -> None:
        self.backend, self.plan = backend, plan
        self.trt = backend.trt
        # mapped: read into memory, the file would be held beside the engine made of it
        with plan.file.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            self.engine = backend.runtime.deserialize_cuda_engine(content)
        if self.engine is None:
            block, device = backend.block, backend.cuda.device
            covered = ", ".join(block["compute_capabilities"]) or "the GPU it was built on"
            raise MachineError(
                f"TensorRT cannot load {plan.file.name} on {device.name} (compute capability {device.compute_capability})",
                f"an engine of {block['flavour']} {block['version']} on one of: {covered} (or later)",
                f"export the package again with the TensorRT installed here, or use --backend {ONNX.runtime_name}",
            )
        self._contexts: dict[int, Any] = {}
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        inputs = self.trt.TensorIOMode.INPUT
        self.inputs = [name for name in names if self.engine.get_tensor_mode(name) == inputs]
        self.outputs = [name for name in names if self.engine.get_tensor_mode(name) != inputs]

    def dtype(self, name: str) -> np.dtype:
        """NumPy dtype of a tensor."""
        return np.dtype(self.trt.nptype(self.engine.get_tensor_dtype(name)))

    def run(self, inputs: Arrays, cache: Mapping[str, int]) -> dict[str, np.ndarray]:
        """One call: inputs up, engine, outputs down; tensors in ``cache`` (name to address) stay where they are."""
        cuda, stream, memory = self.backend.cuda, self.backend.stream, self.backend.memory
        arrays = {name: self._array(name, inputs) for name in self.inputs if name not in cache}
        greatest = self.plan.profiles[0].greatest
        shapes = {name: greatest[name] if name in cache else arrays[name].shape for name in self.inputs}
        context = self._context(self.plan.choose(shapes))
        for name in self.inputs:
            self._expect(context.set_input_shape(name, shapes[name]), f"set_input_shape({name}, {shapes[name]})")
            self._expect(context.set_tensor_address(name, self._place(name, arrays, cache)), f"set_tensor_address({name})")
        results = {}
        for name in self.outputs:
            if name.startswith(PRESENT):
                address = cache[PAST + name.removeprefix(PRESENT)]
            else:
                results[name] = np.empty(tuple(context.get_tensor_shape(name)), self.dtype(name))
                address = memory.buffer(f"output {name}", results[name].nbytes)
            self._expect(context.set_tensor_address(name, address), f"set_tensor_address({name})")
        # after the shapes are set: what this call needs, not the profile's largest
        scratch = context.update_device_memory_size_for_shapes()
        context.set_device_memory(memory.buffer("scratch", scratch), scratch)
        self._expect(context.execute_async_v3(stream), "execute_async_v3")
        for name, array in results.items():
            cuda.download(array, memory.buffer(f"output {name}", array.nbytes), stream)
        cuda.synchronise(stream)
        return {name: array.astype(np.float32, copy=False) for name, array in results.items()}

    def _array(self, name: str, inputs: Arrays) -> np.ndarray:
        if name not in inputs:
            raise PackageError(
                f"stage {self.plan.stage}: the input '{name}' is missing",
                "every input of the engine",
                "check that the package's processor belongs to its engines",
            )
        return np.ascontiguousarray(inputs[name], dtype=self.dtype(name))

    def _place(self, name: str, arrays: Arrays, cache: Mapping[str, int]) -> int:
        """Where TensorRT finds an input: the cache, host memory for shape tensors, or a device buffer filled now."""
        if name in cache:
            return cache[name]
        array = arrays[name]
        if self.engine.get_tensor_location(name) == self.trt.TensorLocation.HOST:
            return int(array.ctypes.data)
        address = self.backend.memory.buffer(f"input {name}", array.nbytes)
        self.backend.cuda.upload(address, array, self.backend.stream)
        return address

    def _context(self, profile: int) -> Any:
        if profile not in self._contexts:
            strategy = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
            config = self.backend.kernels.config(self.engine, strategy)
            context = self.engine.create_execution_context(strategy if config is None else config)
            if context is None:
                raise MachineError(
                    f"TensorRT made no context for {self.plan.file.name}", "free memory on the GPU", "close other programs"
                )
            self._expect(context.set_optimization_profile_async(profile, self.backend.stream), f"profile {profile}")
            self._contexts[profile] = context
        return self._contexts[profile]

    def _expect(self, done: bool, what: str) -> None:
        if not done:
            raise MachineError(
                f"TensorRT refused {what} of the {self.plan.stage} engine",
                "an engine and inputs that belong together",
                "run `python -m parity_tests gpu-check`, and report what it says",
            )
