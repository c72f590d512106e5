"""Run the kernels of an OpenCL library on PoCL through pyopencl, while the virtual machine stays on the CPU.

TVM's wheel has no OpenCL runtime. Its host code looks for a kernel among the imported module's functions and then among
the global ones, so registering the device code's loader and one global function per kernel replaces that runtime. PoCL
has fine-grain system SVM: a kernel takes the host addresses the virtual machine hands out.
"""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

HANDLE, UNSIGNED, FLOAT = 3, 1, 2
"""DLDataTypeCode."""


@dataclass(frozen=True)
class Kernel:
    """One kernel's argument types (code, bits) and launch tags (``blockIdx.x``, ...)."""

    name: str
    arguments: tuple[tuple[int, int], ...]
    tags: tuple[str, ...]


class Reader:
    """Little-endian fields of TVM's device module blob."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, layout: str) -> Any:
        (value,) = struct.unpack_from("<" + layout, self.data, self.at)
        self.at += struct.calcsize("<" + layout)
        return value

    def text(self) -> str:
        length = self.take("Q")
        self.at += length
        return self.data[self.at - length : self.at].decode()


def read_device_module(data: bytes) -> tuple[str, list[Kernel]]:
    """(OpenCL source, kernels) of the blob: format, function map, code."""
    reader = Reader(data)
    reader.text()
    kernels = []
    for _ in range(reader.take("Q")):
        reader.text()
        name = reader.text()
        arguments = []
        for _ in range(reader.take("Q")):
            code, bits, _lanes = reader.take("B"), reader.take("B"), reader.take("H")
            arguments.append((code, bits))
        tags = tuple(reader.text() for _ in range(reader.take("Q")))
        for _ in range(reader.take("Q")):
            reader.take("i")
        kernels.append(Kernel(name, tuple(arguments), tags))
    return reader.text(), kernels


class Device:
    """The PoCL device with one program, compiled kernel by kernel as they are first called."""

    def __init__(self) -> None:
        import pyopencl as cl

        self.cl = cl
        platforms = [p for p in cl.get_platforms() if "Portable" in p.name]
        self.context = cl.Context([platforms[0].get_devices()[0]])
        self.queue = cl.CommandQueue(self.context)
        self.sources: dict[str, str] = {}
        self.compiled: dict[str, Any] = {}
        self.launched: set[str] = set()

    def add(self, source: str) -> None:
        """Split a module's source at ``// Function: name``; what stands before the first goes before each."""
        head, *bodies = source.split("// Function: ")
        for body in bodies:
            name, _, code = body.partition("\n")
            self.sources[name.strip()] = head + code

    def kernel(self, name: str) -> Any:
        if name not in self.compiled:
            program = self.cl.Program(self.context, self.sources[name]).build()
            self.compiled[name] = getattr(program, name)
        return self.compiled[name]

    def launch(self, kernel: Kernel, *values: Any) -> None:
        """Run one kernel to its end; ``values`` are its arguments, then one extent per launch tag."""
        count = len(kernel.arguments)
        function = self.kernel(kernel.name)
        for index, ((code, bits), value) in enumerate(zip(kernel.arguments, values[:count], strict=True)):
            function.set_arg(index, self._argument(code, bits, value))
        blocks, threads = [1, 1, 1], [1, 1, 1]
        for tag, extent in zip(kernel.tags, values[count:], strict=True):
            place, axis = tag.split(".")
            (blocks if place == "blockIdx" else threads)["xyz".index(axis)] = int(extent)
        total = [block * thread for block, thread in zip(blocks, threads, strict=True)]
        self.cl.enqueue_nd_range_kernel(self.queue, function, tuple(total), tuple(threads))
        self.queue.finish()
        self.launched.add(kernel.name)

    def _argument(self, code: int, bits: int, value: Any) -> Any:
        if code == HANDLE:
            address = value if isinstance(value, int) else int(getattr(value, "value", value))
            view = np.frombuffer(memoryview((ctypes.c_char * 1).from_address(address)), np.uint8)
            return self.cl.SVM(view)
        kind = {FLOAT: "f", UNSIGNED: "u"}.get(code, "i")
        return np.dtype(f"{kind}{bits // 8}").type(value)


def install_kernels() -> Device:
    """Register the loader and, when it is called, every kernel of the library; TVM's own functions come first."""
    import tvm  # noqa: F401
    import tvm_ffi

    device = Device()

    def load(data: bytes) -> Any:
        source, kernels = read_device_module(bytes(data))
        device.add(source)
        for kernel in kernels:
            tvm_ffi.register_global_func(kernel.name, lambda *v, k=kernel: device.launch(k, *v), override=True)
        return tvm_ffi.system_lib("edgeproof_nothing_")

    tvm_ffi.register_global_func("ffi.Module.load_from_bytes.opencl", load, override=True)
    tvm_ffi.register_global_func("__tvm_set_device", lambda *_: None, override=True)
    return device
