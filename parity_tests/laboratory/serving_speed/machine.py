"""How busy the processors of this machine were, and with what: a figure of speed is worth what others left of them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def busy() -> float:
    """Processor seconds of all programs so far (proc(5), /proc/stat: all of the first row but idle and waiting)."""
    numbers = [int(number) for number in Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
    return (sum(numbers) - numbers[3] - numbers[4]) / TICKS


def spent(process: int) -> float:
    """Processor seconds of one program so far, all its threads."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


class Watch:
    """Of the time since it was made, how much of a processor other programs than these took."""

    def __init__(self, own: Iterable[int]) -> None:
        self._own = [os.getpid(), *own]
        self._began, self._busy, self._spent = time.monotonic(), busy(), self._ours()

    def others(self) -> float:
        """1.0 is a whole processor."""
        used = busy() - self._busy - (self._ours() - self._spent)
        return max(used / max(time.monotonic() - self._began, 1e-9), 0.0)

    def _ours(self) -> float:
        return sum(spent(process) for process in self._own)
