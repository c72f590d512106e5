"""Which threads of a command and its processes are busy when: processor seconds of each, second by second.

    python -m parity_tests.laboratory.busy_threads COMMAND ...

Sampled every tenth of a second from /proc (Linux); what a thread does in its last tenth is not seen. A column is a thread,
``P0`` the command's first process and ``m`` its main thread; those of less than a fifth of a second are left out.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

INTERVAL, LEAST = 0.1, 0.2
"""Seconds between two samples, and processor seconds of a thread that is shown."""

Thread = tuple[int, int]
"""Process and thread ids."""


def processes(root: int) -> Iterator[int]:
    """A process and those it started."""
    yield root
    for task in Path(f"/proc/{root}/task").glob("*/children"):
        for child in task.read_text(encoding="ascii").split():
            yield from processes(int(child))


def seconds_of(thread: Path) -> float:
    """Processor seconds of a thread so far (proc_pid_stat(5): utime and stime)."""
    fields = (thread / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def sampled(command: Sequence[str]) -> tuple[dict[Thread, dict[int, float]], float]:
    """Processor seconds by thread and second of a command, and how long it took."""
    busy: dict[Thread, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    before: dict[Thread, float] = {}
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as running:
        while running.poll() is None:
            now = int(time.monotonic() - began)
            try:
                for process in processes(running.pid):
                    for place in Path(f"/proc/{process}/task").iterdir():
                        thread, seconds = (process, int(place.name)), seconds_of(place)
                        busy[thread][now] += seconds - before.get(thread, 0.0)
                        before[thread] = seconds
            except OSError:
                pass  # it ended meanwhile
            time.sleep(INTERVAL)
    return busy, time.monotonic() - began


def main() -> int:
    """Returns the exit code."""
    busy, took = sampled(sys.argv[1:])
    numbers = {process: number for number, process in enumerate(dict.fromkeys(process for process, _ in busy))}
    shown = [thread for thread, seconds in busy.items() if sum(seconds.values()) >= LEAST]
    names = [f"P{numbers[process]}{'m' if process == thread else thread % 1000}" for process, thread in shown]
    sys.stdout.write("| second | " + " | ".join(names) + " | all |\n" + "|---" * (len(names) + 2) + "|\n")
    for second in range(int(took) + 1):
        cells = [busy[thread][second] for thread in shown]
        sys.stdout.write(f"| {second} | " + " | ".join(f"{cell:.2f}" for cell in (*cells, sum(cells))) + " |\n")
    totals = [sum(busy[thread].values()) for thread in shown]
    sys.stdout.write("| all | " + " | ".join(f"{total:.2f}" for total in (*totals, sum(totals))) + " |\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
