"""A program that listens to SIGTERM, one that does not, and one that has ended."""

from __future__ import annotations

import signal
import subprocess
import sys

from parity_tests.laboratory.process_end import end

DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"


def started(program: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_a_program_ends_with_or_without_its_consent() -> None:
    with started("import time; print(flush=True); time.sleep(60)") as willing, started(DEAF) as deaf:
        end(willing)
        end(deaf, 0.2)
        assert (willing.returncode, deaf.returncode) == (-signal.SIGTERM, -signal.SIGKILL)


def test_one_that_has_ended_keeps_its_code() -> None:
    with started("raise SystemExit(3)") as process:
        process.wait()
        end(process)
        assert process.returncode == 3
