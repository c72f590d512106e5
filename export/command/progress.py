"""What the user sees while an export runs: bars on a terminal, plain lines elsewhere, a table at the end."""

from __future__ import annotations

import logging
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from runtime_py.memory import human_bytes, peak_resident_bytes

log = logging.getLogger("edgeproof")

LINE_EVERY_SECONDS = 15.0


@dataclass
class StepTime:
    """One finished step for the table at the end; ``peak`` is the process's highest resident memory by its end."""

    name: str
    seconds: float
    bytes: int
    peak: int


@dataclass
class Progress:
    """Reports steps; use as ``progress(step, done, total)`` in bytes, between ``start`` and ``stop``.

    Attributes:
        quiet: say nothing.
        bars: draw bars; by default when stderr is a terminal.
    """

    quiet: bool = False
    bars: bool = field(default_factory=lambda: bool(sys.stderr.isatty()))
    times: list[StepTime] = field(default_factory=list)
    _bar: Any = None
    _began: float = 0.0
    _last_line: float = 0.0
    _first: tuple[float, int] | None = None
    _step: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self, step: str, number: int, count: int) -> None:
        self._step, self._began = step, time.monotonic()
        self._last_line, self._first = self._began, None
        if not self.quiet and not self.bars:
            log.info("[%d/%d] %s", number, count, step)
        elif not self.quiet:
            from tqdm import tqdm

            self._bar = tqdm(
                total=0, desc=f"[{number}/{count}] {step}", unit="B", unit_scale=True, leave=True, dynamic_ncols=True
            )

    def __call__(self, step: str, done: int, total: int) -> None:
        with self._lock:
            self._first = self._first or (time.monotonic(), done)
            if self._bar is not None:
                self._bar.total = total
                self._bar.n = done
                self._bar.refresh() if done >= total else self._bar.update(0)
            elif not self.quiet and time.monotonic() - self._last_line > LINE_EVERY_SECONDS:
                self._last_line = time.monotonic()
                rate = self._rate(done)
                speed = f", {human_bytes(rate)}/s, {(total - done) / rate:.0f} s left" if rate else ""
                log.info("%s: %s of %s%s", step, human_bytes(done), human_bytes(total), speed)

    def _rate(self, done: int) -> float:
        """Bytes per second since the step first reported; what it did before (a trace, say) moves no bytes."""
        assert self._first is not None
        since, already = self._first
        elapsed = time.monotonic() - since
        return (done - already) / elapsed if elapsed else 0.0

    def stop(self, size: int) -> None:
        """End the current step, which made ``size`` bytes."""
        self._close_bar()
        self.times.append(StepTime(self._step, time.monotonic() - self._began, size, peak_resident_bytes()))

    def abandon(self) -> None:
        """End the current step without a result."""
        self._close_bar()

    def _close_bar(self) -> None:
        with self._lock:
            if self._bar is not None:
                self._bar.close()
                self._bar = None

    def table(self) -> str:
        """Steps with size, time and peak resident memory, one a line."""
        rows = [("step", "size", "time", "peak memory")]
        rows += [(t.name, human_bytes(t.bytes), f"{t.seconds:.1f} s", human_bytes(t.peak)) for t in self.times]
        total = (human_bytes(sum(t.bytes for t in self.times)), f"{sum(t.seconds for t in self.times):.1f} s")
        rows.append(("all", *total, human_bytes(peak_resident_bytes())))
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        return "\n".join(
            f"  {row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]:>{widths[3]}}" for row in rows
        )
