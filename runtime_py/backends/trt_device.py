"""What engines take from the machine: the TensorRT that built them, device memory, and kernels compiled earlier.

Source: docs.nvidia.com/deeplearning/tensorrt-rtx ("Working with Runtime Cache").
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from runtime_py.backends.cuda_driver import CudaDriver
from runtime_py.errors import MachineError, PackageError
from runtime_py.files.json_file import shortened

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Flavour to Python module; an export takes the first that is installed."""


def tensorrt_of(flavour: str, version: str) -> Any:
    """The module of the TensorRT that built the engines.

    Raises:
        PackageError: there is no such flavour; a name from a manifest is never imported as it stands.
        MachineError: it is not installed, or in another version.
    """
    if flavour not in MODULES:
        raise PackageError(
            f"the engines were built by {shortened(flavour)}", "one of " + ", ".join(MODULES), "export the package again"
        )
    name = MODULES[flavour]
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        raise MachineError(
            f"the engines need {flavour} {version}, and the module {name} cannot be imported: {error}",
            f"{flavour} {version}",
            f"pip install '{flavour}=={version}'",
        ) from error
    if getattr(module, "__version__", None) != version:
        raise MachineError(
            f"the engines were built by {flavour} {version}; installed is {getattr(module, '__version__', 'another one')}",
            "the same version",
            f"pip install '{flavour}=={version}', or export the package again",
        )
    return module


class DeviceMemory:
    """Named buffers on the device that grow when asked for more, and are freed together."""

    def __init__(self, cuda: CudaDriver) -> None:
        self.cuda = cuda
        self._held: dict[str, tuple[int, int]] = {}

    def buffer(self, name: str, size: int) -> int:
        """Address of at least ``size`` bytes; the content is lost when it grows."""
        address, held = self._held.get(name, (0, -1))
        if held < size:
            if held >= 0:
                self.cuda.free(address)
                del self._held[name]
            address = self.cuda.allocate(size)
            self._held[name] = (address, size)
        return address

    def free(self) -> None:
        for address, _ in self._held.values():
            self.cuda.free(address)
        self._held.clear()


class KernelCache:
    """Kernels that TensorRT for RTX compiled on this machine, kept so that the next start need not.

    They lie in ``$EDGEPROOF_CACHE`` or the user's cache folder, one file per TensorRT version and GPU; TensorRT checks
    for itself whether they fit. The datacentre build compiles nothing at run time and has no such cache.
    """

    def __init__(self, trt: Any, device: str) -> None:
        default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeproof"
        plain = "".join(letter if letter.isalnum() else "-" for letter in device)
        self.path = Path(os.environ.get("EDGEPROOF_CACHE") or default) / f"tensorrt-{trt.__version__}-{plain}.kernels"
        self._cache: Any = None

    def config(self, engine: Any, strategy: Any) -> Any:
        """A runtime configuration of the engine that uses the cache, or None where TensorRT has none."""
        if not hasattr(engine, "create_runtime_config"):
            return None
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        if not hasattr(config, "create_runtime_cache"):
            return config
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            if self.path.is_file():
                self._cache.deserialize(self.path.read_bytes())
        config.set_runtime_cache(self._cache)
        return config

    def save(self) -> None:
        """Write what was compiled; a cache folder that cannot be written costs time at the next start, nothing else."""
        if self._cache is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial = self.path.with_name(f"{self.path.name}.{os.getpid()}")
            partial.write_bytes(bytes(self._cache.serialize()))
            partial.replace(self.path)
        except OSError:
            return
