"""The few calls of the CUDA driver that running an engine takes, through ctypes: no package beyond the driver itself.

Streams, events and addresses of the driver API are those of the runtime API, which TensorRT is documented with (CUDA
Toolkit documentation, "Interoperability between Runtime and Driver APIs"). Everything runs in the device's primary context,
which TensorRT uses too.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime_py.errors import MachineError

LIBRARIES = {"win32": ("nvcuda.dll",)}
LINUX_LIBRARIES = ("libcuda.so.1", "libcuda.so")

MAJOR, MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""

DEVICE_MEMORY = 2
"""CU_MEMORYTYPE_DEVICE."""

OUT_OF_MEMORY = 2
NAME_BYTES = 256

NEXT_STEP = "run on a machine with an NVIDIA GPU and driver, or use the package's ONNX graphs with --backend ort"


@dataclass(frozen=True)
class Device:
    """A GPU. ``compute_capability`` is like ``8.9``."""

    index: int
    name: str
    compute_capability: str
    memory: int


@dataclass(frozen=True)
class PitchedCopy:
    """``depth`` slices of ``height`` lines of ``width`` bytes, copied on the device.

    Attributes:
        source, target: addresses of the first line.
        pitch: bytes from a line to the next, on both sides; slice_height: lines from a slice to the next.
    """

    source: int
    target: int
    width: int
    height: int
    depth: int
    pitch: int
    slice_height: int


class _Memcpy3D(ctypes.Structure):
    """CUDA_MEMCPY3D_v2 of cuda.h."""

    _fields_ = [
        (side + name, kind)
        for side in ("src", "dst")
        for name, kind in (
            ("XInBytes", ctypes.c_size_t),
            ("Y", ctypes.c_size_t),
            ("Z", ctypes.c_size_t),
            ("LOD", ctypes.c_size_t),
            ("MemoryType", ctypes.c_uint),
            ("Host", ctypes.c_void_p),
            ("Device", ctypes.c_uint64),
            ("Array", ctypes.c_void_p),
            ("Reserved", ctypes.c_void_p),
            ("Pitch", ctypes.c_size_t),
            ("Height", ctypes.c_size_t),
        )
    ] + [("WidthInBytes", ctypes.c_size_t), ("Height", ctypes.c_size_t), ("Depth", ctypes.c_size_t)]


class CudaDriver:
    """One device, made current.

    Args:
        index: which device.

    Raises:
        MachineError: there is no driver, no GPU, or no such device.
    """

    def __init__(self, index: int = 0) -> None:
        self._library = _load()
        self._device = ctypes.c_int()
        self._context = ctypes.c_void_p()
        status = self._library.cuInit(0)
        if status:
            raise MachineError(f"the CUDA driver does not start: {self._words(status)}", "a working GPU", NEXT_STEP)
        count = ctypes.c_int()
        self._call("cuDeviceGetCount", ctypes.byref(count))
        if not 0 <= index < count.value:
            raise MachineError(f"there is no CUDA device {index}", f"{count.value} device(s) found", NEXT_STEP)
        self._call("cuDeviceGet", ctypes.byref(self._device), index)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)
        self.make_current()
        self.device = self._describe(index)

    def make_current(self) -> None:
        """Make the device's context current in this thread."""
        self._call("cuCtxSetCurrent", self._context)

    def stream(self) -> int:
        """A new stream that does not wait for the default stream."""
        handle = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(handle), 1)  # CU_STREAM_NON_BLOCKING
        return int(handle.value or 0)

    def synchronise(self, stream: int) -> None:
        """Wait for everything queued on a stream."""
        self._call("cuStreamSynchronize", ctypes.c_void_p(stream))

    def destroy_stream(self, stream: int) -> None:
        self._call("cuStreamDestroy_v2", ctypes.c_void_p(stream))

    def allocate(self, size: int) -> int:
        """Address of ``size`` bytes on the device, aligned to 256.

        Raises:
            MachineError: the device has no such room left.
        """
        address = ctypes.c_uint64()
        # _v2: the 64-bit form that the header maps the plain name to; a request for 0 bytes is an error
        status = self._library.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
        if status == OUT_OF_MEMORY:
            raise MachineError(
                f"the GPU has no {size / 1e6:.0f} MB left",
                "memory for weights, cache and activations, as `export --dry-run` predicts",
                "close other programs that use the GPU, or export with a smaller --context",
            )
        self._check("cuMemAlloc_v2", status)
        return address.value

    def free(self, address: int) -> None:
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def clear(self, address: int, size: int, stream: int) -> None:
        """Fill with zero bytes."""
        self._call(
            "cuMemsetD8Async", ctypes.c_uint64(address), ctypes.c_ubyte(0), ctypes.c_size_t(size), ctypes.c_void_p(stream)
        )

    def upload(self, address: int, array: np.ndarray, stream: int) -> None:
        """Copy a contiguous array to the device; the driver has taken the bytes when this returns."""
        source = ctypes.c_void_p(array.ctypes.data)
        self._call(
            "cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), source, ctypes.c_size_t(array.nbytes), ctypes.c_void_p(stream)
        )

    def download(self, array: np.ndarray, address: int, stream: int) -> None:
        """Copy from the device into a contiguous array; complete after `synchronise`."""
        target = ctypes.c_void_p(array.ctypes.data)
        self._call(
            "cuMemcpyDtoHAsync_v2", target, ctypes.c_uint64(address), ctypes.c_size_t(array.nbytes), ctypes.c_void_p(stream)
        )

    def copy(self, asked: PitchedCopy, stream: int) -> None:
        """Copy on the device; complete after `synchronise`."""
        given = _Memcpy3D(
            srcMemoryType=DEVICE_MEMORY,
            srcDevice=asked.source,
            srcPitch=asked.pitch,
            srcHeight=asked.slice_height,
            dstMemoryType=DEVICE_MEMORY,
            dstDevice=asked.target,
            dstPitch=asked.pitch,
            dstHeight=asked.slice_height,
            WidthInBytes=asked.width,
            Height=asked.height,
            Depth=asked.depth,
        )
        self._call("cuMemcpy3DAsync_v2", ctypes.byref(given), ctypes.c_void_p(stream))

    def release(self) -> None:
        """Give the context back; nothing of this object is used afterwards."""
        if self._context.value:
            self._call("cuDevicePrimaryCtxRelease_v2", self._device)
            self._context = ctypes.c_void_p()

    def _describe(self, index: int) -> Device:
        name = ctypes.create_string_buffer(NAME_BYTES)
        self._call("cuDeviceGetName", name, NAME_BYTES, self._device)
        numbers = []
        for attribute in (MAJOR, MINOR):
            value = ctypes.c_int()
            self._call("cuDeviceGetAttribute", ctypes.byref(value), attribute, self._device)
            numbers.append(value.value)
        memory = ctypes.c_size_t()
        self._call("cuDeviceTotalMem_v2", ctypes.byref(memory), self._device)
        return Device(index, name.value.decode(), f"{numbers[0]}.{numbers[1]}", memory.value)

    def _call(self, function: str, *arguments: Any) -> None:
        self._check(function, getattr(self._library, function)(*arguments))

    def _check(self, function: str, status: int) -> None:
        if status:
            raise MachineError(f"{function} failed: {self._words(status)}", "CUDA_SUCCESS", "check the GPU with nvidia-smi")

    def _words(self, status: int) -> str:
        text = ctypes.c_char_p()
        self._library.cuGetErrorString(status, ctypes.byref(text))
        return f"{(text.value or b'unknown error').decode()} (CUresult {status})"


def _load() -> ctypes.CDLL:
    names = LIBRARIES.get(sys.platform, LINUX_LIBRARIES)
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise MachineError("no NVIDIA driver was found", f"the driver's library, {' or '.join(names)}", NEXT_STEP)
