"""What this machine is and can do: its processor's words for itself, bytes it reads a second, joules it has used."""

from __future__ import annotations

import os
import platform
import threading
import time
from pathlib import Path

import numpy as np

from runtime_py.backends.large_pages import large_memory
from runtime_py.memory import available_bytes

CPUINFO = Path("/proc/cpuinfo")
POWERCAP = Path("/sys/class/powercap")
FEATURES = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm", "sve")
"""Instruction sets that matrix products are written for, in Linux's words."""

CACHES, CACHE_FILES = Path("/sys/devices/system/cpu"), ("level", "size", "shared_cpu_list")
READ_BYTES, READ_CACHES = 1 << 28, 8
"""A buffer that no cache holds: at least so many bytes, and so many times the machine's caches of the last level, which hold
an eighth of it at most. Servers have up to a gigabyte of them, split over cores that each read a part."""

SHARE = 1 / 4
"""Of the memory that is free: the buffer takes no more for the sake of caches."""

READ_SECONDS = 0.2
"""How long memory is read for one figure."""

IDLE_SECONDS = 0.1
"""Until it is read: threads of an engine that has just worked may turn in circles for so long."""


def describe() -> dict[str, object]:
    """The processor's name, its instruction sets among `FEATURES`, and how many cores may be used."""
    rows: dict[str, str] = {}
    if CPUINFO.is_file():
        pairs = (line.partition(":") for line in CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines())
        for name, _, value in pairs:
            rows.setdefault(name.strip(), value.strip())
    has = set((rows.get("flags") or rows.get("Features") or "").split())
    return {
        "processor": rows.get("model name") or platform.processor() or platform.machine(),
        "instructions": [name for name in FEATURES if name in has],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "system": platform.system(),
    }


def cache_bytes(root: Path = CACHES) -> int:
    """Of all caches of the last level together; 0 where nobody says.

    Source: Linux, Documentation/ABI/testing/sysfs-devices-system-cpu (cache/index*/level, size, shared_cpu_list).
    """
    found: dict[tuple[int, str], int] = {}
    try:
        for cache in root.glob("cpu[0-9]*/cache/index[0-9]*"):
            level, size, cores = (
                (cache / name).read_text(encoding="ascii") for name in ("level", "size", "shared_cpu_list")
            )
            found[int(level), cores] = int(size.strip().removesuffix("K")) << 10
    except (OSError, ValueError):
        return 0
    last = max((level for level, _ in found), default=0)
    return sum(size for (level, _), size in found.items() if level == last)


def buffer_bytes(caches: int, free: int | None) -> int:
    """Of the buffer that is read, whole numbers of 64 bits.

    Args:
        caches: bytes of all caches of the last level.
        free: bytes of memory; None where the system does not say.
    """
    wanted = max(READ_BYTES, READ_CACHES * caches)
    return int(wanted if free is None else max(min(wanted, free * SHARE), READ_BYTES)) // 8 * 8


class ReadBandwidth:
    """Bytes a second that some threads read from memory, each a part of one buffer in large pages, as weights lie.

    NumPy's sum of 64-bit integers reads as fast as loops written for it by hand, its maximum a tenth slower; either lets
    other threads run meanwhile.
    """

    def __init__(self, threads: int) -> None:
        whole = large_memory(buffer_bytes(cache_bytes(), available_bytes()))
        whole[:] = 1  # pages that nobody has written are all the same one
        self._parts = np.array_split(whole.view(np.int64), max(threads, 1))

    def measure(self, seconds: float = READ_SECONDS) -> float:
        """Whole passes over the parts for so long, added up over the threads."""
        time.sleep(IDLE_SECONDS)
        rates: list[float] = []

        def read(part: np.ndarray) -> None:
            passes, began = 0, time.perf_counter()
            while not passes or time.perf_counter() - began < seconds:
                np.add.reduce(part)
                passes += 1
            rates.append(passes * part.nbytes / (time.perf_counter() - began))

        threads = [threading.Thread(target=read, args=(part,)) for part in self._parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(rates)


def joules(root: Path = POWERCAP) -> float | None:
    """Energy that the processor's packages have used so far, modulo the counter's range; None where nobody says.

    Source: Linux, Documentation/power/powercap/powercap.rst (intel-rapl:N/energy_uj, micro-joules).
    """
    try:
        zones = sorted(root.glob("intel-rapl:[0-9]"))
        counts = [int((zone / "energy_uj").read_text(encoding="ascii")) for zone in zones]
    except (OSError, ValueError):
        return None
    return sum(counts) / 1e6 if counts else None
