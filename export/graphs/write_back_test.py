"""Writing begins where the system can be told to, and a file that is none is no error."""

from __future__ import annotations

import sys
from pathlib import Path

from export.graphs.write_back import begin_write_back


def test_it_begins_on_linux_and_is_never_an_error(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.write(b"x" * 5000)
        file.flush()
        assert begin_write_back(file.fileno()) is (sys.platform == "linux")
    assert (tmp_path / "a").read_bytes() == b"x" * 5000
    assert not begin_write_back(10**6)
