from __future__ import annotations

import subprocess
import sys

import pytest

from parity_tests.laboratory.child_usage import usage_of

MEGABYTES = 150

FILLED = "held = bytearray(b'1') * (%d << 20)"


def program(source: str) -> list[str]:
    return [sys.executable, "-S", "-c", source]


def test_its_peak_is_its_own_however_much_this_process_holds() -> None:
    held = bytearray(b"1") * (2 * MEGABYTES << 20)
    assert usage_of(program("pass")).peak < len(held) // 4
    assert MEGABYTES << 20 < usage_of(program(FILLED % MEGABYTES)).peak < len(held)


def test_programs_that_it_starts_count() -> None:
    inner = program(FILLED % MEGABYTES)
    assert usage_of(program(f"import subprocess; subprocess.run({inner!r})")).peak > MEGABYTES << 20


def test_its_end_is_told() -> None:
    used = usage_of(program("import sys; print('said'); sys.stderr.write('why'); sys.exit(3)"))
    assert (used.code, used.errors) == (3, "why")
    assert usage_of(program("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")).code == -9
    with pytest.raises(subprocess.CalledProcessError):
        usage_of(["no-such-program"])
    busy = usage_of(program("sum(range(10 ** 7))"))
    assert 0.01 < busy.processor <= busy.seconds + 0.1
