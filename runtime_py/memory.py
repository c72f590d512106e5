"""How much memory this machine can still give, so that what is beyond it is refused, not killed; and how much was taken."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from runtime_py.errors import DoesNotFitError

MEMINFO = Path("/proc/meminfo")
STATUS = Path("/proc/self/status")
CGROUP = Path("/sys/fs/cgroup")
LIMITS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
"""Limit and usage of this container, cgroup v2 and v1 (Linux, Documentation/admin-guide/cgroup-v2.rst)."""


def human_bytes(count: float) -> str:
    """Bytes for people, in powers of 1024: ``812 B``, ``1.7 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def gibibytes(count: float) -> str:
    """Bytes that are held against others, so from a GiB on with two places: ``3.24 GiB``, ``135.8 MiB``."""
    return f"{count / (1 << 30):.2f} GiB" if abs(count) >= 1 << 30 else human_bytes(count)


def available_bytes() -> int | None:
    """Bytes that can be had now, swap and a container's limit included; None where the system does not say."""
    sizes = [size for size in (_of_machine(), container_bytes()) if size is not None]
    return min(sizes) if sizes else None


def peak_resident_bytes() -> int:
    """Highest resident memory of this process so far.

    Linux counts what getrusage tells from the peak of the parent, which a program that it starts inherits; so /proc is read
    there. Elsewhere getrusage is.
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in STATUS.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def require_bytes(needed: int, what: str, advice: str) -> None:
    """Refuse what cannot fit.

    Raises:
        DoesNotFitError: ``needed`` exceeds `available_bytes`.
    """
    free = available_bytes()
    if free is not None and needed > free:
        raise DoesNotFitError(
            f"{what} needs {human_bytes(needed)} of memory", f"at most the {human_bytes(free)} that are free here", advice
        )


def _of_machine() -> int | None:
    try:
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text(encoding="ascii").splitlines())
        return sum(int(lines[key].split()[0]) for key in ("MemAvailable", "SwapFree")) * 1024
    except (OSError, KeyError, ValueError):
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, ValueError, OSError):
            return None


def container_bytes() -> int | None:
    """Bytes that this container's limit leaves; None where it has none."""
    for limit_file, usage_file in LIMITS:
        try:
            limit, usage = (int((CGROUP / name).read_text(encoding="ascii")) for name in (limit_file, usage_file))
        except (OSError, ValueError):  # ValueError: "max", no limit
            continue
        return max(limit - usage + _reclaimable((CGROUP / limit_file).parent), 0)
    return None


def _reclaimable(cgroup: Path) -> int:
    """File cache counted as usage, which the kernel gives back under pressure: a package that was just hashed lies there."""
    try:
        rows = (line.split() for line in (cgroup / "memory.stat").read_text(encoding="ascii").splitlines())
        return int(dict(rows).get("inactive_file", 0))
    except (OSError, ValueError):
        return 0
