"""The end of a program that this process started."""

from __future__ import annotations

import subprocess

SECONDS = 30.0
"""Until a program that was asked to end is made to."""


def end(process: subprocess.Popen[str] | subprocess.Popen[bytes], seconds: float = SECONDS) -> None:
    """Ask it with SIGTERM, wait, and kill it where it stays; nothing where it ended already."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
