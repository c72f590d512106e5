"""One TensorRT engine on the device: its execution contexts, and a call from arrays to arrays.

Source: docs.nvidia.com/deeplearning/tensorrt (Python API).
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime_py.backends.base import Arrays
from runtime_py.backends.records import ONNX
from runtime_py.backends.trt_plan import PAST, PRESENT, EnginePlan
from runtime_py.errors import MachineError, PackageError

if TYPE_CHECKING:
    from runtime_py.backends.trt import TrtBackend


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
        """One call: inputs up, engine, outputs down.

        Args:
            cache: addresses of tensors that stay where they are, of as many sequences as ``inputs_embeds`` has.
        """
        cuda, stream, memory = self.backend.cuda, self.backend.stream, self.backend.memory
        arrays = {name: self._array(name, inputs) for name in self.inputs if name not in cache}
        rows = len(arrays["inputs_embeds"]) if cache else 0
        shapes = {name: (rows, *self.plan.caches[name]) if name in cache else arrays[name].shape for name in self.inputs}
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
