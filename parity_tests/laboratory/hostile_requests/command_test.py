"""What is told of a server that has died, and what addresses of pictures may bring."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
from pathlib import Path

from parity_tests.laboratory.hostile_requests.command import _quiet, open_files
from parity_tests.laboratory.hostile_requests.kinds import Kinds
from parity_tests.laboratory.served import Served


def test_a_server_that_died_is_told_and_raises_nothing(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen([sys.executable, "-c", ""], text=True) as process:
        process.wait()
        server = Served(f"http://127.0.0.1:{port}", "demo", process, tmp_path / "log")
        assert _quiet(server) == "no answer: ConnectionRefusedError"
        assert open_files(server) == 0


def test_many_long_addresses_may_be_too_large_for_a_body() -> None:
    kinds = Kinds("demo", random.Random(0))
    assert all(kinds.address().right == {"400", "413"} for _ in range(20))
