"""The runtime of TVM alone, without its compiler: two libraries of some megabytes that open in a fifth of a second."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runtime_py.errors import MachineError

DISTRIBUTION, ADVICE = "apache-tvm", "pip install 'edgeproof[mlc]'"

COUNT, SPIN, BIND = "TVM_NUM_THREADS", "TVM_THREAD_POOL_SPIN_COUNT", "TVM_BIND_THREADS"
"""Of the environment: how many threads a caller's pool has, how often an idle one looks for work before it sleeps, and
whether each is bound to a processor. Where nobody says otherwise: half the processors (apache/tvm,
src/runtime/threading_backend.cc), 300,000 times (tens of milliseconds that the next stage's threads need), and bound."""

_lock = threading.Lock()
_configured = threading.local()


def require_tvm(built_with: str) -> None:
    """Raise MachineError unless TVM is installed in the version that a library was built with."""
    try:
        found = importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError as error:
        raise MachineError(f"{DISTRIBUTION} is not installed", f"{DISTRIBUTION} {built_with}", ADVICE) from error
    if found != built_with:
        raise MachineError(
            f"{DISTRIBUTION} {found} cannot run a library of another version",
            f"{DISTRIBUTION} {built_with}, which built it",
            f"pip install {DISTRIBUTION}=={built_with}, or export the package again",
        )


def tvm_ffi() -> Any:
    """The module tvm_ffi, with TVM's runtime loaded.

    Raises:
        MachineError: one of the two is missing, or cannot be loaded.
    """
    with _lock:
        for name, value in ((COUNT, str(processors())), (SPIN, "2000"), (BIND, "0")):
            os.environ.setdefault(name, value)
        found = importlib.util.find_spec("tvm")
        place = None if found is None or found.origin is None else Path(found.origin).parent / "lib"
        runtime = next(iter(sorted(place.glob("libtvm_runtime.*"))), None) if place is not None else None
        if runtime is None:
            raise MachineError("TVM's runtime is not installed", f"{DISTRIBUTION} and its libtvm_runtime", ADVICE)
        try:
            with _without_torch():
                import tvm_ffi as module
            ctypes.CDLL(str(runtime), ctypes.RTLD_GLOBAL)
        except (ImportError, OSError) as error:
            told = f"TVM's runtime is installed and cannot be loaded: {error}"
            raise MachineError(told, f"{DISTRIBUTION} as it was published, for this system", ADVICE) from error
    return module


def processors() -> int:
    """That this process may run on."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed is not None else os.cpu_count() or 1


def use_threads(count: int) -> None:
    """Let the kernels that this thread calls run on so many; 0 leaves it to TVM. Its threads are a caller's own."""
    if count and getattr(_configured, "count", 0) != count:
        tvm_ffi().get_global_func("runtime.config_threadpool")(1, count)  # 1: the faster cores, where they differ
        _configured.count = count


@contextmanager
def _without_torch() -> Iterator[None]:
    """tvm_ffi imports torch where it finds it, which takes two seconds and is of no use here."""
    if "torch" in sys.modules or "tvm_ffi" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]
